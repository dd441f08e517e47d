//! `fttrain --lora CONFIG` and `fttrain resume RUN`: estimate, train, report.

use super::settle::{self, Earlier, Settled, settle};
use super::{AcceptArgs, SetArgs, TrainArgs, place, repeats, say, warn};
use crate::config::Resolved;
use crate::data::Summary;
use crate::error::{Error, Kind, Result};
use crate::estimate::time::ClassTime;
use crate::estimate::{self, Prediction, PriceUsed, machine, verdict};
use crate::ledger::{self, Final, Status as LedgerStatus};
use crate::meter::machine::cpu_model;
use crate::meter::process::{code_since_bare, resident};
use crate::meter::tag::Part;
use crate::meter::{Measured, Meter, Phase, ProcessProbe};
use crate::ops::device;
use crate::ops::profile::{self, Profile};
use crate::ranks::Ranks;
use crate::report::profile::Peak;
use crate::report::{
    self, DataSummary, Interval, Parameters, Price, SamplePair, Status, estimate_table, track,
};
use crate::train::ground::Ground;
use crate::train::history::EARLIER;
use crate::train::screen::Screen;
use crate::train::stop::Stop;
use crate::train::{
    Crew, Draft, Entered, Options, Outcome, Plan, Session, Taken, folder, follow, samples, session,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is shown beside the estimate and the progress.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    /// report.json in place of the table.
    pub(super) json: bool,
    /// Where the time went.
    pub(super) profile: bool,
}

pub(super) fn start(args: &TrainArgs) -> Result<u8> {
    let (flag, path) = args.config()?;
    let resolved = || crate::config::load(path, Some(flag), &args.set.pairs()?);
    let options = Options {
        overwrite: args.overwrite,
        resume: false,
        accept_data_change: args.accept.accept_data_change,
        accept_base_change: args.accept.accept_base_change,
    };
    together(resolved, &options, Shown { json: args.json, profile: args.profile })
}

pub(super) fn resume(run: &str, set: &SetArgs, shown: Shown, accept: &AcceptArgs) -> Result<u8> {
    let resolved = || {
        let out = place::folder_of(run)?;
        let mut resolved = crate::config::load(&out.join(folder::CONFIG), None, &set.pairs()?)?;
        // The folder may have been moved since; `{run}` was replaced when the run started.
        resolved.config.output.dir = out;
        Ok(resolved)
    };
    let options = Options {
        overwrite: false,
        resume: true,
        accept_data_change: accept.accept_data_change,
        accept_base_change: accept.accept_base_change,
    };
    together(resolved, &options, shown)
}

/// Trains, with the processes that were launched with this one or for the first of them. A fault of one process alone ends
/// them all, which would wait for it.
fn together(resolved: impl Fn() -> Result<Resolved>, options: &Options, shown: Shown) -> Result<u8> {
    let ranks = Ranks::join()?;
    if ranks.place().is_first() {
        let crew = Crew::new(&ranks);
        let trained = resolved().and_then(|resolved| train(resolved, options, shown, &crew));
        return trained.inspect_err(|error| {
            if crew.is_amid() {
                say(&error.to_string());
                ranks.abort(error.kind as u8);
            }
        });
    }
    if let Err(error) = follow(resolved, &ranks) {
        say(&format!("process {}: {error}", ranks.place().rank));
        ranks.abort(error.kind as u8);
    }
    Ok(0)
}

