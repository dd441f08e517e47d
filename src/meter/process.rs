//! What the operating system says about this process: CPU time, resident memory, and the package's energy where it
//! may be read.

use super::probe::{Probe, Reading};
use super::rapl::Rapl;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::path::Path;
use std::time::Instant;

/// Probe of this process on this machine.
#[derive(Debug)]
pub struct ProcessProbe {
    rapl: Option<Rapl>,
    started: Instant,
}

impl Default for ProcessProbe {
    fn default() -> Self {
        Self::new()
    }
}

impl ProcessProbe {
    /// Looks for what can be read here.
    pub fn new() -> Self {
        Self { rapl: Rapl::open(Path::new("/sys/class/powercap")), started: Instant::now() }
    }

    /// Whether energy is measured here.
    pub fn has_energy(&self) -> bool {
        self.rapl.is_some()
    }
}

impl Probe for ProcessProbe {
    fn sample(&mut self) -> Reading {
        let now_s = self.started.elapsed().as_secs_f64();
        let (rss_bytes, peak_rss_bytes) = resident();
        Reading {
            cpu_s: cpu_s(UsageWho::RUSAGE_SELF),
            rss_bytes,
            peak_rss_bytes,
            device_bytes: None,
            energy_j: self.rapl.as_mut().and_then(|r| r.read(now_s)),
        }
    }
}

fn cpu_s(who: UsageWho) -> Option<f64> {
    let seconds = |usage: Usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        micros as f64 / 1e6
    };
    getrusage(who).ok().map(seconds)
}

/// CPU time of the calling thread, s; `None` where the system does not tell.
#[cfg(target_os = "linux")]
pub fn thread_cpu_s() -> Option<f64> {
    cpu_s(UsageWho::RUSAGE_THREAD)
}

/// CPU time of the calling thread, s; `None` where the system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn thread_cpu_s() -> Option<f64> {
    None
}

/// Resident bytes of this process, now and at their highest; from `/proc`, for `getrusage`'s maximum is inherited
/// from the program that started this one.
pub fn resident() -> (Option<u64>, Option<u64>) {
    std::fs::read_to_string("/proc/self/status")
        .map_or((None, None), |text| (kib_field(&text, "VmRSS:"), kib_field(&text, "VmHWM:")))
}

/// The bytes of a `Name:   1234 kB` line of a `/proc` file.
pub(super) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_become_bytes() {
        let text = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t      17 kB\n";
        assert_eq!(kib_field(text, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(kib_field(text, "VmRSS:"), Some(17 * 1024));
        assert_eq!(kib_field(text, "VmSwap:"), None);
        assert_eq!(kib_field("VmRSS: x kB", "VmRSS:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_is_seen() {
        let touched = vec![1u8; 64 << 20];
        let seen = ProcessProbe::new().sample();
        assert!(seen.rss_bytes.unwrap() >= 64 << 20);
        assert!(seen.peak_rss_bytes >= seen.rss_bytes);
        assert!(seen.cpu_s.unwrap() > 0.0);
        assert_eq!(touched.iter().map(|&b| u64::from(b)).sum::<u64>(), 64 << 20);
    }
}
