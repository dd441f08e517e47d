//! Times something by running it a few times: the faster half is the figure, its range the trust. What slows a run
//! down from outside (another process, a page fault) is in the slower half.

use super::rig::Rig;
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
/// Queued runs are timed for so long between two waits: a wait and an empty queue cost some ten microseconds.
const BUNCH: Duration = Duration::from_millis(2);
const MOST_BUNCHED: u32 = 1024;

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
        self.time_on(&Rig::CPU, run)
    }

    /// The same on a device; where runs are queued, several of them between two waits stand for one.
    ///
    /// # Errors
    /// The run's own, or the device's when it is waited for.
    pub fn time_on(self, rig: &Rig, run: &mut dyn FnMut() -> Result<()>) -> Result<Timed> {
        run()?;
        rig.wait()?;
        let mut several = |runs: u32| -> Result<Duration> {
            let before = Instant::now();
            for _ in 0..runs {
                run()?;
            }
            rig.wait()?;
            Ok(before.elapsed())
        };
        let mut bunch = 1;
        if rig.queues() {
            while several(bunch)? < BUNCH && bunch < MOST_BUNCHED {
                bunch *= 2;
            }
        }
        let started = Instant::now();
        let mut taken: Vec<f64> = Vec::with_capacity(MOST_RUNS);
        while taken.len() < self.least || (taken.len() < MOST_RUNS && started.elapsed() < self.budget) {
            taken.push(several(bunch)?.as_secs_f64() / f64::from(bunch));
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
    /// Runs that three timings take on a queue, played by the CPU.
    fn queued(mut run: impl FnMut()) -> (u32, Timed) {
        let mut runs = 0;
        let patience = Patience { budget: Duration::ZERO, least: 3 };
        let rig = Rig::queue(&candle_core::Device::Cpu, 1 << 30);
        let timed = patience.time_on(&rig, &mut || {
            runs += 1;
            run();
            Ok(())
        });
        (runs, timed.unwrap())
    }

    #[test]
    fn queued_runs_are_timed_in_bunches_that_outlast_a_wait() {
        // One to warm up, one that is long enough, and three times one.
        let (runs, timed) = queued(|| std::thread::sleep(BUNCH));
        assert_eq!(runs, 5);
        assert!(timed.typical_s >= BUNCH.as_secs_f64());
        // One, then 1 + 2 + … + bunch, then three bunches: five times a power of two.
        let (runs, timed) = queued(|| ());
        let bunch = runs / 5;
        assert!(runs == 5 * bunch && bunch.is_power_of_two() && bunch > 1, "{runs}");
        assert!(timed.typical_s < BUNCH.as_secs_f64() / 2.0, "a run of a bunch, not the bunch: {timed:?}");
    }

    #[test]
    fn a_fault_ends_the_measurement() {
        let rig = Rig::queue(&candle_core::Device::Cpu, 1 << 30);
        let mut left = 3;
        let timed = Patience::QUICK.time_on(&rig, &mut || {
            left -= 1;
            if left > 0 { Ok(()) } else { Err(crate::error::Error::new(crate::error::Kind::Device, "lost")) }
        });
        assert!(timed.unwrap_err().to_string().contains("lost") && left == 0);
    }
}
