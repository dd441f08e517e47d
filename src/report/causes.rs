//! Where each error came from: more tokens than predicted, a slower op class, a longer phase, a part of memory missed.
//! The shares of a quantity sum to its error, in points of the measured value.

use super::build::UNATTRIBUTED;
use super::record::{ErrorPct, MemoryPart, Phase};
use super::words;
use crate::estimate::time::ClassTime;
use crate::estimate::work::Class;
use crate::estimate::{Prediction, Quantities};
use serde::{Deserialize, Serialize};

/// A share of the error of one quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The quantity's key.
    pub quantity: String,
    /// What was foretold wrong.
    pub what: String,
    /// Its share of the quantity's error, % of the measured value: below 0 where too little was predicted.
    pub points: f64,
}

/// What was predicted beside the six quantities.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forecast {
    /// Seconds of the phases.
    pub phases: Vec<(String, f64)>,
    /// Seconds of training by op class.
    pub classes: Vec<(Class, f64)>,
    /// Optimizer steps.
    pub steps: u64,
    /// Real input tokens of all of them.
    pub tokens: u64,
}

impl From<&Prediction> for Forecast {
    fn from(prediction: &Prediction) -> Self {
        let own = prediction.phases.iter().filter(|phase| !phase.beside && phase.wall_s > 0.0);
        Self {
            phases: own.map(|phase| (phase.name.clone(), phase.wall_s)).collect(),
            classes: prediction.classes.iter().map(|c| (c.class, c.predicted_s)).collect(),
            steps: prediction.counts.steps,
            tokens: prediction.counts.tokens,
        }
    }
}

/// What the causes are found from.
pub(super) struct Evidence<'a> {
    pub(super) forecast: &'a Forecast,
    pub(super) predicted: &'a Quantities,
    pub(super) measured: &'a Quantities,
    pub(super) error_pct: &'a ErrorPct,
    pub(super) phases: &'a [Phase],
    pub(super) memory_parts: &'a [MemoryPart],
    pub(super) classes: &'a [ClassTime],
    /// Real input tokens of the steps taken, and how many these were.
    pub(super) tokens: u64,
    pub(super) steps: u64,
}

/// Shares below this many points say nothing.
const LEAST_POINTS: f64 = 0.05;
/// The rest that no single cause explains.
const REST: &str = "not told apart";

