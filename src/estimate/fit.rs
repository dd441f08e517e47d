//! How a run is planned to fit: the peak with or without recompute, and what a full micro-batch would need.

use super::levers::Lever;
use super::memory::{Layout, Load};
use super::prediction::Inputs;
use super::{product, rounded, sum, wide};
use serde::{Deserialize, Serialize};

/// A micro-batch larger than the data can fill, judged as the config states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FullBatch {
    /// Predicted peak if it were filled, with recompute.
    pub peak_memory_bytes: u64,
    /// Settings that fit.
    pub levers: Vec<Lever>,
}

/// Share of the limit that `gradient_checkpointing = "auto"` fills before it recomputes.
const AUTO_SAFETY: f64 = 0.9;

/// The peak that a run is planned with.
pub(crate) struct Peak {
    /// Bytes of each part, corrected by past runs.
    pub(crate) parts: [u64; 9],
    /// Their sum as it follows from counts alone.
    pub(crate) uncorrected: u64,
    /// Activations are recomputed.
    pub(crate) recompute: bool,
}

/// The largest micro-batch of the data.
pub(crate) fn load(inputs: &Inputs<'_>) -> Load {
    Load { tokens: inputs.counts.max_batch_tokens, targets: inputs.counts.max_batch_targets }
}

/// The peak of a micro-batch, with the decision on recompute where `recompute` leaves it open.
pub(crate) fn peak(inputs: &Inputs<'_>, layout: &Layout<'_>, load: Load, recompute: Option<bool>) -> Peak {
    let (factor, limit) = (inputs.learned.memory.factor(), inputs.limits.memory_bytes);
    let counted = |recompute| floored(layout.peak(inputs.counts, load, recompute), inputs.resident_bytes);
    let expected = |recompute| sum(&counted(recompute)) as f64 * factor;
    let recompute = recompute.unwrap_or_else(|| expected(false) > limit as f64 * AUTO_SAFETY);
    let mut parts = counted(recompute);
    let uncorrected = sum(&parts);
    correct(&mut parts, rounded(expected(recompute)));
    Peak { parts, uncorrected, recompute }
}

/// A process never peaks below what it has held already, whatever it held it for.
fn floored(mut parts: [u64; 9], resident: u64) -> [u64; 9] {
    let missing = resident.saturating_sub(sum(&parts));
    let [.., runtime] = &mut parts;
    *runtime = runtime.saturating_add(missing);
    parts
}

/// Moves the modelled parts so that the sum is `total`: the runtime first, then the workspace. Counted parts stay.
fn correct(parts: &mut [u64; 9], total: u64) {
    let now = sum(parts);
    let [.., workspace, _, _, runtime] = parts;
    if total >= now {
        *runtime = runtime.saturating_add(total - now);
        return;
    }
    let mut excess = now - total;
    for part in [runtime, workspace] {
        let taken = excess.min(*part);
        *part -= taken;
        excess -= taken;
    }
}

/// The micro-batch as the config states it, where the data can never fill it.
pub(crate) fn filled(inputs: &Inputs<'_>) -> Option<Load> {
    let config = inputs.config;
    let batch = wide(config.train.micro_batch_size);
    let tokens = product(&[batch, wide(config.data.sequence_len)]);
    (batch > inputs.counts.rows).then_some(Load { tokens, targets: tokens })
}
