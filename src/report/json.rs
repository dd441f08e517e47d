//! `report.json`: written whole or not at all, read back with a bound on its size.

use super::{Error, Report};
use crate::error::Result;
use crate::fs;
use serde::Serialize;
use std::path::Path;

/// No report is larger: samples are short and steps are in files of their own.
pub const MAX_BYTES: u64 = 64 << 20;

/// As files and the terminal have it: indented, every digit, a line break at the end.
pub fn to_text(of: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(of).map_err(Error::Unwritable)? + "\n")
}

/// As the ledger keeps it, small: what the run was at each moment stands among its samples.
pub fn for_ledger(report: &Report) -> Result<String> {
    let report = Report { timeline: Vec::new(), ..report.clone() };
    Ok(serde_json::to_string(&report).map_err(Error::Unwritable)?)
}

/// Writes the report durably.
pub fn write(path: &Path, report: &Report) -> Result<()> {
    fs::write_durable(path, to_text(report)?.as_bytes())
}

/// Reads a report.
///
/// # Errors
/// A file that is missing, larger than 64 MiB or not a report; the place inside it is named.
pub fn read(path: &Path) -> Result<Report> {
    let bytes = fs::read_at_most(path, MAX_BYTES)?;
    Ok(serde_json::from_slice(&bytes)
        .map_err(|source| Error::NotAReport { path: path.to_owned(), source })?)
}
