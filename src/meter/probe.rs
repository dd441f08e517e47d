//! The seam between the meter and what it reads: a probe gives cumulative counters and current levels, or `None`.

use super::device::DeviceTotal;
use super::tag::PartBytes;
use serde::{Deserialize, Serialize};

/// One look at the machine; `None` = this probe cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Reading {
    /// CPU time so far, all threads, user and system, s.
    pub cpu_s: Option<f64>,
    /// Resident memory, bytes; of several processes the sum, shared pages counted once a process.
    pub rss_bytes: Option<u64>,
    /// Highest resident memory so far of one process, bytes.
    pub peak_rss_bytes: Option<u64>,
    /// Proportional memory of all processes, bytes: shared pages are shared out. Not at every look.
    pub pss_bytes: Option<u64>,
    /// Page faults that waited for the disk, so far.
    pub major_faults: Option<u64>,
    /// Bytes read from disks so far; what the page cache had is none of it.
    pub read_bytes: Option<u64>,
    /// Bytes written to disks so far.
    pub write_bytes: Option<u64>,
    /// Memory of the whole cgroup, page cache included, bytes.
    pub group_bytes: Option<u64>,
    /// Energy of the CPU packages since some fixed moment, J: only differences mean anything.
    pub package_j: Option<f64>,
    /// Memory on the accelerators, bytes.
    pub device_bytes: Option<u64>,
    /// Energy of the accelerators since the start, J.
    pub gpu_j: Option<f64>,
    /// Power of the accelerators now, W.
    pub gpu_power_w: Option<f64>,
    /// Share of the time in which accelerators computed, mean of all, 0 … 1.
    pub gpu_busy: Option<f64>,
    /// Tagged memory of this process by part.
    pub parts: Option<PartBytes>,
    /// Clock of the fastest accelerator, MHz.
    pub gpu_clock_mhz: Option<u64>,
    /// Temperature of the hottest accelerator, °C.
    pub gpu_temperature_c: Option<u64>,
}

/// What a probe has to say at the end, beside its readings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Closing {
    /// The accelerators.
    pub devices: Vec<DeviceTotal>,
    /// Where the device memory was read.
    pub device_memory_source: Option<String>,
    /// Limit of the cgroup's memory, bytes.
    pub group_limit_bytes: Option<u64>,
    /// The cgroup's own peak since it was made, bytes.
    pub group_peak_bytes: Option<u64>,
    /// Most processes seen at once.
    pub processes: u64,
    /// What the reader must know.
    pub warnings: Vec<String>,
}

/// Reads counters; lives on the meter's own thread.
pub trait Probe: Send {
    /// Reads them now. Must not fail: what cannot be read is `None`.
    fn sample(&mut self) -> Reading;

    /// What was learned beside the readings; asked for once, behind the last of them.
    fn close(&mut self) -> Closing {
        Closing::default()
    }
}
