//! Finished runs of the same model on this machine, from the ledger, for the estimate to learn from.

use crate::arch::Arch;
use crate::estimate::history::Past;
use crate::estimate::{Machine, Prediction, Quantities};
use crate::fs;
use crate::ledger::Ledger;
use crate::meter::DeviceTotal;

/// Phases whose time is modelled and not clocked before the prediction.
const LEARNED: [&str; 3] = ["load", "evaluate", "save"];
/// Runs that are looked at.
const LOOKED_AT: u32 = 200;

/// Past runs, oldest first; none where the ledger cannot be read, which the run's own start will say.
pub(super) fn of(arch: &Arch, machine: &Machine) -> Vec<Past> {
    let Ok(outcomes) = fs::home().and_then(|home| Ledger::open(&home)?.history(LOOKED_AT)) else {
        return Vec::new();
    };
    let past = |outcome: &crate::ledger::Outcome| {
        let prediction: Prediction = serde_json::from_str(&outcome.prediction_json).ok()?;
        let report: serde_json::Value = serde_json::from_str(&outcome.report_json).ok()?;
        let measured: Quantities = serde_json::from_value(report["measured"].clone()).ok()?;
        let is_same = prediction.machine == machine.name
            && prediction.build == machine.build
            && prediction.limits.cores == machine.threads
            && prediction.parameters == arch.parameter_count();
        // What others on the device, heat or a lost device did to a run is none of the estimate's.
        let devices: Vec<DeviceTotal> =
            serde_json::from_value(report["meter"]["devices"].clone()).unwrap_or_default();
        let is_own = !devices.iter().any(DeviceTotal::is_disturbed);
        let phases = measured_phases(&prediction, &report);
        (is_same && is_own).then_some(Past { predicted: prediction.uncorrected, measured, phases })
    };
    outcomes.iter().rev().filter_map(past).collect()
}

/// Phases beside training that were predicted and took place.
fn measured_phases(prediction: &Prediction, report: &serde_json::Value) -> Vec<(String, f64, f64)> {
    let took = |name: &str| {
        let phases = report["phases"].as_array()?;
        phases.iter().find(|p| p["name"] == name)?["wall_s"].as_f64()
    };
    let beside = prediction.uncorrected_phases.iter().filter(|(name, _)| LEARNED.contains(&name.as_str()));
    beside.filter_map(|(name, s)| Some((name.clone(), *s, took(name)?))).collect()
}
