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

/// Bytes of all files under a folder; what cannot be looked at counts nothing.
pub fn bytes_under(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_under(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).fold(0, u64::saturating_add)
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

    #[test]
    fn all_files_under_a_folder_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/c"), "12345").unwrap();
        std::fs::write(folder.path().join("d"), "123").unwrap();
        assert_eq!(bytes_under(folder.path()), 8);
        assert_eq!(bytes_under(&folder.path().join("none")), 0);
    }
}
