//! The prediction of a run that is under way: what is done by the clock, and what is left by the rate observed.

use super::interval::Interval;
use super::money::{PhaseCost, PriceUsed};

/// Observed steps; constant in memory.
#[derive(Debug, Clone, Copy)]
pub struct Correction {
    total_tokens: u64,
    other_s: f64,
    done_tokens: u64,
    done_s: f64,
    first: Option<(u64, f64)>,
    /// Steps behind the first, and mean and sum of squared deviations of their seconds a token (Welford 1962).
    steps: u64,
    mean: f64,
    squares: f64,
}

/// Where a run is heading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// The whole run by the wall clock, s.
    pub wall_s: f64,
    /// Training that is left, s.
    pub left_s: f64,
    /// Bounds of `wall_s`.
    pub interval: Interval,
    /// Rate of the steps behind the first.
    pub tokens_per_s: f64,
}

/// Steps next to each other are slow or fast together: so many of them tell as much as one that is independent.
const CORRELATED: f64 = 3.0;
/// No rate holds better than this over a whole run.
const LEAST_WIDTH: f64 = 0.02;
/// Width while fewer than [`FEW`] steps were seen.
const FIRST_WIDTH: f64 = 0.5;
const FEW: u64 = 3;

/// Seconds of a run beside its training: what is over by the `clock`, and evaluating and saving as `predicted`, of which
/// the share `left` is still to come.
pub fn beside_training<'a>(
    predicted: &[PhaseCost],
    clock: impl IntoIterator<Item = (&'a str, f64)>,
    left: f64,
) -> f64 {
    let is_ahead = |name: &str| matches!(name, "evaluate" | "save");
    let over = clock.into_iter().filter(|(name, _)| *name != "train" && !is_ahead(name));
    let ahead = predicted.iter().filter(|phase| is_ahead(&phase.name));
    over.map(|(_, s)| s).sum::<f64>() + left * ahead.map(|phase| phase.wall_s).sum::<f64>()
}

impl Correction {
    /// A run of `total_tokens` tokens still to train, and `other_s` seconds of other phases, done or predicted.
    pub fn new(total_tokens: u64, other_s: f64) -> Self {
        Self {
            total_tokens,
            other_s,
            done_tokens: 0,
            done_s: 0.0,
            first: None,
            steps: 0,
            mean: 0.0,
            squares: 0.0,
        }
    }

    /// Adds one step.
    pub fn observe(&mut self, tokens: u64, seconds: f64) {
        if tokens == 0 || !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        self.done_tokens = self.done_tokens.saturating_add(tokens);
        self.done_s += seconds;
        if self.first.is_none() {
            self.first = Some((tokens, seconds));
            return;
        }
        self.steps = self.steps.saturating_add(1);
        let per_token = seconds / tokens as f64;
        let off = per_token - self.mean;
        self.mean += off / self.steps as f64;
        self.squares += off * (per_token - self.mean);
    }

    /// Where the run is heading; `None` before the first step. The first step warms caches up: its rate counts only
    /// while there is no other.
    pub fn projection(&self) -> Option<Projection> {
        let (first_tokens, first_s) = self.first?;
        let (tokens, seconds) = if self.steps == 0 {
            (first_tokens, first_s)
        } else {
            (self.done_tokens - first_tokens, self.done_s - first_s)
        };
        let per_token = seconds / tokens.max(1) as f64;
        let left = self.total_tokens.saturating_sub(self.done_tokens);
        let left_s = left as f64 * per_token;
        let width = self.width();
        let done = self.done_s + self.other_s;
        let around = Interval::around(left_s, width);
        Some(Projection {
            wall_s: done + left_s,
            left_s,
            interval: Interval { low: done + around.low, high: done + around.high },
            tokens_per_s: if per_token > 0.0 { per_token.recip() } else { 0.0 },
        })
    }

    /// Two standard errors of the mean seconds a token, in shares of it.
    fn width(&self) -> f64 {
        if self.steps < FEW || self.mean <= 0.0 {
            return FIRST_WIDTH;
        }
        let n = self.steps as f64;
        let sd = (self.squares / (n - 1.0)).sqrt();
        (2.0 * sd / self.mean * (CORRELATED / n).sqrt()).max(LEAST_WIDTH)
    }
}

impl Projection {
    /// The bill, low, expected and high; `None` without a price.
    pub fn cost_usd(&self, price: &PriceUsed) -> Option<[f64; 3]> {
        let bill = |s| price.bill(s).map(|b| b.cost_usd);
        Some([bill(self.interval.low)?, bill(self.wall_s)?, bill(self.interval.high)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::price;

    #[test]
    fn what_is_over_is_the_clocks_and_what_is_ahead_the_predictions() {
        let phase =
            |name: &str, wall_s| PhaseCost { name: name.into(), wall_s, cost_usd: None, beside: false };
        let predicted =
            [phase("load", 9.0), phase("train", 50.0), phase("evaluate", 4.0), phase("save", 2.0)];
        let clock = [("load", 1.0), ("calibrate", 3.0), ("train", 70.0), ("evaluate", 8.0)];
        assert!((beside_training(&predicted, clock, 1.0) - 10.0).abs() < 1e-9);
        assert!(
            (beside_training(&predicted, clock, 0.5) - 7.0).abs() < 1e-9,
            "half of it is in the clock's past"
        );
    }

    #[test]
    fn the_first_step_counts_as_time_but_not_as_rate() {
        let mut run = Correction::new(1000, 5.0);
        assert_eq!(run.projection(), None);
        run.observe(100, 9.0);
        for _ in 0..4 {
            run.observe(100, 1.0);
        }
        let p = run.projection().unwrap();
        // 5 + 9 + 4 done, 500 tokens left at 100 a second.
        assert!((p.wall_s - 23.0).abs() < 1e-9 && (p.left_s - 5.0).abs() < 1e-9);
        assert!((p.tokens_per_s - 100.0).abs() < 1e-9);
        assert!((p.interval.high - (18.0 + 5.0 * 1.02)).abs() < 1e-9);
    }

    #[test]
    fn scatter_widens_and_more_steps_narrow() {
        let observe = |n: u32| {
            let mut run = Correction::new(1_000_000, 0.0);
            for i in 0..=n {
                run.observe(100, if i % 2 == 0 { 1.0 } else { 1.5 });
            }
            run.projection().unwrap()
        };
        let (few, many) = (observe(6), observe(60));
        let width = |p: Projection| (p.interval.high - p.interval.low) / p.left_s;
        assert!(width(few) > 2.0 * width(many));
        assert!(many.interval.low < many.wall_s && many.wall_s < many.interval.high);
    }

    #[test]
    fn a_finished_run_costs_what_the_clock_says() {
        let mut run = Correction::new(200, 10.0);
        run.observe(100, 1.0);
        run.observe(100, 1.0);
        let p = run.projection().unwrap();
        let [low, expected, high] = p.cost_usd(&price(Some(3600.0))).unwrap();
        assert!((low - 12.0).abs() < 1e-9 && (expected - 12.0).abs() < 1e-9);
        assert!((high - 12.0).abs() < 1e-9);
        assert_eq!(p.cost_usd(&price(None)), None);
    }

    #[test]
    fn steps_without_tokens_or_with_broken_times_are_passed_over() {
        let mut run = Correction::new(200, 0.0);
        run.observe(0, 1.0);
        run.observe(10, f64::NAN);
        assert_eq!(run.projection(), None);
    }
}