fn train(resolved: Resolved, options: &Options, shown: Shown, crew: &Crew<'_>) -> Result<u8> {
    let stop = Stop::install()?;
    let interval = Duration::from_millis(resolved.config.meter.interval_ms);
    let meter = Meter::start(Box::new(ProcessProbe::new(interval)), interval, Phase::Idle);
    let warnings = resolved.warnings.clone();
    let draft = Draft::make(resolved, options, crew.ranks.place())?;
    let mut entered = Entered::begin(&draft, &meter)?;
    let mut plan = match planned(draft, options, &meter, warnings, crew) {
        Ok(Some(plan)) => plan,
        Ok(None) => return Ok(0),
        Err(error) => {
            entered.fail(&meter);
            return Err(error);
        }
    };
    let mut session = Session::start(&plan, options, &meter, entered, crew)?;
    let desk = track::Desk::open(&plan.config().output, plan.out.clone(), crate::fs::home()?)?;
    let mut result = Training::default();
    if shown.profile {
        profile::start(&plan.device);
    }
    let outcome = go(&mut session, &mut plan, &meter, &stop, crew, &mut result);
    let mut measured = meter.finish();
    let Measured { peak_rss_bytes: peak, cpu_s, .. } = &mut measured;
    let taken = crew.end(Taken { peak_bytes: peak.unwrap_or(0), cpu_s: cpu_s.unwrap_or(0.0) });
    (*peak, *cpu_s) = (peak.map(|_| taken.peak_bytes), cpu_s.map(|_| taken.cpu_s));
    let profile = profile::finish();
    result.classes = profile.as_ref().map(Profile::classes).unwrap_or_default();
    let profiled = profile.map(|profile| show_profile(&plan, &profile));
    let settled = settled(&session, &plan, &measured);
    let status = status_of(&outcome);
    let reason = match &outcome {
        Ok(Outcome::Capped(error)) | Err(error) => Some(facts(error)),
        Ok(_) => None,
    };
    let mut inputs = inputs(&session, &plan, &measured, &settled, status, reason, &result)?;
    if !plan.device.is_cuda() {
        // Gathering them is a part of the run too, and may be its peak.
        let peak_bytes = &mut inputs.measured.peak_memory_bytes;
        *peak_bytes = peak_bytes.map(|peak| peak.max(resident().1.unwrap_or(0)));
    }
    let report = report::build(inputs);
    let page = page(&plan, &report);
    enter(&mut session, &report, &measured, &settled, status);
    // Last of all: with it the run counts as finished, and a kill before it leaves something to resume.
    let written = page.and(report::json::write(&plan.out.join(folder::REPORT), &report));
    let text = if shown.json {
        report::json::to_text(&report)?
    } else {
        report::terminal(&report, Screen::stdout())
    };
    super::print(&text);
    profiled.transpose()?;
    for unsent in desk.map(track::Desk::close).unwrap_or_default() {
        let later =
            format!("`fttrain report {} --to {}` sends the run later", plan.out.display(), unsent.tracker);
        say(&format!("warning: {}; {later}", unsent.cause));
    }
    if let (Err(error), false) = (&written, status == Status::Done) {
        say(&format!("warning: {error}"));
    }
    match outcome? {
        Outcome::Done => written.map(|()| 0),
        Outcome::Stopped(signal) => {
            say(&format!("stopped; go on with: fttrain resume {}", plan.out.display()));
            Ok(signal.exit_code())
        }
        Outcome::Capped(error) => Err(error),
    }
}

/// The plan of the run, shown with its estimate; `None` where there is nothing to do.
///
/// # Errors
/// Whatever can be refused before the first step.
fn planned(
    draft: Draft,
    options: &Options,
    meter: &Meter,
    warnings: Vec<String>,
    crew: &Crew<'_>,
) -> Result<Option<Plan>> {
    let mut plan = draft.plan(options, meter, crew)?;
    if plan.is_done() {
        say(&format!("{}: every step of this run was taken before; nothing to do", plan.out.display()));
        return Ok(None);
    }
    plan.refuse_lost_checkpoints()?;
    plan.notes.extend(warnings);
    plan.notes.extend(repeats::judge(&plan)?);
    let mut table = plan_of(&plan.ground, &plan.prediction, Some(&plan.summary));
    table.warnings.extend(plan.notes.clone());
    let verdict = verdict(&plan.ground, &plan.prediction).and_then(|more| {
        // What earlier processes of the run committed is a part of what it is predicted to take.
        let taken = plan.resume.as_ref().map_or(0, |_| crate::fs::bytes_under(&plan.out));
        let room = crate::fs::free_bytes(&plan.out)?.saturating_add(taken);
        verdict::refuse_disk(&plan.prediction, &plan.out, room).map(|()| more)
    });
    if let Ok(more) = &verdict {
        table.warnings.extend(more.iter().cloned());
    }
    say(&estimate_table(&table, Screen::stderr()));
    verdict?;

    track::check(&plan.config().output)?;
    Ok(Some(plan))
}