impl Evidence<'_> {
    /// The causes of all errors, the largest of each quantity first.
    pub(super) fn causes(&self) -> Vec<Cause> {
        let found = [
            ("wall_s", self.error_pct.wall_s, self.time()),
            ("step_s", self.error_pct.step_s, self.step()),
            ("peak_memory_bytes", self.error_pct.peak_memory_bytes, self.memory()),
            ("energy_j", self.error_pct.energy_j, self.energy()),
            ("cost_usd", self.error_pct.cost_usd, self.cost()),
        ];
        found
            .into_iter()
            .filter_map(|(key, error, shares)| Some(closed(key, error?, shares)))
            .flatten()
            .collect()
    }

    /// Phase by phase.
    fn time(&self) -> Vec<(String, f64)> {
        let Some(whole) = self.measured.wall_s.filter(|s| *s > 0.0) else { return Vec::new() };
        let own = || self.phases.iter().filter(|p| !p.beside && p.name != UNATTRIBUTED);
        let mut names: Vec<&str> = self.forecast.phases.iter().map(|(name, _)| name.as_str()).collect();
        names.extend(own().filter(|p| p.wall_s > 0.0).map(|p| p.name.as_str()));
        names.sort_unstable();
        names.dedup();
        let share = |name: &str| {
            let predicted: f64 = self.forecast.phases.iter().filter(|(n, _)| n == name).map(|(_, s)| s).sum();
            let measured: f64 = own().filter(|p| p.name == name).map(|p| p.wall_s).sum();
            (format!("phase {}", words::name(name)), 100.0 * (predicted - measured) / whole)
        };
        names.into_iter().map(share).collect()
    }

    /// Tokens of a step against those predicted, then each op class at the tokens that came.
    fn step(&self) -> Vec<(String, f64)> {
        let (forecast, steps) = (self.forecast, self.steps as f64);
        let (Some(predicted), Some(measured)) = (self.predicted.step_s, self.measured.step_s) else {
            return Vec::new();
        };
        if forecast.tokens == 0 || forecast.steps == 0 || self.tokens == 0 || measured <= 0.0 {
            return Vec::new();
        }
        let per_step = forecast.tokens as f64 / forecast.steps as f64;
        let came = self.tokens as f64 / steps / per_step;
        let points = |seconds: f64| 100.0 * seconds / measured;
        let mut shares = vec![("tokens a step".to_owned(), points(predicted * (1.0 - came)))];
        for (class, predicted_s) in &forecast.classes {
            let Some(seen) = self.classes.iter().find(|c| c.class == *class && c.steps > 0) else { continue };
            let predicted_s = came * predicted_s / forecast.steps as f64;
            let off = predicted_s - seen.measured_s / seen.steps as f64;
            shares.push((format!("speed of {}", class.words()), points(off)));
        }
        if self.classes.is_empty() {
            shares.push(("speed".to_owned(), points(came * predicted - measured)));
        }
        shares
    }

    /// Part by part, where both sides are known.
    fn memory(&self) -> Vec<(String, f64)> {
        let Some(peak) = self.measured.peak_memory_bytes.filter(|b| *b > 0) else { return Vec::new() };
        let share = |part: &MemoryPart| {
            let off = part.predicted_bytes?.saturating_sub(part.measured_bytes?);
            let name = words::name(&part.name);
            (part.name != UNATTRIBUTED).then(|| (name, 100.0 * off as f64 / peak as f64))
        };
        self.memory_parts.iter().filter_map(share).collect()
    }

    /// Time against power.
    fn energy(&self) -> Vec<(String, f64)> {
        let (p, m) = (self.predicted, self.measured);
        let (Some(predicted_s), Some(wall_s), Some(joules)) = (p.wall_s, m.wall_s, m.energy_j) else {
            return Vec::new();
        };
        if wall_s <= 0.0 || joules <= 0.0 {
            return Vec::new();
        }
        vec![("time".to_owned(), 100.0 * (predicted_s - wall_s) / wall_s)]
    }

    /// Time against what is paid for it.
    fn cost(&self) -> Vec<(String, f64)> {
        self.error_pct.wall_s.map(|points| ("time".to_owned(), points)).into_iter().collect()
    }
}

/// Shares closed to the error, those that matter, the largest first.
fn closed(quantity: &str, error: f64, mut shares: Vec<(String, f64)>) -> Vec<Cause> {
    let rest = match quantity {
        "energy_j" => "power",
        "cost_usd" => "price and rounding",
        _ => REST,
    };
    let named: f64 = shares.iter().map(|(_, points)| points).sum();
    shares.push((rest.to_owned(), error - named));
    shares.retain(|(_, points)| points.is_finite() && points.abs() >= LEAST_POINTS);
    shares.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let cause = |(what, points)| Cause { quantity: quantity.to_owned(), what, points };
    shares.into_iter().map(cause).collect()
}

/// Each quantity's title with its causes in words, for terminal and page.
pub(super) fn lines(
    causes: &[Cause],
    title: &dyn Fn(&str) -> Option<&'static str>,
) -> Vec<(&'static str, String)> {
    let mut keys: Vec<&str> = causes.iter().map(|cause| cause.quantity.as_str()).collect();
    keys.dedup();
    let line = |key: &str| {
        let own = causes.iter().filter(|cause| cause.quantity == key).take(MOST_SHOWN);
        let words = own.map(|cause| format!("{} {}", cause.what, words::points(cause.points)));
        Some((title(key)?, words.collect::<Vec<_>>().join(", ")))
    };
    keys.into_iter().filter_map(line).collect()
}

