//! Lines of a JSON Lines file, one after another and never the whole file at once; hashes what it reads.
//! Knows nothing of what a row means.

use super::error::{Error, RowFault};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// A file that is read line by line.
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    sha256: Sha256,
    number: u64,
    offset: u64,
    max_line_bytes: u64,
}

/// A line that is not blank.
#[derive(Debug)]
pub struct Line {
    /// From 1, blank lines counted.
    pub number: u64,
    /// Its text without the line end.
    pub text: Result<String, RowFault>,
}

impl Lines {
    /// Opens a regular file.
    ///
    /// # Errors
    /// Missing, unreadable, not a regular file, or empty.
    pub fn open(path: &Path, max_line_bytes: u64) -> Result<Self, Error> {
        let file = open_regular(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            sha256: Sha256::new(),
            number: 0,
            offset: 0,
            max_line_bytes,
        })
    }

    /// The next line that is not blank; `None` at the end.
    ///
    /// # Errors
    /// The disk's. What is wrong with the line itself lies in [`Line::text`].
    pub fn next_line(&mut self) -> Result<Option<Line>, Error> {
        loop {
            let start = self.offset;
            let mut bytes = Vec::new();
            let Some(whole) = self.read_line(&mut bytes)? else {
                return Ok(None);
            };
            self.number += 1;
            let number = self.number;
            if !whole {
                let limit = self.max_line_bytes;
                let text = Err(RowFault::LineTooLong { limit });
                return Ok(Some(Line { number, text }));
            }
            let mut skipped = 0;
            if number == 1 && bytes.starts_with(BOM) {
                bytes.drain(..BOM.len());
                skipped = BOM.len();
            }
            match String::from_utf8(bytes) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => {
                    return Ok(Some(Line { number, text: Ok(text) }));
                }
                Err(error) => {
                    let at = error.utf8_error().valid_up_to() + skipped;
                    let text = Err(RowFault::Utf8 { at, offset: start + at as u64 });
                    return Ok(Some(Line { number, text }));
                }
            }
        }
    }

    /// Lines until `rows` or `bytes` are reached; empty at the end of the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn batch(&mut self, rows: usize, bytes: usize) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        let mut held = 0;
        while lines.len() < rows && held < bytes {
            let Some(line) = self.next_line()? else { break };
            held += line.text.as_ref().map_or(0, String::len);
            lines.push(line);
        }
        Ok(lines)
    }

    /// SHA-256 of the whole file, as hex; reads what is left of it.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(mut self) -> Result<String, Error> {
        let rest = std::io::copy(&mut self.file, &mut HashWriter(&mut self.sha256));
        rest.map_err(|e| cannot_read(&self.path, &e))?;
        Ok(hex(&self.sha256.finalize()))
    }

    /// `None` at the end, `false` where the line passes the cap; its bytes are then dropped as they come.
    fn read_line(&mut self, line: &mut Vec<u8>) -> Result<Option<bool>, Error> {
        let cap = usize::try_from(self.max_line_bytes).unwrap_or(usize::MAX);
        let (mut whole, mut any) = (true, false);
        loop {
            let buffer = match self.file.fill_buf() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(cannot_read(&self.path, &e)),
            };
            if buffer.is_empty() {
                return Ok(any.then_some(whole));
            }
            any = true;
            let end = buffer.iter().position(|&b| b == b'\n');
            let text = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or(buffer);
            let taken = end.map_or(buffer.len(), |at| at + 1);
            self.sha256.update(buffer.get(..taken).unwrap_or(buffer));
            if whole && line.len().saturating_add(text.len()) <= cap {
                line.extend_from_slice(text);
            } else {
                whole = false;
                *line = Vec::new();
            }
            self.file.consume(taken);
            self.offset += taken as u64;
            if end.is_some() {
                return Ok(Some(whole));
            }
        }
    }
}

/// SHA-256 of a file, as hex.
///
/// # Errors
/// As [`Lines::open`].
pub fn sha256(path: &Path) -> Result<String, Error> {
    Lines::open(path, 0)?.finish()
}

