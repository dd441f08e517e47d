//! A run's place in the ledger, taken before its data are read: whatever a kill interrupts, what it took is known. Ends
//! a start that failed; how the run stands while it trains, the session says.

use super::checkpoint::Manifest;
use super::folder::{self, Holds};
use super::plan::{Draft, Plan};
use super::session::Estimate;
use crate::config::Resolved;
use crate::error::Result;
use crate::estimate::PriceUsed;
use crate::fs;
use crate::ledger::{
    self, Book, Final, NewRun, PENDING, Phase, Prepared, Pulse, Record, RunRow, Sample, SharedBook, Status,
};
use crate::meter::Meter;
use std::path::Path;

/// A new start that was refused within so many seconds is an answer, and no run to be listed.
const ANSWER_S: f64 = 10.0;

/// What is known of a run before its data.
pub struct Coming<'a> {
    /// What a new run is called.
    pub run_id: &'a str,
    /// The run's folder.
    pub out: &'a Path,
    /// What stands in it.
    pub holds: Holds,
    /// The run that stands in it is moved aside.
    pub overwrite: bool,
    /// Processes that share it.
    pub processes: usize,
    /// Of the checkpoint that it goes on from.
    pub kept: Option<&'a Manifest>,
    /// The config with its text.
    pub resolved: &'a Resolved,
    /// What an hour costs.
    pub price: &'a PriceUsed,
}

/// A run that the ledger hears of every second.
pub struct Entered {
    /// Of the ledger; a resumed run keeps its first.
    pub run_id: String,
    /// When its first process began, RFC 3339.
    pub started_at: String,
    /// How it stood when an earlier process left it.
    pub before: Sample,
    /// An earlier process left it so.
    earlier: Option<Status>,
    /// Its folder was moved since.
    is_elsewhere: bool,
    stage: Stage,
    /// What the user must be told.
    pub(super) warnings: Vec<String>,
    pub(super) book: SharedBook,
    pulse: Option<Pulse>,
}

/// How much of a run stands in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing new: whether there is anything to do, or what an earlier process left to be entered, is not known yet.
    Waiting,
    /// That it prepares itself.
    Preparing,
    /// What it is made of.
    Prepared,
}

impl Entered {
    /// Enters a run, new or going on, and begins to beat.
    ///
    /// # Errors
    /// There is no home for a ledger (2).
    pub fn begin(draft: &Draft, meter: &Meter) -> Result<Self> {
        let coming = draft.coming();
        let book = Book::early(&fs::home()?, coming.out);
        let mut entered = Self::look(&coming, SharedBook::new(book), Vec::new());
        let has_pending = coming.out.join(PENDING).symlink_metadata().is_ok();
        // A finished run may have nothing to do, or no checkpoint to go on from.
        let is_finished = coming.holds == Holds::Finished && !coming.overwrite;
        if !(has_pending || is_finished) {
            entered.enter(&coming, meter);
        }
        Ok(entered)
    }

    /// What the ledger knows of the run.
    fn look(coming: &Coming<'_>, book: SharedBook, warnings: Vec<String>) -> Self {
        let is_moved_aside = coming.overwrite && coming.holds != Holds::Nothing;
        let id = folder::run_id(coming.out).filter(|_| !is_moved_aside);
        let find = |id: &str| book.lock().ledger()?.find(id).ok().filter(|row| row.run_id == id);
        let earlier = id.as_deref().and_then(find);
        Self {
            started_at: earlier.as_ref().map_or_else(ledger::now, |run| run.started_at.clone()),
            // A ledger that has never heard of the run takes it in under the name that it has.
            run_id: id.unwrap_or_else(|| coming.run_id.to_owned()),
            before: before(earlier.as_ref(), coming.kept),
            is_elsewhere: earlier.as_ref().is_some_and(|run| run.is_elsewhere(coming.out)),
            earlier: earlier.map(|run| run.status),
            stage: Stage::Waiting,
            warnings,
            book,
            pulse: None,
        }
    }

    fn enter(&mut self, coming: &Coming<'_>, meter: &Meter) {
        let mut book = self.book.lock();
        // Without a ledger an earlier process of the run may be known to the one that comes back.
        let goes_on = self.earlier.is_some() || (book.ledger().is_none() && self.run_id != coming.run_id);
        let mut outcomes = vec![if goes_on {
            book.resume_run(&self.run_id, None)
        } else {
            book.start_run(&self.new_run(coming))
        }];
        for beside in coming.price.beside.iter().filter(|beside| beside.is_over()) {
            let phase = Phase { name: beside.name.clone(), wall_s: beside.seconds, ..Phase::default() };
            outcomes.push(book.phase(&self.run_id, &phase));
        }
        drop(book);
        self.warn(outcomes);
        self.stage = Stage::Preparing;
        let watch = meter.watch();
        self.pulse = Some(Pulse::start(self.book.clone(), &self.run_id, watch, coming.price, &self.before));
    }

