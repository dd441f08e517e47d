//! `fttrain report RUN`: shows it, writes its page again, or sends the run to a tracker.

use super::{place, say};
use crate::config::Tracker;
use crate::error::{Error, Kind, Result};
use crate::fs;
use crate::ledger::{self, Ledger, Record, RunRow};
use crate::meter::Measured;
use crate::report::{self, Report, track};
use crate::train::metrics::{EvalRecord, StepRecord};
use crate::train::screen::Screen;
use crate::train::{folder, metrics};
use clap::Args;
use std::path::{Path, PathBuf};

/// `fttrain report`
#[derive(Args)]
pub(super) struct ReportArgs {
    /// A run's id or its folder.
    run: String,
    /// Print report.json.
    #[arg(long)]
    json: bool,
    /// Write the report as a page instead.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// Send the run to mlflow, tensorboard or csv instead.
    #[arg(long, value_name = "TRACKER", conflicts_with_all = ["json", "html"])]
    to: Vec<String>,
}

pub(super) fn run(args: &ReportArgs) -> Result<u8> {
    if args.to.is_empty()
        && let Some(row) = without_folder(&args.run)?
    {
        return show(args, &heard(None, &row)?, &[], &[]);
    }
    let out = place::folder_of(&args.run)?;
    mend(&out);
    if !args.to.is_empty() {
        return send(&out, &args.to);
    }
    let steps = metrics::read(&out.join("metrics.jsonl"))?;
    let evals = metrics::read(&out.join("eval.jsonl"))?;
    show(args, &find(&out)?, &steps, &evals)
}

fn show(args: &ReportArgs, found: &Report, steps: &[StepRecord], evals: &[EvalRecord]) -> Result<u8> {
    if let Some(page) = &args.html {
        report::html::write(page, found, steps, evals)?;
    } else if args.json {
        super::print(&report::json::to_text(found)?);
    } else {
        super::print(&report::terminal(found, Screen::stdout()));
    }
    Ok(0)
}

/// A run that the ledger knows, and whose folder is another's now, or was never made.
fn without_folder(run: &str) -> Result<Option<RunRow>> {
    if Path::new(run).is_dir() {
        return Ok(None);
    }
    let row = Ledger::open(&fs::home()?)?.find(run)?;
    let is_without = place::taken_by(&row).is_some() || !Path::new(&row.output_dir).is_dir();
    Ok(is_without.then_some(row))
}

/// The run's own report; one made of what the ledger heard, where it was killed or is at work.
fn find(out: &Path) -> Result<Report> {
    let path = out.join(folder::REPORT);
    if path.exists() {
        return report::json::read(&path);
    }
    let ledger = Ledger::open(&fs::home()?)?;
    let name = folder::run_id(out).unwrap_or_else(|| out.to_string_lossy().into_owned());
    heard(Some(out), &ledger.find(&name)?)
}

/// A report of what the ledger has heard, and of the records in the run's folder; without one, the report that the
/// ledger keeps of a run that is over.
fn heard(folder: Option<&Path>, row: &RunRow) -> Result<Report> {
    let ledger = Ledger::open(&fs::home()?)?;
    let details = ledger.details(&row.run_id)?;
    let samples = ledger.samples(&row.run_id, 0.0)?;
    let is_over = !matches!(row.status, ledger::Status::Killed | ledger::Status::Running);
    let kept = details.report_json.as_deref().filter(|_| is_over && folder.is_none());
    if let Some(report) = kept.and_then(|text| serde_json::from_str::<Report>(text).ok()) {
        // The ledger keeps the report without its moments, which are its samples.
        let timeline = report::timeline::moments(&samples, &Measured::default(), f64::INFINITY);
        return Ok(Report { timeline, ..report });
    }
    Ok(report::build(report::recover(folder, row, &details, &samples)?))
}

/// A folder that was moved is known by its new place from here on; a ledger that cannot be written changes no report.
fn mend(out: &Path) {
    let moved = || -> Result<()> {
        let Some(run_id) = folder::run_id(out) else { return Ok(()) };
        let mut ledger = Ledger::open(&fs::home()?)?;
        if ledger.find(&run_id)?.is_elsewhere(out) { ledger.moved(&run_id, out) } else { Ok(()) }
    };
    let _ = moved();
}

fn send(out: &Path, to: &[String]) -> Result<u8> {
    let kind = |name: &String| {
        Tracker::ALL.into_iter().find(|tracker| tracker.name() == name).ok_or_else(|| {
            let known = Tracker::ALL.map(Tracker::name).join(", ");
            Error::new(Kind::Usage, format!("--to {name}: no such tracker"))
                .hint(format!("known are {known}"))
        })
    };
    let kinds: Vec<Tracker> = to.iter().map(kind).collect::<Result<_>>()?;
    let resolved = crate::config::load(&out.join(folder::CONFIG), None, &[])?;
    let mut run = track::Run::open(out, &fs::home()?)?;
    track::send(&kinds, &resolved.config.output, &mut run)?;
    say(&format!("sent {} to {}", run.run_id, to.join(", ")));
    Ok(0)
}
