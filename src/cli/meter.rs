//! `fttrain meter -- COMMAND`: any program with its whole process tree, into the same ledger and the same report.

use super::job::{Ended, Job, METERED};
use super::{print, say, warn};
use crate::config::{Cost, Price, Resolved};
use crate::error::Result;
use crate::estimate::carbon::Intensity;
use crate::estimate::{Prediction, PriceUsed, price_used};
use crate::ledger::{self, NewRun, Record, Sample};
use crate::meter::command::{self, End};
use crate::meter::{Meter, Phase, TreeProbe};
use crate::report;
use crate::train::folder;
use crate::train::ground::{Ground, Spot};
use crate::train::material::counted;
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

/// Between two entries of the ledger: what a kill may cost.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub(super) fn run(args: &MeterArgs) -> Result<u8> {
    let (job, interval) = prepare(args)?;
    let (_lock, mut book, mut warnings) = job.begin()?;

    let meter = Meter::start(Box::new(TreeProbe::new(interval)), interval, Phase::Command);
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
        warnings.extend(book.heartbeat(&job.run.run_id, &sample).err().map(|error| error.to_string()));
    };
    let ended = command::run(&args.command, args.json, HEARTBEAT, &|| meter.look(), &mut beat);
    let measured = meter.finish();

    let reason = match &ended {
        Ok(End::Code(0)) => None,
        Ok(End::Code(code)) => Some(format!("the command ended with exit code {code}")),
        Ok(End::Signal(number)) => Some(format!("signal {number} ended the command")),
        Err(error) => Some(error.to_string()),
    };
    if args.json {
        // Otherwise the report on the screen has them.
        warn(&warnings);
    }
    let (report, written, unentered) =
        job.end(Some(&mut book), &measured, Ended { reason, warnings, ..Ended::default() });
    warn(&unentered);
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

/// The job, and the time between two looks of its meter.
fn prepare(args: &MeterArgs) -> Result<(Job, Duration)> {
    let mut sets = Vec::new();
    sets.extend(args.usd_per_hour.map(|usd| ("cost.usd_per_hour".to_owned(), format!("{usd:?}"))));
    sets.extend(args.machine.clone().map(|row| ("cost.machine".to_owned(), row)));
    let resolved = args.config.as_ref().map(|path| crate::config::load(path, None, &sets)).transpose()?;
    warn(resolved.iter().flat_map(|resolved| &resolved.warnings));
    let run_id = ledger::new_run_id();
    let out = match &args.output {
        Some(folder) => PathBuf::from(folder.to_string_lossy().replace("{run}", &run_id)),
        None => crate::fs::home()?.join(METERED).join(&run_id),
    };
    folder::permit(&out, folder::look(&out), &crate::train::Options::default())?;
    let shown = command::shown(&args.command);
    let interval = resolved.as_ref().map(|r| Duration::from_millis(r.config.meter.interval_ms));
    let equivalent = match resolved {
        Some(resolved) => Equivalent::estimate(resolved)?,
        None => Equivalent { price: price(args)?, ..Equivalent::default() },
    };
    let name = args.name.clone().or_else(|| shown.first().cloned()).unwrap_or_default();
    let job = Job {
        run: NewRun {
            run_id,
            started_at: ledger::now(),
            output_dir: out.to_string_lossy().into_owned(),
            config_hash: command::digest(&args.command),
            config_toml: equivalent.toml,
            data_hash: String::new(),
            base_hash: String::new(),
            project: equivalent.project,
            purpose: args.purpose.clone().or(equivalent.purpose).unwrap_or_else(|| "experiment".to_owned()),
            method: METHOD.into(),
            base: name,
            // Another program's time says nothing about this one's estimates.
            prediction_json: None,
            usd_per_hour: equivalent.price.usd_per_hour,
        },
        out,
        price: equivalent.price,
        grid: equivalent.grid,
        prediction: equivalent.prediction,
        shown,
    };
    Ok((job, interval.unwrap_or(Meter::INTERVAL)))
}

/// The method of runs that are another program's.
const METHOD: &str = "command";

/// What the config of an equivalent run says of a command.
#[derive(Default)]
struct Equivalent {
    price: PriceUsed,
    grid: Option<Intensity>,
    toml: String,
    project: String,
    purpose: Option<String>,
    prediction: Option<Prediction>,
}

impl Equivalent {
    fn estimate(resolved: Resolved) -> Result<Self> {
        let ground = Ground::lay(resolved)?;
        let (counts, _) = counted(&ground)?;
        let (machine, _) = ground.machine(&counts)?;
        let spot = Spot { machine: &machine, limits: &ground.limits, price: &ground.price };
        let prediction = ground.predict_on(&counts, spot, &ground.learned(&machine));
        let Resolved { config, toml, .. } = ground.resolved;
        Ok(Self {
            price: prediction.price.clone(),
            grid: ground.grid,
            toml,
            project: config.output.project,
            purpose: Some(config.output.purpose),
            prediction: Some(prediction),
        })
    }
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
