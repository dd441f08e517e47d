//! A folder that is committed whole or not at all: built under a temporary name beside its place, flushed, renamed.
//! The order is the protocol; whoever reads the folder later checks sizes and hashes against a manifest that was
//! written last.

use super::durable::{
    Body, create_file, create_folders, fill, folder_of, make_temporary, perform, remove_folder,
    rename_to_free_name, sync_folder,
};
use super::fault::Op;
use super::paths::safe_join;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path below its folder, parts divided by `/`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the contents, in hexadecimal.
    pub sha256: String,
}

/// A folder under construction. Dropped without [`Staging::commit`], it is removed.
#[derive(Debug)]
pub struct Staging {
    place: PathBuf,
    folder: PathBuf,
    inner_folders: BTreeSet<PathBuf>,
    in_place: bool,
}

impl Staging {
    /// Begins a folder that will be `parent/final_name` (K1).
    pub fn begin(parent: &Path, final_name: &str) -> Result<Self> {
        let place = safe_join(parent, final_name)?;
        create_folders(folder_of(&place))?;
        let (folder, ()) =
            make_temporary(Op::Mkdir, folder_of(&place), final_name, |path| std::fs::create_dir(path))?;
        Ok(Self { place, folder, inner_folders: BTreeSet::new(), in_place: false })
    }

    /// Writes one file, hashed on the way and flushed (K2 … K7). `name` may lie in a folder of its own, `rank-0/x`.
    pub fn write(&mut self, name: &str, body: &mut Body<'_>) -> Result<FileEntry> {
        let path = safe_join(&self.folder, name)?;
        let mut inner = folder_of(&path);
        create_folders(inner)?;
        while inner != self.folder {
            self.inner_folders.insert(inner.to_owned());
            inner = folder_of(inner);
        }
        let file = perform(Op::Create, "create", &path, || create_file(&path))?;
        Ok(fill(file, &path, name, body)?)
    }

    /// Flushes the folder (K8), gives it its name, or `name-2`, … where that is taken (K9), and flushes the parent
    /// (K10). After an error here the folder may stand in its place, whole but perhaps not yet on the disk.
    pub fn commit(mut self) -> Result<PathBuf> {
        for inner in self.inner_folders.iter().rev() {
            sync_folder(inner)?;
        }
        sync_folder(&self.folder)?;
        let committed = rename_to_free_name(&self.folder, &self.place)?;
        self.in_place = true;
        sync_folder(folder_of(&committed))?;
        Ok(committed)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.in_place {
            // Best effort: what stays is removed at the next start.
            let _ = remove_folder(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sha256_bytes;
    use super::*;

    #[test]
    fn a_committed_folder_holds_its_files_under_its_name() {
        let parent = tempfile::tempdir().unwrap();
        let mut staging = Staging::begin(parent.path(), "step-1").unwrap();
        let entry = staging.write("rank-0/deep/x", &mut |out| out.write_all(b"abc")).unwrap();
        assert_eq!(entry.sha256, sha256_bytes(b"abc"));
        let path = staging.commit().unwrap();
        assert_eq!(path, parent.path().join("step-1"));
        assert_eq!(std::fs::read(path.join("rank-0/deep/x")).unwrap(), b"abc");
    }

    #[test]
    fn an_existing_folder_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::create_dir(parent.path().join("step-1")).unwrap();
        let staging = Staging::begin(parent.path(), "step-1").unwrap();
        assert_eq!(staging.commit().unwrap(), parent.path().join("step-1-2"));
    }

    #[test]
    fn an_abandoned_folder_vanishes() {
        let parent = tempfile::tempdir().unwrap();
        let mut staging = Staging::begin(parent.path(), "step-1").unwrap();
        staging.write("x", &mut |_| Err(std::io::Error::other("no"))).unwrap_err();
        drop(staging);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_process_with_the_same_number_is_not_in_the_way() {
        let parent = tempfile::tempdir().unwrap();
        let leftover = parent.path().join(format!(".tmp-step-1-{}", std::process::id()));
        std::fs::create_dir(&leftover).unwrap();
        let staging = Staging::begin(parent.path(), "step-1").unwrap();
        assert_eq!(staging.commit().unwrap(), parent.path().join("step-1"));
        assert!(leftover.exists());
    }

    #[test]
    fn files_cannot_leave_the_folder_or_be_written_twice() {
        let parent = tempfile::tempdir().unwrap();
        let mut staging = Staging::begin(parent.path(), "step-1").unwrap();
        assert!(staging.write("../x", &mut |_| Ok(())).is_err());
        staging.write("x", &mut |_| Ok(())).unwrap();
        assert!(staging.write("x", &mut |_| Ok(())).is_err());
        assert!(Staging::begin(parent.path(), "../x").is_err());
    }
}
