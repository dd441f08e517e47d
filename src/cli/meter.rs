//! `fttrain meter -- COMMAND`: any program with its whole process tree, into the same ledger and the same report.

use super::settle::{self, Settled, settle};
use super::{print, say};
use crate::config::{Cost, Price, Resolved};
use crate::error::Result;
use crate::estimate::carbon::Intensity;
use crate::estimate::{Prediction, PriceUsed, price_used};
use crate::ledger::{self, Book, Final, NewRun, Record, Sample, Status as LedgerStatus};
use crate::meter::command::{self, End};
use crate::meter::{Measured, Meter, Phase, TreeProbe, machine};
use crate::report::{self, Report, Status};
use crate::train::folder;
use crate::train::plan::{self, Ground, Spot};
use crate::train::screen::Screen;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `meter`.
#[derive(Args)]
pub(super) struct MeterArgs {
    /// The config of an equivalent run: its estimate stands beside the measurement, and its prices hold.
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// What the run is called, in the report.
    #[arg(long)]
    name: Option<String>,
    /// What the run is for, in the ledger.
    #[arg(long)]
    purpose: Option<String>,
    /// What an hour of this machine costs.
    #[arg(long, value_name = "USD", conflicts_with = "machine")]
    usd_per_hour: Option<f64>,
    /// The machine's row of the price table.
    #[arg(long, value_name = "PROVIDER/INSTANCE")]
    machine: Option<String>,
    /// Folder of the report; by default one below the home of the ledger.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Print report.json on standard output, to which the command's own then does not go.
    #[arg(long)]
    json: bool,
    /// The program with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What is known before the command starts.
struct Job {
    run: NewRun,
    out: PathBuf,
    price: PriceUsed,
    grid: Option<Intensity>,
    interval: Duration,
    prediction: Option<Prediction>,
    shown: Vec<String>,
}

/// Between two entries of the ledger: what a kill may cost.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub(super) fn run(args: &MeterArgs) -> Result<u8> {
    let job = prepare(args)?;
    crate::fs::create_folders(&job.out)?;
    let _lock = crate::fs::RunLock::acquire(&job.out)?;
    let (mut book, warning) = Book::open(&crate::fs::home()?, &job.out);
    let mut warnings: Vec<String> = warning.map(|w| w.to_string()).into_iter().collect();
    warnings.extend(book.start_run(&job.run).err().map(|w| w.to_string()));

    let meter = Meter::start(Box::new(TreeProbe::new(job.interval)), job.interval, Phase::Command);
    let mut beat = || {
        let (wall_s, reading) = (meter.elapsed().0, meter.watch().latest());
        let sample = Sample {
            wall_s,
            at_ms: jiff::Timestamp::now().as_millisecond(),
            phase: Phase::Command.name().into(),
            cost_usd: job.price.bill(wall_s).map(|bill| bill.cost_usd),
            rss_bytes: reading.rss_bytes,
            cpu_s: reading.cpu_s,
            ..Sample::default()
        };
        // The warning of a ledger that breaks comes once more at the end.
        let _ = book.heartbeat(&job.run.run_id, &sample);
    };
    let ended = command::run(&args.command, args.json, HEARTBEAT, &|| meter.look(), &mut beat);
    let measured = meter.finish();

    let settled = settle(&measured, &[], &job.price, job.grid.as_ref(), &machine::cpu_model());
    let reason = match &ended {
        Ok(End::Code(0)) => None,
        Ok(End::Code(code)) => Some(format!("the command ended with exit code {code}")),
        Ok(End::Signal(number)) => Some(format!("signal {number} ended the command")),
        Err(error) => Some(error.to_string()),
    };
    let report = report::build(inputs(&job, &measured, &settled, reason, &warnings));
    let written = write(&job, &report);
    for warning in enter(&mut book, &job, &report, &measured, &settled) {
        say(&format!("warning: {warning}"));
    }
    let end = ended?;
    if args.json {
        print(&report::json::to_text(&report)?);
    } else {
        say(&report::terminal(&report, Screen::stderr()));
        say(&format!("report: {}", job.out.join("report.html").display()));
    }
    written?;
    Ok(end.exit_code())
}

fn prepare(args: &MeterArgs) -> Result<Job> {
    let mut sets = Vec::new();
    sets.extend(args.usd_per_hour.map(|usd| ("cost.usd_per_hour".to_owned(), usd.to_string())));
    sets.extend(args.machine.clone().map(|row| ("cost.machine".to_owned(), row)));
    let resolved = args.config.as_ref().map(|path| crate::config::load(path, None, &sets)).transpose()?;
    let run_id = ledger::new_run_id();
    let out = match &args.output {
        Some(folder) => PathBuf::from(folder.to_string_lossy().replace("{run}", &run_id)),
        None => crate::fs::home()?.join("metered").join(&run_id),
    };
    folder::permit(&out, folder::look(&out), &crate::train::Options::default())?;
    let shown = command::shown(&args.command);
    let interval = resolved.as_ref().map(|r| Duration::from_millis(r.config.meter.interval_ms));
    let (price, grid, toml, purpose, prediction) = match resolved {
        Some(resolved) => estimated(resolved)?,
        None => (price(args)?, None, String::new(), "experiment".to_owned(), None),
    };
    let name = args.name.clone().or_else(|| shown.first().cloned()).unwrap_or_default();
    Ok(Job {
        run: NewRun {
            run_id,
            started_at: ledger::now(),
            output_dir: out.to_string_lossy().into_owned(),
            config_hash: crate::fs::sha256_bytes(shown.join("\0").as_bytes()),
            config_toml: toml,
            data_hash: String::new(),
            base_hash: String::new(),
            project: String::new(),
            purpose: args.purpose.clone().unwrap_or(purpose),
            method: METHOD.into(),
            base: name,
            // Another program's time says nothing about this one's estimates.
            prediction_json: None,
            usd_per_hour: price.usd_per_hour,
        },
        out,
        price,
        grid,
        interval: interval.unwrap_or(Meter::INTERVAL),
        prediction,
        shown,
    })
}

