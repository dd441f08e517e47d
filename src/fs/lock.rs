//! One run a folder: the system's lock on `.lock`, free again the moment its process ends, however it ends.

use super::durable::{create_folders, regular};
use super::error::Error;
use super::owner::Owner;
use crate::error::Result;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Without locks of the system, an owner that has not been heard of for so long is dead.
const SILENCE: Duration = Duration::from_secs(120);

/// A run's folder, held until this is dropped.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
    is_enforced: bool,
}

impl RunLock {
    /// Takes `dir/.lock`; makes the folder where there is none.
    ///
    /// # Errors
    /// Kind `Busy` with process, host and start time where another run holds it.
    pub fn acquire(dir: &Path) -> Result<Self> {
        create_folders(dir)?;
        let path = dir.join(".lock");
        let failed = || Error::io("lock", &path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let mut file = regular(&mut options, &path).map_err(failed())?;
        let busy = |file: &mut File| Error::Busy {
            folder: dir.to_owned(),
            owner: read_owner(file).map_or_else(|| "its owner is not known".to_owned(), |o| o.to_string()),
        };
        let is_enforced = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Err(busy(&mut file).into()),
            Err(TryLockError::Error(e)) if is_unsupported(&e) => false,
            Err(TryLockError::Error(e)) => return Err(failed()(e).into()),
        };
        if !is_enforced && is_claimed(&mut file) {
            return Err(busy(&mut file).into());
        }
        write_owner(&mut file).map_err(failed())?;
        Ok(Self { file, path, is_enforced })
    }

    /// What the user must know where the disk has no locks.
    pub fn warning(&self) -> Option<String> {
        (!self.is_enforced).then(|| {
            format!(
                "{}: this disk has no locks; a second run in the same folder is seen only while this one \
                 is heard of every {} s",
                self.path.display(),
                SILENCE.as_secs()
            )
        })
    }

    /// Says that this run lives, for disks without locks; call it at least once a minute. A failure is not one of
    /// the run's.
    pub fn beat(&self) {
        if !self.is_enforced {
            let _ = self.file.set_modified(SystemTime::now());
        }
    }

    /// Who holds the folder, where somebody does.
    pub fn holder(dir: &Path) -> Option<Owner> {
        let mut file = regular(OpenOptions::new().read(true), &dir.join(".lock")).ok()?;
        // A shared lock: two who ask at once do not see each other.
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read_owner(&mut file),
            Ok(()) => file.unlock().ok().and(None),
            Err(TryLockError::Error(_)) => None,
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Closing alone would leave it to a child that was forked and has not yet begun its own program.
        let _ = self.file.unlock();
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(nix::libc::ENOLCK)
}

/// Whether the record in the file speaks of a run that lives.
fn is_claimed(file: &mut File) -> bool {
    let is_fresh = file
        .metadata()
        .and_then(|m| m.modified())
        // A time in the future is fresh: clocks of two hosts differ.
        .is_ok_and(|at| at.elapsed().is_ok_and(|age| age < SILENCE) || at > SystemTime::now());
    match read_owner(file) {
        None => false,
        Some(owner) => owner.is_alive().unwrap_or(is_fresh),
    }
}

fn read_owner(file: &mut File) -> Option<Owner> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_owner(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(serde_json::to_string(&Owner::here())?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_second_run_is_told_who_holds_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let held = RunLock::acquire(dir.path()).unwrap();
        assert!(held.warning().is_none());
        assert!(RunLock::holder(dir.path()).unwrap().is_same_process(&Owner::here()));
        let error = RunLock::acquire(dir.path()).unwrap_err();
        assert_eq!(error.kind, Kind::Busy);
        let here = Owner::here();
        let text = error.to_string();
        for part in [here.pid.to_string(), here.host, here.started_at[..10].to_owned()] {
            assert!(text.contains(&part), "{text} lacks {part}");
        }
    }

    #[test]
    fn a_lock_is_free_when_its_holder_is_gone_and_old_records_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".lock"), vec![b'x'; 9000]).unwrap();
        drop(RunLock::acquire(dir.path()).unwrap());
        assert!(RunLock::holder(dir.path()).is_none());
        drop(RunLock::acquire(dir.path()).unwrap());
    }

    #[test]
    fn a_lock_that_is_a_link_is_refused_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, b"mine").unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join(".lock")).unwrap();
        assert!(RunLock::acquire(dir.path()).is_err());
        assert_eq!(std::fs::read(&outside).unwrap(), b"mine");
    }

    #[test]
    fn without_locks_the_record_of_a_living_run_counts() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(!is_claimed(&mut file), "an empty file claims nothing");
        write_owner(&mut file).unwrap();
        assert!(is_claimed(&mut file), "this process lives");
        let record = |owner: &Owner, file: &mut File| {
            file.set_len(0).unwrap();
            file.rewind().unwrap();
            file.write_all(serde_json::to_string(owner).unwrap().as_bytes()).unwrap();
        };
        let mut owner = Owner::here();
        owner.boot_id = Some("an earlier boot".into());
        record(&owner, &mut file);
        assert!(!is_claimed(&mut file), "a process of an earlier boot is dead");
        owner.host = "elsewhere".into();
        record(&owner, &mut file);
        assert!(is_claimed(&mut file), "heard of just now");
        file.set_modified(SystemTime::now() - 2 * SILENCE).unwrap();
        assert!(!is_claimed(&mut file), "silent for too long");
    }
}