/// Reads a small file whole.
///
/// # Errors
/// Missing, unreadable, not a regular file, empty, or longer than `cap` bytes.
pub(super) fn read_small(path: &Path, cap: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut file = open_regular(path)?.take(cap + 1);
    file.read_to_end(&mut bytes).map_err(|e| cannot_read(path, &e))?;
    if bytes.len() as u64 > cap {
        return Err(Error::File {
            path: path.to_owned(),
            cause: format!("the file is longer than {cap} bytes"),
            hint: None,
        });
    }
    Ok(bytes)
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::File { path: path.to_owned(), cause: format!("cannot be read: {error}"), hint: None }
}

fn open_regular(path: &Path) -> Result<File, Error> {
    let refuse = |cause: String, hint: Option<&str>| Error::File {
        path: path.to_owned(),
        cause,
        hint: hint.map(str::to_owned),
    };
    // Asked before opening: opening a FIFO would wait for its writer for ever.
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound if path.symlink_metadata().is_ok() => {
            refuse("the symbolic link leads nowhere".into(), None)
        }
        ErrorKind::NotFound if looks_like_hub_name(path) => refuse(
            "no such file".into(),
            Some("datasets are local JSON Lines files here: download the hub's dataset and name the file"),
        ),
        ErrorKind::NotFound => {
            refuse("no such file".into(), Some("paths are relative to the current folder"))
        }
        _ => refuse(format!("cannot be opened: {e}"), None),
    })?;
    if metadata.is_dir() {
        return Err(refuse("is a folder".into(), Some("name the file in it")));
    }
    if !metadata.is_file() {
        let hint = "write the rows to a file first: an exact resume must read them again";
        return Err(refuse("is not a regular file".into(), Some(hint)));
    }
    if metadata.len() == 0 {
        return Err(refuse("the file is empty (0 bytes)".into(), None));
    }
    File::open(path).map_err(|e| refuse(format!("cannot be opened: {e}"), None))
}

/// `org/name` without an ending.
fn looks_like_hub_name(path: &Path) -> bool {
    let parts: Vec<_> = path.components().collect();
    path.is_relative()
        && path.extension().is_none()
        && parts.len() == 2
        && parts.iter().all(|p| matches!(p, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], max: u64) -> Vec<(u64, Result<String, RowFault>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let mut lines = Lines::open(&path, max).unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            all.push((line.number, line.text));
        }
        assert_eq!(lines.finish().unwrap(), sha256(&path).unwrap());
        all
    }

    #[test]
    fn blank_lines_count_but_are_not_rows() {
        let all = lines(b"\xef\xbb\xbf{}\r\n\n  \t\n{\"a\":1}", 100);
        assert_eq!(all, [(1, Ok("{}\r".into())), (4, Ok("{\"a\":1}".into()))]);
    }

    #[test]
    fn a_line_over_the_cap_is_named_and_the_next_is_read() {
        let mut bytes = vec![b'x'; 1 << 20];
        bytes.extend_from_slice(b"\nab\nabc\n");
        let all = lines(&bytes, 2);
        let over = || Err(RowFault::LineTooLong { limit: 2 });
        assert_eq!(all, [(1, over()), (2, Ok("ab".into())), (3, over())]);
    }

    #[test]
    fn bytes_that_are_not_utf8_have_a_place() {
        let all = lines(b"{}\n{\"a\":\"\xff\"}\n", 100);
        assert_eq!(all[1], (2, Err(RowFault::Utf8 { at: 6, offset: 9 })));
    }

    #[test]
    fn only_a_regular_file_with_bytes_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("empty"), "").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (path, cause) in [
            (at("missing"), "no such file"),
            (at("empty"), "0 bytes"),
            (at("link"), "leads nowhere"),
            (at("fifo"), "not a regular file"),
            (folder.path().to_owned(), "is a folder"),
        ] {
            let error = Lines::open(&path, 10).err().unwrap().to_string();
            assert!(error.contains(cause), "{error}");
        }
        let error = crate::error::Error::from(Lines::open(Path::new("openai/gsm8k"), 1).err().unwrap());
        assert!(error.to_string().contains("local JSON Lines"), "{error}");
    }
}
