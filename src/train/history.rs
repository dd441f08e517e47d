//! Finished runs of the same model on this machine, from the ledger, for the estimate to learn from.

use crate::arch::Arch;
use crate::estimate::history::Past;
use crate::estimate::{Machine, Prediction, Quantities};
use crate::fs;
use crate::ledger::Ledger;

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
            && prediction.limits.cores == machine.threads
            && prediction.parameters == arch.parameter_count();
        is_same.then_some(Past { predicted: prediction.uncorrected, measured })
    };
    outcomes.iter().rev().filter_map(past).collect()
}