/// Causes of a quantity that are shown; report.json has them all.
const MOST_SHOWN: usize = 4;

#[cfg(test)]
mod tests {
    use super::super::build::{Inputs, PartInput, PhaseInput, build};
    use super::*;

    fn step(step: u64, tokens: u64, step_s: f64) -> crate::train::metrics::StepRecord {
        serde_json::from_value(serde_json::json!({
            "step": step, "epoch": 0.1, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": tokens,
            "padded_tokens": 0, "loss_tokens": 5, "step_s": step_s, "rss_bytes": null, "device_bytes": null,
        }))
        .unwrap()
    }

    fn inputs() -> Inputs {
        Inputs {
            predicted: Quantities {
                wall_s: Some(12.0),
                step_s: Some(4.0),
                peak_memory_bytes: Some(900),
                ..Quantities::default()
            },
            measured: Quantities {
                wall_s: Some(20.0),
                step_s: Some(8.0),
                peak_memory_bytes: Some(1000),
                ..Quantities::default()
            },
            forecast: Forecast {
                phases: vec![("load".into(), 4.0), ("train".into(), 8.0)],
                classes: vec![(Class::Linear, 6.0), (Class::Attention, 2.0)],
                steps: 2,
                tokens: 200,
            },
            classes: vec![
                ClassTime { class: Class::Linear, steps: 2, measured_s: 12.0 },
                ClassTime { class: Class::Attention, steps: 2, measured_s: 3.0 },
            ],
            phases: [("load", 3.0), ("train", 16.0)]
                .map(|(name, wall_s)| PhaseInput { name: name.into(), wall_s, ..PhaseInput::default() })
                .into(),
            memory_parts: vec![PartInput {
                name: "logits".into(),
                predicted_bytes: Some(100),
                measured_bytes: Some(160),
            }],
            steps: vec![step(1, 125, 8.0), step(2, 125, 8.0)],
            ..Inputs::default()
        }
    }

    fn of<'a>(causes: &'a [Cause], quantity: &str) -> Vec<(&'a str, f64)> {
        causes.iter().filter(|c| c.quantity == quantity).map(|c| (c.what.as_str(), c.points)).collect()
    }

    #[test]
    fn the_shares_of_a_quantity_sum_to_its_error() {
        let report = build(inputs());
        let errors = [("wall_s", -40.0), ("step_s", -50.0), ("peak_memory_bytes", -10.0)];
        for (quantity, error) in errors {
            let sum: f64 = of(&report.causes, quantity).iter().map(|(_, points)| points).sum();
            assert!((sum - error).abs() < 1e-9, "{quantity}: {sum}");
        }
    }

    #[test]
    fn more_tokens_slower_products_and_a_missed_part_are_named() {
        let report = build(inputs());
        // A quarter more tokens came; at them linear products were predicted 3.75 s and took 6.
        let step = of(&report.causes, "step_s");
        assert_eq!(step[0].0, "speed of linear products");
        assert!((step[0].1 + 100.0 * 2.25 / 8.0).abs() < 1e-9, "{step:?}");
        assert!(step.contains(&("tokens a step", -12.5)), "{step:?}");
        assert!((of(&report.causes, "wall_s")[0].1 + 40.0).abs() < 1e-9);
        assert_eq!(of(&report.causes, "peak_memory_bytes")[0], ("logits", -6.0));
    }

    #[test]
    fn without_a_profile_the_speed_is_one_cause() {
        let report = build(Inputs { classes: Vec::new(), ..inputs() });
        let step = of(&report.causes, "step_s");
        assert_eq!(step, [("speed", -37.5), ("tokens a step", -12.5)]);
    }

    #[test]
    fn what_was_not_measured_has_no_cause() {
        let report = build(Inputs { measured: Quantities::default(), steps: Vec::new(), ..inputs() });
        assert_eq!(report.causes, []);
    }
}
