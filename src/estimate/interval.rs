//! How far a prediction may be off. A width w means [value / (1 + w), value · (1 + w)].
//!
//! The rule, by the class of evidence:
//! - two or more finished runs on the machine: two standard deviations of their log ratios measured / predicted, for
//!   a new run (√(1 + 1/n)), never below `LEAST_TIME`, nor below the scatter of the machine's measurements;
//! - one finished run, which moves the prediction half of the way: as without it, and the other half either way;
//! - a pilot of the run: two of its own standard deviations;
//! - a machine that was calibrated, or measured quickly: `CALIBRATED_TIME` or `QUICK_TIME`, or the scatter of its
//!   measurements where that is more (twice it, where each was short);
//! - a data sheet: `SHEET_TIME`, or the scatter of the published runs that its efficiency comes from where that is more;
//! - an assumed machine: `ASSUMED_TIME`, a factor of four either way;
//! - memory follows from counted shapes on any machine: `COLD_MEMORY`, on an accelerator, whose allocator is not ours,
//!   `DEVICE_MEMORY`; of two or more runs, or a pilot, two standard deviations again, never below `LEAST_MEMORY`.

use super::history::Learned;
use super::machine::{Evidence, Kind, Machine};
use serde::{Deserialize, Serialize};

/// Bounds of a quantity, in its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

const CALIBRATED_TIME: f64 = 0.15;
const QUICK_TIME: f64 = 0.3;
const SHEET_TIME: f64 = 0.25;
const ASSUMED_TIME: f64 = 3.0;
/// Twice the worst error of fifteen kinds of runs of SmolLM2-135M and the quickstart's model.
const COLD_MEMORY: f64 = 0.08;
const DEVICE_MEMORY: f64 = 0.2;
/// Identical runs on a shared machine differ by this much.
const LEAST_TIME: f64 = 0.07;
const LEAST_MEMORY: f64 = 0.03;
/// Power is a mean over other loads than this one.
const POWER: f64 = 0.1;

impl Interval {
    /// The interval of a width around a value.
    pub fn around(value: f64, width: f64) -> Self {
        Self { low: value / (1.0 + width), high: value * (1.0 + width) }
    }
}

/// Width of all times.
pub fn time_width(machine: &Machine, learned: &Learned) -> f64 {
    let cold = match machine.evidence {
        Evidence::Calibrated => CALIBRATED_TIME.max(machine.spread),
        Evidence::Measured => QUICK_TIME.max(2.0 * machine.spread),
        Evidence::Sheet => SHEET_TIME.max(machine.spread),
        Evidence::Assumed => ASSUMED_TIME,
    };
    match learned.time.width() {
        Some(width) if learned.time.of_pilot => width,
        Some(width) => width.max(LEAST_TIME).max(machine.spread),
        None => learned.time.doubted(cold),
    }
}

/// Width of the peak.
pub fn memory_width(machine: &Machine, learned: &Learned) -> f64 {
    let cold = if machine.kind == Kind::Accelerator { DEVICE_MEMORY } else { COLD_MEMORY };
    learned.memory.width().map_or_else(|| learned.memory.doubted(cold), |w| w.max(LEAST_MEMORY))
}

/// Width of energy, given that of time.
pub fn energy_width(time: f64) -> f64 {
    (1.0 + time) * (1.0 + POWER) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::machine;

    #[test]
    fn less_evidence_gives_a_wider_interval() {
        let nothing = Learned::default();
        let cold = time_width(&machine(), &nothing);
        let assumed = time_width(&Machine::assumed("x", 2), &nothing);
        assert!(assumed > cold);
        let mut noisy = machine();
        noisy.spread = 0.5;
        assert!((time_width(&noisy, &nothing) - 0.5).abs() < 1e-12);
        noisy.evidence = Evidence::Measured;
        assert!((time_width(&noisy, &nothing) - 1.0).abs() < 1e-12, "short measurements are trusted half");
    }

    #[test]
    fn bounds_enclose_the_value_and_stay_positive() {
        let around = Interval::around(10.0, 3.0);
        assert!((around.low - 2.5).abs() < 1e-12 && (around.high - 40.0).abs() < 1e-12);
    }
}
