//! From what was predicted, metered and recorded to the report: errors, shares that close to their wholes, totals.
//! Takes plain values, so that a report can be made again from the ledger and the run's files alone.

use super::causes::{Evidence, Forecast};
use super::record::{
    DataSummary, ErrorPct, Interval, MemoryPart, Moment, Parameters, Parent, Phase, Price, Provenance,
    Report, Retention, SamplePair, Status, Training, Work,
};
use crate::estimate::energy::EnergyLine;
use crate::estimate::time::ClassTime;
use crate::estimate::{Carbon, CostLine, Quantities};
use crate::meter::Measured;
use crate::train::metrics::{self, EvalRecord, StepRecord};
use std::collections::BTreeMap;

/// The row that closes parts to their whole.
pub const UNATTRIBUTED: &str = "unattributed";
/// The row of what is billed beyond the clock.
pub const ROUNDING: &str = "rounding";

/// Everything a report is made of.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Of the ledger.
    pub run_id: String,
    /// How it ended.
    pub status: Status,
    /// Why, unless it is done.
    pub reason: Option<String>,
    /// `lora`, `qlora` or `full`.
    pub method: Option<String>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// Before the run.
    pub predicted: Quantities,
    /// By the meter and the bill; `step_s` and `tokens_per_s` are taken from `steps` where they are `None`.
    pub measured: Quantities,
    /// What stands in for what could not be measured.
    pub modelled: Quantities,
    /// By the quantity's key.
    pub interval: BTreeMap<String, Interval>,
    /// What was predicted beside the six.
    pub forecast: Forecast,
    /// Time by op class, where the run was profiled.
    pub classes: Vec<ClassTime>,
    /// In the order of the run.
    pub phases: Vec<PhaseInput>,
    /// Peaks by part.
    pub memory_parts: Vec<PartInput>,
    /// What an hour costs.
    pub price: Price,
    /// What made the numbers.
    pub provenance: Provenance,
    /// Counts of the model.
    pub parameters: Parameters,
    /// Steps planned.
    pub planned_steps: Option<u64>,
    /// Of `metrics.jsonl`.
    pub steps: Vec<StepRecord>,
    /// Of `eval.jsonl`.
    pub evals: Vec<EvalRecord>,
    /// Of `retention.jsonl`.
    pub retention: Vec<EvalRecord>,
    /// Counted from shapes, mean of a step.
    pub flops_per_step: Option<f64>,
    /// What the machine reaches at best.
    pub peak_flops_per_s: Option<f64>,
    /// Where that comes from.
    pub peak_source: Option<String>,
    /// What was learned from.
    pub data: DataSummary,
    /// What the model said before and after.
    pub samples: Vec<SamplePair>,
    /// The command line of a program that was metered.
    pub command: Vec<String>,
    /// All that the meter saw.
    pub meter: Option<Measured>,
    /// Energy part by part.
    pub energy: Vec<EnergyLine>,
    /// Carbon of the energy.
    pub carbon: Option<Carbon>,
    /// The bill as the ledger has it.
    pub costs: Vec<CostLine>,
    /// What the reader must know.
    pub warnings: Vec<String>,
    /// How the run stood over its time.
    pub timeline: Vec<Moment>,
    /// The run that this one comes from or is nearest to.
    pub parent: Option<Parent>,
}

/// A phase as the meter saw it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PhaseInput {
    /// `load`, `tokenise`, …
    pub name: String,
    /// s.
    pub wall_s: f64,
    /// A cost of its own, such as electricity; `None` = its time at the price of an hour.
    pub cost_usd: Option<f64>,
    /// Paid for, and not a part of the run's time.
    pub beside: bool,
}

/// A part of memory as predicted and as tagged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartInput {
    /// `base_weights`, …
    pub name: String,
    /// `None` = not predicted on its own.
    pub predicted_bytes: Option<u64>,
    /// `None` = not measured on its own.
    pub measured_bytes: Option<u64>,
}

