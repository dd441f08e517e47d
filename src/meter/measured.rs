//! What a run took, as the meter closes it; what could not be measured is `None`, never 0.

use super::device::DeviceTotal;
use super::samples::Sample;
use serde::{Deserialize, Serialize};

/// One phase of a run, measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseTotal {
    /// As [`super::Phase::name`].
    pub name: String,
    /// Seconds by the wall clock.
    pub wall_s: f64,
    /// CPU seconds of all threads; an interval that spans a change of phase is shared by wall time.
    pub cpu_s: Option<f64>,
    /// Highest resident bytes seen in it; a rise seen across a change of phase counts for both.
    pub peak_rss_bytes: Option<u64>,
    /// Joules by all counters there are, shared as CPU seconds are.
    pub energy_j: Option<f64>,
}

/// What a run took.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Seconds by the monotonic clock: the sum of the phases.
    pub wall_s: f64,
    /// Phases that took any time, in the order of a run.
    pub phases: Vec<PhaseTotal>,
    /// Highest resident bytes: of one process by the system's own mark, of several the larger of that and
    /// `peak_tree_bytes`.
    pub peak_rss_bytes: Option<u64>,
    /// Highest resident bytes of one process, by the system's own mark.
    pub largest_process_bytes: Option<u64>,
    /// Highest sum over several processes seen at a look.
    pub peak_tree_bytes: Option<u64>,
    /// What was summed: proportional memory, in which shared pages count once, or where that could not be read at the
    /// peak, resident memory, which is too much where pages are shared.
    pub tree_memory_source: Option<String>,
    /// Highest bytes on the accelerators.
    pub peak_device_bytes: Option<u64>,
    /// Where the device memory was read.
    pub device_memory_source: Option<String>,
    /// CPU seconds of all threads since the meter's start.
    pub cpu_s: Option<f64>,
    /// Page faults that waited for the disk.
    pub major_faults: Option<u64>,
    /// Bytes read from disks.
    pub read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub write_bytes: Option<u64>,
    /// Highest bytes of the cgroup seen at a look, page cache included.
    pub peak_group_bytes: Option<u64>,
    /// The cgroup's own peak since it was made: perhaps long before this run.
    pub group_peak_bytes: Option<u64>,
    /// The cgroup's limit.
    pub group_limit_bytes: Option<u64>,
    /// Joules of the CPU packages, all programs on them; `None` = not measured.
    pub package_j: Option<f64>,
    /// Joules of the accelerators by their counters; `None` = not measured.
    pub gpu_j: Option<f64>,
    /// Joules by all counters there are; `None` = not measured.
    pub energy_j: Option<f64>,
    /// The packages' counter did not cover the whole run: its joules are a part.
    pub package_partial: bool,
    /// Seconds in which the accelerators computed: the busy share over time, mean of all.
    pub gpu_busy_s: Option<f64>,
    /// Each accelerator by itself.
    pub devices: Vec<DeviceTotal>,
    /// Most processes at once.
    pub processes: u64,
    /// CPU seconds of the meter's own thread.
    pub meter_cpu_s: Option<f64>,
    /// Seconds that the machine slept; not in `wall_s`.
    pub suspended_s: Option<f64>,
    /// Longest time between two looks, s.
    pub longest_gap_s: f64,
    /// Looks in all; `samples` holds at most a thousand of them.
    pub looks: u64,
    /// What the reader must know before trusting a figure.
    pub warnings: Vec<String>,
    /// Looks thinned evenly.
    pub samples: Vec<Sample>,
}

impl Measured {
    /// The meter's own CPU time over the wall time.
    pub fn overhead(&self) -> Option<f64> {
        self.meter_cpu_s.filter(|_| self.wall_s > 0.0).map(|cpu| cpu / self.wall_s)
    }
}