    fn new_run(&self, coming: &Coming<'_>) -> NewRun {
        let config = &coming.resolved.config;
        NewRun {
            run_id: self.run_id.clone(),
            started_at: self.started_at.clone(),
            output_dir: coming.out.to_string_lossy().into_owned(),
            config_toml: coming.resolved.toml.clone(),
            config_hash: super::plan::settings_hash(coming.resolved, coming.processes),
            data_hash: String::new(),
            base_hash: String::new(),
            project: config.output.project.clone(),
            purpose: config.output.purpose.clone(),
            method: config.method.flag().name().into(),
            base: config.base.model.clone(),
            prediction_json: None,
            usd_per_hour: coming.price.usd_per_hour,
        }
    }

    /// The folder is the run's, and what it learns from is known: from here on its records are kept there, too, where
    /// the ledger fails.
    pub(super) fn prepared(&mut self, plan: &Plan, estimate: &Estimate, meter: &Meter) {
        let owned = self.book.lock().own_folder();
        self.warnings.extend(owned.map(|warning| warning.to_string()));
        if self.stage == Stage::Waiting {
            *self = Self::look(&plan.coming(), self.book.clone(), std::mem::take(&mut self.warnings));
            self.enter(&plan.coming(), meter);
        }
        let is_here = self.earlier.is_none() || self.is_elsewhere;
        let prepared = Prepared {
            output_dir: is_here.then(|| plan.out.to_string_lossy().into_owned()),
            base: plan.ground.source.name().into(),
            base_hash: plan.base_hash.clone(),
            data_hash: plan.summary.sha256.clone(),
            prediction_json: estimate.is_new.then(|| estimate.text.clone()),
        };
        let outcome = self.book.lock().prepared(&self.run_id, &prepared);
        let id = format!("{}\n", self.run_id);
        let named = fs::write_durable(&plan.out.join(folder::RUN_ID), id.as_bytes());
        self.warn([outcome, named]);
        if let Some(pulse) = &self.pulse {
            pulse.set_price(&plan.ground.price);
        }
        self.stage = Stage::Prepared;
    }

    /// The start failed: before anything was done, or over what the run needs.
    pub fn fail(&mut self, meter: &Meter) {
        self.stop();
        let elapsed_s = meter.elapsed().0;
        let wall_s = self.before.wall_s + elapsed_s;
        let status = match (self.stage, self.earlier) {
            // It is seen to be dead as soon as this process is.
            (Stage::Waiting, _) | (Stage::Preparing, Some(Status::Killed | Status::Running)) => return,
            (Stage::Preparing, Some(status)) => status,
            (Stage::Preparing, None) | (Stage::Prepared, _) => Status::Failed,
        };
        let mut book = self.book.lock();
        // The error that ends the start says more than a ledger that cannot be written.
        let _ = if self.stage == Stage::Preparing && self.earlier.is_none() && elapsed_s < ANSWER_S {
            book.withdraw(&self.run_id)
        } else {
            let end = Final {
                finished_at: ledger::now(),
                step: self.before.step,
                wall_s,
                cost_usd: self.pulse.as_ref().and_then(|pulse| pulse.bill(wall_s)),
                energy_j: self.before.energy_j,
                loss: self.before.loss,
                report_json: None,
            };
            book.finish_run(&self.run_id, status, &end)
        };
    }

    /// An earlier process of the run was killed.
    pub(super) fn was_killed(&self) -> bool {
        self.earlier == Some(Status::Killed)
    }

    /// A step was taken: the next heartbeat says so.
    pub(super) fn step(&self, step: u64, loss: f64) {
        if let Some(pulse) = &self.pulse {
            pulse.step(step, loss);
        }
    }

    /// Ends the heartbeat.
    pub(super) fn stop(&mut self) {
        if let Some(pulse) = &mut self.pulse {
            pulse.stop();
        }
    }

    /// What the user must be told since the last time.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.extend(self.pulse.iter().flat_map(Pulse::warnings));
        warnings
    }

    fn warn(&mut self, outcomes: impl IntoIterator<Item = Result<()>>) {
        self.warnings.extend(outcomes.into_iter().filter_map(Result::err).map(|error| error.to_string()));
    }
}

/// How earlier processes left the run, as far as the ledger or its checkpoint knows.
fn before(earlier: Option<&RunRow>, kept: Option<&Manifest>) -> Sample {
    let kept_s = kept.map_or(0.0, |manifest| manifest.wall_s);
    Sample {
        wall_s: earlier.and_then(|run| run.wall_s).unwrap_or(0.0).max(kept_s),
        step: kept.map_or(0, |manifest| manifest.step),
        loss: earlier.and_then(|run| run.loss),
        energy_j: earlier.and_then(|run| run.energy_j).or(kept.and_then(|manifest| manifest.energy_j)),
        ..Sample::default()
    }
}