/// The report of a run.
pub fn build(inputs: Inputs) -> Report {
    let mut measured = finite(inputs.measured);
    measured.step_s = measured.step_s.or_else(|| metrics::median_step_s(&inputs.steps));
    measured.tokens_per_s = measured.tokens_per_s.or_else(|| metrics::tokens_per_s(&inputs.steps));
    let predicted = finite(inputs.predicted);
    let price = Price { usd_per_hour: inputs.price.usd_per_hour.filter(|p| p.is_finite()), ..inputs.price };
    let modelled = finite(inputs.modelled);
    let bill = measured.cost_usd.or(modelled.cost_usd);
    let mut interval = inputs.interval;
    interval.retain(|_, range| range.low.is_finite() && range.high.is_finite());
    let error_pct = errors(&predicted, &measured);
    let phases = phases(inputs.phases, &measured, bill, price.usd_per_hour);
    let memory_parts = memory_parts(&inputs.memory_parts, &predicted, &measured);
    let training = training(&inputs.steps, &inputs.evals, inputs.planned_steps);
    let causes = Evidence {
        forecast: &inputs.forecast,
        predicted: &predicted,
        measured: &measured,
        error_pct: &error_pct,
        phases: &phases,
        memory_parts: &memory_parts,
        classes: &inputs.classes,
        tokens: training.tokens,
        steps: inputs.steps.len() as u64,
    }
    .causes();
    let mut work = work(&inputs.steps, inputs.flops_per_step, inputs.peak_flops_per_s, inputs.peak_source);
    work.classes = inputs.classes;
    Report {
        run_id: inputs.run_id,
        status: inputs.status,
        causes,
        error_pct,
        phases,
        memory_parts,
        predicted,
        measured,
        modelled,
        interval,
        price,
        provenance: inputs.provenance,
        method: inputs.method,
        started_at: inputs.started_at,
        reason: inputs.reason,
        parameters: inputs.parameters,
        training,
        retention: retention(&inputs.retention),
        work,
        data: inputs.data,
        samples: inputs.samples,
        command: inputs.command,
        // The looks are many, and lie in the ledger.
        meter: inputs.meter.map(|meter| Measured { samples: Vec::new(), ..meter }),
        energy: inputs.energy,
        carbon: inputs.carbon,
        costs: inputs.costs,
        warnings: inputs.warnings,
        timeline: inputs.timeline,
        parent: inputs.parent,
    }
}

/// (predicted − measured) / measured in percent; `None` where either is missing or nothing was measured to divide by.
pub fn error_pct(predicted: Option<f64>, measured: Option<f64>) -> Option<f64> {
    let (predicted, measured) = (predicted?, measured?);
    let error = (predicted - measured) / measured * 100.0;
    // −0 would read as an error with a sign.
    error.is_finite().then_some(error + 0.0)
}

fn errors(predicted: &Quantities, measured: &Quantities) -> ErrorPct {
    let bytes = |b: Option<u64>| b.map(|b| b as f64);
    ErrorPct {
        wall_s: error_pct(predicted.wall_s, measured.wall_s),
        step_s: error_pct(predicted.step_s, measured.step_s),
        tokens_per_s: error_pct(predicted.tokens_per_s, measured.tokens_per_s),
        peak_memory_bytes: error_pct(bytes(predicted.peak_memory_bytes), bytes(measured.peak_memory_bytes)),
        energy_j: error_pct(predicted.energy_j, measured.energy_j),
        cost_usd: error_pct(predicted.cost_usd, measured.cost_usd),
    }
}

/// What is not finite was not measured.
fn finite(q: Quantities) -> Quantities {
    let keep = |v: Option<f64>| v.filter(|v| v.is_finite());
    Quantities {
        wall_s: keep(q.wall_s),
        step_s: keep(q.step_s),
        tokens_per_s: keep(q.tokens_per_s),
        peak_memory_bytes: q.peak_memory_bytes,
        energy_j: keep(q.energy_j),
        cost_usd: keep(q.cost_usd),
    }
}

/// Prices the phases and closes them to the whole: the measured time by `unattributed`, the bill by `rounding`.
fn phases(
    inputs: Vec<PhaseInput>,
    measured: &Quantities,
    bill: Option<f64>,
    usd_per_hour: Option<f64>,
) -> Vec<Phase> {
    let priced = |wall_s: f64| usd_per_hour.map(|price| wall_s / 3600.0 * price);
    let mut rows: Vec<Phase> = inputs
        .into_iter()
        .filter(|p| p.wall_s.is_finite())
        .map(|p| Phase {
            cost_usd: p.cost_usd.filter(|c| c.is_finite()).or_else(|| priced(p.wall_s)),
            name: p.name,
            wall_s: p.wall_s,
            beside: p.beside,
        })
        .collect();
    if let Some(wall_s) = measured.wall_s {
        let open = wall_s - rows.iter().filter(|p| !p.beside).map(|p| p.wall_s).sum::<f64>();
        // Below a microsecond it is the sum's own rounding.
        if open.abs() > 1e-6 {
            rows.push(Phase {
                name: UNATTRIBUTED.into(),
                wall_s: open,
                cost_usd: priced(open),
                beside: false,
            });
        }
    }
    if let Some(bill) = bill {
        let open = bill - rows.iter().filter_map(|p| p.cost_usd).sum::<f64>();
        rows.push(Phase {
            name: ROUNDING.into(),
            wall_s: 0.0,
            beside: false,
            cost_usd: Some(if open.abs() <= bill.abs() * 1e-12 { 0.0 } else { open }),
        });
    }
    rows
}

