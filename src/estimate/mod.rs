//! Predicts a run before it starts, from shapes, counts, a machine profile, a price and past runs, all given as values:
//! imports neither candle nor the ledger. What could be counted is counted; what is modelled says so.

pub mod amount;
pub(crate) mod basis;
pub mod carbon;
pub mod counts;
pub(crate) mod csv;
pub mod energy;
pub mod error;
pub mod fit;
#[cfg(test)]
pub(crate) mod fixture;
pub mod history;
pub mod interval;
pub mod levers;
pub mod machine;
pub mod machines;
pub mod memory;
pub mod money;
pub mod parameters;
pub mod parts;
pub(crate) mod phases;
pub mod power;
pub mod prediction;
pub mod prices;
pub mod published;
pub mod rates;
pub mod running;
pub mod sheets;
pub mod time;
pub mod trained;
pub mod verdict;
pub mod work;

pub use amount::{Amount, CostLine};
pub use carbon::Carbon;
pub use counts::Counts;
pub use error::Error;
pub use interval::Interval;
pub use machine::{Limits, Machine};
pub use money::{PriceUsed, price_used};
pub use parameters::Parameters;
pub use parts::{MemoryPart, Part};
pub use phases::SAMPLE_TOKENS;
pub use prediction::{Inputs, Prediction, predict};
pub use verdict::refuse;

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

/// A size as `u64`; no supported platform has wider sizes.
pub(crate) fn wide(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// The product, or `u64::MAX` where it does not fit: an absurd config must read as too large, never wrap to small.
pub(crate) fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |all, &n| all.saturating_mul(n))
}

/// The sum, or `u64::MAX` where it does not fit.
pub(crate) fn sum(terms: &[u64]) -> u64 {
    terms.iter().fold(0, |all, &n| all.saturating_add(n))
}

/// A count or size computed in `f64`, rounded; below 0 and NaN are 0, beyond the range is `u64::MAX`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates, and saturation is what this function promises"
)]
pub(crate) fn rounded(value: f64) -> u64 {
    value.round() as u64
}