/// The method of runs that are another program's.
const METHOD: &str = "command";

type Estimated = (PriceUsed, Option<Intensity>, String, String, Option<Prediction>);

/// Price, grid, config, purpose and prediction of the equivalent run.
fn estimated(resolved: Resolved) -> Result<Estimated> {
    let ground = Ground::lay(resolved)?;
    let (counts, _) = plan::counted(&ground)?;
    let (machine, _) = ground.machine(&counts)?;
    let spot = Spot { machine: &machine, limits: &ground.limits, price: &ground.price };
    let prediction = ground.predict_on(&counts, spot, &ground.learned(&machine));
    let config = &ground.resolved.config;
    let purpose = config.output.purpose.clone();
    Ok((prediction.price.clone(), ground.grid, ground.resolved.toml, purpose, Some(prediction)))
}

fn price(args: &MeterArgs) -> Result<PriceUsed> {
    let price = match (&args.machine, args.usd_per_hour) {
        (Some(row), _) => Price::Machine(row.clone()),
        (None, Some(usd)) => Price::PerHour(usd),
        (None, None) => Price::Unknown,
    };
    let mut used = price_used(&Cost { price, ..Cost::default() }, jiff::Zoned::now().date())?;
    if args.usd_per_hour.is_some() {
        used.source = "stated with --usd-per-hour".into();
    }
    Ok(used)
}

fn inputs(
    job: &Job,
    measured: &Measured,
    settled: &Settled,
    reason: Option<String>,
    warnings: &[String],
) -> report::Inputs {
    let predicted = job.prediction.as_ref().map(|p| p.predicted).unwrap_or_default();
    let memory_parts = job.prediction.iter().flat_map(|p| &p.memory_parts).map(|part| report::PartInput {
        name: part.name.clone(),
        predicted_bytes: Some(part.bytes),
        measured_bytes: None,
    });
    report::Inputs {
        run_id: job.run.run_id.clone(),
        status: if reason.is_none() { Status::Done } else { Status::Failed },
        reason,
        method: Some(METHOD.into()),
        started_at: Some(job.run.started_at.clone()),
        predicted,
        measured: settled.measured,
        modelled: settled.modelled,
        interval: job.prediction.as_ref().map(super::train::intervals).unwrap_or_default(),
        phases: settled.phases.clone(),
        memory_parts: memory_parts.collect(),
        price: super::train::price(&job.price),
        provenance: report::Provenance {
            version: Some(env!("CARGO_PKG_VERSION").into()),
            os: Some(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            cpu: Some(machine::cpu_model()),
            gpu: measured.devices.first().map(|device| device.name.clone()),
            base: Some(job.run.base.clone()),
            ..report::Provenance::default()
        },
        command: job.shown.clone(),
        meter: Some(measured.clone()),
        energy: settled.energy.clone(),
        carbon: settled.carbon.clone(),
        costs: settled.costs.clone(),
        timeline: report::timeline::moments(&[], measured, 0.0),
        warnings: [job.price.warnings.as_slice(), &settled.warnings, warnings]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
        ..report::Inputs::default()
    }
}

fn write(job: &Job, report: &Report) -> Result<()> {
    report::html::write(&job.out.join("report.html"), report, &[], &[])?;
    report::json::write(&job.out.join(folder::REPORT), report)
}

/// Closes the run in the ledger; gives what failed there.
fn enter(book: &mut Book, job: &Job, report: &Report, measured: &Measured, settled: &Settled) -> Vec<String> {
    let run_id = &job.run.run_id;
    let end = Final {
        finished_at: ledger::now(),
        step: 0,
        wall_s: measured.wall_s,
        cost_usd: report.measured.cost_usd.or(report.modelled.cost_usd),
        energy_j: report.measured.energy_j,
        loss: None,
        report_json: report::json::for_ledger(report).ok(),
    };
    let status = if report.status == Status::Done { LedgerStatus::Done } else { LedgerStatus::Failed };
    let phases = settle::entries(measured, settled);
    let mut outcomes: Vec<Result<()>> = phases.iter().map(|phase| book.phase(run_id, phase)).collect();
    outcomes.extend(settled.costs.iter().map(|line| book.cost_line(run_id, line)));
    outcomes.push(book.finish_run(run_id, status, &end));
    outcomes.push(book.settle());
    outcomes.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
}
