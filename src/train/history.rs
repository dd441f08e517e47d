//! Finished runs of the same model on this machine, from the ledger, for the estimate to learn from.

use crate::arch::Arch;
use crate::estimate::history::Past;
use crate::estimate::machine::{Evidence, Kind};
use crate::estimate::time::ClassTime;
use crate::estimate::work::Class;
use crate::estimate::{Machine, Prediction};
use crate::fs;
use crate::ledger::Ledger;
use crate::meter::DeviceTotal;
use crate::ops::device;

/// Phases whose time is modelled and not clocked before the prediction.
const LEARNED: [&str; 3] = ["load", "evaluate", "save"];
/// Phases of a report that stand for the processes before the last one.
pub const EARLIER: [&str; 2] = ["before the resume", "lost to a kill"];
/// Runs that are looked at.
const LOOKED_AT: u32 = 200;

/// Past runs of as many processes, oldest first; none where the ledger cannot be read, which the run's own start will say.
pub(super) fn of(arch: &Arch, machine: &Machine, processes: u64) -> Vec<Past> {
    let Ok(outcomes) = fs::home().and_then(|home| Ledger::open_in_haste(&home)?.history(LOOKED_AT)) else {
        return Vec::new();
    };
    let past = |outcome: &crate::ledger::Outcome| {
        let prediction: Prediction = serde_json::from_str(&outcome.prediction_json).ok()?;
        let report: serde_json::Value = serde_json::from_str(&outcome.report_json).ok()?;
        let is_same = prediction.machine == machine.name
            && prediction.build == machine.build
            && prediction.threads == machine.threads
            && prediction.parameters == arch.parameter_count()
            && prediction.counts.processes() == processes;
        (is_same && is_where(&prediction, &report) && !is_disturbed(&report))
            .then(|| past(&prediction, &report))?
    };
    outcomes.iter().rev().filter_map(past).collect()
}

/// What others on the device, heat or a lost device did to a run is none of the estimate's.
pub fn is_disturbed(report: &serde_json::Value) -> bool {
    let devices: Vec<DeviceTotal> =
        serde_json::from_value(report["meter"]["devices"].clone()).unwrap_or_default();
    devices.iter().any(DeviceTotal::is_disturbed)
}

/// Whether a run computed on what its prediction is of: what it took on a GPU that could not be predicted says nothing of
/// the CPU, which was. An older prediction by a data sheet does not say that it is of a GPU.
pub fn is_where(prediction: &Prediction, report: &serde_json::Value) -> bool {
    let of_gpu = prediction.kind == Kind::Accelerator || prediction.evidence == Evidence::Sheet;
    of_gpu == (report["provenance"]["device"] == device::CUDA)
}

/// A finished run as an estimate learns from it: what was predicted of it, and report.json.
pub fn past(prediction: &Prediction, report: &serde_json::Value) -> Option<Past> {
    Some(Past {
        predicted: prediction.uncorrected,
        measured: serde_json::from_value(report["measured"].clone()).ok()?,
        phases: measured_phases(prediction, report),
        classes: measured_classes(prediction, report),
    })
}

/// Op classes, where the run was profiled: all of training, as far as the profile saw it.
fn measured_classes(prediction: &Prediction, report: &serde_json::Value) -> Vec<(Class, f64, f64)> {
    let seen: Vec<ClassTime> = serde_json::from_value(report["work"]["classes"].clone()).unwrap_or_default();
    let predicted = |class| prediction.classes.iter().find(|c| c.class == class).map(|c| c.uncorrected_s);
    let one = |time: &ClassTime| {
        let share = time.steps as f64 / prediction.counts.steps.max(1) as f64;
        Some((time.class, predicted(time.class)? * share, time.measured_s))
    };
    seen.iter().filter_map(one).filter(|(_, predicted, _)| *predicted > 0.0).collect()
}

/// Phases beside training that were predicted and took place; none of a run that ended early, or that several processes
/// took one after the other: it evaluated and saved less often than was predicted, or others did.
fn measured_phases(prediction: &Prediction, report: &serde_json::Value) -> Vec<(String, f64, f64)> {
    let phases = report["phases"].as_array().map_or(&[][..], Vec::as_slice);
    let took = |name: &str| phases.iter().find(|p| p["name"] == name)?["wall_s"].as_f64();
    let is_whole = report["training"]["steps"].as_u64() == Some(prediction.counts.steps);
    if !is_whole || EARLIER.iter().any(|name| took(name).is_some()) {
        return Vec::new();
    }
    let beside = prediction.uncorrected_phases.iter().filter(|(name, _)| LEARNED.contains(&name.as_str()));
    beside.filter_map(|(name, s)| Some((name.clone(), *s, took(name)?))).collect()
}
