//! The settings that would make a run fit: the nearest value of each, with the peak it leads to.

use super::memory::{Layout, Load};
use super::{Counts, sum, wide};
use crate::config::Config;
use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// One setting that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lever {
    /// As it is written in a config: `micro_batch_size = 2`.
    pub setting: String,
    /// Predicted peak with it, bytes.
    pub peak_memory_bytes: u64,
}

impl std::fmt::Display for Lever {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.setting, Bytes(self.peak_memory_bytes))
    }
}

/// Sequence lengths are tried in multiples of this.
const LENGTH_STEP: u64 = 64;

/// `value · part / whole`, at least 1 where `value` is.
fn scaled(value: u64, part: u64, whole: u64) -> u64 {
    let exact = u128::from(value) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(exact).unwrap_or(u64::MAX).max(value.min(1))
}

/// The search for settings that keep the peak within `limit`.
pub(crate) struct Search<'a> {
    pub(crate) layout: &'a Layout<'a>,
    pub(crate) counts: &'a Counts,
    pub(crate) config: &'a Config,
    pub(crate) load: Load,
    pub(crate) recompute: bool,
    pub(crate) limit: u64,
    /// What past runs add to a peak, as a factor.
    pub(crate) factor: f64,
}

impl Search<'_> {
    /// The peak with batches of `part / whole` of the size.
    fn peak(&self, part: u64, whole: u64, recompute: bool) -> u64 {
        let load = Load {
            tokens: scaled(self.load.tokens, part, whole),
            targets: scaled(self.load.targets, part, whole),
        };
        let mut counts = *self.counts;
        counts.eval.max_batch_tokens = scaled(counts.eval.max_batch_tokens, part, whole);
        let peak = sum(&self.layout.peak(&counts, load, recompute));
        super::rounded(peak as f64 * self.factor)
    }

    /// The largest multiple of `step` below `now` that fits, and its peak.
    fn largest(&self, now: u64, step: u64, recompute: bool) -> Option<(u64, u64)> {
        let (mut low, mut high) = (0, now.saturating_sub(1) / step);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.peak(middle * step, now, recompute) <= self.limit {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let value = low * step;
        (value > 0).then(|| (value, self.peak(value, now, recompute)))
    }

    /// One key lowered until it fits, as the config is or else with recompute.
    fn lowered(&self, key: &str, now: u64, step: u64) -> Option<Lever> {
        let plain = self.largest(now, step, self.recompute).map(|found| (found, ""));
        let with = || {
            let found = self.largest(now, step, true)?;
            Some((found, " with gradient_checkpointing = true"))
        };
        let ((value, peak_memory_bytes), how) = plain.or_else(with)?;
        Some(Lever { setting: format!("{key} = {value}{how}"), peak_memory_bytes })
    }

    /// All settings that fit, the one that changes least first.
    pub(crate) fn run(&self) -> Vec<Lever> {
        let recomputed = self.peak(1, 1, true);
        let recompute = (!self.recompute && recomputed <= self.limit).then(|| Lever {
            setting: "gradient_checkpointing = true".into(),
            peak_memory_bytes: recomputed,
        });
        let batch = wide(self.config.train.micro_batch_size);
        let length = wide(self.config.data.sequence_len);
        recompute
            .into_iter()
            .chain(self.lowered("micro_batch_size", batch, 1))
            .chain(self.lowered("sequence_len", length, LENGTH_STEP))
            .collect()
    }
}
