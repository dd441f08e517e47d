//! The report of a run that wrote none: it was killed, or is still at work. Made of what the ledger heard every second
//! and of the records in the run's folder; it stands on no figure that is not there.

use super::build::{Inputs, PartInput, PhaseInput};
use super::record::{Interval, Parameters, Price, Provenance, Status};
use super::timeline;
use crate::error::Result;
use crate::estimate::parts::PartBytes;
use crate::estimate::{Prediction, Quantities, money};
use crate::ledger::{self, Details, RunRow, Sample};
use crate::meter::Measured;
use crate::train::{folder::RETENTION, metrics};
use std::path::Path;

/// What a report of a run can be made of; its records are in `folder`, where it has one.
///
/// # Errors
/// The run's records cannot be read.
pub fn recover(folder: Option<&Path>, row: &RunRow, details: &Details, samples: &[Sample]) -> Result<Inputs> {
    let prediction: Option<Prediction> =
        details.prediction_json.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let mut inputs = Inputs {
        run_id: row.run_id.clone(),
        status: status(row.status),
        reason: reason(row.status).map(str::to_owned),
        method: Some(row.method.clone()),
        started_at: Some(row.started_at.clone()),
        measured: Quantities {
            wall_s: row.wall_s,
            cost_usd: row.cost_usd,
            energy_j: row.energy_j,
            peak_memory_bytes: samples.iter().filter_map(|sample| sample.rss_bytes).max(),
            ..Quantities::default()
        },
        phases: paid_beside(details).chain(phases(samples)).collect(),
        price: Price { usd_per_hour: details.usd_per_hour, ..Price::default() },
        provenance: Provenance {
            base: Some(row.base.clone()),
            base_hash: Some(row.base_hash.clone()),
            data_hash: Some(row.data_hash.clone()),
            ..Provenance::default()
        },
        timeline: timeline::moments(samples, &Measured::default(), f64::INFINITY),
        ..Inputs::default()
    };
    if let Some(folder) = folder {
        inputs.steps = metrics::read(&folder.join("metrics.jsonl"))?;
        inputs.evals = metrics::read(&folder.join("eval.jsonl"))?;
        inputs.retention = metrics::read(&folder.join(RETENTION))?;
    }
    if let Some(prediction) = prediction {
        predicted(&mut inputs, &prediction);
    }
    let at_peak = samples.iter().filter_map(|sample| sample.parts).max_by_key(PartBytes::sum);
    for part in &mut inputs.memory_parts {
        let held = at_peak.iter().flat_map(PartBytes::named).find(|(known, _)| known.name() == part.name);
        part.measured_bytes = held.map(|(_, bytes)| bytes).filter(|bytes| *bytes > 0);
    }
    Ok(inputs)
}

fn predicted(inputs: &mut Inputs, prediction: &Prediction) {
    inputs.predicted = prediction.predicted;
    inputs.forecast = prediction.into();
    let interval = |(key, range): (&String, &crate::estimate::Interval)| {
        (key.clone(), Interval { low: range.low, high: range.high })
    };
    inputs.interval = prediction.interval.iter().map(interval).collect();
    let part = |part: &crate::estimate::MemoryPart| PartInput {
        name: part.name.clone(),
        predicted_bytes: Some(part.bytes),
        measured_bytes: None,
    };
    inputs.memory_parts = prediction.memory_parts.iter().map(part).collect();
    inputs.planned_steps = Some(prediction.counts.steps);
    inputs.flops_per_step = Some(prediction.flops_per_step);
    inputs.parameters =
        Parameters { total: Some(prediction.parameters), trainable: Some(prediction.trainable) };
}

fn status(status: ledger::Status) -> Status {
    match status {
        ledger::Status::Running => Status::Running,
        ledger::Status::Done => Status::Done,
        ledger::Status::Stopped => Status::Stopped,
        ledger::Status::Failed => Status::Failed,
        ledger::Status::Diverged => Status::Diverged,
        ledger::Status::Killed => Status::Killed,
    }
}

fn reason(status: ledger::Status) -> Option<&'static str> {
    match status {
        ledger::Status::Killed => Some(
            "Its process died without a word; this is what the ledger heard of it up to its last second.",
        ),
        ledger::Status::Running => Some("It is at work; this is what the ledger has heard of it so far."),
        _ => None,
    }
}

/// The machine's time before the run, of which the ledger was told at its start.
fn paid_beside(details: &Details) -> impl Iterator<Item = PhaseInput> {
    let per_second = details.usd_per_hour.map(|usd| usd / 3600.0);
    let before = details.phases.iter().filter(|phase| money::is_before(&phase.name));
    before.map(move |phase| PhaseInput {
        name: phase.name.clone(),
        wall_s: phase.wall_s,
        cost_usd: per_second.map(|usd| usd * phase.wall_s),
        beside: true,
    })
}

/// Seconds by phase: from one sample to the next the run did what the first of them says.
fn phases(samples: &[Sample]) -> Vec<PhaseInput> {
    let mut phases: Vec<PhaseInput> = Vec::new();
    for two in samples.windows(2) {
        let [here, next] = two else { continue };
        let wall_s = next.wall_s - here.wall_s;
        match phases.iter_mut().find(|phase| phase.name == here.phase) {
            Some(phase) => phase.wall_s += wall_s,
            None => phases.push(PhaseInput { name: here.phase.clone(), wall_s, ..PhaseInput::default() }),
        }
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::runs::tests::row;

    #[test]
    fn a_killed_run_is_reported_from_what_was_heard_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let sample = |wall_s: f64, phase: &str| Sample {
            wall_s,
            phase: phase.into(),
            rss_bytes: Some(1 << 30),
            ..Sample::default()
        };
        let samples = [sample(0.5, "load"), sample(1.5, "load"), sample(2.5, "train"), sample(4.5, "train")];
        let mut row = row("abcd", ledger::Status::Killed, Some(0.0045));
        row.wall_s = Some(4.5);
        let details = Details { usd_per_hour: Some(3.6), ..Details::default() };
        let report = super::super::build(recover(Some(folder.path()), &row, &details, &samples).unwrap());
        assert_eq!(report.status, Status::Killed);
        let named: Vec<(&str, f64)> = report.phases.iter().map(|p| (p.name.as_str(), p.wall_s)).collect();
        assert_eq!(named, [("load", 2.0), ("train", 2.0), ("unattributed", 0.5), ("rounding", 0.0)]);
        let cost: f64 = report.phases.iter().filter_map(|p| p.cost_usd).sum();
        assert!((cost - 0.0045).abs() < 1e-12);
        assert_eq!(report.measured.peak_memory_bytes, Some(1 << 30));
        assert_eq!(report.predicted, Quantities::default());
    }
}
