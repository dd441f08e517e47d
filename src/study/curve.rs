//! Where a loss is heading: a power law over the learning rates that were spent, and how far it can be trusted.
//!
//! `L(S) = E + (L₀ − E)·(1 + S/τ)^−α` with S the sum of the learning rates so far (Tissue et al. 2024, "Scaling Law with
//! Learning Rate Annealing"): so a pilot at a constant rate and a run that anneals lie on one curve. Every curve of a grid
//! of E, τ, α counts by its likelihood, which is held down: no run follows such a curve exactly. Left out: that rows which
//! come again are remembered.

use serde::Serialize;

/// The loss at the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ending {
    /// Expected.
    pub loss: f64,
    /// 95 of 100 runs end above this.
    pub low: f64,
    /// And below this.
    pub high: f64,
}

/// Points below which no curve is told from another.
const LEAST_POINTS: usize = 4;
/// An evaluation's own scatter, of its loss: the same rows each time, so it is small.
const LEAST_SIGMA: f64 = 0.003;
/// How far the end of an annealed run lies below the curve of its learning rates at most, of its loss: 1–3 % in the
/// comparisons of Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".
const ANNEALED: f64 = 0.03;
/// Points that all of them tell as much as: a run's curve strays from a power law for many evaluations on end. With the
/// plain likelihood SmolLM2's loss on GSM8K fell through the interval of a pilot of 15 of 287 steps.
const TELLING: f64 = 3.0;
/// The loss of a row in the mean's, standard deviation: 0.24 for SmolLM2 on GSM8K.
const ROW_SCATTER: f64 = 0.25;
const EXPONENTS: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];
const FLOORS: u32 = 60;
const SCALES: u32 = 60;

/// How far the mean loss of `held_out` of `all` rows to evaluate lies from theirs, relative, one standard deviation.
pub fn sampled(held_out: usize, all: usize) -> f64 {
    let (few, all) = (held_out.max(1) as f64, all.max(1) as f64);
    ROW_SCATTER * (1.0 / few - 1.0 / all).max(0.0).sqrt()
}

/// The loss at `end`, from (spent learning rates, loss) of which the first is that before training, on rows whose own mean
/// lies `sampled` off; `None` where the points are too few, or not numbers.
pub fn ending(points: &[(f64, f64)], end: f64, sampled: f64) -> Option<Ending> {
    let (&(_, first), rest) = points.split_first()?;
    let furthest = rest.iter().map(|p| p.0).fold(0.0, f64::max);
    let is_number = points.iter().all(|(s, l)| s.is_finite() && l.is_finite() && *l > 0.0);
    if points.len() < LEAST_POINTS || !is_number || furthest <= 0.0 {
        return None;
    }
    let mut curves = curves(first, rest, furthest, end);
    let best = curves.iter().map(|c| c.squares).fold(f64::INFINITY, f64::min);
    let freedom = rest.len().saturating_sub(2).max(1) as f64;
    let variance = (best / freedom).max((LEAST_SIGMA * first).powi(2));
    curves.sort_by(|a, b| a.end.total_cmp(&b.end));
    let told = (TELLING / rest.len() as f64).min(1.0);
    let weight = |c: &Curve| (-0.5 * told * (c.squares - best) / variance).exp();
    let whole: f64 = curves.iter().map(weight).sum();
    let quantile = |q: f64| {
        let mut below = 0.0;
        curves.iter().find(|c| {
            below += weight(c) / whole;
            below >= q
        })
    };
    let loss = curves.iter().map(|c| weight(c) * c.end).sum::<f64>() / whole;
    let noise = 2.0 * variance.sqrt();
    let low = quantile(0.025)?.end * (1.0 - ANNEALED) - noise;
    let high = quantile(0.975)?.end + noise;
    let other_rows = 2.0 * sampled * loss;
    Some(Ending {
        loss,
        low: (loss - (loss - low).hypot(other_rows)).max(0.0),
        high: loss + (high - loss).hypot(other_rows),
    })
}

struct Curve {
    /// Σ of squared misses.
    squares: f64,
    /// Its loss at the end.
    end: f64,
}

