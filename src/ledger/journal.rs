//! Records that the ledger could not take, as lines of JSON in the run's own folder.

use super::Error;
use super::record::{Entry, Record};
use crate::error::Result;
use crate::fs::{self, Appender};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The file's name in the run's folder.
pub const PENDING: &str = "ledger-pending.jsonl";

/// Longer than any config or report; a longer line is not ours.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// A file of pending records. The first one starts the run that all the others are of.
#[derive(Debug)]
pub struct Journal {
    lines: Appender,
    path: PathBuf,
}

impl Journal {
    /// Opens or makes `out/ledger-pending.jsonl`.
    pub fn open(out: &Path) -> Result<Self> {
        let path = out.join(PENDING);
        Ok(Self { lines: Appender::open(&path)?, path })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Record for Journal {
    fn record(&mut self, entry: Entry) -> Result<()> {
        let line = serde_json::to_string(&entry).map_err(|e| Error::Pending {
            path: self.path.clone(),
            line: 0,
            why: e.to_string(),
        })?;
        self.lines.line(&line)?;
        if matches!(entry, Entry::Heartbeat { .. }) {
            return Ok(());
        }
        self.lines.sync()
    }
}

/// All whole lines of the file; a torn last one was never a record.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>> {
    let refused = |line, why: String| Error::Pending { path: path.to_owned(), line, why };
    let file = fs::open_regular(path).map_err(|e| refused(0, e.to_string()))?;
    let mut reader = BufReader::new(file);
    let mut entries = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let number = entries.len() + 1;
        (&mut reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|e| refused(number, e.to_string()))?;
        if line.pop() != Some(b'\n') {
            return Ok(entries);
        }
        entries.push(serde_json::from_slice(&line).map_err(|e| refused(number, e.to_string()))?);
    }
}
