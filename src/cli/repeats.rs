//! Earlier runs like the one that is about to start: whether it was done before, what came out and what it cost, or
//! which one it comes from or is nearest to.

use super::train::facts;
use crate::config::{Method, differing, settings_of};
use crate::error::{Error, Result};
use crate::fs;
use crate::ledger::{Ledger, RunRow, Status};
use crate::report::{Difference, Parent, words};
use crate::train::{self, Plan, folder, plan};

/// Earlier runs that are compared key by key.
const LOOKED_AT: u32 = 50;
/// A run that differs in more keys is another run.
const MOST_KEYS: usize = 4;

/// What to say of earlier runs like this one.
///
/// # Errors
/// Resource: an exact repeat where the budget refuses them.
pub(super) fn judge(plan: &Plan) -> Result<Option<String>> {
    if plan.resume.is_some() {
        return Ok(None);
    }
    // A ledger that cannot be read is said where the run enters itself.
    let Ok(ledger) = fs::home().and_then(|home| Ledger::open_in_haste(&home)) else { return Ok(None) };
    let same = ledger.repeats_of(&plan.settings_hash(), &plan.summary.sha256, &plan.base_hash);
    let Some(run) = same.unwrap_or_default().into_iter().find(|run| run.status == Status::Done) else {
        let is_near = |parent: &Parent| (1..=MOST_KEYS).contains(&parent.differences.len());
        return Ok(nearest(plan, &ledger, "").filter(is_near).map(|parent| near(&parent)));
    };
    let error = Error::from(train::Error::Repeat {
        came_to: came_to(run.cost_usd, run.loss),
        run: run.run_id,
        started_at: run.started_at,
        folder: run.output_dir,
    });
    if plan.config().budget.refuse_repeats { Err(error) } else { Ok(Some(facts(&error))) }
}

/// The run that `run_id` continues, else the nearest one before it.
pub(super) fn parent(plan: &Plan, run_id: &str) -> Option<Parent> {
    let ledger = fs::home().and_then(|home| Ledger::open_in_haste(&home)).ok()?;
    origin(plan, &ledger).or_else(|| nearest(plan, &ledger, run_id))
}

/// The run whose adapter this one began with.
fn origin(plan: &Plan, ledger: &Ledger) -> Option<Parent> {
    let (Method::Lora(lora) | Method::Qlora { lora, .. }) = &plan.config().method else { return None };
    let run = ledger.find(&folder::run_id(lora.model_dir.as_deref()?)?).ok()?;
    Some(Parent { is_origin: true, ..compared(plan, ledger, run)? })
}

/// The earlier run of the same base that differs in the fewest settings.
fn nearest(plan: &Plan, ledger: &Ledger, but: &str) -> Option<Parent> {
    let runs = ledger.runs_of_base(&plan.base_hash, LOOKED_AT).ok()?;
    let done = runs.into_iter().filter(|run| run.status == Status::Done && run.run_id != but);
    done.filter_map(|run| compared(plan, ledger, run)).min_by_key(|parent| parent.differences.len())
}

/// A run with what this one has otherwise.
fn compared(plan: &Plan, ledger: &Ledger, run: RunRow) -> Option<Parent> {
    let theirs = settings_of(&ledger.config_of(&run.run_id).ok()??);
    let keys = differing(&theirs, &plan.ground.resolved.settings).into_iter();
    let keys = keys.filter(|difference| plan::decides_the_result(&difference.key));
    let mut differences: Vec<Difference> =
        keys.map(|d| Difference { key: d.key, then: d.old, now: d.new }).collect();
    // The same paths may hold other rows.
    let is_other_file = differences.iter().any(|d| names_rows(&d.key));
    if !is_other_file && run.data_hash != plan.summary.sha256 {
        let [then, now] = [&run.data_hash, &plan.summary.sha256].map(|hash| hash.chars().take(12).collect());
        differences.push(Difference { key: "the data itself".into(), then, now });
    }
    Some(Parent {
        run_id: run.run_id,
        is_origin: false,
        started_at: run.started_at,
        cost_usd: run.cost_usd,
        loss: run.loss,
        differences,
    })
}

/// Whether the key is of a file of rows: of `datasets`, `test_datasets` or `retention_datasets`.
fn names_rows(key: &str) -> bool {
    key.split_once('.').is_some_and(|(list, _)| list.ends_with("datasets"))
}

fn near(parent: &Parent) -> String {
    let keys = parent.differences.iter().map(|d| format!("{} = {} (then {})", d.key, d.now, d.then));
    format!(
        "near run {} ({}; {}): this one differs in {}",
        parent.run_id,
        parent.started_at,
        came_to(parent.cost_usd, parent.loss),
        keys.collect::<Vec<_>>().join(", ")
    )
}

/// What it cost, and what came out.
fn came_to(cost_usd: Option<f64>, loss: Option<f64>) -> String {
    let cost = words::or_word(cost_usd, words::money, "unknown cost");
    loss.map_or_else(|| cost.clone(), |loss| format!("{cost}, loss {}", words::loss(loss)))
}

#[cfg(test)]
mod tests {
    use super::names_rows;

    #[test]
    fn every_list_of_files_names_rows() {
        for key in ["datasets.0.path", "test_datasets.1.split", "retention_datasets.0.type"] {
            assert!(names_rows(key), "{key}");
        }
        assert!(!names_rows("datasets") && !names_rows("output.project") && !names_rows("seed"));
    }
}