fn curves(first: f64, rest: &[(f64, f64)], furthest: f64, end: f64) -> Vec<Curve> {
    let steps = |of: u32| (0..of).map(move |i| f64::from(i) / f64::from(of));
    let mut all = Vec::new();
    for floor in steps(FLOORS).map(|share| share * first) {
        // From a hundredth of what was spent to a hundred times it.
        for scale in steps(SCALES).map(|share| furthest * 10f64.powf(4.0 * share - 2.0)) {
            for exponent in EXPONENTS {
                let at = |s: f64| floor + (first - floor) * (1.0 + s / scale).powf(-exponent);
                let squares = rest.iter().map(|(s, loss)| (at(*s) - loss).powi(2)).sum();
                all.push(Curve { squares, end: at(end) });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(law: impl Fn(f64) -> f64, n: u32) -> Vec<(f64, f64)> {
        (0..n).map(|i| (f64::from(i), law(f64::from(i)))).collect()
    }

    #[test]
    fn a_power_law_is_carried_on_within_its_interval() {
        let law = |s: f64| 1.2 + 1.3 * (1.0 + s / 2.0).powf(-0.5);
        let end = ending(&points(law, 8), 100.0, 0.0).unwrap();
        assert!(end.low < law(100.0) && law(100.0) < end.high, "{end:?} {}", law(100.0));
        assert!((end.loss / law(100.0) - 1.0).abs() < 0.1, "{end:?} {}", law(100.0));
        let near = ending(&points(law, 8), 8.0, 0.0).unwrap();
        assert!((near.loss - law(8.0)).abs() < 0.01, "{near:?}");
        assert!(near.high - near.low < end.high - end.low, "further away is less certain");
    }

    #[test]
    fn a_loss_that_settled_stays_where_it_is() {
        let law = |s: f64| 0.5 + 2.0 * (1.0 + s).powi(-4);
        let end = ending(&points(law, 8), 200.0, 0.0).unwrap();
        assert!((end.loss - 0.5).abs() < 0.03, "{end:?}");
    }

    #[test]
    fn noise_widens() {
        let law = |s: f64| 1.0 + (1.0 + s).powf(-0.5);
        let noisy = |s: f64| law(s) * (1.0 + 0.03 * (s * std::f64::consts::PI).cos());
        let width = |p: &[(f64, f64)]| ending(p, 50.0, 0.0).map(|e| e.high - e.low).unwrap();
        assert!(width(&points(noisy, 8)) > 2.0 * width(&points(law, 8)));
    }

    /// Evaluations of SmolLM2-135M on 16 rows of GSM8K at a constant rate, against the end of the whole run, annealed, in
    /// terms of those rows.
    #[test]
    fn a_run_that_follows_no_power_law_ends_within_the_interval() {
        let losses = [1.3482, 1.1789, 1.0746, 1.0055, 0.9508, 0.9139, 0.8957, 0.8738, 0.8655];
        let steps = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 15.0];
        let points: Vec<(f64, f64)> = steps.into_iter().zip(losses).collect();
        let end = ending(&points, 144.0, 0.0).unwrap();
        assert!(end.low < 0.688 && 0.688 < end.high && end.high < 0.85, "{end:?}");
    }

    #[test]
    fn few_rows_tell_less_of_many() {
        assert!(sampled(100, 100) < 1e-12);
        assert!(sampled(16, 100) > sampled(32, 100));
        let law = |s: f64| 1.0 + (1.0 + s).powf(-0.5);
        let few = ending(&points(law, 8), 9.0, sampled(16, 100)).unwrap();
        let all = ending(&points(law, 8), 9.0, 0.0).unwrap();
        assert!(
            (few.loss - all.loss).abs() < 1e-12 && few.low < 0.95 * all.low && few.high > 1.05 * all.high,
            "{few:?}"
        );
    }

    #[test]
    fn too_few_points_or_none_that_is_a_number_give_no_curve() {
        assert_eq!(ending(&points(|_| 1.0, 3), 9.0, 0.0), None);
        assert_eq!(ending(&points(|_| f64::NAN, 9), 9.0, 0.0), None);
        assert_eq!(ending(&[], 9.0, 0.0), None);
    }
}
