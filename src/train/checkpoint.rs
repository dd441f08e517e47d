//! Checkpoints: committed whole, found again newest first, believed only after every hash was checked, and pruned
//! never below one that was. Knows files and hashes; what a tensor is, the caller knows.

mod manifest;

pub use manifest::{Manifest, SCHEMA};

use crate::error::{Fault, Kind, Problem, Result};
use crate::fs::{self, Staging};
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A checkpoint that cannot be used, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One folder does not hold what its manifest says.
    #[error("{}: not a usable checkpoint: {why}", path.display())]
    Broken {
        /// The folder.
        path: PathBuf,
        /// The first thing that is wrong.
        why: String,
    },
    /// There are checkpoints, and none can be used.
    #[error("{}: none of its {} checkpoints can be used{}", folder.display(), skipped.len(), list(skipped))]
    NoneUsable {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Each with its reason, newest first.
        skipped: Vec<(PathBuf, String)>,
    },
    /// The caller gave a manifest that cannot be written: a number that is not finite, a reserved name.
    #[error("this checkpoint cannot be described: {0}")]
    Undescribable(String),
}

fn list(skipped: &[(PathBuf, String)]) -> String {
    let lines: Vec<_> = skipped.iter().map(|(path, why)| format!("\n  {}: {why}", path.display())).collect();
    lines.concat()
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Broken { .. } | Self::NoneUsable { .. } => Kind::Model,
            Self::Undescribable(_) => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Broken { .. } => Some("use an older checkpoint of the same run".to_owned()),
            Self::NoneUsable { .. } => {
                Some("start again with `--overwrite`; the folder is moved aside, not deleted".to_owned())
            }
            Self::Undescribable(_) => None,
        }
    }
}

/// What a search for the newest checkpoint found.
#[derive(Debug)]
pub struct Found {
    /// The newest that verifies.
    pub taken: Option<(PathBuf, Manifest)>,
    /// Newer ones that do not, each with its reason. They stay where they are.
    pub skipped: Vec<(PathBuf, String)>,
}

/// The folder `checkpoints/` of a run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// What is known of each folder: written or verified by this process, or broken.
    verdicts: BTreeMap<PathBuf, bool>,
    /// The last commit reached the disk: without that, nothing may be pruned.
    is_settled: bool,
}

impl Checkpoints {
    /// Opens `out/checkpoints`, makes it where there is none, and removes what dead processes left behind in it and
    /// in `out`. The caller holds the lock of `out`.
    pub fn open(out: &Path) -> Result<Self> {
        let folder = out.join("checkpoints");
        fs::create_folders(&folder)?;
        fs::remove_leftovers(out)?;
        fs::remove_leftovers(&folder)?;
        // A process killed between rename and fsync left a folder that is seen but not yet kept.
        fs::sync_folder(&folder)?;
        Ok(Self { folder, verdicts: BTreeMap::new(), is_settled: true })
    }

    /// The checkpoints of `out`, to be read only: nothing is made, removed or locked.
    pub fn look(out: &Path) -> Self {
        Self { folder: out.join("checkpoints"), verdicts: BTreeMap::new(), is_settled: false }
    }

