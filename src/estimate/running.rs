//! The prediction of a run that is under way: what is done by the clock, and what is left by the rate that was predicted,
//! corrected by the rate observed.

use super::Prediction;
use super::interval::Interval;

/// Observed steps; constant in memory.
#[derive(Debug, Clone, Copy)]
pub struct Correction {
    total_tokens: u64,
    predicted: Option<Rate>,
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
    /// Its bounds.
    pub interval: Interval,
}

/// Seconds a token, and how sure of it one can be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    s_per_token: f64,
    /// Of its logarithm.
    variance: f64,
}

/// Steps next to each other are slow or fast together: so many of them tell as much as one that is independent.
const CORRELATED: f64 = 3.0;
/// No rate holds better than this over a whole run.
const LEAST_WIDTH: f64 = 0.02;
/// Standard deviation of single steps before any is known, in shares of their mean, and of how many steps this is worth
/// beside those that are seen: two that agree by chance do not make a run even.
const SCATTER: f64 = 0.05;
const SCATTER_STEPS: f64 = 2.0;
/// Standard deviation of the first step about the others: pages are touched and caches filled in it.
const FIRST_SCATTER: f64 = 0.5;

impl Rate {
    /// As it was predicted before the first step, touching of pages apart; `None` where no time was predicted.
    pub fn predicted(prediction: &Prediction) -> Option<Self> {
        let (step_s, counts) = (prediction.predicted.step_s?, &prediction.counts);
        let width = prediction.interval.get("step_s")?.high / step_s - 1.0;
        // Of several processes each step's tokens are all of theirs.
        let share = counts.volume().tokens / counts.tokens as f64;
        Self::within(step_s / counts.middle_step_tokens() * share, width)
    }

    /// A rate that holds within a width of two standard deviations.
    fn within(s_per_token: f64, width: f64) -> Option<Self> {
        let sd = width.max(LEAST_WIDTH).ln_1p() / 2.0;
        let is_sound = s_per_token.is_finite() && s_per_token > 0.0 && sd.is_finite();
        is_sound.then_some(Self { s_per_token, variance: sd * sd })
    }

    /// Both by their weights, which are their variances' reciprocals (Gauss). A prediction that what is `observed`
    /// contradicts has a distribution with a tail (Cauchy's), and loses its weight: the machine is not what it was.
    fn corrected(self, observed: Self) -> Self {
        let apart = (observed.s_per_token / self.s_per_token).ln();
        let squared = apart * apart / (self.variance + observed.variance);
        let trust = (2.0 / (1.0 + squared)).min(1.0);
        let (own, other) = (trust / self.variance, observed.variance.recip());
        let towards = other / (own + other);
        Self { s_per_token: self.s_per_token * (apart * towards).exp(), variance: (own + other).recip() }
    }
}

/// What comes again and again beside the steps: evaluations, or checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct Recurring {
    predicted_s: f64,
    done: u64,
    done_s: f64,
    left: u64,
}

impl Recurring {
    /// `times` of them are still to come and predicted to take so long together.
    pub fn new(times: u64, predicted_s: f64) -> Self {
        let left = times.max(1);
        Self { predicted_s: predicted_s / left as f64, done: 0, done_s: 0.0, left }
    }

    /// One is done.
    pub fn pass(&mut self, seconds: f64) {
        self.done += 1;
        self.done_s += seconds;
        self.left = self.left.saturating_sub(1);
    }

    /// Seconds of those still to come: as predicted until the first was seen, then as those seen.
    pub fn left_s(&self) -> f64 {
        let each = if self.done == 0 { self.predicted_s } else { self.done_s / self.done as f64 };
        self.left as f64 * each
    }
}

