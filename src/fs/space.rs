//! Free space on a disk.

use super::error::Error;
use crate::error::Result;
use crate::units::Bytes;
use nix::sys::statvfs::{Statvfs, statvfs};
use std::path::Path;

/// Bytes that this user may still write at `path`, or at its nearest folder that exists.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let disk = disk_of(path).map_err(Error::io("ask for the free space at", path))?;
    Ok(free_on(&disk))
}

/// What is short on a full disk, in words: the bytes, or the inodes.
pub(super) fn shortage(path: &Path) -> Option<String> {
    let disk = disk_of(path).ok()?;
    Some(if disk.files() > 0 && disk.files_available() == 0 {
        "no inodes are left".to_owned()
    } else {
        format!("{} are free", Bytes(free_on(&disk)))
    })
}

fn disk_of(path: &Path) -> std::io::Result<Statvfs> {
    // A relative path's last ancestor is "", which no system knows.
    let absolute = std::path::absolute(path)?;
    let existing = absolute.ancestors().find(|p| p.exists());
    Ok(statvfs(existing.unwrap_or(Path::new("/")))?)
}

#[allow(clippy::useless_conversion, reason = "block counts have 32 bits on macOS")]
fn free_on(disk: &Statvfs) -> u64 {
    u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_has_its_parents_space() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a/b/c");
        assert!(free_bytes(&inside).unwrap() > 0);
        assert!(free_bytes(Path::new("not-there-yet")).unwrap() > 0);
    }
}