    /// Commits a checkpoint (K1 … K10): each file written, hashed and flushed, the manifest last, then the name.
    /// `manifest.files` is filled in here; a name may be `rank-0/optimizer.safetensors`. A failure leaves every
    /// earlier checkpoint as it was.
    pub fn commit(
        &mut self,
        mut manifest: Manifest,
        files: &mut [(&str, &mut fs::Body<'_>)],
    ) -> Result<PathBuf> {
        self.is_settled = false;
        if let Some((name, _)) = files.iter().find(|(name, _)| *name == manifest::FILE) {
            return Err(Error::Undescribable(format!("`{name}` is the manifest's own name")).into());
        }
        let committed = self.write(&mut manifest, files);
        let path = committed.map_err(|error| self.with_bytes_needed(error, files))?;
        self.is_settled = true;
        self.verdicts.insert(path.clone(), true);
        Ok(path)
    }

    fn write(&self, manifest: &mut Manifest, files: &mut [(&str, &mut fs::Body<'_>)]) -> Result<PathBuf> {
        let mut staging = Staging::begin(&self.folder, &manifest::folder_name(manifest.step))?;
        manifest.files.clear();
        for (name, body) in files.iter_mut() {
            manifest.files.push(staging.write(name, *body)?);
        }
        let text = manifest.render().map_err(Error::Undescribable)?;
        staging.write(manifest::FILE, &mut |out| out.write_all(text.as_bytes()))?;
        staging.commit()
    }

    /// Says what the checkpoint would have taken where the disk has less.
    fn with_bytes_needed(
        &self,
        mut error: crate::error::Error,
        files: &mut [(&str, &mut fs::Body<'_>)],
    ) -> crate::error::Error {
        let mut count = Count(0);
        let is_counted = files.iter_mut().all(|(_, body)| body(&mut count).is_ok());
        if let Ok(free) = fs::free_bytes(&self.folder)
            && error.kind == Kind::Resource
            && is_counted
            && free < count.0
        {
            error.problems.push(Problem {
                message: format!(
                    "{}: a checkpoint needs {} and {} are free",
                    self.folder.display(),
                    Bytes(count.0),
                    Bytes(free)
                ),
                hint: Some("free some space, then resume: earlier checkpoints are intact".to_owned()),
            });
        }
        error
    }

    /// The newest checkpoint that verifies, and why newer ones were skipped. Nothing is changed.
    pub fn latest(&self) -> Result<Found> {
        let mut skipped = Vec::new();
        for path in self.newest_first()? {
            match manifest::verify(&path) {
                Ok(manifest) => {
                    return Ok(Found { taken: Some((path, manifest)), skipped });
                }
                Err(why) => skipped.push((path, why)),
            }
        }
        Ok(Found { taken: None, skipped })
    }

    /// The newest checkpoint of a step that verifies.
    pub fn of_step(&self, step: u64) -> Result<Option<(PathBuf, Manifest)>> {
        let of_step = |path: &PathBuf| manifest::step_of(path) == Some(step);
        let mut found = self.newest_first()?.into_iter().filter(of_step);
        Ok(found.find_map(|path| Some((path.clone(), manifest::verify(&path).ok()?))))
    }

    /// As [`Checkpoints::latest`], but refuses (kind `Model`) where there are checkpoints and none verifies;
    /// `taken` is `None` only where there are none at all.
    pub fn latest_or_refuse(&self) -> Result<Found> {
        let found = self.latest()?;
        if found.taken.is_none() && !found.skipped.is_empty() {
            return Err(Error::NoneUsable { folder: self.folder.clone(), skipped: found.skipped }.into());
        }
        Ok(found)
    }

    /// Checks one checkpoint's folder: manifest, step, names, sizes and hashes.
    pub fn verify(path: &Path) -> Result<Manifest> {
        Ok(manifest::verify(path).map_err(|why| Error::Broken { path: path.to_owned(), why })?)
    }

    /// Reads one file of a checkpoint with `take`, which is given its bytes in order and their number. They are hashed
    /// again meanwhile: what was taken is what was verified, unless this fails.
    pub fn read(
        path: &Path,
        manifest: &Manifest,
        name: &str,
        take: impl FnOnce(&mut dyn Read, u64) -> Result<(), String>,
    ) -> Result<()> {
        Ok(manifest::read(path, manifest, name, take)
            .map_err(|why| Error::Broken { path: path.to_owned(), why })?)
    }

    /// Removes all but the newest `limit` checkpoints (K12, K13). The one of step `best` stays, at least one that
    /// verifies stays, broken ones stay and do not count; nothing is removed after a commit that failed.
    pub fn prune(&mut self, limit: Option<usize>, best: Option<u64>) -> Result<()> {
        let Some(limit) = limit else { return Ok(()) };
        if !self.is_settled {
            return Ok(());
        }
        let mut usable = self.newest_first()?;
        usable.retain(|path| {
            *self.verdicts.entry(path.clone()).or_insert_with(|| manifest::verify(path).is_ok())
        });
        for path in usable.iter().skip(limit.max(1)).rev() {
            if best.is_none() || manifest::step_of(path) != best {
                self.discard(path)?;
            }
        }
        Ok(())
    }

    fn discard(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let trash = self.folder.join(format!(".trash-{name}-{}", std::process::id()));
        let trash = fs::rename_to_free_name(path, &trash)?;
        self.verdicts.remove(path);
        fs::remove_folder(&trash)
    }

    fn newest_first(&self) -> Result<Vec<PathBuf>> {
        // A run that was killed at its very beginning has none yet.
        if self.folder.symlink_metadata().is_err() {
            return Ok(Vec::new());
        }
        let mut found: Vec<_> = fs::entries(&self.folder)?
            .into_iter()
            .filter_map(|path| Some((manifest::place_of(&path)?, path)))
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }
}

struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
