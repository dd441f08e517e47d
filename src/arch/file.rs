//! Reading model files: regular files only, never more than a stated bound, and a stamp that tells whether a file
//! changed since it was looked at.

use super::Error;
use std::fmt::Write;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

/// Size and time of a file when its header was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Last modification; `None` where the disk keeps none.
    pub modified: Option<SystemTime>,
}

impl Stamp {
    /// The stamp of an open file or a path.
    pub fn of(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// Opens a regular file; a pipe or device is refused before `open` could block on it.
pub(super) fn open(path: &Path) -> Result<(File, Stamp), Error> {
    let io = |doing: &'static str| {
        let path = path.to_owned();
        move |cause| Error::Io { path, doing, cause }
    };
    let metadata = std::fs::metadata(path).map_err(io("open"))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(io("open"))?;
    let stamp = Stamp::of(&file.metadata().map_err(io("open"))?);
    Ok((file, stamp))
}

/// A digest as people write it.
pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The whole of a small file.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let (file, stamp) = open(path)?;
    if stamp.size > limit {
        return Err(Error::TooLarge { path: path.into(), bytes: stamp.size, limit });
    }
    read_start(path, &file, limit)
}

/// The first `limit` bytes of a file, or fewer where it ends.
pub(super) fn read_start(path: &Path, file: &File, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|cause| Error::Io {
        path: path.into(),
        doing: "read",
        cause,
    })?;
    Ok(bytes)
}
