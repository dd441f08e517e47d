//! What this process may use (cores, memory, disk) and on what CPU: cgroups count, not the host.

pub use crate::estimate::machine::Limits;

use super::cgroup::{cpu_quota, folders, memory_limit};
use super::process::resident;
use super::procfs::kib_field;
use std::path::{Path, PathBuf};

/// Where the host's and the cgroups' files lie; other roots are for tests.
#[derive(Debug, Clone)]
pub struct Host {
    proc: PathBuf,
    cgroup: PathBuf,
}

/// Where the system tells nothing: a small machine, so that the verdict errs on the safe side.
const UNKNOWN_MEMORY_BYTES: u64 = 4 << 30;

impl Default for Host {
    fn default() -> Self {
        Self { proc: "/proc".into(), cgroup: "/sys/fs/cgroup".into() }
    }
}

/// What this process may use on this machine.
pub fn limits() -> Limits {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Host::default().limits(cores, resident().0.unwrap_or(0))
}

/// CPU model as the system names it.
pub fn cpu_model() -> String {
    Host::default().cpu_model()
}

/// Seconds since the machine was started, its sleep included: what a provider bills from.
#[cfg(target_os = "linux")]
pub fn since_boot_s() -> Option<f64> {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(|t| std::time::Duration::from(t).as_secs_f64())
}

/// Seconds since the machine was started; not known here.
#[cfg(not(target_os = "linux"))]
pub fn since_boot_s() -> Option<f64> {
    None
}

/// Free bytes for this user on the disk that a path lies on; its nearest existing folder counts.
pub fn free_disk(path: &Path) -> Option<u64> {
    let existing = path
        .ancestors()
        .map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p })
        .find(|p| p.exists())?;
    let disk = nix::sys::statvfs::statvfs(existing).ok()?;
    // The types differ between systems.
    #[allow(clippy::useless_conversion)]
    u64::from(disk.blocks_available()).checked_mul(u64::from(disk.fragment_size()))
}

impl Host {
    /// Limits from the files; `threads` is what affinity allows, `own` the process's resident bytes.
    fn limits(&self, threads: usize, own: u64) -> Limits {
        let groups = folders(&self.proc, &self.cgroup);
        let quota = groups.iter().filter_map(|g| cpu_quota(g)).fold(f64::INFINITY, f64::min);
        let free = self.free_memory().map(|free| free.saturating_add(own));
        let host = free.map(|bytes| (bytes, "free on the host"));
        let group = groups.iter().filter_map(|g| memory_limit(g)).min();
        let group = group.map(|bytes| (bytes, "the cgroup's limit"));
        let (memory_bytes, source) = [host, group]
            .into_iter()
            .flatten()
            .min_by_key(|(bytes, _)| *bytes)
            .unwrap_or((UNKNOWN_MEMORY_BYTES, "assumed: the system does not tell"));
        Limits {
            cores: (1..=threads.max(1))
                .take_while(|&n| n == 1 || n as f64 <= quota + 0.5)
                .last()
                .unwrap_or(1),
            memory_bytes,
            memory_source: source.into(),
        }
    }

    fn free_memory(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.proc.join("meminfo")).ok()?;
        kib_field(&text, "MemAvailable:").or_else(|| kib_field(&text, "MemTotal:"))
    }

    fn cpu_model(&self) -> String {
        let text = std::fs::read_to_string(self.proc.join("cpuinfo")).unwrap_or_default();
        text.lines()
            .find_map(|l| l.strip_prefix("model name"))
            .and_then(|rest| rest.split_once(':'))
            .map_or_else(
                || format!("unknown {} CPU", std::env::consts::ARCH),
                |(_, name)| name.trim().to_owned(),
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let meminfo = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n";
            for (name, text) in files.iter().chain(&[("proc/meminfo", meminfo)]) {
                let file = root.path().join(name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            Self(root)
        }

        fn limits(&self) -> Limits {
            let host = Host { proc: self.0.path().join("proc"), cgroup: self.0.path().join("cg") };
            host.limits(16, 1 << 30)
        }
    }

    #[test]
    fn without_a_cgroup_the_hosts_free_memory_holds() {
        let limits = Machine::new(&[]).limits();
        assert_eq!((limits.cores, limits.memory_bytes), (16, 9 << 30));
        assert!(limits.memory_source.contains("host"));
    }

    #[test]
    fn the_tightest_limit_of_all_cgroups_above_holds() {
        let limits = Machine::new(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("cg/a/memory.max", "2147483648\n"),
            ("cg/a/b/memory.max", "max\n"),
            ("cg/a/cpu.max", "250000 100000\n"),
            ("cg/a/b/cpu.max", "max 100000\n"),
        ])
        .limits();
        assert_eq!((limits.cores, limits.memory_bytes), (3, 2 << 30));
        assert!(limits.memory_source.contains("cgroup"));
    }

    #[test]
    fn version_one_cgroups_are_read_too() {
        let limits = Machine::new(&[
            ("proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/x\n"),
            ("cg/memory/x/memory.limit_in_bytes", "1073741824\n"),
            ("cg/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cg/cpu/x/cpu.cfs_quota_us", "50000\n"),
            ("cg/cpu/x/cpu.cfs_period_us", "100000\n"),
        ])
        .limits();
        assert_eq!((limits.cores, limits.memory_bytes), (1, 1 << 30));
    }

    #[test]
    fn a_cgroup_path_that_climbs_is_not_followed() {
        let limits =
            Machine::new(&[("proc/self/cgroup", "0::/../../x\nnonsense\n"), ("x/memory.max", "1\n")])
                .limits();
        assert_eq!(limits.memory_bytes, 9 << 30);
    }

    #[test]
    fn a_machine_that_tells_nothing_is_taken_for_a_small_one() {
        let host = Host { proc: "/nonexistent".into(), cgroup: "/nonexistent".into() };
        let limits = host.limits(0, 0);
        assert_eq!((limits.cores, limits.memory_bytes), (1, 4 << 30));
        assert!(host.cpu_model().contains("unknown"));
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_its_parents() {
        let root = tempfile::tempdir().unwrap();
        assert!(free_disk(&root.path().join("a/b/c")).unwrap() > 0);
        assert!(free_disk(Path::new("not-there-yet")).unwrap() > 0);
    }
}