impl Correction {
    /// A run of `total_tokens` tokens still to train, at the rate `predicted`.
    pub fn new(total_tokens: u64, predicted: Option<Rate>) -> Self {
        Self {
            total_tokens,
            predicted,
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
        if tokens == 0 || !seconds.is_finite() || seconds <= 0.0 {
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

    /// Where the run is heading with `beside_s` seconds beside the training that is left: all that is over, and what other
    /// phases still take; `None` before the first step.
    pub fn projection(&self, beside_s: f64) -> Option<Projection> {
        let observed = self.observed()?;
        let rate = self.predicted.map_or(observed, |predicted| predicted.corrected(observed));
        let left = self.total_tokens.saturating_sub(self.done_tokens) as f64;
        let left_s = left * rate.s_per_token;
        let steps_left = left * (self.steps + 1) as f64 / self.done_tokens as f64;
        // Those that are left scatter as those that are done did.
        let variance = rate.variance + self.scatter() / independent(steps_left);
        let width = (2.0 * variance.sqrt()).exp_m1().max(LEAST_WIDTH);
        let around = Interval::around(left_s, width);
        Some(Projection {
            wall_s: beside_s + left_s,
            interval: Interval { low: beside_s + around.low, high: beside_s + around.high },
        })
    }

    /// The rate of the steps so far. The first warms caches up: it counts only while there is no other.
    fn observed(&self) -> Option<Rate> {
        let (tokens, seconds) = self.first?;
        if self.steps == 0 {
            let s_per_token = seconds / tokens as f64;
            return Some(Rate { s_per_token, variance: FIRST_SCATTER * FIRST_SCATTER });
        }
        let s_per_token = (self.done_s - seconds) / (self.done_tokens - tokens) as f64;
        Some(Rate { s_per_token, variance: self.scatter() / independent(self.steps as f64) })
    }

    /// Variance of single steps, in shares of their mean's square.
    fn scatter(&self) -> f64 {
        let seen = if self.steps == 0 { 0.0 } else { self.squares / (self.mean * self.mean) };
        let known = self.steps.saturating_sub(1) as f64;
        (SCATTER_STEPS * SCATTER * SCATTER + seen) / (SCATTER_STEPS + known)
    }
}

/// As how many independent ones so many steps next to each other count.
fn independent(steps: f64) -> f64 {
    1.0 + (steps - 1.0).max(0.0) / CORRELATED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_recurs_goes_by_the_prediction_until_it_was_seen() {
        let mut evaluations = Recurring::new(4, 40.0);
        assert!((evaluations.left_s() - 40.0).abs() < 1e-9);
        evaluations.pass(20.0);
        assert!((evaluations.left_s() - 60.0).abs() < 1e-9);
        for _ in 0..9 {
            evaluations.pass(20.0);
        }
        assert!(evaluations.left_s().abs() < 1e-9);
        assert!((Recurring::new(0, 3.0).left_s() - 3.0).abs() < 1e-9, "predicted, but not counted");
    }

    fn seen(predicted: Option<Rate>, total: u64, steps: &[f64]) -> Correction {
        let mut run = Correction::new(total, predicted);
        for s in steps {
            run.observe(100, *s);
        }
        run
    }

    fn predicted(s_per_token: f64) -> Option<Rate> {
        Rate::within(s_per_token, 0.15)
    }

    fn width(p: Projection) -> f64 {
        (p.interval.high - p.interval.low) / p.wall_s
    }

    #[test]
    fn the_first_step_counts_as_time_but_not_as_rate() {
        assert_eq!(Correction::new(1000, None).projection(5.0), None);
        let run = seen(None, 1000, &[9.0, 1.0, 1.0, 1.0, 1.0]);
        // 500 tokens left at 100 a second.
        let p = run.projection(18.0).unwrap();
        assert!((p.wall_s - 23.0).abs() < 1e-9);
        assert!(p.interval.low < 23.0 && (18.0 + 5.0 * 1.05..18.0 + 5.0 * 1.07).contains(&p.interval.high));
    }

    #[test]
    fn behind_a_slow_first_step_the_prediction_holds() {
        let first = |predicted| seen(predicted, 1000, &[3.0]).projection(0.0).unwrap();
        let (with, without) = (first(predicted(0.01)), first(None));
        assert!((9.0..9.6).contains(&with.wall_s), "{with:?}");
        assert!((without.wall_s - 27.0).abs() < 1e-9);
        assert!(width(with) < 0.5 && width(without) > 1.0);
    }

    #[test]
    fn steps_near_the_prediction_share_with_it_and_steps_far_off_overrule_it() {
        let after = |n: usize, step_s: f64| {
            let left = 1_000_000;
            let run = seen(predicted(0.01), left + 100 * (n as u64 + 1), &vec![step_s; n + 1]);
            run.projection(0.0).unwrap().wall_s / left as f64 * 100.0
        };
        let near = [after(1, 1.1), after(5, 1.1), after(50, 1.1)];
        assert!(1.05 < near[0] && near[0] < near[1] && near[1] < near[2] && near[2] < 1.1, "{near:?}");
        assert!(near[2] > 1.099, "{near:?}");
        let far = after(5, 2.0);
        assert!((1.98..2.0).contains(&far), "{far}");
    }

    #[test]
    fn a_prediction_without_a_time_or_with_a_broken_one_is_none() {
        assert_eq!(Rate::within(f64::NAN, 0.1), None);
        assert_eq!(Rate::within(0.0, 0.1), None);
        assert_eq!(Rate::within(1.0, f64::INFINITY), None);
    }

    #[test]
    fn scatter_widens_and_more_steps_narrow() {
        let observe = |n: usize| {
            let steps: Vec<f64> = (0..=n).map(|i| if i % 2 == 0 { 1.0 } else { 1.5 }).collect();
            seen(None, 1_000_000, &steps).projection(0.0).unwrap()
        };
        let (few, many) = (observe(6), observe(60));
        assert!(width(few) > 2.0 * width(many));
        assert!(many.interval.low < many.wall_s && many.wall_s < many.interval.high);
    }

    #[test]
    fn a_finished_run_takes_what_the_clock_says() {
        let p = seen(None, 200, &[1.0, 1.0]).projection(12.0).unwrap();
        assert!([p.wall_s, p.interval.low, p.interval.high].iter().all(|s| (s - 12.0).abs() < 1e-9));
    }

    #[test]
    fn steps_without_tokens_or_with_broken_times_are_passed_over() {
        let mut run = Correction::new(200, None);
        run.observe(0, 1.0);
        run.observe(10, 0.0);
        run.observe(10, f64::NAN);
        assert_eq!(run.projection(0.0), None);
    }
}
