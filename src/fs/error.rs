//! What can go wrong with the disk: the operation, the path, the cause as the system states it, and the way out.

use super::space;
use crate::error::{Fault, Kind};
use std::io;
use std::path::{Path, PathBuf};

/// A failure of the disk, of a name or of a lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation.
    #[error("cannot {operation} {}: {cause}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// A name that would leave its folder, or that some system cannot hold.
    #[error("`{name}` cannot be a path inside a folder of this program: {rule}")]
    Name {
        /// The name, shortened and with control characters escaped.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Another run holds the folder.
    #[error("{} is in use by another run: {owner}", folder.display())]
    Busy {
        /// The run's folder.
        folder: PathBuf,
        /// Process, host and start time, as far as they are known.
        owner: String,
    },
    /// There is no place for the program's own data.
    #[error("no folder for the ledger and the caches: neither FTTRAIN_HOME nor HOME is set")]
    NoHome,
}

impl Error {
    /// An [`Error::Io`], ready for `map_err`.
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |cause| Self::Io { operation, path, cause }
    }

    /// Whether the system said that the target is there already.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if matches!(
            cause.kind(),
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
        ))
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { .. } => Kind::Resource,
            Self::Name { .. } | Self::NoHome => Kind::Usage,
            Self::Busy { .. } => Kind::Busy,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { operation, path, cause } => return hint_for(operation, path, cause),
            Self::Name { .. } => "use a relative path of plain names: no `..`, no `\\`, no leading `/`, \
                 at most 255 bytes a name"
                .to_owned(),
            Self::Busy { .. } => "wait for that run, stop it, or choose another `output_dir`".to_owned(),
            Self::NoHome => "set FTTRAIN_HOME to a folder that may be written".to_owned(),
        })
    }
}

fn hint_for(operation: &str, path: &Path, cause: &io::Error) -> Option<String> {
    let hint = match cause.kind() {
        io::ErrorKind::StorageFull => match space::shortage(path) {
            Some(shortage) => {
                format!("the disk is full ({shortage}): free some, or use another disk")
            }
            None => "the disk is full: free some space, or use another disk".to_owned(),
        },
        io::ErrorKind::QuotaExceeded => {
            "your quota on this disk is used up: free some space, or use another disk".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the disk is mounted read-only: remount it, or use another disk".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not do that here: change the owner or the mode, or use another folder".to_owned()
        }
        // Some disks report a lost write at fsync only; a second fsync would then succeed and lie.
        _ if operation.starts_with("fsync") => {
            "the disk may have lost what was written; it is not tried again on the same file. \
             Check the disk: what was committed before is intact"
                .to_owned()
        }
        _ if cause.raw_os_error() == Some(nix::libc::EIO) => {
            "the disk reports an input/output error: check it before the next run; what was \
             committed before is intact"
                .to_owned()
        }
        _ => return None,
    };
    Some(hint)
}
