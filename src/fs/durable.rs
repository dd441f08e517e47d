//! The single durable operations: each passes the fault counter, repeats what was interrupted, and names itself, its
//! path and the cause where it fails.

use super::error::Error;
use super::fault::{self, Op};
use super::hash::{BLOCK_BYTES, hex};
use super::staging::FileEntry;
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Writes a file's contents. Where space runs out it may be run once more, to count what was needed.
pub type Body<'a> = dyn FnMut(&mut dyn Write) -> io::Result<()> + 'a;

/// Other names that are tried where one is taken.
const MAX_NAMES: u32 = 1000;

/// One durable operation. An interrupted call did not happen, so it is repeated; nothing else is.
pub(super) fn perform<T>(
    op: Op,
    operation: &'static str,
    path: &Path,
    mut act: impl FnMut() -> io::Result<T>,
) -> Result<T, Error> {
    loop {
        match fault::point(op).and_then(|()| act()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome.map_err(Error::io(operation, path)),
        }
    }
}

/// The folder that holds `path`'s entry.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens an existing regular file to read it. Links, folders, pipes and devices are refused, and never waited for.
pub fn open_regular(path: &Path) -> io::Result<File> {
    regular(OpenOptions::new().read(true), path)
}

/// Opens with the options given, but never through a link and only what is a regular file.
pub(super) fn regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// The contents of a regular file of at most `limit` bytes.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = || Error::io("read", path);
    let file = open_regular(path).map_err(failed())?;
    let mut bytes = Vec::new();
    // One more than the limit: a file that grows meanwhile is seen too.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed())?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n <= limit) {
        return Ok(bytes);
    }
    Err(failed()(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")))
        .into())
}

/// Makes a folder and those above it, each flushed into its parent.
pub fn create_folders(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = folder_of(path);
    create_folders(parent)?;
    match perform(Op::Mkdir, "create the folder", path, || fs::create_dir(path)) {
        Err(error) if error.is_taken() && path.is_dir() => {}
        other => other?,
    }
    sync_folder(parent)
}

/// Flushes a folder's entries to the disk.
pub fn sync_folder(path: &Path) -> Result<()> {
    let operation = "fsync the folder";
    Ok(perform(Op::Fsync, operation, path, || {
        match File::open(path)?.sync_all() {
            // Some network disks know no fsync of a folder; they keep entries in order by themselves.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other,
        }
    })?)
}

/// Gives `from` the name `to`, or `to-2`, `to-3`, … where that is taken, and returns the name given. Nothing is
/// overwritten. The folder is not flushed.
pub fn rename_to_free_name(from: &Path, to: &Path) -> Result<PathBuf> {
    for n in 1..=MAX_NAMES {
        let mut name = to.as_os_str().to_owned();
        if n > 1 {
            name.push(format!("-{n}"));
        }
        let target = PathBuf::from(name);
        // The lock keeps other runs away; were there a race, the system refuses to replace a folder with entries.
        if target.symlink_metadata().is_ok() {
            continue;
        }
        match perform(Op::Rename, "rename into", &target, || fs::rename(from, &target)) {
            Err(error) if error.is_taken() => {}
            other => return Ok(other.map(|()| target)?),
        }
    }
    Err(every_name_taken("rename into", to).into())
}

/// Deletes a folder with all it holds; links in it are deleted, not followed.
pub fn remove_folder(path: &Path) -> Result<()> {
    Ok(perform(Op::Remove, "delete the folder", path, || fs::remove_dir_all(path))?)
}

/// Deletes a file, and flushes its folder.
pub fn remove_file(path: &Path) -> Result<()> {
    perform(Op::Remove, "delete", path, || fs::remove_file(path))?;
    sync_folder(folder_of(path))
}

/// The paths of a folder's entries, in no order.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || Error::io("list", folder);
    let listed = fs::read_dir(folder).map_err(failed())?;
    let paths: io::Result<_> = listed.map(|entry| Ok(entry?.path())).collect();
    Ok(paths.map_err(failed())?)
}

/// Deletes what dead processes left in `folder`: `.tmp-…-<pid>` and `.trash-…-<pid>`. The caller holds the lock
/// under which they were made.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if !path.file_name().and_then(OsStr::to_str).is_some_and(is_leftover) {
            continue;
        }
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            remove_folder(&path)?;
        } else {
            perform(Op::Remove, "delete", &path, || fs::remove_file(&path))?;
        }
    }
    Ok(())
}

