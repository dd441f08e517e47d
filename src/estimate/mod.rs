//! Predicts a run before it starts, from shapes, counts, a machine profile and a price, all given as values: imports
//! neither candle nor the ledger. What could be counted is counted; what is modelled says so.

use serde::{Deserialize, Serialize};

/// The six quantities that are predicted, measured and compared; `None` = not known, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantities {
    /// The whole run by the wall clock, s.
    pub wall_s: Option<f64>,
    /// One optimizer step, s: the median without the first.
    pub step_s: Option<f64>,
    /// Σ tokens / Σ step seconds.
    pub tokens_per_s: Option<f64>,
    /// Peak memory of the process on the CPU, of the device on CUDA, bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Energy, J.
    pub energy_j: Option<f64>,
    /// The bill, USD.
    pub cost_usd: Option<f64>,
}
