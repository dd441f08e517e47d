//! Predictions against measurements: errors by quantity, and how often and how tightly the interval held.

use crate::estimate::history::median;
use serde::{Deserialize, Serialize};

/// One quantity of one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Predicted before the run.
    pub predicted: f64,
    /// Lower bound of the prediction.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
    /// Measured.
    pub measured: f64,
}

/// How well a quantity was foretold over all runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// Runs.
    pub rows: usize,
    /// Mean of |predicted − measured| / measured, %.
    pub mean_absolute_pct: f64,
    /// Median of it, %.
    pub median_absolute_pct: f64,
    /// The lowest error, %: predicted too little.
    pub worst_under_pct: f64,
    /// The highest error, %.
    pub worst_over_pct: f64,
    /// Share of the runs inside the interval.
    pub coverage: f64,
    /// Mean width of the interval over the measurement, %.
    pub mean_width_pct: f64,
    /// Mean interval score over the measurement, % (Gneiting & Raftery 2007, α = 0.05): the width, and 40 times what
    /// lies outside. Lower is better.
    pub interval_score_pct: f64,
}

/// The interval is meant to hold 95 of 100 runs.
const ALPHA: f64 = 0.05;

impl Pair {
    /// (predicted − measured) / measured, %.
    pub fn error_pct(&self) -> f64 {
        100.0 * (self.predicted - self.measured) / self.measured
    }

    fn interval_score_pct(&self) -> f64 {
        let missed = (self.low - self.measured).max(self.measured - self.high).max(0.0);
        100.0 * (self.high - self.low + 2.0 / ALPHA * missed) / self.measured
    }
}

impl Score {
    /// Of all pairs; all zeros of none.
    pub fn of(pairs: &[Pair]) -> Self {
        if pairs.is_empty() {
            return Self::default();
        }
        let n = pairs.len() as f64;
        let mean = |of: &dyn Fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>() / n;
        let mut absolute: Vec<f64> = pairs.iter().map(|p| p.error_pct().abs()).collect();
        Self {
            rows: pairs.len(),
            mean_absolute_pct: mean(&|p| p.error_pct().abs()),
            median_absolute_pct: median(&mut absolute),
            worst_under_pct: pairs.iter().map(Pair::error_pct).fold(0.0, f64::min),
            worst_over_pct: pairs.iter().map(Pair::error_pct).fold(0.0, f64::max),
            coverage: mean(&|p| f64::from(u8::from(p.low <= p.measured && p.measured <= p.high))),
            mean_width_pct: mean(&|p| 100.0 * (p.high - p.low) / p.measured),
            interval_score_pct: mean(&Pair::interval_score_pct),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_signs_and_the_interval_pays_for_width_and_misses() {
        let pair = |predicted: f64, measured| Pair {
            predicted,
            low: 0.9 * predicted,
            high: 1.1 * predicted,
            measured,
        };
        let score = Score::of(&[pair(1.0, 1.0), pair(0.5, 1.0), pair(1.2, 1.0)]);
        assert!((score.mean_absolute_pct - 70.0 / 3.0).abs() < 1e-9);
        assert!((score.worst_under_pct + 50.0).abs() < 1e-9 && (score.worst_over_pct - 20.0).abs() < 1e-9);
        assert!((score.coverage - 1.0 / 3.0).abs() < 1e-9);
        // Width 0.1 and 40 times the 0.45 that it missed by.
        assert!((pair(0.5, 1.0).interval_score_pct() - 100.0 * (0.1 + 40.0 * 0.45)).abs() < 1e-6);
        assert_eq!(Score::of(&[]), Score::default());
    }
}
