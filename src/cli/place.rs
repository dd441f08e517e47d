//! RUN on the command line: a run's id, or its folder.

use crate::error::Result;
use crate::fs;
use crate::ledger::Ledger;
use crate::train::{self, folder};
use std::path::{Path, PathBuf};

/// The folder of a run.
///
/// # Errors
/// Neither a folder that holds a run, nor an id that the ledger knows (2).
pub(super) fn folder_of(run: &str) -> Result<PathBuf> {
    let path = Path::new(run);
    if path.is_dir() {
        return match folder::look(path) {
            folder::Holds::Nothing => Err(train::Error::NoRun(path.to_owned()).into()),
            _ => Ok(path.to_owned()),
        };
    }
    Ok(PathBuf::from(Ledger::open(&fs::home()?)?.find(run)?.output_dir))
}
