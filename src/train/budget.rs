//! The caps of `[budget]` while a run goes: what was spent, what another step would make of it, and which cap that
//! would cross.

use super::metrics::{self, EvalRecord, StepRecord};
use super::plan::Plan;
use super::{Error, folder};
use crate::config::Budget;
use crate::error::Result;
use crate::estimate::phases;
use crate::meter::Phase;
use crate::units::{BYTES_PER_GIB, Bytes, JOULES_PER_KWH, Joules, Seconds, Usd};
use std::path::Path;

/// What a run has taken, over all its processes; `None` = not known, and then no cap on it can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    /// Seconds.
    pub wall_s: f64,
    /// The bill.
    pub cost_usd: Option<f64>,
    /// Joules.
    pub energy_j: Option<f64>,
    /// Peak memory.
    pub peak_bytes: Option<u64>,
}

/// The longest that each part of the run took so far, s: what another one may take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Longest {
    /// An optimizer step.
    pub step_s: f64,
    /// An evaluation.
    pub evaluation_s: f64,
    /// An evaluation of what is not to be forgotten.
    pub retention_s: f64,
    /// A commit.
    pub save_s: f64,
}

impl Longest {
    /// As the records of earlier processes have it; a commit, which has none, as it is predicted.
    ///
    /// # Errors
    /// The records cannot be read (4, 5).
    pub fn before(plan: &Plan) -> Result<Self> {
        let steps: Vec<StepRecord> = metrics::read(&plan.out.join("metrics.jsonl"))?;
        let evals: Vec<EvalRecord> = metrics::read(&plan.out.join("eval.jsonl"))?;
        let retention: Vec<EvalRecord> = metrics::read(&plan.out.join(folder::RETENTION))?;
        let longest = |evals: &[EvalRecord]| evals.iter().map(|record| record.wall_s).fold(0.0, f64::max);
        let commits = phases::commits(plan.config(), plan.epochs.total_steps());
        let saving = plan.prediction.phases.iter().filter(|phase| phase.name == Phase::Save.name());
        Ok(Self {
            step_s: steps.iter().map(|record| record.step_s).fold(0.0, f64::max),
            evaluation_s: longest(&evals),
            retention_s: longest(&retention),
            save_s: saving.map(|phase| phase.wall_s).sum::<f64>() / commits as f64,
        })
    }
}

/// The first cap that going on from `now` to `next` would cross.
pub fn crossed(budget: &Budget, now: &Spent, next: &Spent, run: &Path) -> Option<Error> {
    let memory = |spent: &Spent| spent.peak_bytes.map(|bytes| bytes as f64 / BYTES_PER_GIB);
    let energy = |spent: &Spent| spent.energy_j.map(|joules| joules / JOULES_PER_KWH);
    let hours = |spent: &Spent| Some(spent.wall_s / 3600.0);
    let usd = |spent: &Spent| spent.cost_usd;
    let over = |key, cap: Option<f64>, of: &dyn Fn(&Spent) -> Option<f64>, show: &dyn Fn(f64) -> String| {
        let cap = cap?;
        (of(next)? > cap).then(|| Error::BudgetReached {
            key,
            cap: show(cap),
            spent: of(now).map_or_else(|| "unknown".to_owned(), show),
            run: run.to_owned(),
        })
    };
    over("max_usd", budget.max_usd, &usd, &|v| Usd(v).to_string())
        .or_else(|| over("max_hours", budget.max_hours, &hours, &|v| Seconds(v * 3600.0).to_string()))
        .or_else(|| {
            over("max_energy_kwh", budget.max_energy_kwh, &energy, &|v| {
                Joules(v * JOULES_PER_KWH).to_string()
            })
        })
        .or_else(|| {
            let show = |v: f64| {
                let bytes = format!("{:.0}", v * BYTES_PER_GIB).parse().unwrap_or(u64::MAX);
                Bytes(bytes).to_string()
            };
            over("max_memory_gib", budget.max_memory_gib, &memory, &show)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Spent =
        Spent { wall_s: 3000.0, cost_usd: Some(1.0), energy_j: Some(3.0e6), peak_bytes: Some(1 << 30) };
    const NEXT: Spent =
        Spent { wall_s: 3700.0, cost_usd: Some(1.5), energy_j: Some(4.0e6), peak_bytes: Some(3 << 30) };

    fn judged(budget: &Budget, next: &Spent) -> Option<String> {
        crossed(budget, &NOW, next, Path::new("out")).map(|error| error.to_string())
    }

    #[test]
    fn each_cap_stops_the_run_before_it_is_crossed_and_says_what_was_spent() {
        let none = Budget::default;
        let cases = [
            (Budget { max_usd: Some(1.2), ..none() }, "max_usd", "$1.00 so far"),
            (Budget { max_hours: Some(1.0), ..none() }, "max_hours", "50 min"),
            (Budget { max_energy_kwh: Some(1.0), ..none() }, "max_energy_kwh", "so far"),
            (Budget { max_memory_gib: Some(2.0), ..none() }, "max_memory_gib", "1.00 GiB so far"),
        ];
        for (budget, key, spent) in cases {
            let said = judged(&budget, &NEXT).unwrap();
            assert!(said.contains(key) && said.contains(spent), "{said}");
            assert_eq!(judged(&budget, &NOW), None, "{key}");
        }
        assert_eq!(judged(&none(), &NEXT), None);
    }

    #[test]
    fn a_cap_on_what_nobody_knows_does_not_stop_a_run() {
        let budget = Budget { max_usd: Some(1e-9), max_energy_kwh: Some(1e-9), ..Budget::default() };
        let unknown = Spent { wall_s: 1e9, ..Spent::default() };
        assert_eq!(judged(&budget, &unknown), None);
    }
}
