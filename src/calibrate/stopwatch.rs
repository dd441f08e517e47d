//! Times something by running it a few times: the median is the figure, the range its trust.

use crate::error::Result;
use std::time::{Duration, Instant};

/// What repeated runs took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    /// Seconds of the median run.
    pub median_s: f64,
    /// (slowest − fastest) / median; 0 for a single run.
    pub spread: f64,
}

const LEAST_RUNS: usize = 3;
const MOST_RUNS: usize = 15;

/// Runs once to warm up, then until `budget` is spent, at least three times and at most fifteen.
///
/// # Errors
/// The run's own.
pub fn time(budget: Duration, run: &mut dyn FnMut() -> Result<()>) -> Result<Timed> {
    run()?;
    let started = Instant::now();
    let mut taken: Vec<f64> = Vec::with_capacity(MOST_RUNS);
    while taken.len() < LEAST_RUNS || (taken.len() < MOST_RUNS && started.elapsed() < budget) {
        let before = Instant::now();
        run()?;
        taken.push(before.elapsed().as_secs_f64());
    }
    Ok(summary(&mut taken))
}

fn summary(taken: &mut [f64]) -> Timed {
    taken.sort_by(f64::total_cmp);
    let median = taken.get(taken.len() / 2).copied().unwrap_or(0.0).max(1e-9);
    let range = taken.last().zip(taken.first()).map_or(0.0, |(l, f)| l - f);
    Timed { median_s: median, spread: range / median }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_one_slow_run_and_the_spread_does_not() {
        let timed = summary(&mut [2.0, 1.0, 9.0, 2.0, 2.5]);
        assert!((timed.median_s - 2.0).abs() < 1e-12);
        assert!((timed.spread - 4.0).abs() < 1e-12);
    }

    #[test]
    fn it_warms_up_and_runs_at_least_three_times() {
        let mut runs = 0;
        time(Duration::ZERO, &mut || {
            runs += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(runs, 1 + LEAST_RUNS);
    }
}
