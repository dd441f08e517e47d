//! `manifest.json`: what a checkpoint is, which files it has, and their hashes. Its last line is the hash of all
//! before it, so that every bit of a checkpoint is covered by one.

use crate::fs::{self, FileEntry, Hashing};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The manifest's file name.
pub(super) const FILE: &str = "manifest.json";

/// The form of the manifest that this version writes; it reads no newer one.
pub const SCHEMA: u32 = 1;

/// A manifest names files and no tensors: a larger one is not ours.
const MAX_BYTES: u64 = 4 << 20;

/// What a checkpoint is. The order of everything random is a function of the seed and the step, so the step is the
/// cursor, and there is no state of a generator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with the fraction of the current one.
    pub epoch: f64,
    /// Seconds that the run has taken so far, over all its processes.
    pub wall_s: f64,
    /// USD spent so far; `None` without a price.
    pub cost_usd: Option<f64>,
    /// Joules taken so far; `None` = not measured.
    pub energy_j: Option<f64>,
    /// Step and evaluation loss of the best checkpoint so far.
    pub best: Option<(u64, f64)>,
    /// Evaluations since the best one.
    pub bad_evals: u64,
    /// Optimizer steps that the run was to take; 0 = not known.
    #[serde(default)]
    pub planned_steps: u64,
    /// SHA-256 of the resolved config.
    pub config_hash: String,
    /// SHA-256 of the training data.
    pub data_hash: String,
    /// Fingerprint of the base model.
    pub base_hash: String,
    /// Version of the program and kernel path: another one is not bit-exact.
    pub build: String,
    /// Device of the run.
    pub device: String,
    /// Element type of the frozen weights.
    pub dtype: String,
    /// Processes that shared the steps.
    #[serde(default = "one")]
    pub processes: usize,
    /// Every file but the manifest.
    pub files: Vec<FileEntry>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

impl Manifest {
    /// The file's text. Refuses what could not be read back.
    pub(super) fn render(&self) -> Result<String, String> {
        let body = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        // JSON has no NaN: it would be written as null and refused at the resume.
        if serde_json::from_str::<Self>(&body).ok().as_ref() != Some(self) {
            return Err("a number in it is not finite".to_owned());
        }
        let head = body.trim_end_matches('}').trim_end();
        Ok(format!("{head}{}", seal(head.as_bytes())))
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if let Ok(SchemaOnly { schema }) = serde_json::from_slice(bytes)
            && schema > SCHEMA
        {
            return Err(format!("its manifest has schema {schema}, this version reads up to {SCHEMA}"));
        }
        let length = seal(b"").len();
        let (head, tail) = bytes
            .len()
            .checked_sub(length)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or("its manifest is cut short")?;
        if tail != seal(head).as_bytes() {
            return Err("its manifest was cut or changed: the hash in its last line differs".to_owned());
        }
        let body = [head, b"}"].concat();
        serde_json::from_slice(&body).map_err(|e| format!("its manifest cannot be read: {e}"))
    }
}

/// The end of the file: closes the object with the hash of everything before.
fn seal(head: &[u8]) -> String {
    format!(",\n  \"sha256\": \"{}\"\n}}\n", fs::sha256_bytes(head))
}

/// `step-00000200`.
pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step in a folder's name, and which of several of that step it is, from 1.
pub(super) fn place_of(path: &Path) -> Option<(u64, u64)> {
    let name = path.file_name()?.to_str()?;
    let mut parts = name.strip_prefix("step-")?.splitn(2, '-');
    let step = parts.next()?.parse().ok()?;
    let (nth, written) = match parts.next() {
        None => (1, folder_name(step)),
        Some(nth) => {
            let nth = nth.parse().ok()?;
            (nth, format!("{}-{nth}", folder_name(step)))
        }
    };
    (written == name).then_some((step, nth))
}

/// The step in a folder's name.
pub(super) fn step_of(path: &Path) -> Option<u64> {
    place_of(path).map(|(step, _)| step)
}

/// Checks a checkpoint's folder whole; the error is the first thing that is wrong.
pub(super) fn verify(folder: &Path) -> Result<Manifest, String> {
    let manifest = read_manifest(folder)?;
    let mut names = BTreeSet::from([FILE]);
    for entry in &manifest.files {
        if !names.insert(&entry.name) {
            return Err(format!("its manifest names `{}` twice", entry.name));
        }
        let path = plain_path(folder, &entry.name)?;
        let size = path.symlink_metadata().map_err(|e| format!("`{}`: {e}", entry.name))?.len();
        if size != entry.size {
            return Err(format!("`{}` has {size} bytes, its manifest says {}", entry.name, entry.size));
        }
        let sha256 = fs::sha256_file(&path).map_err(|e| said(&e))?;
        if sha256 != entry.sha256 {
            return Err(differs(&entry.name));
        }
    }
    Ok(manifest)
}

/// Reads one file with `take`, which is given its bytes in order and their number, and hashes them meanwhile.
pub(super) fn read(
    folder: &Path,
    manifest: &Manifest,
    name: &str,
    take: impl FnOnce(&mut dyn Read, u64) -> Result<(), String>,
) -> Result<(), String> {
    let entry = manifest
        .files
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| format!("its manifest names no `{name}`"))?;
    let failed = |e| format!("`{name}`: {e}");
    let mut file = Hashing::open(&plain_path(folder, name)?).map_err(failed)?;
    let taken = take(&mut file, entry.size);
    // What was taken may be wrong because the file is: that is the first thing to say.
    if file.finish().map_err(failed)? == entry.sha256 { taken } else { Err(differs(name)) }
}

fn read_manifest(folder: &Path) -> Result<Manifest, String> {
    if folder.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
        return Err("it is a symbolic link".to_owned());
    }
    let bytes = fs::read_at_most(&folder.join(FILE), MAX_BYTES).map_err(|e| said(&e))?;
    let manifest = Manifest::parse(&bytes)?;
    if manifest.schema != SCHEMA {
        return Err(format!("its manifest has schema {}", manifest.schema));
    }
    match step_of(folder) {
        Some(step) if step == manifest.step => Ok(manifest),
        _ => Err(format!("its manifest says step {}, which is not its name", manifest.step)),
    }
}

/// The path of a file that lies in `folder` itself: no link on the way, no name that leads out.
fn plain_path(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let path = fs::safe_join(folder, name).map_err(|e| said(&e))?;
    let mut at = folder.to_owned();
    for part in name.split('/') {
        at.push(part);
        if at.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            return Err(format!("`{name}` leads through a symbolic link"));
        }
    }
    Ok(path)
}

fn differs(name: &str) -> String {
    format!("`{name}` was changed: its SHA-256 differs from the manifest's")
}

fn said(error: &crate::error::Error) -> String {
    let messages: Vec<_> = error.problems.iter().map(|p| p.message.as_str()).collect();
    messages.join("; ")
}