/// Closes the parts to both peaks. Parts peak at moments of their own, so that the closing row may be below 0.
fn memory_parts(inputs: &[PartInput], predicted: &Quantities, measured: &Quantities) -> Vec<MemoryPart> {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let close = |peak: Option<u64>, parts: &dyn Fn(&PartInput) -> Option<u64>| {
        let named = inputs.iter().filter_map(parts).fold(0_i64, |sum, part| sum.saturating_add(signed(part)));
        peak.map(|peak| signed(peak).saturating_sub(named))
    };
    let closing = MemoryPart {
        name: UNATTRIBUTED.into(),
        predicted_bytes: close(predicted.peak_memory_bytes, &|p| p.predicted_bytes),
        measured_bytes: close(measured.peak_memory_bytes, &|p| p.measured_bytes),
    };
    let mut rows: Vec<MemoryPart> = inputs
        .iter()
        .map(|p| MemoryPart {
            name: p.name.clone(),
            predicted_bytes: p.predicted_bytes.map(signed),
            measured_bytes: p.measured_bytes.map(signed),
        })
        .collect();
    let is_whole = closing.predicted_bytes.is_some() || closing.measured_bytes.is_some();
    // Without a named part there is nothing to close.
    if is_whole && !rows.is_empty() {
        rows.push(closing);
    }
    rows
}

fn retention(records: &[EvalRecord]) -> Option<Retention> {
    let finite = |record: &EvalRecord| Some(record.loss).filter(|loss| loss.is_finite());
    let loss_before = records.iter().find(|r| r.step == 0).and_then(finite);
    let loss_after = records.iter().rfind(|r| r.step > 0).and_then(finite);
    Some(Retention {
        loss_tokens: records.first()?.loss_tokens,
        loss_before,
        loss_after,
        lost: loss_before.zip(loss_after).map(|(before, after)| after - before),
    })
}

fn training(steps: &[StepRecord], evals: &[EvalRecord], planned_steps: Option<u64>) -> Training {
    let keep = |v: f64| Some(v).filter(|v| v.is_finite());
    let later = || evals.iter().filter(|e| e.step > 0);
    let best = later().filter(|e| e.loss.is_finite()).min_by(|a, b| a.loss.total_cmp(&b.loss));
    Training {
        steps: steps.last().map_or(0, |s| s.step),
        planned_steps,
        epochs: steps.last().and_then(|s| keep(s.epoch)),
        tokens: steps.iter().map(|s| s.tokens).sum(),
        padded_tokens: steps.iter().map(|s| s.padded_tokens).sum(),
        loss_tokens: steps.iter().map(|s| s.loss_tokens).sum(),
        loss_first: steps.first().and_then(|s| keep(s.loss)),
        loss_last: steps.last().and_then(|s| keep(s.loss)),
        non_finite_steps: steps.iter().map(|s| u64::from(!s.loss.is_finite())).sum(),
        eval_before: evals.iter().find(|e| e.step == 0).and_then(|e| keep(e.loss)),
        eval_after: later().next_back().and_then(|e| keep(e.loss)),
        eval_best: best.map(|e| e.loss),
        eval_best_step: best.map(|e| e.step),
    }
}

