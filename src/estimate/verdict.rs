//! Whether a predicted run may start: memory, disk and budget, each refusal with its numbers and the way out.

use super::error::Error;
use super::levers::Lever;
use super::machine::Limits;
use super::prediction::Prediction;
use crate::config::Budget;
use crate::error::{Kind, Result};
use crate::units::{BYTES_PER_GIB, Bytes, JOULES_PER_KWH, Usd};
use std::path::Path;

/// Judges a prediction; gives the warnings of a run that may start.
///
/// Refused: a peak above the limit, a cap below the low end of its interval. A warning: a cap or the limit between
/// the low and the high end, and a cap whose quantity is unknown.
///
/// # Errors
/// Resource, all problems at once.
pub fn refuse(prediction: &Prediction, limits: &Limits, budget: &Budget) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let mut refused: Vec<Error> = memory(prediction, limits, &mut warnings).into_iter().collect();
    for cap in caps(budget) {
        let Some(bounds) = prediction.interval.get(cap.quantity) else {
            warnings.push(format!(
                "`budget.{}` cannot be judged: {}",
                cap.key,
                prediction.basis.get(cap.quantity).map_or("not predicted", String::as_str)
            ));
            continue;
        };
        let [low, high] = [bounds.low, bounds.high].map(|v| v / cap.per_unit);
        let keeps = |lever: &&Lever| cap.with(lever).is_some_and(|value| value <= cap.value);
        if low > cap.value {
            refused.push(Error::OverBudget {
                key: cap.key,
                low: (cap.show)(low),
                cap: (cap.show)(cap.value),
                levers: prediction.levers.iter().filter(keeps).map(ToString::to_string).collect(),
            });
        } else if high > cap.value {
            warnings.push(format!(
                "the run may go over `budget.{}`: up to {}, the cap is {}",
                cap.key,
                (cap.show)(high),
                (cap.show)(cap.value)
            ));
        }
    }
    together(refused).map(|()| warnings)
}

/// Judges the disk of the output folder.
///
/// # Errors
/// Resource, with the bytes needed and free.
pub fn refuse_disk(prediction: &Prediction, folder: &Path, free: u64) -> Result<()> {
    if prediction.disk_bytes <= free {
        return Ok(());
    }
    Err(Error::Disk { folder: folder.display().to_string(), needed: prediction.disk_bytes, free }.into())
}

fn memory(prediction: &Prediction, limits: &Limits, warnings: &mut Vec<String>) -> Option<Error> {
    let available = limits.memory_bytes;
    let does_not_fit = |what: &str, needed: u64, levers: &[Lever]| Error::DoesNotFit {
        what: what.into(),
        needed,
        available,
        limit: limits.memory_source.clone(),
        levers: levers.iter().map(ToString::to_string).collect(),
    };
    let peak = prediction.predicted.peak_memory_bytes.unwrap_or(0);
    if peak > available {
        return Some(does_not_fit("this run", peak, &prediction.levers));
    }
    if let Some(full) = &prediction.full_batch
        && full.peak_memory_bytes > available
    {
        let what = "a full micro-batch (more rows than the data has)";
        return Some(does_not_fit(what, full.peak_memory_bytes, &full.levers));
    }
    let high = prediction.interval.get("peak_memory_bytes");
    if let Some(high) = high.filter(|b| b.high > available as f64) {
        warnings.push(format!(
            "memory is tight: up to {} of {} ({})",
            Bytes(super::rounded(high.high)),
            Bytes(available),
            limits.memory_source
        ));
    }
    None
}

struct Cap {
    key: &'static str,
    quantity: &'static str,
    value: f64,
    /// Of the quantity's unit in one of the cap's.
    per_unit: f64,
    show: fn(f64) -> String,
}

impl Cap {
    /// What a setting leads to, in the cap's unit; `None` where it is not known, and where none is sought for its sake.
    fn with(&self, lever: &Lever) -> Option<f64> {
        let value = match self.quantity {
            "cost_usd" => lever.cost_usd?,
            "wall_s" => lever.wall_s,
            "peak_memory_bytes" => lever.peak_memory_bytes as f64,
            _ => return None,
        };
        Some(value / self.per_unit)
    }
}

