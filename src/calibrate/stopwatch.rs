//! Times something by running it a few times: the faster half is the figure, its range the trust. What slows a run
//! down from outside (another process, a page fault) is in the slower half.

use crate::error::Result;
use std::time::{Duration, Instant};

/// What repeated runs took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    /// Seconds of a typical undisturbed run: the mean of the faster half.
    pub typical_s: f64,
    /// (slowest − fastest) / typical within that half; 0 for a single run.
    pub spread: f64,
}

/// How long something is measured.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time for all runs beside the first.
    pub budget: Duration,
    /// Runs that are always taken.
    pub least: usize,
}

const MOST_RUNS: usize = 40;

impl Patience {
    /// For a profile that a run waits for.
    pub const QUICK: Self = Self { budget: Duration::from_millis(90), least: 3 };
    /// For `fttrain calibrate`.
    pub const THOROUGH: Self = Self { budget: Duration::from_millis(160), least: 5 };

    /// Runs once to warm up, then until the budget is spent.
    ///
    /// # Errors
    /// The run's own.
    pub fn time(self, run: &mut dyn FnMut() -> Result<()>) -> Result<Timed> {
        run()?;
        let started = Instant::now();
        let mut taken: Vec<f64> = Vec::with_capacity(MOST_RUNS);
        while taken.len() < self.least || (taken.len() < MOST_RUNS && started.elapsed() < self.budget) {
            let before = Instant::now();
            run()?;
            taken.push(before.elapsed().as_secs_f64());
        }
        Ok(summary(&mut taken))
    }
}

fn summary(taken: &mut [f64]) -> Timed {
    taken.sort_by(f64::total_cmp);
    let half = &taken[..taken.len().div_ceil(2)];
    let typical = (half.iter().sum::<f64>() / half.len().max(1) as f64).max(1e-9);
    let range = half.last().zip(half.first()).map_or(0.0, |(l, f)| l - f);
    Timed { typical_s: typical, spread: range / typical }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disturbs_half_of_the_runs_does_not_show() {
        let timed = summary(&mut [2.0, 1.0, 9.0, 30.0, 1.5]);
        assert!((timed.typical_s - 1.5).abs() < 1e-12);
        assert!((timed.spread - 1.0 / 1.5).abs() < 1e-12);
    }

    #[test]
    fn it_warms_up_and_runs_at_least_as_often_as_asked() {
        let mut runs = 0;
        let patience = Patience { budget: Duration::ZERO, least: 3 };
        patience
            .time(&mut || {
                runs += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(runs, 4);
    }
}
