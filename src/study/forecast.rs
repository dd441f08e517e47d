//! Forecasts that a run of a study is held against beside its prediction: those made within it, and naive ones.

use super::child::Child;
use super::score::Pair;
use crate::calibrate::{Profiles, Provenance};
use crate::estimate::Prediction;
use crate::estimate::machine::Kind;
use crate::estimate::running::{Correction, Projection, Rate};
use crate::train::metrics::StepRecord;
use serde_json::Value;

/// fttrain's own correction after the first half of the steps, with `other_s` seconds of other phases.
pub(super) fn corrected(
    steps: &[StepRecord],
    predicted: Option<Rate>,
    other_s: f64,
    measured: f64,
) -> Option<Pair> {
    let mut correction = Correction::new(steps.iter().map(|s| s.tokens).sum(), predicted);
    let seen = &steps[..steps.len() / 2];
    for step in seen {
        correction.observe(step.tokens, step.step_s);
    }
    let seen_s: f64 = seen.iter().map(|step| step.step_s).sum();
    let Projection { wall_s, interval } = correction.projection(seen_s + other_s)?;
    Some(Pair { predicted: wall_s, low: interval.low, high: interval.high, measured })
}

/// The whole run after the first half of the steps: what is over by the clock, evaluation and saving as predicted.
pub(super) fn whole(steps: &[StepRecord], prediction: &Prediction, report: &Value) -> Option<Pair> {
    let is_ahead = |name: &str| matches!(name, "evaluate" | "save");
    let clock = report["phases"].as_array()?.iter();
    let clock = clock.filter_map(|phase| Some((phase["name"].as_str()?, phase["wall_s"].as_f64()?)));
    let over = clock.filter(|(name, _)| *name != "train" && !is_ahead(name)).map(|(_, s)| s);
    let ahead = prediction.phases.iter().filter(|phase| is_ahead(&phase.name)).map(|phase| phase.wall_s);
    let other_s = over.chain(ahead).sum();
    corrected(steps, Rate::predicted(prediction), other_s, report["measured"]["wall_s"].as_f64()?)
}

/// Training time by the mean rate of the first half of the steps.
pub(super) fn progress_bar(steps: &[StepRecord]) -> Option<Pair> {
    let seen = &steps[..steps.len() / 2];
    let sum = |steps: &[StepRecord], of: fn(&StepRecord) -> f64| -> f64 { steps.iter().map(of).sum() };
    let share = sum(seen, |s| s.tokens as f64) / sum(steps, |s| s.tokens as f64);
    let predicted = sum(seen, |s| s.step_s) / share;
    // A progress bar states no interval.
    let pair = Pair { predicted, low: predicted, high: predicted, measured: sum(steps, |s| s.step_s) };
    predicted.is_finite().then_some(pair)
}

/// FLOPs of a step over the fastest product that the profile holds.
pub(super) fn roofline(prediction: Option<&Prediction>, report: &Value, child: &Child) -> Option<Pair> {
    let (profiles, _) = Profiles::load(&child.home().join(Profiles::FILE));
    let prediction = prediction?;
    let here = match prediction.kind {
        Kind::Cpu => Provenance::here(prediction.threads),
        Kind::Accelerator => Provenance::of_card(&prediction.machine),
    };
    let predicted = prediction.flops_per_step / profiles.find(&here)?.peak_flops_per_s()?;
    let measured = report["measured"]["step_s"].as_f64().filter(|s| *s > 0.0)?;
    Some(Pair { predicted, low: predicted, high: predicted, measured })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, step_s: f64) -> StepRecord {
        let line = format!(
            "{{\"step\":{step},\"epoch\":0.1,\"loss\":1.0,\"grad_norm\":1.0,\"learning_rate\":0.1,\"tokens\":10,\
             \"padded_tokens\":0,\"loss_tokens\":5,\"step_s\":{step_s},\"rss_bytes\":null,\"device_bytes\":null}}"
        );
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_probe_leaves_the_first_step_out_and_a_progress_bar_does_not() {
        let steps = [step(1, 3.0), step(2, 1.0), step(3, 1.0), step(4, 1.0), step(5, 1.0), step(6, 1.0)];
        let (probe, bar) = (corrected(&steps, None, 0.0, 8.0).unwrap(), progress_bar(&steps).unwrap());
        assert!((probe.predicted - 8.0).abs() < 1e-9);
        assert!((corrected(&steps, None, 2.5, 8.0).unwrap().predicted - 10.5).abs() < 1e-9);
        assert!(probe.low < 8.0 && 8.0 < probe.high, "{probe:?}");
        assert!((bar.predicted - 10.0).abs() < 1e-9);
        for one in [&steps[..1], &steps[..3]] {
            assert_eq!(
                corrected(one, None, 0.0, 1.0).is_some(),
                progress_bar(one).is_some(),
                "skill compares the same rows"
            );
        }
    }
}