fn caps(budget: &Budget) -> Vec<Cap> {
    let cap = |key, quantity, value: Option<f64>, per_unit, show: fn(f64) -> String| {
        value.map(|value| Cap { key, quantity, value, per_unit, show })
    };
    [
        cap("max_usd", "cost_usd", budget.max_usd, 1.0, |v| Usd(v).to_string()),
        cap("max_hours", "wall_s", budget.max_hours, 3600.0, |v| format!("{v:.3} h")),
        cap("max_memory_gib", "peak_memory_bytes", budget.max_memory_gib, BYTES_PER_GIB, |v| {
            format!("{v:.2} GiB")
        }),
        cap("max_energy_kwh", "energy_j", budget.max_energy_kwh, JOULES_PER_KWH, |v| format!("{v:.3} kWh")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// One error of all refusals.
fn together(refused: Vec<Error>) -> Result<()> {
    let mut problems = Vec::new();
    for one in refused {
        problems.extend(crate::error::Error::from(one).problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(crate::error::Error { kind: Kind::Resource, problems }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::estimate::fixture::{Case, config, limits, price, smollm2};

    fn prediction(config: &Config, memory: u64) -> Prediction {
        let case = Case::new(smollm2(), config.clone());
        Case { limits: limits(memory), price: price(Some(2.0)), ..case }.predict()
    }

    #[test]
    fn a_run_that_fits_starts_without_a_word() {
        let p = prediction(&config(), 64 << 30);
        assert_eq!(refuse(&p, &limits(64 << 30), &Budget::default()), Ok(vec![]));
    }

    #[test]
    fn a_run_that_does_not_fit_is_refused_with_settings_that_do() {
        let mut config = config();
        config.train.micro_batch_size = 64;
        let memory = 3 << 30;
        let p = prediction(&config, memory);
        let error = refuse(&p, &limits(memory), &Budget::default()).unwrap_err();
        assert_eq!(error.kind, Kind::Resource);
        let text = error.to_string();
        assert!(text.contains("3221225472 bytes"), "{text}");
        assert!(text.contains("micro_batch_size = "), "{text}");
        assert!(text.contains("sequence_len = "), "{text}");
        for lever in &p.levers {
            assert!(lever.peak_memory_bytes <= memory, "{lever}");
        }
        // The setting named is one that indeed fits, by a prediction of its own.
        let named = p.levers[0].setting.split(" = ").nth(1).unwrap();
        config.train.micro_batch_size = named.split(' ').next().unwrap().parse().unwrap();
        let p = prediction(&config, memory);
        assert!(refuse(&p, &limits(memory), &Budget::default()).is_ok());
    }

    #[test]
    fn a_batch_that_the_data_can_never_fill_is_judged_as_written() {
        let mut config = config();
        config.train.micro_batch_size = 1 << 40;
        let p = prediction(&config, 64 << 30);
        let error = refuse(&p, &limits(64 << 30), &Budget::default()).unwrap_err();
        assert!(error.to_string().contains("full micro-batch"), "{error}");
        assert!(error.to_string().contains("micro_batch_size = "), "{error}");
        config.train.micro_batch_size = 1001;
        config.data.sequence_len = 8;
        let p = prediction(&config, 64 << 30);
        assert!(refuse(&p, &limits(64 << 30), &Budget::default()).is_ok());
    }

    #[test]
    fn caps_refuse_below_the_low_end_and_warn_below_the_high_end() {
        let p = prediction(&config(), 64 << 30);
        let cost = p.interval["cost_usd"];
        let capped = |usd| Budget { max_usd: Some(usd), ..Budget::default() };
        let judge = |usd| refuse(&p, &limits(64 << 30), &capped(usd));
        let error = judge(cost.low * 0.99).unwrap_err();
        assert!(error.to_string().contains("budget.max_usd"), "{error}");
        assert_eq!(judge(cost.low * 1.01).unwrap().len(), 1);
        assert_eq!(judge(cost.high * 1.01).unwrap().len(), 0);
    }

    #[test]
    fn a_cap_on_memory_names_the_settings_that_keep_it() {
        let mut config = config();
        config.train.micro_batch_size = 64;
        let budget = Budget { max_memory_gib: Some(3.0), ..Budget::default() };
        let limits = limits(64 << 30).capped(&budget);
        assert_eq!(limits.memory_bytes, 3 << 30);
        let p = prediction(&config, limits.memory_bytes);
        let text = refuse(&p, &super::super::fixture::limits(64 << 30), &budget).unwrap_err().to_string();
        assert!(text.contains("budget.max_memory_gib") && text.contains("micro_batch_size = "), "{text}");
        assert!(text.contains("sequence_len = ") && !text.contains("max_steps"), "{text}");
    }

    #[test]
    fn a_cap_on_time_or_money_names_the_settings_that_keep_it() {
        let mut config = config();
        let whole = prediction(&config, 64 << 30);
        // Half of the steps, and half of one more, which nobody takes.
        let half = whole.counts.steps / 2;
        let dropped = (whole.counts.steps - half) as f64 - 0.5;
        let hours = (whole.predicted.wall_s.unwrap() - dropped * whole.predicted.step_s.unwrap()) / 3600.0;
        let refusal = |config: &Config| {
            let p = prediction(config, 64 << 30);
            refuse(&p, &limits(64 << 30), &config.budget).unwrap_err().to_string()
        };
        let caps = [(Some(hours), None, "max_hours"), (None, Some(2.0 * hours), "max_usd")];
        for (max_hours, max_usd, key) in caps {
            config.budget = Budget { max_usd, max_hours, ..Budget::default() };
            let text = refusal(&config);
            assert!(text.contains(&format!("what keeps it: max_steps = {half} (")), "{text}");
            assert!(text.contains(&format!("or raise `budget.{key}`")), "{text}");
        }
        config.budget = Budget { max_hours: Some(1e-9), ..Budget::default() };
        let text = refusal(&config);
        assert!(text.contains("or lower `max_steps`") && !text.contains("what keeps it"), "{text}");
    }

    #[test]
    fn all_caps_that_break_are_listed_and_an_unknown_one_is_said() {
        let p = prediction(&config(), 64 << 30);
        let budget = Budget {
            max_usd: Some(0.0),
            max_hours: Some(0.0),
            max_memory_gib: Some(0.1),
            max_energy_kwh: None,
            refuse_repeats: false,
        };
        let error = refuse(&p, &limits(64 << 30), &budget).unwrap_err();
        assert_eq!(error.problems.len(), 3);
        let energy = Budget { max_energy_kwh: Some(1.0), ..Budget::default() };
        let warnings = refuse(&p, &limits(64 << 30), &energy).unwrap();
        assert!(warnings[0].contains("no power was measured"), "{warnings:?}");
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_both_numbers() {
        let p = prediction(&config(), 64 << 30);
        let folder = Path::new("out");
        assert_eq!(refuse_disk(&p, folder, p.disk_bytes), Ok(()));
        let error = refuse_disk(&p, folder, p.disk_bytes - 1).unwrap_err();
        assert_eq!(error.kind, Kind::Resource);
        assert!(error.to_string().contains(&p.disk_bytes.to_string()));
    }
}