fn work(
    steps: &[StepRecord],
    flops_per_step: Option<f64>,
    peak_flops_per_s: Option<f64>,
    peak_source: Option<String>,
) -> Work {
    let above_zero = |v: &f64| v.is_finite() && *v > 0.0;
    let flops_per_step = flops_per_step.filter(above_zero);
    let peak_flops_per_s = peak_flops_per_s.filter(above_zero);
    let seconds: f64 = steps.iter().map(|s| s.step_s).filter(above_zero).sum();
    let flops = flops_per_step.filter(|_| !steps.is_empty()).map(|f| f * steps.len() as f64);
    let flops_per_s = flops.map(|f| f / seconds).filter(above_zero);
    Work {
        flops_per_step,
        flops,
        flops_per_s,
        peak_flops_per_s,
        peak_source,
        utilisation: flops_per_s.zip(peak_flops_per_s).map(|(f, peak)| f / peak),
        classes: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_predicted_minus_measured_over_measured() {
        assert_eq!(error_pct(Some(110.0), Some(100.0)), Some(10.0));
        assert_eq!(error_pct(Some(75.0), Some(100.0)), Some(-25.0));
        assert_eq!(error_pct(None, Some(1.0)), None);
        assert_eq!(error_pct(Some(1.0), None), None);
        assert_eq!(error_pct(Some(1.0), Some(0.0)), None);
        assert_eq!(error_pct(Some(0.0), Some(0.0)), None);
        assert_eq!(error_pct(Some(f64::NAN), Some(1.0)), None);
    }

    #[test]
    fn phases_sum_to_the_whole_with_rounding_as_one_of_them() {
        let report = build(Inputs {
            measured: Quantities { wall_s: Some(100.0), cost_usd: Some(0.12), ..Quantities::default() },
            phases: [("load", 10.0), ("train", 85.0)]
                .map(|(name, wall_s)| PhaseInput { name: name.into(), wall_s, ..PhaseInput::default() })
                .into(),
            price: Price { usd_per_hour: Some(3.6), ..Price::default() },
            ..Inputs::default()
        });
        let names: Vec<_> = report.phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["load", "train", "unattributed", "rounding"]);
        let wall: f64 = report.phases.iter().map(|p| p.wall_s).sum();
        let cost: f64 = report.phases.iter().filter_map(|p| p.cost_usd).sum();
        assert!((wall - 100.0).abs() < 1e-9, "{wall}");
        assert!((cost - 0.12).abs() < 1e-12, "{cost}");
        let rounding = report.phases.last().unwrap().cost_usd.unwrap();
        assert!((rounding - 0.02).abs() < 1e-12, "{rounding}");
    }

    #[test]
    fn a_phase_may_bring_a_cost_of_its_own() {
        let report = build(Inputs {
            measured: Quantities { wall_s: Some(10.0), cost_usd: Some(0.05), ..Quantities::default() },
            phases: vec![
                PhaseInput { name: "train".into(), wall_s: 10.0, ..PhaseInput::default() },
                PhaseInput { name: "electricity".into(), cost_usd: Some(0.04), ..PhaseInput::default() },
            ],
            price: Price { usd_per_hour: Some(3.6), ..Price::default() },
            ..Inputs::default()
        });
        let rounding = report.phases.last().unwrap();
        assert_eq!(rounding.name, ROUNDING);
        assert!(rounding.cost_usd.unwrap().abs() < 1e-12);
    }

    #[test]
    fn what_is_paid_beside_the_run_is_none_of_its_time() {
        let report = build(Inputs {
            measured: Quantities { wall_s: Some(10.0), cost_usd: Some(0.11), ..Quantities::default() },
            phases: vec![
                PhaseInput { name: "set-up".into(), wall_s: 100.0, beside: true, ..PhaseInput::default() },
                PhaseInput { name: "train".into(), wall_s: 10.0, ..PhaseInput::default() },
            ],
            price: Price { usd_per_hour: Some(3.6), ..Price::default() },
            ..Inputs::default()
        });
        let names: Vec<_> = report.phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["set-up", "train", "rounding"], "nothing is left to close");
        assert!(report.phases[2].cost_usd.unwrap().abs() < 1e-12);
    }

    #[test]
    fn without_a_price_phases_have_time_and_no_cost() {
        let report = build(Inputs {
            measured: Quantities { wall_s: Some(1.0), ..Quantities::default() },
            phases: vec![PhaseInput { name: "train".into(), wall_s: 1.0, ..PhaseInput::default() }],
            ..Inputs::default()
        });
        assert_eq!(report.phases.len(), 1);
        assert_eq!(report.phases[0].cost_usd, None);
    }

    #[test]
    fn memory_parts_close_to_both_peaks_below_0_where_parts_did_not_peak_together() {
        let part = |name: &str, predicted, measured| PartInput {
            name: name.into(),
            predicted_bytes: predicted,
            measured_bytes: measured,
        };
        let report = build(Inputs {
            predicted: Quantities { peak_memory_bytes: Some(1000), ..Quantities::default() },
            measured: Quantities { peak_memory_bytes: Some(900), ..Quantities::default() },
            memory_parts: vec![
                part("base_weights", Some(600), Some(650)),
                part("activations", Some(300), Some(300)),
                part("runtime", Some(50), None),
            ],
            ..Inputs::default()
        });
        let sum =
            |of: fn(&MemoryPart) -> Option<i64>| -> i64 { report.memory_parts.iter().filter_map(of).sum() };
        assert_eq!(sum(|p| p.predicted_bytes), 1000);
        assert_eq!(sum(|p| p.measured_bytes), 900);
        let closing = report.memory_parts.last().unwrap();
        assert_eq!(closing.name, UNATTRIBUTED);
        assert_eq!(closing.measured_bytes, Some(-50));
        assert_eq!(report.memory_parts[2].measured_bytes, None);
    }
}
