//! Files of lines that only grow: a line is there whole or not at all, and a crash costs no line before it.

use super::durable::{perform, regular};
use super::error::Error;
use super::fault::{self, Op};
use crate::error::Result;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Appends whole lines to a file.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines.
    length: u64,
    /// Part of a line may lie behind `length`.
    is_torn: bool,
    /// An fsync failed: the file's state on the disk is unknown from then on.
    is_lost: bool,
}

impl Appender {
    /// Opens or makes the file, and cuts off a last line that has no end. Links are refused.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_while(path, |_| true)
    }

    /// As [`Appender::open`], but keeps only the leading lines for which `keep` holds: at a resume, the steps that
    /// will be done again.
    pub fn open_while(path: &Path, keep: impl FnMut(&[u8]) -> bool) -> Result<Self> {
        let failed = || Error::io("open", path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let file = perform(Op::Create, "open", path, || regular(&mut options.clone(), path))?;
        let length = whole_lines(&file, keep).map_err(failed())?;
        let is_torn = file.metadata().map_err(failed())?.len() != length;
        let mut appender = Self { file, path: path.to_owned(), length, is_torn, is_lost: false };
        appender.mend()?;
        Ok(appender)
    }

    /// Appends one line (without its end). It reaches the disk with the next [`Appender::sync`] at the latest.
    pub fn line(&mut self, text: &str) -> Result<()> {
        let failed = Error::io("append to", &self.path);
        if text.contains('\n') {
            let two = io::Error::new(io::ErrorKind::InvalidInput, "a line holds a line end");
            return Err(failed(two).into());
        }
        self.mend()?;
        let bytes = [text.as_bytes(), b"\n"].concat();
        self.is_torn = true;
        let outcome = write_all_at(&self.file, &bytes, self.length);
        if let Err(cause) = outcome {
            // Now if it can be, else before the next line.
            let _ = self.mend();
            return Err(failed(cause).into());
        }
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.is_torn = false;
        Ok(())
    }

    /// Flushes all lines to the disk. After a failure every later call fails: the same file is not tried again.
    pub fn sync(&mut self) -> Result<()> {
        self.refuse_if_lost()?;
        let outcome = perform(Op::Fsync, "fsync", &self.path, || self.file.sync_data());
        self.is_lost = outcome.is_err();
        Ok(outcome?)
    }

    fn mend(&mut self) -> Result<()> {
        self.refuse_if_lost()?;
        if self.is_torn {
            perform(Op::Truncate, "cut a torn line from", &self.path, || self.file.set_len(self.length))?;
            self.is_torn = false;
        }
        Ok(())
    }

    fn refuse_if_lost(&self) -> Result<(), Error> {
        if self.is_lost {
            let lost = io::Error::other("an earlier fsync failed");
            return Err(Error::io("fsync", &self.path)(lost));
        }
        Ok(())
    }
}

/// Bytes of the leading whole lines that are kept.
fn whole_lines(file: &File, mut keep: impl FnMut(&[u8]) -> bool) -> io::Result<u64> {
    /// No line of this program is longer; a longer one is not ours and ends what is kept.
    const MAX_LINE_BYTES: u64 = 64 << 20;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    let mut length = 0;
    loop {
        line.clear();
        (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') || !keep(&line) {
            return Ok(length);
        }
        length += u64::try_from(line.len()).unwrap_or(u64::MAX) + 1;
    }
}

fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let taken =
            fault::allowed(bytes.len()).and_then(|n| file.write_at(bytes.get(..n).unwrap_or(bytes), at));
        match taken {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                at += u64::try_from(n).unwrap_or(u64::MAX);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fault::rehearse;
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_go_behind_those_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        for text in ["{\"step\":1}", "{\"step\":2}"] {
            let mut appender = Appender::open(&path).unwrap();
            appender.line(text).unwrap();
            appender.sync().unwrap();
        }
        assert_eq!(read(&path), "{\"step\":1}\n{\"step\":2}\n");
        assert!(Appender::open(&path).unwrap().line("a\nb").is_err());
    }

    #[test]
    fn a_torn_last_line_is_cut_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let whole = "first\nsecond\nthird\n";
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            Appender::open(&path).unwrap().line("new").unwrap();
            let kept = whole[..cut].rfind('\n').map_or(0, |at| at + 1);
            assert_eq!(read(&path), format!("{}new\n", &whole[..kept]), "cut at {cut}");
        }
    }

    #[test]
    fn a_resume_drops_the_lines_that_will_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "1\n2\n3\n4\n").unwrap();
        Appender::open_while(&path, |line| line != b"3").unwrap();
        assert_eq!(read(&path), "1\n2\n");
    }

    #[test]
    fn a_failed_line_leaves_no_trace_and_the_next_one_is_whole() {
        for mode in ["once", "short", "eintr", "enospc"] {
            for n in 1.. {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("x");
                let mut written = vec![];
                let (_, fired) = rehearse(format!("{n}:{mode}").parse().unwrap(), || {
                    let mut appender = Appender::open(&path)?;
                    for text in ["a longer first line", "second", "third"] {
                        if appender.line(text).is_ok() {
                            written.push(text);
                        }
                    }
                    appender.sync()
                });
                if path.exists() {
                    Appender::open(&path).unwrap();
                    let found = read(&path);
                    assert_eq!(found.lines().collect::<Vec<_>>(), written, "{mode} at {n}");
                }
                if !fired {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_failed_fsync_is_final() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut appender = Appender::open(&path).unwrap();
        rehearse("1:once".parse().unwrap(), || appender.sync().unwrap_err());
        assert!(appender.sync().is_err());
        assert!(appender.line("x").is_err());
    }

    #[test]
    fn links_are_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        std::fs::write(&outside, b"mine").unwrap();
        let path = folder.path().join("x");
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert!(Appender::open(&path).is_err());
        assert_eq!(read(&outside), "mine");
    }
}
