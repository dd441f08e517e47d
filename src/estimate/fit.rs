//! How a run is planned to fit: the peak with or without recompute, and what would fit where neither does.

use super::history::Learned;
use super::levers::{Lever, Search};
use super::memory::{Layout, Load};
use super::prediction::Inputs;
use super::{product, rounded, sum, wide};
use serde::{Deserialize, Serialize};

/// A micro-batch larger than the data can fill, judged as the config states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullBatch {
    /// Predicted peak if it were filled, with recompute.
    pub peak_memory_bytes: u64,
    /// Settings that fit.
    pub levers: Vec<Lever>,
}

/// Share of the limit that `gradient_checkpointing = "auto"` fills before it recomputes.
const AUTO_SAFETY: f64 = 0.9;
const GIB: f64 = 1_073_741_824.0;
/// The peak that a run is planned with.
pub(crate) struct Peak {
    /// Bytes of each part, corrected by past runs.
    pub(crate) parts: [u64; 9],
    /// Their sum as it follows from counts alone.
    pub(crate) uncorrected: u64,
    /// Activations are recomputed.
    pub(crate) recompute: bool,
    /// Settings that fit; empty where the run fits.
    pub(crate) levers: Vec<Lever>,
}

/// Bytes that the run may take: the machine's, or the budget's where that is less.
fn limit(inputs: &Inputs<'_>) -> u64 {
    let cap = inputs.config.budget.max_memory_gib;
    cap.map_or(inputs.limits.memory_bytes, |gib| rounded(gib * GIB).min(inputs.limits.memory_bytes))
}

/// The peak, with the decision on recompute where the config leaves it open.
pub(crate) fn peak(inputs: &Inputs<'_>, layout: &Layout<'_>, learned: &Learned) -> Peak {
    let counts = inputs.counts;
    let load = Load { tokens: counts.max_batch_tokens, targets: counts.max_batch_targets };
    let (factor, limit) = (learned.memory.factor(), limit(inputs));
    let expected = |recompute| {
        let bytes = sum(&layout.peak(counts, load, recompute));
        bytes as f64 * factor
    };
    let recompute = inputs
        .config
        .train
        .gradient_checkpointing
        .unwrap_or_else(|| expected(false) > limit as f64 * AUTO_SAFETY);
    let mut parts = layout.peak(counts, load, recompute);
    let uncorrected = sum(&parts);
    correct(&mut parts, rounded(expected(recompute)));
    let levers = if sum(&parts) > limit {
        Search { layout, counts, config: inputs.config, load, recompute, limit, factor }.run()
    } else {
        Vec::new()
    };
    Peak { parts, uncorrected, recompute, levers }
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
pub(crate) fn full_batch(inputs: &Inputs<'_>, layout: &Layout<'_>, learned: &Learned) -> Option<FullBatch> {
    let config = inputs.config;
    let batch = wide(config.train.micro_batch_size);
    if batch <= inputs.counts.rows {
        return None;
    }
    let tokens = product(&[batch, wide(config.data.sequence_len)]);
    let load = Load { tokens, targets: tokens };
    let factor = learned.memory.factor();
    let bytes = sum(&layout.peak(inputs.counts, load, true));
    let search =
        Search { layout, counts: inputs.counts, config, load, recompute: true, limit: limit(inputs), factor };
    let peak_memory_bytes = rounded(bytes as f64 * factor);
    Some(FullBatch {
        peak_memory_bytes,
        levers: if peak_memory_bytes > search.limit { search.run() } else { Vec::new() },
    })
}
