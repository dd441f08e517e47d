//! Looks that are kept: at most a thousand of a run, thinned evenly as it grows, without losing a peak.

use super::probe::Reading;
use super::tag::PartBytes;
use serde::{Deserialize, Serialize};

/// Kept samples; beyond it every second one goes.
pub(super) const MOST: usize = 1000;

/// One look that was kept.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Seconds since the start.
    pub at_s: f64,
    /// As [`super::Phase::name`].
    pub phase: String,
    /// Resident bytes: the most since the sample before.
    pub rss_bytes: Option<u64>,
    /// CPU seconds of the process so far.
    pub cpu_s: Option<f64>,
    /// Bytes on the accelerator: the most since the sample before.
    pub device_bytes: Option<u64>,
    /// Joules since the start, by all counters there are.
    pub energy_j: Option<f64>,
    /// Tagged memory by part: at the moment since the sample before when it was most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<PartBytes>,
    /// Bytes of the cgroup: the most since the sample before.
    pub group_bytes: Option<u64>,
    /// W of the accelerators at this look.
    pub gpu_power_w: Option<f64>,
    /// Share of the time in which the accelerators computed, 0 … 1, at this look.
    pub gpu_busy: Option<f64>,
}

impl Sample {
    pub(super) fn new(at_s: f64, phase: &str, reading: &Reading, energy_j: Option<f64>) -> Self {
        Self {
            at_s,
            phase: phase.into(),
            rss_bytes: reading.rss_bytes,
            cpu_s: reading.cpu_s,
            device_bytes: reading.device_bytes,
            energy_j,
            parts: reading.parts,
            group_bytes: reading.group_bytes,
            gpu_power_w: reading.gpu_power_w,
            gpu_busy: reading.gpu_busy,
        }
    }

    /// What is left out gives its memory to the one before, so that no peak is thinned away.
    fn absorb(&mut self, next: &Self) {
        self.rss_bytes = self.rss_bytes.max(next.rss_bytes);
        self.device_bytes = self.device_bytes.max(next.device_bytes);
        self.group_bytes = self.group_bytes.max(next.group_bytes);
        self.parts = self.parts.into_iter().chain(next.parts).max_by_key(PartBytes::sum);
    }
}

/// The samples of a run on its way.
#[derive(Debug, Default)]
pub(super) struct Samples {
    kept: Vec<Sample>,
    /// One look in two to the power of this is kept.
    halvings: u32,
    looks: u64,
}

impl Samples {
    pub(super) fn keep(&mut self, sample: Sample) {
        let stride = 1_u64.checked_shl(self.halvings).unwrap_or(u64::MAX);
        match self.kept.last_mut() {
            Some(last) if !self.looks.is_multiple_of(stride) => last.absorb(&sample),
            _ => self.kept.push(sample),
        }
        self.looks = self.looks.saturating_add(1);
        if self.kept.len() > MOST {
            self.thin();
        }
    }

    pub(super) fn into_kept(self) -> Vec<Sample> {
        self.kept
    }

    fn thin(&mut self) {
        let mut kept: Vec<Sample> = Vec::with_capacity(MOST);
        for (i, sample) in std::mem::take(&mut self.kept).into_iter().enumerate() {
            match kept.last_mut() {
                Some(last) if i % 2 == 1 => last.absorb(&sample),
                _ => kept.push(sample),
            }
        }
        self.kept = kept;
        self.halvings += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::tag::Part;

    #[test]
    fn samples_are_thinned_without_losing_the_peak() {
        let mut samples = Samples::default();
        for i in 0..12_345_u64 {
            let rss_bytes = Some(if i == 7_777 { 99 } else { 1 });
            let parts = rss_bytes.map(|bytes| PartBytes(Part::ALL.map(|_| bytes)));
            let reading = Reading { rss_bytes, parts, ..Reading::default() };
            samples.keep(Sample::new(i as f64, "train", &reading, None));
        }
        let kept = samples.into_kept();
        assert!(kept.len() <= MOST && kept.len() > 400);
        assert_eq!(kept.iter().filter_map(|s| s.rss_bytes).max(), Some(99));
        assert!(kept.iter().any(|s| s.parts.is_some_and(|parts| parts.of(Part::Logits) == 99)));
        assert!(kept.windows(2).all(|w| w[0].at_s < w[1].at_s));
    }
}
