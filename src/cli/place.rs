//! RUN on the command line: a run's id, or its folder.

use crate::error::Result;
use crate::fs;
use crate::ledger::{Ledger, RunRow};
use crate::train::{self, folder};
use std::path::{Path, PathBuf};

/// The folder of a run.
///
/// # Errors
/// Neither a folder that holds a run, nor an id that the ledger knows; or another run has its folder (2).
pub(super) fn folder_of(run: &str) -> Result<PathBuf> {
    let path = Path::new(run);
    if path.is_dir() {
        return match folder::look(path) {
            folder::Holds::Nothing => Err(train::Error::NoRun(path.to_owned()).into()),
            _ => Ok(path.to_owned()),
        };
    }
    let row = Ledger::open(&fs::home()?)?.find(run)?;
    let folder = PathBuf::from(&row.output_dir);
    match taken_by(&row) {
        Some(by) => Err(train::Error::Taken { folder, run: row.run_id, by }.into()),
        None => Ok(folder),
    }
}

/// The run that has the folder of this one now, where it is another.
pub(super) fn taken_by(row: &RunRow) -> Option<String> {
    folder::run_id(Path::new(&row.output_dir)).filter(|id| *id != row.run_id)
}
