//! The last reading, for other threads, without a lock: one atomic word a figure.

use super::probe::Reading;
use super::tag::{Part, PartBytes};
use std::sync::atomic::{AtomicU64, Ordering};

const FIGURES: usize = 15;
const FIELDS: usize = FIGURES + Part::ALL.len();
/// Stands for `None`: no count is that large, and as a float it is not a number.
const NONE: u64 = u64::MAX;

/// The last reading; a reader that comes between two writes gets figures of both.
#[derive(Debug)]
pub(super) struct Latest([AtomicU64; FIELDS]);

impl Default for Latest {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(NONE)))
    }
}

impl Latest {
    pub(super) fn store(&self, r: &Reading) {
        let float = |v: Option<f64>| v.map_or(NONE, f64::to_bits);
        let whole = |v: Option<u64>| v.unwrap_or(NONE);
        let words: [u64; FIGURES] = [
            float(r.cpu_s),
            whole(r.rss_bytes),
            whole(r.peak_rss_bytes),
            whole(r.pss_bytes),
            whole(r.major_faults),
            whole(r.read_bytes),
            whole(r.write_bytes),
            whole(r.group_bytes),
            float(r.package_j),
            whole(r.device_bytes),
            float(r.gpu_j),
            float(r.gpu_power_w),
            float(r.gpu_busy),
            whole(r.gpu_clock_mhz),
            whole(r.gpu_temperature_c),
        ];
        let parts = r.parts.map_or([NONE; Part::ALL.len()], |parts| parts.0);
        for (slot, word) in self.0.iter().zip(words.into_iter().chain(parts)) {
            slot.store(word, Ordering::Release);
        }
    }

    pub(super) fn load(&self) -> Reading {
        let words = self.0.each_ref().map(|slot| Some(slot.load(Ordering::Acquire)).filter(|&w| w != NONE));
        let [
            cpu,
            rss,
            peak,
            pss,
            faults,
            read,
            write,
            group,
            package,
            device,
            gpu,
            power,
            busy,
            clock,
            heat,
            parts @ ..,
        ] = words;
        let float = |word: Option<u64>| word.map(f64::from_bits);
        Reading {
            cpu_s: float(cpu),
            rss_bytes: rss,
            peak_rss_bytes: peak,
            pss_bytes: pss,
            major_faults: faults,
            read_bytes: read,
            write_bytes: write,
            group_bytes: group,
            package_j: float(package),
            device_bytes: device,
            gpu_j: float(gpu),
            gpu_power_w: float(power),
            gpu_busy: float(busy),
            gpu_clock_mhz: clock,
            gpu_temperature_c: heat,
            parts: parts.iter().any(Option::is_some).then(|| PartBytes(parts.map(|word| word.unwrap_or(0)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_arrives_in_its_own_place() {
        let reading = Reading {
            cpu_s: Some(1.5),
            rss_bytes: Some(2),
            peak_rss_bytes: Some(3),
            pss_bytes: Some(4),
            major_faults: Some(5),
            read_bytes: Some(6),
            write_bytes: Some(7),
            group_bytes: Some(8),
            package_j: Some(9.5),
            device_bytes: Some(10),
            gpu_j: Some(11.5),
            gpu_power_w: Some(12.5),
            gpu_busy: Some(0.5),
            gpu_clock_mhz: Some(14),
            gpu_temperature_c: Some(15),
            parts: Some(PartBytes(std::array::from_fn(|nth| 16 + nth as u64))),
        };
        let latest = Latest::default();
        assert_eq!(latest.load(), Reading::default());
        latest.store(&reading);
        assert_eq!(latest.load(), reading);
    }
}
