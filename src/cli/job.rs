//! What is metered and trains nothing: another program, or an evaluation. It is a run of the ledger with its cost, and
//! has a report as every run does.

use super::settle::{self, Earlier, Settled, settle};
use crate::error::Result;
use crate::estimate::carbon::Intensity;
use crate::estimate::{Prediction, PriceUsed};
use crate::fs::{self, RunLock};
use crate::ledger::{self, Book, Final, NewRun, Record, Status as LedgerStatus};
use crate::meter::{Measured, machine};
use crate::report::{self, DataSummary, Report, Status};
use crate::train::folder;
use std::path::PathBuf;

/// Folders of evaluations, below the home of the ledger.
pub(super) const EVALUATIONS: &str = "evaluations";
/// Folders of other programs' runs.
pub(super) const METERED: &str = "metered";

/// What is known of a job before it starts.
pub(super) struct Job {
    pub(super) run: NewRun,
    /// Of its report.
    pub(super) out: PathBuf,
    pub(super) price: PriceUsed,
    pub(super) grid: Option<Intensity>,
    pub(super) prediction: Option<Prediction>,
    /// The command line as it may be written down.
    pub(super) shown: Vec<String>,
}

/// How a job ended.
#[derive(Default)]
pub(super) struct Ended {
    /// Why it is none that did what it was asked; `None` = it is.
    pub(super) reason: Option<String>,
    /// The loss that it found.
    pub(super) loss: Option<f64>,
    /// What it read.
    pub(super) data: DataSummary,
    /// What was said while it went.
    pub(super) warnings: Vec<String>,
}

impl Job {
    /// Takes its folder, and enters it into the ledger, with what earlier jobs had to leave in theirs, to which nobody
    /// comes back; the texts are warnings.
    ///
    /// # Errors
    /// There is no home for a ledger (2), the folder cannot be made (5), or is in use (8).
    pub(super) fn begin(&self) -> Result<(RunLock, Book, Vec<String>)> {
        let home = fs::home()?;
        fs::create_folders(&self.out)?;
        let lock = RunLock::acquire(&self.out)?;
        let (mut book, warning) = Book::open(&home, &self.out);
        let mut warnings: Vec<String> = warning.map(|w| w.to_string()).into_iter().collect();
        let left = [EVALUATIONS, METERED].into_iter().flat_map(|name| book.enter_left(&home.join(name)));
        warnings.extend(left.map(|w| w.to_string()));
        warnings.extend(book.start_run(&self.run).err().map(|w| w.to_string()));
        Ok((lock, book, warnings))
    }

    /// Settles what it took, and where it has a book, closes it in the ledger and writes its report; the texts are
    /// warnings.
    pub(super) fn end(
        &self,
        book: Option<&mut Book>,
        measured: &Measured,
        ended: Ended,
    ) -> (Report, Result<()>, Vec<String>) {
        let settled =
            settle(measured, &Earlier::default(), &self.price, self.grid.as_ref(), &machine::cpu_model());
        let loss = ended.loss;
        let report = report::build(self.inputs(measured, &settled, ended));
        let Some(book) = book else { return (report, Ok(()), Vec::new()) };
        let written = self.write(&report);
        let warnings = self.enter(book, &report, measured, &settled, loss);
        (report, written, warnings)
    }

    fn inputs(&self, measured: &Measured, settled: &Settled, ended: Ended) -> report::Inputs {
        let predicted = self.prediction.as_ref().map(|p| p.predicted).unwrap_or_default();
        let parts = self.prediction.iter().flat_map(|p| &p.memory_parts);
        let memory_parts = parts.map(|part| report::PartInput {
            name: part.name.clone(),
            predicted_bytes: Some(part.bytes),
            measured_bytes: None,
        });
        let warnings = self.price.warnings.iter().chain(&settled.warnings).cloned();
        report::Inputs {
            run_id: self.run.run_id.clone(),
            status: if ended.reason.is_none() { Status::Done } else { Status::Failed },
            reason: ended.reason,
            method: Some(self.run.method.clone()),
            started_at: Some(self.run.started_at.clone()),
            predicted,
            measured: settled.measured,
            modelled: settled.modelled,
            interval: self.prediction.as_ref().map(super::train::intervals).unwrap_or_default(),
            phases: settled.phases.clone(),
            memory_parts: memory_parts.collect(),
            price: super::train::price(&self.price),
            provenance: report::Provenance {
                version: Some(env!("CARGO_PKG_VERSION").into()),
                os: Some(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
                cpu: Some(machine::cpu_model()),
                gpu: measured.devices.first().map(|device| device.name.clone()),
                base: Some(self.run.base.clone()),
                ..report::Provenance::default()
            },
            data: ended.data,
            command: self.shown.clone(),
            meter: Some(measured.clone()),
            energy: settled.energy.clone(),
            carbon: settled.carbon.clone(),
            costs: settled.costs.clone(),
            timeline: report::timeline::moments(&[], measured, 0.0),
            warnings: warnings.chain(ended.warnings).collect(),
            ..report::Inputs::default()
        }
    }

    fn write(&self, report: &Report) -> Result<()> {
        report::html::write(&self.out.join("report.html"), report, &[], &[])?;
        report::json::write(&self.out.join(folder::REPORT), report)
    }

    /// Closes the run in the ledger; gives what failed there.
    fn enter(
        &self,
        book: &mut Book,
        report: &Report,
        measured: &Measured,
        settled: &Settled,
        loss: Option<f64>,
    ) -> Vec<String> {
        let end = Final {
            finished_at: ledger::now(),
            step: 0,
            wall_s: measured.wall_s,
            cost_usd: report.measured.cost_usd.or(report.modelled.cost_usd),
            energy_j: report.measured.energy_j,
            loss,
            report_json: report::json::for_ledger(report).ok(),
        };
        let status = if report.status == Status::Done { LedgerStatus::Done } else { LedgerStatus::Failed };
        settle::close(book, &self.run.run_id, (measured, settled), status, &end)
    }
}
