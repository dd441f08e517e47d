//! Linux's `/proc` of one process: what its files say, as numbers.

use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The files of the system's processes.
pub(super) const ROOT: &str = "/proc";

/// A process as `stat` describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    /// Clock ticks of it and of its children that ended and were waited for.
    pub(super) ticks: u64,
    /// Faults that waited for the disk, counted as the ticks are.
    pub(super) major_faults: u64,
    pub(super) threads: u64,
    pub(super) rss_pages: u64,
}

/// A small file of the system that is read again and again: kept open, one call a look. Of a process, it never becomes
/// another's that got the same number.
#[derive(Debug)]
pub(super) struct Kept(File);

/// More than any of these files holds.
const MOST_BYTES: usize = 4096;

impl Kept {
    pub(super) fn open(path: &Path) -> Option<Self> {
        File::open(path).ok().map(Self)
    }

    /// What it says now; `None` where it cannot be read any more.
    pub(super) fn read<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let mut buffer = [0; MOST_BYTES];
        let length = self.0.read_at(&mut buffer, 0).ok()?;
        parse(std::str::from_utf8(buffer.get(..length)?).ok()?)
    }
}

/// The `stat` of a process, kept open.
pub(super) fn stat_file(pid: u32) -> Option<Kept> {
    Kept::open(&file(pid, "stat"))
}

impl Stat {
    /// Fields are counted from 1, as in proc(5).
    pub(super) fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may itself hold both blanks and parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        // Of those that follow, so many are passed over before the next that is wanted.
        let mut next = |passed: usize| fields.nth(passed)?.parse::<u64>().ok();
        let parent = u32::try_from(next(1)?).ok()?;
        let major_faults = next(7)?.saturating_add(next(0)?);
        let ticks = [next(0)?, next(0)?, next(0)?, next(0)?].into_iter().fold(0, u64::saturating_add);
        Some(Self { parent, ticks, major_faults, threads: next(2)?, rss_pages: next(3)? })
    }
}

/// Bytes read from and written to disks, children that were waited for included.
pub(super) fn disk_bytes(pid: u32) -> Option<(u64, u64)> {
    Kept::open(&file(pid, "io"))?.read(|text| {
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name))?.trim().parse().ok();
        Some((field("read_bytes:")?, field("write_bytes:")?))
    })
}

/// Highest resident bytes.
pub(super) fn peak_rss(pid: u32) -> Option<u64> {
    Kept::open(&file(pid, "status"))?.read(|text| kib_field(text, "VmHWM:"))
}

/// How a process was called, its arguments included: until it has become its program, as its parent was.
pub(super) fn call(pid: u32) -> Option<Vec<u8>> {
    std::fs::read(file(pid, "cmdline")).ok()
}

/// Proportional bytes: a page shared by n processes counts 1/n. Walks the whole page table.
pub(super) fn pss(pid: u32) -> Option<u64> {
    Kept::open(&file(pid, "smaps_rollup"))?.read(|text| kib_field(text, "Pss:"))
}

/// The process that was started last, by whomever: where it is another one, there may be new children.
#[derive(Debug)]
pub(super) struct Newest(Option<Kept>);

impl Newest {
    pub(super) fn open() -> Self {
        Self(Kept::open(&Path::new(ROOT).join("loadavg")))
    }

    /// Its number; `None` where the system does not tell.
    pub(super) fn read(&self) -> Option<u32> {
        self.0.as_ref()?.read(|text| text.split_ascii_whitespace().last()?.parse().ok())
    }
}

/// Children of a process, whichever of its threads started them; `None` where the kernel keeps no such list, or there
/// is no such process. Of a single thread no folder needs to be listed.
pub(super) fn children(pid: u32, threads: Option<u64>) -> Option<Vec<u32>> {
    let numbers = |text: &str| text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    if threads == Some(1) {
        return Some(numbers(&read_to_string(file(pid, &format!("task/{pid}/children"))).ok()?));
    }
    let mut all: Vec<u32> = Vec::new();
    for thread in std::fs::read_dir(file(pid, "task")).ok()?.flatten() {
        match read_to_string(thread.path().join("children")) {
            Ok(text) => all.extend(numbers(&text)),
            // A thread may end between the two looks.
            Err(_) if thread.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(all)
}

/// All processes with their parents; slow, for kernels without [`children`].
pub(super) fn all_parents() -> Vec<(u32, u32)> {
    let entries = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat_file(pid)?.read(Stat::parse)?.parent))).collect()
}

/// Whether process numbers are the machine's own: this process is in no container's numbering. The kernel's first
/// numbering always has this number.
pub(super) fn numbers_are_the_hosts() -> bool {
    const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
    std::fs::read_link(Path::new(ROOT).join("self/ns/pid"))
        .is_ok_and(|name| name.as_os_str() == FIRST_PID_NAMESPACE)
}

/// The bytes of a `Name:   1234 kB` line.
pub(super) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn file(pid: u32, name: &str) -> PathBuf {
    Path::new(ROOT).join(pid.to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let text =
            "42 (a ) b (c) S 7 42 42 0 -1 4194304 100 200 3 4 50 60 70 80 20 0 1 0 12345 1000000 256 1844";
        let stat = Stat::parse(text).unwrap();
        let expected = Stat { parent: 7, ticks: 260, major_faults: 7, threads: 1, rss_pages: 256 };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("42 (x) S 7"), None);
    }

    #[test]
    fn status_lines_become_bytes() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t      17 kB\n";
        assert_eq!(kib_field(text, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(kib_field(text, "VmRSS:"), Some(17 * 1024));
        assert_eq!(kib_field(text, "VmSwap:"), None);
        assert_eq!(kib_field("VmRSS: x kB", "VmRSS:"), None);
    }
}
