//! The output folder before a run: whose it is, and who may have it.

use super::{Error, Options};
use crate::error::Result;
use crate::fs;
use std::path::{Path, PathBuf};

/// The config of a run, written when it starts.
pub const CONFIG: &str = "config.resolved.toml";
/// Written when a run ends, however it ends.
pub const REPORT: &str = "report.json";
/// What the run was predicted to take, before its first step.
pub const ESTIMATE: &str = "estimate.json";

/// The loss on what is not to be forgotten, before and after.
pub const RETENTION: &str = "retention.jsonl";

/// The run's id in the ledger, written when it starts.
pub const RUN_ID: &str = "run_id";

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// No run.
    Nothing,
    /// A run that did not reach its last step.
    Interrupted,
    /// A run that did.
    Finished,
}

/// Looks, and changes nothing.
pub fn look(folder: &Path) -> Holds {
    let status = || Some(report(folder)?["status"].as_str()?.to_owned());
    let has_checkpoints = || fs::entries(&folder.join("checkpoints")).is_ok_and(|all| !all.is_empty());
    if status().as_deref() == Some("done") {
        Holds::Finished
    } else if folder.join(CONFIG).symlink_metadata().is_ok() || has_checkpoints() {
        Holds::Interrupted
    } else {
        Holds::Nothing
    }
}

/// The id of the run that the folder holds.
pub fn run_id(folder: &Path) -> Option<String> {
    let text = String::from_utf8(fs::read_at_most(&folder.join(RUN_ID), 64).ok()?).ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Steps that the run whose report stands here was to take.
pub fn planned_steps(folder: &Path) -> Option<u64> {
    report(folder)?["training"]["planned_steps"].as_u64()
}

fn report(folder: &Path) -> Option<serde_json::Value> {
    let text = fs::read_at_most(&folder.join(REPORT), 64 << 20).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whether the run may have the folder; nothing is written.
///
/// # Errors
/// Busy: another run is at work in it, or it holds one that this run neither resumes nor may move aside.
pub fn permit(folder: &Path, holds: Holds, options: &Options) -> Result<()> {
    if let Some(owner) = fs::RunLock::holder(folder) {
        return Err(fs::Error::Busy { folder: folder.to_owned(), owner: owner.to_string() }.into());
    }
    match holds {
        _ if options.overwrite || options.resume => Ok(()),
        Holds::Nothing => Ok(()),
        Holds::Interrupted => Err(Error::Interrupted(folder.to_owned()).into()),
        Holds::Finished => Err(Error::Finished(folder.to_owned()).into()),
    }
}

/// Moves a folder aside, under a name that says so; returns the name.
pub fn move_aside(folder: &Path) -> Result<PathBuf> {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".old");
    // Held while the folder moves, so that no other run begins in it.
    let _lock = fs::RunLock::acquire(folder)?;
    fs::rename_to_free_name(folder, &folder.with_file_name(name))
}
