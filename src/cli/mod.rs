//! The command line: one file a verb, each of them arguments and one call.

mod calibrate;
mod data;
mod estimate;
mod eval;
mod evaluation;
mod export;
mod generate;
mod import;
mod job;
mod merge;
mod meter;
mod pilot;
mod place;
mod prices;
mod repeats;
mod report;
mod runs;
mod settle;
mod train;
mod validate;

use crate::config::MethodFlag;
use crate::error::{Error, Kind, Result};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Fine-tunes small language models and tells the truth about what it costs.
#[derive(Parser)]
#[command(name = "fttrain", version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// `fttrain --lora CONFIG`: estimate, train, report.
#[derive(Args)]
struct TrainArgs {
    /// Train a low-rank adapter on a frozen base.
    #[arg(long, value_name = "CONFIG", group = "method")]
    lora: Option<PathBuf>,
    /// Train a low-rank adapter on a 4-bit base.
    #[arg(long, value_name = "CONFIG", group = "method")]
    qlora: Option<PathBuf>,
    /// Train every weight.
    #[arg(long, value_name = "CONFIG", group = "method")]
    full: Option<PathBuf>,
    #[command(flatten)]
    set: SetArgs,
    /// Print report.json in place of the table.
    #[arg(long)]
    json: bool,
    /// Show where the steps' time went, op by op, and leave a trace in the run's folder (profile.json).
    #[arg(long)]
    profile: bool,
    /// Move a run that stands in the output folder aside.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    accept: AcceptArgs,
}

/// Overrides of the config.
#[derive(Args, Default)]
struct SetArgs {
    /// Override one key of the config.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The method of a config that does not say it, as the training flags do.
#[derive(Args)]
struct MethodArgs {
    /// What `fttrain --lora CONFIG` would train.
    #[arg(long, group = "method")]
    lora: bool,
    /// What `fttrain --qlora CONFIG` would train.
    #[arg(long, group = "method")]
    qlora: bool,
    /// What `fttrain --full CONFIG` would train.
    #[arg(long, group = "method")]
    full: bool,
}

/// What a resume accepts.
#[derive(Args, Default)]
struct AcceptArgs {
    /// Resume although the data changed.
    #[arg(long)]
    accept_data_change: bool,
    /// Resume although the base model changed.
    #[arg(long)]
    accept_base_change: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Predict time, memory and cost of a run without starting it.
    Estimate(estimate::EstimateArgs),
    /// Measure this machine once, its CPU and its GPU: rates by shape, memory, disk, power.
    Calibrate(calibrate::CalibrateArgs),
    /// Run a few steps on a sample of the data, and say from them what the whole run will take and reach.
    Pilot(pilot::PilotArgs),
    /// Judge the estimate: a grid of small runs, predicted before and measured after.
    Validate(validate::ValidateArgs),
    /// Is the data ready: counts, lengths, masks, duplicates, leakage, decoded samples.
    Data(data::DataArgs),
    /// Go on with a run from its last checkpoint.
    Resume {
        /// A run's id or its folder.
        run: String,
        #[command(flatten)]
        set: SetArgs,
        /// Print report.json in place of the table.
        #[arg(long)]
        json: bool,
        /// Show where the steps' time went, op by op, and leave a trace in the run's folder (profile.json).
        #[arg(long)]
        profile: bool,
        #[command(flatten)]
        accept: AcceptArgs,
    },
    /// List every run with what it cost, or look into some.
    Runs(runs::RunsArgs),
    /// Show a run's report: predicted against measured; or send it to a tracker.
    Report(report::ReportArgs),
    /// Meter any program: time, memory, energy and money of its whole process tree.
    Meter(meter::MeterArgs),
    /// List the price table.
    Prices(prices::PricesArgs),
    /// Turn a config of Axolotl or LLaMA-Factory into one of this program.
    Import(import::ImportArgs),
    /// Make one model of a base and an adapter.
    Merge(merge::MergeArgs),
    /// Write the result in a form that other programs read.
    Export(export::ExportArgs),
    /// Judge a model or a run by its loss and its answers on rows.
    Eval(eval::EvalArgs),
    /// Continue a prompt with a base model or a run's adapter.
    Generate(generate::GenerateArgs),
}

/// Runs the command line and gives the process's exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Kind::Usage as u8 } else { 0 });
        }
    };
    let outcome = std::panic::catch_unwind(|| dispatch(cli));
    match outcome {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(error.kind as u8)
        }
        // The panic has printed its message.
        Err(_) => ExitCode::from(Kind::Bug as u8),
    }
}

fn dispatch(cli: Cli) -> Result<u8> {
    match cli.verb {
        Some(Verb::Estimate(args)) => estimate::run(&args),
        Some(Verb::Calibrate(args)) => calibrate::run(&args),
        Some(Verb::Pilot(args)) => pilot::run(&args),
        Some(Verb::Validate(args)) => validate::run(&args),
        Some(Verb::Data(args)) => data::run(&args),
        Some(Verb::Resume { run, set, json, profile, accept }) => {
            train::resume(&run, &set, train::Shown { json, profile }, &accept)
        }
        Some(Verb::Runs(args)) => runs::run(&args),
        Some(Verb::Report(args)) => report::run(&args),
        Some(Verb::Meter(args)) => meter::run(&args),
        Some(Verb::Prices(args)) => prices::run(&args),
        Some(Verb::Import(args)) => import::run(&args),
        Some(Verb::Merge(args)) => merge::run(&args),
        Some(Verb::Export(args)) => export::run(&args),
        Some(Verb::Eval(args)) => eval::run(&args),
        Some(Verb::Generate(args)) => generate::run(&args),
        None => train::start(&cli.train),
    }
}

impl SetArgs {
    fn pairs(&self) -> Result<Vec<(String, String)>> {
        let pair = |text: &String| {
            text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| {
                Error::new(Kind::Usage, format!("--set {text}: expected KEY=VALUE"))
                    .hint("for example --set learning_rate=1e-4")
            })
        };
        self.set.iter().map(pair).collect()
    }
}

impl MethodArgs {
    fn flag(&self) -> Option<MethodFlag> {
        let flags =
            [(MethodFlag::Lora, self.lora), (MethodFlag::Qlora, self.qlora), (MethodFlag::Full, self.full)];
        flags.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag))
    }
}

impl TrainArgs {
    fn config(&self) -> Result<(MethodFlag, &PathBuf)> {
        let flags = [
            (MethodFlag::Lora, &self.lora),
            (MethodFlag::Qlora, &self.qlora),
            (MethodFlag::Full, &self.full),
        ];
        flags.into_iter().find_map(|(flag, path)| Some((flag, path.as_ref()?))).ok_or_else(|| {
            Error::new(Kind::Usage, "no config was given")
                .hint("fttrain --lora CONFIG; `fttrain --help` lists the verbs")
        })
    }
}

/// Prints a result; a reader that went away is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Says something beside the result.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn warn<'a>(warnings: impl IntoIterator<Item = &'a String>) {
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
}
