//! What the operating system says about this process: CPU time, memory, faults and disk; beside it what the machine
//! says, the packages' energy and the accelerators.

use super::cgroup::GroupMemory;
use super::gpu::Gpus;
use super::nvml;
use super::probe::{Closing, Probe, Reading};
use super::procfs::{self, Kept, kib_field};
use super::rapl::Rapl;
use super::sampler::longest_gap_s;
use super::tag;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Bytes of a block in the kernel's counts of disk traffic, whatever the disk's own are.
const BLOCK_BYTES: u64 = 512;

/// Probe of this process on this machine.
pub struct ProcessProbe {
    surroundings: Surroundings,
    status: Option<Kept>,
}

/// What is the same for every process of the machine: energy, accelerators, the cgroup.
pub(super) struct Surroundings {
    rapl: Option<Rapl>,
    group: Option<GroupMemory>,
    gpus: Option<Gpus>,
    started: Instant,
}

impl Surroundings {
    /// Looks for what can be read here.
    pub(super) fn open(interval: Duration) -> Self {
        let driver = nvml::open();
        let knows_processes = procfs::numbers_are_the_hosts();
        Self {
            rapl: Rapl::open(Path::new("/sys/class/powercap")),
            group: GroupMemory::open(Path::new(procfs::ROOT), Path::new("/sys/fs/cgroup")),
            gpus: driver.and_then(|driver| Gpus::new(driver, knows_processes, longest_gap_s(interval))),
            started: Instant::now(),
        }
    }

    /// Adds its figures to a reading; `own` are the run's processes.
    pub(super) fn read(&mut self, own: &[u32], reading: &mut Reading) {
        let now_s = self.started.elapsed().as_secs_f64();
        reading.package_j = self.rapl.as_mut().and_then(|r| r.read(now_s));
        reading.group_bytes = self.group.as_ref().and_then(GroupMemory::now);
        if let Some(gpus) = &mut self.gpus {
            gpus.read(now_s, own, reading);
        }
    }

    /// What it has to say at the end.
    pub(super) fn close(&mut self, processes: u64) -> Closing {
        let gpus = self.gpus.as_mut().map(Gpus::close);
        let (devices, source, warnings) = gpus.map_or_else(Default::default, |(d, s, w)| (d, Some(s), w));
        Closing {
            devices,
            device_memory_source: source,
            group_limit_bytes: self.group.as_ref().and_then(|g| g.limit_bytes),
            group_peak_bytes: self.group.as_ref().and_then(GroupMemory::peak),
            processes,
            warnings,
        }
    }
}

impl ProcessProbe {
    /// Looks for what can be read here; it will be asked every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { surroundings: Surroundings::open(interval), status: Kept::open(Path::new(STATUS)) }
    }
}

impl Probe for ProcessProbe {
    fn sample(&mut self) -> Reading {
        let status = self.status.as_ref().and_then(|status| status.read(|text| Some(memory(text))));
        let (rss_bytes, peak_rss_bytes) = status.unwrap_or_default();
        let used = Used::of(UsageWho::RUSAGE_SELF);
        let mut reading = Reading {
            cpu_s: used.map(|u| u.cpu_s),
            major_faults: used.map(|u| u.major_faults),
            read_bytes: used.map(|u| u.read_bytes),
            write_bytes: used.map(|u| u.write_bytes),
            rss_bytes,
            peak_rss_bytes,
            parts: Some(tag::process().now()),
            ..Reading::default()
        };
        self.surroundings.read(&[std::process::id()], &mut reading);
        reading
    }

    fn close(&mut self) -> Closing {
        self.surroundings.close(1)
    }
}

/// What `getrusage` counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Used {
    pub(super) cpu_s: f64,
    pub(super) major_faults: u64,
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
    /// Of the largest process. Inherited from the program that started it: only what is more than that is its own.
    pub(super) peak_rss_bytes: u64,
}

impl Used {
    pub(super) fn of(who: UsageWho) -> Option<Self> {
        let usage: Usage = getrusage(who).ok()?;
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Some(Self {
            cpu_s: micros as f64 / 1e6,
            major_faults: count(usage.major_page_faults()),
            read_bytes: count(usage.block_reads()).saturating_mul(BLOCK_BYTES),
            write_bytes: count(usage.block_writes()).saturating_mul(BLOCK_BYTES),
            peak_rss_bytes: count(usage.max_rss()).saturating_mul(1024),
        })
    }
}

/// CPU time of all threads of this process, s; `None` where the system does not tell.
pub fn cpu_s() -> Option<f64> {
    Used::of(UsageWho::RUSAGE_SELF).map(|u| u.cpu_s)
}

/// CPU time of the calling thread, s; `None` where the system does not tell.
#[cfg(target_os = "linux")]
pub fn thread_cpu_s() -> Option<f64> {
    Used::of(UsageWho::RUSAGE_THREAD).map(|u| u.cpu_s)
}

/// CPU time of the calling thread, s; `None` where the system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn thread_cpu_s() -> Option<f64> {
    None
}

/// Resident bytes of this process, now and at their highest; from `/proc`, for `getrusage`'s maximum is inherited
/// from the program that started this one.
pub fn resident() -> (Option<u64>, Option<u64>) {
    Kept::open(Path::new(STATUS))
        .and_then(|status| status.read(|text| Some(memory(text))))
        .unwrap_or_default()
}

/// Resident bytes of this process when it was asked first, before it held anything: code, allocator, stacks.
pub fn bare() -> Option<u64> {
    Some(first_look()?.0)
}

/// Resident bytes of files that were read since then by running what is in them: code.
pub fn code_since_bare() -> Option<u64> {
    let now = Kept::open(Path::new(STATUS))?.read(|text| kib_field(text, "RssFile:"))?;
    Some(now.saturating_sub(first_look()?.1))
}

/// Resident bytes, and those of files among them, when they were asked for first.
fn first_look() -> Option<(u64, u64)> {
    static FIRST: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    *FIRST.get_or_init(|| {
        Kept::open(Path::new(STATUS))?.read(|text| memory(text).0.zip(kib_field(text, "RssFile:")))
    })
}

const STATUS: &str = "/proc/self/status";

/// Resident bytes now and at their highest, of a `status` file.
fn memory(status: &str) -> (Option<u64>, Option<u64>) {
    (kib_field(status, "VmRSS:"), kib_field(status, "VmHWM:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_is_seen() {
        let touched = vec![1u8; 64 << 20];
        let seen = ProcessProbe::new(Duration::from_millis(100)).sample();
        assert!(seen.rss_bytes.unwrap() >= 64 << 20);
        assert!(seen.peak_rss_bytes >= seen.rss_bytes);
        assert!(seen.cpu_s.unwrap() > 0.0);
        assert_eq!(touched.iter().map(|&b| u64::from(b)).sum::<u64>(), 64 << 20);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn bytes_that_reach_the_disk_are_counted() {
        let before = Used::of(UsageWho::RUSAGE_SELF).unwrap();
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(file.path(), vec![7u8; 1 << 20]).unwrap();
        file.as_file().sync_all().unwrap();
        let after = Used::of(UsageWho::RUSAGE_SELF).unwrap();
        assert!(after.write_bytes - before.write_bytes >= 1 << 20, "{before:?} {after:?}");
    }
}
