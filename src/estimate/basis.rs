//! What a prediction rests on and how far it may be off, in figures and in words.

use super::Quantities;
use super::history::Ratio;
use super::interval::{self, Interval};
use super::machine::{Evidence, Machine};
use super::prediction::Inputs;
use crate::config::Method;
use std::collections::BTreeMap;

/// Bounds of every quantity that is predicted, by its key.
pub(crate) fn intervals(inputs: &Inputs<'_>, predicted: &Quantities) -> BTreeMap<String, Interval> {
    let (machine, learned) = (inputs.machine, inputs.learned);
    let time = interval::time_width(machine, learned);
    let wall = predicted.wall_s.map(|v| Interval::around(v, time));
    let bill = |seconds| inputs.price.bill(seconds).map(|b| b.cost_usd);
    let cost = wall.and_then(|w| Some(Interval { low: bill(w.low)?, high: bill(w.high)? }));
    let around = |value: Option<f64>, width| value.map(|v| Interval::around(v, width));
    let peak = predicted.peak_memory_bytes.map(|b| b as f64);
    [
        ("wall_s", wall),
        ("step_s", around(predicted.step_s, time)),
        ("tokens_per_s", around(predicted.tokens_per_s, time)),
        ("peak_memory_bytes", around(peak, interval::memory_width(machine, learned))),
        ("energy_j", around(predicted.energy_j, interval::energy_width(time))),
        ("cost_usd", cost),
    ]
    .into_iter()
    .filter_map(|(key, bounds)| Some((key.to_owned(), bounds?)))
    .collect()
}

/// What every quantity rests on, by its key.
pub(crate) fn basis(inputs: &Inputs<'_>) -> BTreeMap<String, String> {
    let machine = inputs.machine;
    let rates = match machine.evidence {
        Evidence::Calibrated | Evidence::Measured => format!(
            "counted ops over rates measured on {}{}{}",
            machine.name,
            machine.measured_at.as_ref().map_or(String::new(), |d| format!(" at {d}")),
            if machine.evidence == Evidence::Measured { ", quickly" } else { "" }
        ),
        Evidence::Sheet => format!(
            "counted ops over the data sheet's peaks of {}, times the efficiency of published runs ({})",
            machine.name, machine.kernel
        ),
        Evidence::Assumed => "counted ops over typical rates: nobody measured this machine".into(),
    };
    let corrected = |ratio: Ratio| match ratio.runs {
        0 => String::new(),
        _ if ratio.of_pilot => ", corrected by a pilot".into(),
        1 => ", corrected by 1 past run".into(),
        n => format!(", corrected by {n} past runs"),
    };
    let time = format!("{rates}{}", corrected(inputs.learned.time));
    let memory = format!("sum of counted parts{}", corrected(inputs.learned.memory));
    let energy = match machine.power_w {
        Some(_) => "measured power times predicted time",
        None => "not predicted: no power was measured here",
    };
    let cost = match inputs.price.usd_per_hour {
        Some(_) => format!("predicted time, billed at {}", inputs.price.source),
        None => "unknown: no price is stated".into(),
    };
    [
        ("wall_s", time.clone()),
        ("step_s", time.clone()),
        ("tokens_per_s", time),
        ("peak_memory_bytes", memory),
        ("energy_j", energy.into()),
        ("cost_usd", cost),
    ]
    .into_iter()
    .map(|(key, text)| (key.to_owned(), text))
    .collect()
}

/// Energy by the data sheet's power, where none was measured.
pub(crate) fn modelled(machine: &Machine, predicted: &Quantities) -> BTreeMap<String, f64> {
    let sheet = machine.sheet_power_w.filter(|_| machine.power_w.is_none());
    sheet.zip(predicted.wall_s).map(|(watts, s)| ("energy_j".to_owned(), watts * s)).into_iter().collect()
}

/// What the user should know before the run.
pub(crate) fn warnings(inputs: &Inputs<'_>) -> Vec<String> {
    let mut all = inputs.price.warnings.clone();
    if let Method::Lora(lora) | Method::Qlora { lora, .. } = &inputs.config.method {
        let narrowest = inputs.adapted.iter().min_by_key(|l| l.inputs.min(l.outputs));
        if let (Some(r), Some(l)) = (lora.r, narrowest) {
            let least = l.inputs.min(l.outputs);
            if r > least {
                all.push(format!(
                    "`lora_r` {r} is above the {least} of `{}`: a rank beyond the smaller dimension adds nothing",
                    l.name
                ));
            }
        }
    }
    if inputs.machine.evidence == Evidence::Measured {
        all.push(
            "the machine was measured for a few seconds only: `fttrain calibrate` narrows the interval"
                .into(),
        );
    }
    if inputs.counts.assumed {
        all.push("rows and their lengths are assumed, not counted: there is no data yet".into());
        let data = &inputs.config.data;
        if !data.test_datasets.is_empty() || !data.retention_datasets.is_empty() {
            all.push(
                "the rows to evaluate on are not assumed, and their evaluation is not in this estimate"
                    .into(),
            );
        }
    }
    all
}