/// What an error says, without its hints.
pub(super) fn facts(error: &Error) -> String {
    error.problems.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// What the samples said, and what the ops took where they were profiled.
#[derive(Default)]
struct Training {
    classes: Vec<ClassTime>,
    before: Vec<Option<String>>,
    after: Vec<String>,
}

fn go(
    session: &mut Session,
    plan: &mut Plan,
    meter: &Meter,
    stop: &Stop,
    crew: &Crew<'_>,
    result: &mut Training,
) -> Result<Outcome> {
    let longest = session::longest(&plan.ground, &plan.summary).min(plan.ground.arch.max_position);
    let answers = |session: &Session, plan: &Plan| {
        samples::answers(&session.learner.decoder, &plan.tokenizer, &plan.ground.resolved.config, longest)
    };
    if plan.first_step() == 0 {
        meter.enter(Phase::Evaluate);
        samples::keep(&plan.out, &plan.config().output.samples, &answers(session, plan)?)?;
    }
    result.before = samples::kept(&plan.out, &plan.config().output.samples);
    let outcome = crate::train::run(session, plan, meter, stop, crew)?;
    if outcome == Outcome::Done {
        meter.enter(Phase::Evaluate);
        result.after = answers(session, plan)?;
    }
    Ok(outcome)
}

fn status_of(outcome: &Result<Outcome>) -> Status {
    match outcome {
        Ok(Outcome::Done) => Status::Done,
        Ok(Outcome::Stopped(_) | Outcome::Capped(_)) => Status::Stopped,
        Err(error) if error.kind == Kind::Diverged => Status::Diverged,
        Err(_) => Status::Failed,
    }
}

/// Judges a prediction by memory and budget.
pub(super) fn verdict(ground: &Ground, prediction: &Prediction) -> Result<Vec<String>> {
    estimate::refuse(prediction, &ground.limits, &ground.resolved.config.budget)
}

/// The table that is shown before the first step.
pub(super) fn plan_of(ground: &Ground, prediction: &Prediction, data: Option<&Summary>) -> report::Plan {
    let counts = &prediction.counts;
    report::Plan {
        base: ground.source.name().into(),
        method: ground.resolved.config.method.flag().name().into(),
        machine: prediction.machine.clone(),
        parameters: parameters(prediction),
        data: data.map(|s| data_summary(s, ground.resolved.config.data.sequence_len)).unwrap_or_default(),
        steps: Some(counts.steps),
        epochs: None,
        memory_parts: prediction.memory_parts.iter().map(|p| (p.name.clone(), p.bytes)).collect(),
        memory_available: Some(ground.limits.memory_bytes),
        merge_bytes: prediction.merge_bytes,
        predicted: prediction.predicted,
        interval: intervals(prediction),
        flops_per_step: Some(prediction.flops_per_step),
        price: price(&ground.price),
        methods: prediction.methods.clone(),
        levers: prediction.levers.clone(),
        warnings: prediction
            .warnings
            .iter()
            .chain(data.into_iter().flat_map(|s| &s.warnings))
            .cloned()
            .collect(),
    }
}

fn parameters(prediction: &Prediction) -> Parameters {
    Parameters { total: Some(prediction.parameters), trainable: Some(prediction.trainable) }
}

pub(super) fn intervals(prediction: &Prediction) -> BTreeMap<String, Interval> {
    ranges(&prediction.interval)
}

/// The estimate's intervals as reports have them.
pub(super) fn ranges(intervals: &BTreeMap<String, estimate::Interval>) -> BTreeMap<String, Interval> {
    let one = |(key, i): (&String, &estimate::Interval)| (key.clone(), Interval { low: i.low, high: i.high });
    intervals.iter().map(one).collect()
}

pub(super) fn price(used: &PriceUsed) -> Price {
    Price {
        usd_per_hour: used.usd_per_hour,
        source: used.usd_per_hour.map(|_| used.source.clone()),
        as_of: used.as_of.clone(),
    }
}

fn data_summary(summary: &Summary, sequence_len: usize) -> DataSummary {
    DataSummary {
        rows: Some(summary.rows),
        dropped_rows: Some(summary.skipped.values().map(|s| s.rows).sum()),
        truncated_rows: Some(summary.truncated),
        train_samples: Some(summary.train_samples),
        eval_samples: Some(summary.eval_samples),
        tokens: Some(summary.tokens),
        loss_tokens: Some(summary.loss_tokens),
        longest_tokens: Some(summary.longest_tokens),
        sequence_len: Some(sequence_len as u64),
        packs: None,
    }
}

/// What the run took, processes before this one included.
fn settled(session: &Session, plan: &Plan, measured: &Measured) -> Settled {
    let phases = EARLIER.into_iter().zip([session.earlier_s - session.lost_s, session.lost_s]);
    let phases = phases.filter(|(_, s)| *s > 0.0).map(|(name, s)| (name.to_owned(), s)).collect();
    let earlier = Earlier { phases, energy_j: session.earlier_energy_j() };
    let ground = &plan.ground;
    settle(measured, &earlier, &ground.price, ground.grid.as_ref(), &cpu_model())
}

fn inputs(
    session: &Session,
    plan: &Plan,
    measured: &Measured,
    settled: &Settled,
    status: Status,
    reason: Option<String>,
    result: &Training,
) -> Result<report::Inputs> {
    let ground = &plan.ground;
    let samples = session.samples();
    let mut measured_parts: BTreeMap<&str, u64> =
        crate::meter::tag::process().at_peak().named().map(|(part, bytes)| (part.name(), bytes)).collect();
    // Code that training runs first is read from the program's file then, and stays.
    *measured_parts.entry(Part::Runtime.name()).or_default() += code_since_bare().unwrap_or(0);
    if !plan.device.is_cuda() {
        // Where the machine was measured first, or many texts were read, training may hold less than that: as predicted.
        let missing = plan.held_bytes.saturating_sub(measured_parts.values().sum());
        *measured_parts.entry(Part::Runtime.name()).or_default() += missing;
    }
    let part = |p: &estimate::MemoryPart| report::PartInput {
        name: p.name.clone(),
        predicted_bytes: Some(p.bytes),
        measured_bytes: measured_parts.get(p.name.as_str()).copied().filter(|b| *b > 0),
    };
    let prompts = ground.resolved.config.output.samples.iter().enumerate();
    Ok(report::Inputs {
        run_id: session.run_id.clone(),
        status,
        reason,
        method: Some(ground.resolved.config.method.flag().name().into()),
        started_at: Some(session.started_at.clone()),
        predicted: session.estimate.predicted,
        measured: estimate::Quantities {
            peak_memory_bytes: if plan.device.is_cuda() {
                measured.peak_device_bytes
            } else {
                measured.peak_rss_bytes.max(samples.iter().filter_map(|s| s.rss_bytes).max())
            },
            ..settled.measured
        },
        modelled: settled.modelled,
        interval: intervals(&session.estimate),
        forecast: (&session.estimate).into(),
        classes: result.classes.clone(),
        phases: settled.phases.clone(),
        memory_parts: session.estimate.memory_parts.iter().map(part).collect(),
        price: price(&ground.price),
        provenance: provenance(plan, measured),
        parameters: parameters(&plan.prediction),
        planned_steps: Some(plan.epochs.total_steps()),
        steps: crate::train::metrics::read(&plan.out.join("metrics.jsonl"))?,
        evals: crate::train::metrics::read(&plan.out.join("eval.jsonl"))?,
        retention: crate::train::metrics::read(&plan.out.join(folder::RETENTION))?,
        flops_per_step: Some(plan.prediction.flops_per_step),
        peak_flops_per_s: peak(plan).flops_per_s,
        peak_source: peak(plan)
            .flops_per_s
            .map(|_| "the fastest product that was measured on this machine".into()),
        data: data_summary(&plan.summary, ground.resolved.config.data.sequence_len),
        samples: prompts
            .map(|(i, prompt)| SamplePair {
                prompt: prompt.clone(),
                reference: None,
                before: result.before.get(i).cloned().flatten(),
                after: result.after.get(i).cloned(),
            })
            .collect(),
        command: Vec::new(),
        meter: Some(measured.clone()),
        energy: settled.energy.clone(),
        carbon: settled.carbon.clone(),
        costs: settled.costs.clone(),
        warnings: [&plan.prediction.warnings, &plan.summary.warnings, &plan.notes, &settled.warnings]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
        timeline: report::timeline::moments(&samples, measured, session.earlier_s),
        parent: repeats::parent(plan, &session.run_id),
    })
}

/// What this machine was measured to reach; nothing on a GPU of which nothing was measured.
fn peak(plan: &Plan) -> Peak {
    let is_gpus = plan.machine.kind == machine::Kind::Accelerator && plan.machine.is_measured();
    if plan.device.is_cuda() && !is_gpus {
        return Peak::default();
    }
    Peak { flops_per_s: plan.machine.peak_flops_per_s(), bytes_per_s: Some(plan.machine.copy_bytes_per_s) }
}

/// The table of ops to stderr, and with all spans into the run's folder.
fn show_profile(plan: &Plan, profile: &Profile) -> Result<()> {
    let counts = &plan.prediction.counts;
    let planned = counts.volume();
    let rows = report::profile::rows(profile, &plan.prediction.work, &planned, counts.steps, peak(plan));
    say(&report::profile::table(&rows, peak(plan), Screen::stderr()));
    let table = serde_json::to_value(&rows).unwrap_or_default();
    let path = plan.out.join("profile.json");
    crate::fs::write_durable_with(&path, &mut |out| {
        profile::write_trace(profile, &[("table", table.clone())], out)
    })?;
    Ok(())
}

fn provenance(plan: &Plan, measured: &Measured) -> report::Provenance {
    let ground = &plan.ground;
    report::Provenance {
        version: Some(env!("CARGO_PKG_VERSION").into()),
        build: Some(session::build_name()),
        os: Some(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        cpu: Some(cpu_model()),
        gpu: measured.devices.first().map(|gpu| gpu.name.clone()),
        device: Some(device::name(&plan.device).into()),
        threads: Some(ground.threads as u64),
        kernel: Some(fttrain_kernels::cpu::path().name().into()),
        base: Some(ground.source.name().into()),
        base_hash: Some(plan.base_hash.clone()),
        data_hash: Some(plan.summary.sha256.clone()),
        config_hash: Some(crate::fs::sha256_bytes(ground.resolved.toml.as_bytes())),
        seed: Some(ground.resolved.config.train.seed),
    }
}

fn page(plan: &Plan, report: &report::Report) -> Result<()> {
    let steps = crate::train::metrics::read(&plan.out.join("metrics.jsonl"))?;
    let evals = crate::train::metrics::read(&plan.out.join("eval.jsonl"))?;
    report::html::write(&plan.out.join("report.html"), report, &steps, &evals)
}

/// Closes the run in the ledger; what fails there is said and changes nothing.
fn enter(
    session: &mut Session,
    report: &report::Report,
    measured: &Measured,
    settled: &Settled,
    status: Status,
) {
    let run_id = session.run_id.clone();
    let end = Final {
        finished_at: ledger::now(),
        step: report.training.steps,
        wall_s: session.earlier_s + measured.wall_s,
        cost_usd: report.measured.cost_usd.or(report.modelled.cost_usd),
        energy_j: report.measured.energy_j,
        loss: report.training.loss_last,
        report_json: report::json::for_ledger(report).ok(),
    };
    let status = match status {
        Status::Done => LedgerStatus::Done,
        Status::Stopped => LedgerStatus::Stopped,
        Status::Diverged => LedgerStatus::Diverged,
        // The other two are never said by the run itself.
        Status::Failed | Status::Killed | Status::Running => LedgerStatus::Failed,
    };
    warn(&settle::close(&mut session.close(), &run_id, (measured, settled), status, &end));
}
