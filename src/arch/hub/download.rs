//! A blob's bytes: into a file beside it, resumed where the line breaks, checked for length and hash, then renamed.
//! Whatever fails, nothing half-written stays.

use super::Error;
use super::request::{Description, Request};
use super::snapshot::make_parent;
use crate::arch::file::hex;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ureq::Body;
use ureq::http::{Response, StatusCode};

/// Tries that bring nothing new before a download is given up.
const MAX_FRUITLESS: u32 = 3;

/// A file under a name of its own, removed when dropped (after a rename there is nothing left to remove).
pub(super) struct Part {
    pub path: PathBuf,
}

impl Part {
    pub(super) fn beside(target: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}-{count}.incomplete", std::process::id()));
        Self { path: name.into() }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Fetches a blob whole; `response` is the answer to the first request for it.
pub(super) fn download(
    request: &Request,
    description: &Description,
    response: Response<Body>,
    blob: &Path,
) -> Result<(), Error> {
    make_parent(blob)?;
    let part = Part::beside(blob);
    let cache = |doing: &'static str| {
        let path = part.path.clone();
        move |cause| Error::Cache { path, doing, cause }
    };
    let wanted = description.size.or_else(|| body_length(&response));
    if wanted.is_none() && !is_chunked(&response) {
        return Err(request.bad("no length"));
    }
    let mut sink = Sink {
        file: File::create(&part.path).map_err(cache("create"))?,
        hash: Sha256::new(),
        got: 0,
        wanted,
        bar: progress(request.file, wanted),
    };
    let mut answer = Some(response);
    let mut fruitless = 0;
    loop {
        let before = sink.got;
        let finished = match answer.take() {
            Some(response) => sink.fill(response).map_err(cache("write"))?,
            None => false,
        };
        if finished {
            break;
        }
        fruitless = if sink.got > before { 0 } else { fruitless + 1 };
        if fruitless >= MAX_FRUITLESS {
            return Err(Error::Cut {
                repo: request.repo.into(),
                file: request.file.into(),
                got: sink.got,
                wanted,
            });
        }
        std::thread::sleep(Duration::from_millis(200) * (1 + fruitless));
        answer = resume(request, description, &sink)?;
    }
    sink.file.sync_all().map_err(cache("sync"))?;
    check_hash(request, description, sink.hash)?;
    sink.bar.finish_and_clear();
    std::fs::rename(&part.path, blob).map_err(cache("rename"))
}

/// Asks for the rest; `None` where nobody answers or the answer is not the rest, so that the try counts as fruitless.
fn resume(
    request: &Request,
    description: &Description,
    sink: &Sink,
) -> Result<Option<Response<Body>>, Error> {
    let (again, response) = match request.send(sink.got) {
        Ok(answer) => answer,
        Err(Error::Unreachable { .. }) => return Ok(None),
        Err(other) => return Err(other),
    };
    if again.etag != description.etag {
        return Err(request.bad("another file on the second try"));
    }
    let range = response.headers().get("content-range");
    let continues = range
        .and_then(|range| range.to_str().ok())
        .is_some_and(|range| range.starts_with(&format!("bytes {}-", sink.got)));
    let whole = sink.got == 0 && response.status() == StatusCode::OK;
    Ok(Some(response).filter(|_| continues || whole))
}

struct Sink {
    file: File,
    hash: Sha256,
    got: u64,
    wanted: Option<u64>,
    bar: ProgressBar,
}

impl Sink {
    /// Takes in a body; whether that was all of it. An error of the network is `false`, one of the disk an error.
    fn fill(&mut self, response: Response<Body>) -> std::io::Result<bool> {
        self.file.seek(SeekFrom::Start(self.got))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(_) => return Ok(false),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            if self.wanted.is_some_and(|all| self.got + read as u64 > all) {
                return Ok(false);
            }
            self.file.write_all(bytes)?;
            self.hash.update(bytes);
            self.got += read as u64;
            self.bar.set_position(self.got);
        }
        Ok(self.wanted.is_none_or(|all| all == self.got))
    }
}

fn body_length(response: &Response<Body>) -> Option<u64> {
    let value = response.headers().get("content-length")?;
    value.to_str().ok()?.parse().ok()
}

fn is_chunked(response: &Response<Body>) -> bool {
    response
        .headers()
        .get("transfer-encoding")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// Large files are addressed by their SHA-256; git's blob ids of the others are not checked.
fn check_hash(request: &Request, description: &Description, hash: Sha256) -> Result<(), Error> {
    let Some(promised) = description.etag.as_ref().filter(|etag| etag.len() == 64) else {
        return Ok(());
    };
    let found = hex(&hash.finalize());
    if found.eq_ignore_ascii_case(promised) {
        return Ok(());
    }
    Err(Error::Hash {
        repo: request.repo.into(),
        file: request.file.into(),
        found,
        promised: promised.clone(),
    })
}

/// A bar on stderr, where that is a terminal.
fn progress(file: &str, wanted: Option<u64>) -> ProgressBar {
    let Some(wanted) = wanted else {
        return ProgressBar::hidden();
    };
    let bar = ProgressBar::new(wanted);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ({eta})",
    ) {
        bar.set_style(style);
    }
    bar.set_message(file.to_owned());
    bar
}
