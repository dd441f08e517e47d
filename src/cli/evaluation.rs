//! An evaluation's place in the ledger: what it took is paid for like any run, and stands there as one of its own, with
//! the purpose "evaluation" and a report. A folder or a ledger that cannot be written keeps nobody from judging.

use super::eval::{EvalArgs, Rows};
use super::job::{EVALUATIONS, Ended, Job};
use super::warn;
use crate::config::{Config, Cost};
use crate::error::Result;
use crate::estimate::{carbon, price_used};
use crate::fs::{self, RunLock};
use crate::ledger::{self, NewRun, Prepared, Pulse, Record, Sample, SharedBook};
use crate::meter::{Measured, Meter, command};
use crate::report::Report;
use crate::train::folder;
use crate::train::subject::Subject;
use serde_json::Value;
use std::ffi::OsString;
use std::path::PathBuf;

/// Its method and its purpose in the ledger.
const EVALUATION: &str = "evaluation";
/// What was found, in its folder.
const FOUND: &str = "eval.json";

/// An evaluation that the ledger hears of every second.
pub(super) struct Evaluation {
    job: Job,
    entered: Option<Entered>,
    warnings: Vec<String>,
}

struct Entered {
    book: SharedBook,
    pulse: Pulse,
    _lock: RunLock,
}

impl Evaluation {
    /// Enters it.
    ///
    /// # Errors
    /// There is no such price (2).
    pub(super) fn begin(
        args: &EvalArgs,
        subject: &Subject,
        config: Option<&Config>,
        rows: &Rows,
        meter: &Meter,
    ) -> Result<Self> {
        let job = job(args, subject, config, rows)?;
        let mut evaluation = Self { job, entered: None, warnings: Vec::new() };
        match evaluation.job.begin() {
            Ok((lock, book, warnings)) => {
                let (book, job) = (SharedBook::new(book), &evaluation.job);
                let (id, watch) = (&job.run.run_id, meter.watch());
                let pulse = Pulse::start(book.clone(), id, watch, &job.price, &Sample::default());
                evaluation.entered = Some(Entered { book, pulse, _lock: lock });
                evaluation.warnings = warnings;
            }
            Err(error) => {
                evaluation.warnings.push(format!("{error}\n  the evaluation goes on without a ledger"));
            }
        }
        warn(&evaluation.warnings);
        Ok(evaluation)
    }

    /// Its id in the ledger, where it stands in one.
    pub(super) fn run_id(&self) -> Option<&str> {
        self.entered.as_ref().map(|_| self.job.run.run_id.as_str())
    }

    /// The rows are read; `data_hash` is theirs.
    pub(super) fn knows_data(&mut self, data_hash: &str) {
        let prepared = Prepared {
            base: self.job.run.base.clone(),
            data_hash: data_hash.to_owned(),
            ..Prepared::default()
        };
        let Some(entered) = &self.entered else { return };
        let outcome = entered.book.lock().prepared(&self.job.run.run_id, &prepared);
        let warning = outcome.err().map(|error| error.to_string());
        warn(&warning);
        self.warnings.extend(warning);
    }

    /// Closes it. The report of what it took.
    pub(super) fn end(&mut self, measured: &Measured, mut ended: Ended) -> Report {
        ended.warnings.append(&mut self.warnings);
        let Some(entered) = &mut self.entered else {
            return self.job.end(None, measured, ended).0;
        };
        entered.pulse.stop();
        let heard = entered.pulse.warnings();
        warn(&heard);
        ended.warnings.extend(heard);
        let (report, written, unentered) = self.job.end(Some(&mut entered.book.lock()), measured, ended);
        warn(&unentered);
        warn(&written.err().map(|error| error.to_string()));
        report
    }

    /// Keeps what was found beside the report.
    pub(super) fn keep(&self, found: &Value) {
        let path = self.job.out.join(FOUND);
        let text = format!("{found:#}\n");
        if self.entered.is_some()
            && let Err(error) = fs::write_durable(&path, text.as_bytes())
        {
            warn(&[error.to_string()]);
        }
    }
}

fn job(args: &EvalArgs, subject: &Subject, config: Option<&Config>, rows: &Rows) -> Result<Job> {
    let nothing = Cost::default();
    let cost = config.map_or(&nothing, |config| &config.cost);
    let price = price_used(cost, jiff::Zoned::now().date())?;
    let run_id = ledger::new_run_id();
    // Without a home it does not begin, and nothing is written.
    let out = fs::home().unwrap_or_default().join(EVALUATIONS).join(&run_id);
    let settings = settings(args, subject, rows);
    let line: Vec<OsString> = std::iter::once("fttrain".into()).chain(std::env::args_os().skip(1)).collect();
    Ok(Job {
        run: NewRun {
            run_id,
            started_at: ledger::now(),
            output_dir: out.to_string_lossy().into_owned(),
            config_hash: fs::sha256_bytes(settings.as_bytes()),
            config_toml: settings,
            data_hash: String::new(),
            // Whoever looks for earlier runs of this base looks for runs that trained it.
            base_hash: String::new(),
            project: config.map(|config| config.output.project.clone()).unwrap_or_default(),
            purpose: EVALUATION.into(),
            method: EVALUATION.into(),
            base: subject.source.name().to_owned(),
            prediction_json: None,
            usd_per_hour: price.usd_per_hour,
        },
        out,
        price,
        grid: carbon::intensity(&cost.grid)?,
        prediction: None,
        shown: command::shown(&line),
    })
}

/// What was asked, as TOML: the settings in which two evaluations may differ.
fn settings(args: &EvalArgs, subject: &Subject, rows: &Rows) -> String {
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut all = toml::Table::new();
    let mut set = |key: &str, value: Option<toml::Value>| {
        all.extend(value.map(|value| (key.to_owned(), value)));
    };
    set("model", Some(args.model.clone().into()));
    set("run", folder::run_id(&subject.place).map(Into::into));
    // A run that goes on keeps its id and its folder.
    set("trained_sha256", subject.trained_sha256().map(Into::into));
    set("adapter", args.adapter.as_ref().map(|adapter| path(adapter).into()));
    set("base", args.base.clone().map(Into::into));
    set("adapted", Some((!args.no_adapter).into()));
    set("data", Some(rows.files().iter().map(path).collect::<Vec<_>>().into()));
    set("split", args.split.clone().map(Into::into));
    set("match", args.pattern.clone().map(Into::into));
    set("shots", Some(count(args.shots).into()));
    set("limit", args.limit.map(|limit| count(limit).into()));
    set("max_tokens", Some(count(args.max_tokens).into()));
    // The run's own, or those of `--config`.
    set("rules", toml::Value::try_from(rows).ok());
    toml::to_string(&all).unwrap_or_default()
}
