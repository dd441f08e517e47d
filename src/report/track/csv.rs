//! One table of steps and one of evaluations, for spreadsheets: `metrics.csv` and `eval.csv` in the run's folder.

use super::{Run, Tracker};
use crate::error::Result;
use crate::fs::Appender;
use crate::train::metrics::{EvalRecord, StepRecord};
use std::path::Path;

const STEPS: &str =
    "step,epoch,loss,grad_norm,learning_rate,tokens,padded_tokens,loss_tokens,step_s,rss_bytes,device_bytes";
const EVALS: &str = "step,epoch,loss,loss_tokens,wall_s";

/// Both files, written anew by each process.
#[derive(Debug, Default)]
pub(super) struct Csv {
    steps: Option<Sheet>,
    evals: Option<Sheet>,
}

#[derive(Debug)]
struct Sheet {
    lines: Appender,
    rows: usize,
}

impl Sheet {
    fn begin(path: &Path, header: &str) -> Result<Self> {
        // Everything in it follows from the run's own records.
        let mut lines = Appender::open_while(path, |_| false)?;
        lines.line(header)?;
        Ok(Self { lines, rows: 0 })
    }

    fn add<R>(&mut self, records: &[R], row: impl Fn(&R) -> String) -> Result<()> {
        for record in records.iter().skip(self.rows) {
            self.lines.line(&row(record))?;
            self.rows += 1;
        }
        Ok(())
    }
}

impl Tracker for Csv {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn take(&mut self, run: &mut Run, _is_over: bool) -> Result<()> {
        sheet(&mut self.steps, &run.folder.join("metrics.csv"), STEPS)?.add(run.steps(), step)?;
        sheet(&mut self.evals, &run.folder.join("eval.csv"), EVALS)?.add(run.evals(), evaluation)
    }
}

fn sheet<'a>(slot: &'a mut Option<Sheet>, path: &Path, header: &str) -> Result<&'a mut Sheet> {
    match slot {
        Some(sheet) => Ok(sheet),
        None => Ok(slot.insert(Sheet::begin(path, header)?)),
    }
}

/// Every digit; what is not finite or not measured is an empty cell.
fn number(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(String::new, |n| n.to_string())
}

fn step(r: &StepRecord) -> String {
    let reals = [r.epoch, r.loss, r.grad_norm, r.learning_rate].map(number).join(",");
    let counts = format!("{},{},{}", r.tokens, r.padded_tokens, r.loss_tokens);
    format!(
        "{},{reals},{counts},{},{},{}",
        r.step,
        number(r.step_s),
        count(r.rss_bytes),
        count(r.device_bytes)
    )
}

fn evaluation(r: &EvalRecord) -> String {
    format!("{},{},{},{},{}", r.step, number(r.epoch), number(r.loss), r.loss_tokens, number(r.wall_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_cells_as_the_header_and_none_for_what_is_not_known() {
        let record = StepRecord {
            step: 3,
            epoch: 0.5,
            loss: f64::NAN,
            grad_norm: 0.25,
            learning_rate: 2e-4,
            tokens: 10,
            penalty: None,
            padded_tokens: 0,
            loss_tokens: 4,
            step_s: 0.1,
            rss_bytes: None,
            device_bytes: Some(7),
        };
        assert_eq!(step(&record), "3,0.5,,0.25,0.0002,10,0,4,0.1,,7");
        assert_eq!(step(&record).matches(',').count(), STEPS.matches(',').count());
        let eval = EvalRecord { step: 0, epoch: 0.0, loss: 1.5, loss_tokens: 9, wall_s: 0.25 };
        assert_eq!(evaluation(&eval), "0,0,1.5,9,0.25");
    }
}