fn is_leftover(name: &str) -> bool {
    let is_ours = name.starts_with(".tmp-") || name.starts_with(".trash-");
    is_ours
        && name
            .rsplit_once('-')
            .is_some_and(|(_, pid)| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes something new in `folder` under a name that no living or dead process has taken.
pub(super) fn make_temporary<T>(
    op: Op,
    folder: &Path,
    name: &str,
    make: impl Fn(&Path) -> io::Result<T>,
) -> Result<(PathBuf, T), Error> {
    let pid = std::process::id();
    // Room for the prefix within 255 bytes.
    let name: String = name.chars().take(50).collect();
    for n in 0..MAX_NAMES {
        // Process numbers come again, in containers at every start.
        let again = if n == 0 { String::new() } else { format!(".{n}") };
        let path = folder.join(format!(".tmp-{name}{again}-{pid}"));
        match perform(op, "create", &path, || make(&path)) {
            Err(error) if error.is_taken() => {}
            other => return other.map(|made| (path, made)),
        }
    }
    Err(every_name_taken("create", &folder.join(name)))
}

fn every_name_taken(operation: &'static str, path: &Path) -> Error {
    let taken = io::Error::new(io::ErrorKind::AlreadyExists, "every name is taken");
    Error::io(operation, path)(taken)
}

/// A new file that does not follow a link of its name.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Fills a new file, hashing what the system takes, and flushes it to the disk.
pub(super) fn fill(file: File, path: &Path, name: &str, body: &mut Body<'_>) -> Result<FileEntry, Error> {
    let failed = || Error::io("write", path);
    let mut writer = BufWriter::with_capacity(BLOCK_BYTES, Hashed::new(file));
    body(&mut writer).map_err(failed())?;
    let hashed = writer.into_inner().map_err(|e| failed()(e.into_error()))?;
    perform(Op::Fsync, "fsync", path, || hashed.file.sync_all())?;
    Ok(FileEntry { name: name.to_owned(), size: hashed.size, sha256: hex(&hashed.hasher.finalize()) })
}

struct Hashed {
    file: File,
    hasher: Sha256,
    size: u64,
}

impl Hashed {
    fn new(file: File) -> Self {
        Self { file, hasher: Sha256::new(), size: 0 }
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let allowed = fault::allowed(bytes.len())?;
        let taken = self.file.write(bytes.get(..allowed).unwrap_or(bytes))?;
        self.hasher.update(bytes.get(..taken).unwrap_or(bytes));
        self.size += u64::try_from(taken).unwrap_or(u64::MAX);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Replaces a file by `bytes`: afterwards the old or the new contents are on the disk, whatever happens.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    write_durable_with(path, &mut |out| out.write_all(bytes)).map(|_| ())
}

/// [`write_durable`] for contents that need not fit in memory.
pub fn write_durable_with(path: &Path, body: &mut Body<'_>) -> Result<FileEntry> {
    let folder = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (temporary, file) = make_temporary(Op::Create, folder, &name, create_file)?;
    let placed = fill(file, &temporary, &name, body).and_then(|entry| {
        perform(Op::Rename, "rename into", path, || fs::rename(&temporary, path))?;
        Ok(entry)
    });
    if placed.is_err() {
        // Best effort: what stays is removed at the next start.
        let _ = perform(Op::Remove, "delete", &temporary, || fs::remove_file(&temporary));
    }
    let entry = placed?;
    sync_folder(folder)?;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::super::fault::{Plan, rehearse};
    use super::super::sha256_bytes;
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_replaced_file_is_old_or_new_at_every_fault_and_never_between() {
        let (old, new) = (vec![b'o'; 3000], vec![b'n'; 5000]);
        for mode in ["once", "eio", "enospc", "edquot", "eintr", "short"] {
            for n in 1.. {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("report.json");
                fs::write(&path, &old).unwrap();
                let plan: Plan = format!("{n}:{mode}").parse().unwrap();
                let (outcome, fired) = rehearse(plan, || write_durable(&path, &new));
                let found = fs::read(&path).unwrap();
                assert!(found == old || found == new, "{mode} at {n}");
                if let Err(error) = outcome {
                    assert_eq!(error.kind, crate::error::Kind::Resource);
                    assert!(!["eintr", "short"].contains(&mode), "{mode} must go unnoticed");
                } else {
                    assert!(found == new, "{mode} at {n}: success without the new contents");
                }
                if mode == "once" {
                    assert_eq!(names(folder.path()), ["report.json"], "once at {n}");
                }
                if !fired {
                    break;
                }
            }
        }
    }

    #[test]
    fn errors_name_the_operation_the_path_and_the_cause_with_a_way_out() {
        let full = |plan: &str| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x");
            rehearse(plan.parse().unwrap(), || write_durable(&path, b"x")).0.unwrap_err().to_string()
        };
        let text = full("2:enospc");
        assert!(text.contains("cannot write") && text.contains(".tmp-x-"), "{text}");
        assert!(text.contains("No space left") && text.contains("are free"), "{text}");
        let text = full("3:once");
        assert!(text.contains("cannot fsync") && text.contains("not tried again"), "{text}");
        assert!(full("2:edquot").contains("quota"));
    }

    #[test]
    fn the_entry_holds_size_and_hash_of_what_was_written_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(2_500_000).collect();
        let (entry, _) = rehearse("1:short".parse().unwrap(), || {
            write_durable_with(&path, &mut |out| bytes.chunks(777).try_for_each(|piece| out.write_all(piece)))
                .unwrap()
        });
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!((entry.name.as_str(), entry.size), ("x", 2_500_000));
        assert_eq!(entry.sha256, sha256_bytes(&bytes));
    }

    #[test]
    fn a_link_is_replaced_and_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::write(&outside, b"mine").unwrap();
        let path = folder.path().join("x");
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        write_durable(&path, b"new").unwrap();
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn reading_stops_at_the_limit_and_at_what_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"12345");
        assert!(read_at_most(&path, 4).is_err());
        assert!(read_at_most(Path::new("/dev/zero"), 4).is_err());
    }

    #[test]
    fn only_leftovers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".tmp-a-12", ".trash-step-00000001-3", "step-00000001", ".tmp-notes", ".lock"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join(".tmp-report.json-77"), b"").unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".lock", ".tmp-notes", "step-00000001"]);
    }

    #[test]
    fn a_taken_name_gets_a_number_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["new", "x", "x-2"] {
            fs::create_dir(at(name)).unwrap();
        }
        assert_eq!(rename_to_free_name(&at("new"), &at("x")).unwrap(), at("x-3"));
        assert_eq!(names(folder.path()), ["x", "x-2", "x-3"]);
    }
}
