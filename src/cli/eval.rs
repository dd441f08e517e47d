//! `fttrain eval RUN`: loss on rows, and the share of answers that are right, with what it cost to find out.

use super::evaluation::Evaluation;
use super::generate::at_least_one;
use super::job::Ended;
use super::train::facts;
use crate::config::{self, Config, Data, Format, Source, ValSet};
use crate::data::prepare::{Prepared, prepare_to_judge};
use crate::data::questions::{self, questions};
use crate::error::{Error, Kind, Result};
use crate::meter::{Meter, Phase, ProcessProbe};
use crate::report::{DataSummary, Report};
use crate::train::examine::{self, Asking, Exact, Loss};
use crate::train::subject::{Named, Subject};
use crate::units::{Seconds, Usd};
use clap::Args;
use regex::Regex;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks of the meter.
const INTERVAL: Duration = Duration::from_millis(100);

/// Arguments of `eval`.
#[derive(Args)]
pub(super) struct EvalArgs {
    /// A run's id or folder, or a base model: a folder, a GGUF file or a hub name.
    pub(super) model: String,
    /// Rows to judge by; by default the run's own: its test rows, or those that `val_set_size` held out.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Part of the file: train[:100].
    #[arg(long, requires = "data")]
    pub(super) split: Option<String>,
    /// Says what a row is, and how text becomes tokens; by default the run's own.
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// A PEFT adapter for the base model.
    #[arg(long, value_name = "FOLDER")]
    pub(super) adapter: Option<PathBuf>,
    /// The base model of an adapter, where its folder does not say it.
    #[arg(long, value_name = "MODEL")]
    pub(super) base: Option<String>,
    /// The base without the run's adapter.
    #[arg(long)]
    pub(super) no_adapter: bool,
    /// Let the model answer, and compare what this finds in its answer and in the row's: the first group, or all of it.
    #[arg(long = "match", value_name = "REGEX")]
    pub(super) pattern: Option<String>,
    /// Solved examples before each question, from the start of the training rows.
    #[arg(long, default_value_t = 0, requires = "pattern")]
    pub(super) shots: usize,
    /// Questions at most.
    #[arg(long, value_parser = at_least_one, requires = "pattern")]
    pub(super) limit: Option<usize>,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 256, value_parser = at_least_one)]
    pub(super) max_tokens: usize,
    /// Questions that are answered at once.
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    at_once: usize,
    /// Write each answer to this file, one JSON object a line.
    #[arg(long, value_name = "FILE", requires = "pattern")]
    answers: Option<PathBuf>,
    /// Worker threads; by default the cores that this process may use.
    #[arg(long, value_parser = at_least_one)]
    threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &EvalArgs) -> Result<u8> {
    let pattern = args.pattern.as_deref().map(regex).transpose()?;
    let meter = Meter::start(Box::new(ProcessProbe::new(INTERVAL)), INTERVAL, Phase::Load);
    let config = match &args.config {
        Some(path) => Some(config::load(path, None, &[])?.config),
        None => None,
    };
    let named = Named {
        model: &args.model,
        adapter: args.adapter.as_deref(),
        base: args.base.as_deref(),
        template: config.as_ref().and_then(|config| config.data.chat_template.as_deref()),
    };
    let subject = Subject::open(&named, args.threads)?;
    let config = config.as_ref().or(subject.run.as_ref());
    let rows = Rows::of(args, config)?;
    let mut evaluation = Evaluation::begin(args, &subject, config, &rows, &meter)?;
    let judged = judge(args, &subject, &rows, pattern.as_ref(), &meter, &mut evaluation);
    let measured = meter.finish();
    let ended = Ended {
        reason: judged.as_ref().err().map(facts),
        loss: judged.as_ref().ok().map(|(loss, _)| loss.loss),
        data: DataSummary {
            eval_samples: judged.as_ref().ok().map(|(loss, _)| loss.rows as u64),
            ..DataSummary::default()
        },
        warnings: Vec::new(),
    };
    let report = evaluation.end(&measured, ended);
    let (loss, exact) = judged?;
    let found = told((args, &rows.files()), &loss, exact.as_ref(), &report, evaluation.run_id());
    evaluation.keep(&found);
    super::print(&if args.json {
        format!("{found:#}\n")
    } else {
        shown(&loss, exact.as_ref(), &report, evaluation.run_id())
    });
    Ok(0)
}

/// The loss of the rows, and where answers are asked for, how many are right.
fn judge(
    args: &EvalArgs,
    subject: &Subject,
    rows: &Rows,
    pattern: Option<&Regex>,
    meter: &Meter,
    evaluation: &mut Evaluation,
) -> Result<(Loss, Option<Exact>)> {
    meter.enter(Phase::Tokenise);
    let prepared = prepare_to_judge(&rows.data, rows.seed, &subject.tokenizer)?;
    evaluation.knows_data(&prepared.summary.sha256);
    let samples = if rows.held_out { &prepared.eval } else { &prepared.train };
    meter.enter(Phase::Load);
    let longest = samples.iter().map(|sample| sample.ids.len()).max().unwrap_or(0);
    // A table of a position is small, and files declare millions of them.
    let positions = subject.arch.max_position.min(MOST_ASKED);
    let longest = longest.max(pattern.map_or(0, |_| positions));
    let decoder = subject.decoder(!args.no_adapter, subject.frozen(), longest)?;
    meter.enter(Phase::Evaluate);
    let loss = examine::loss(&decoder, samples, rows.data.sequence_len)?;
    let ask = |pattern| ask((args, positions), subject, &decoder, (rows, &prepared), pattern);
    Ok((loss, pattern.map(ask).transpose()?))
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        Error::new(Kind::Usage, format!("`--match {pattern}` is not a regular expression: {error}"))
            .hint("GSM8K's final answer is '#### (-?[0-9.,]+)'; a whole JSON object is '(?s)\\{.*\\}'")
    })
}

/// What is judged by.
#[derive(Serialize)]
pub(super) struct Rows {
    data: Data,
    /// Of the split.
    seed: u64,
    /// The rows are those that the data's own split holds out.
    held_out: bool,
    /// Where solved examples come from.
    examples: Option<Source>,
}

impl Rows {
    fn of(args: &EvalArgs, config: Option<&Config>) -> Result<Self> {
        let mut data = config.map_or_else(plain, |config| config.data.clone());
        let seed = config.map_or(42, |config| config.train.seed);
        let examples = data.datasets.first().cloned();
        let chosen = match &args.data {
            Some(path) => {
                let like = data.test_datasets.first().or(data.datasets.first()).cloned();
                let like = like.unwrap_or_else(|| source(path));
                vec![Source { path: path.clone(), split: args.split.clone(), ..like }]
            }
            None => data.test_datasets.clone(),
        };
        data.test_datasets = Vec::new();
        data.retention_datasets = Vec::new();
        if !chosen.is_empty() {
            // Long rows are judged as far as the model reads.
            data.excess_length = config::ExcessLength::Truncate;
            data.datasets = chosen;
            data.val_set = ValSet::None;
            let examples = examples.filter(|own| data.datasets.iter().all(|asked| asked != own));
            return Ok(Self { data, seed, held_out: false, examples });
        }
        if data.val_set == ValSet::None {
            let fact = "no rows to judge by";
            return Err(Error::new(Kind::Usage, fact).hint("name a file of rows with `--data`"));
        }
        // Which rows the run held out follows from all that it read, by its own rules.
        Ok(Self { data, seed, held_out: true, examples })
    }

    /// Their files.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.data.datasets.iter().map(|source| source.path.clone()).collect()
    }
}

/// A file of conversations, where no config says otherwise.
fn source(path: &Path) -> Source {
    Source {
        path: path.to_owned(),
        format: Format::ChatTemplate,
        split: None,
        field_messages: "messages".into(),
        field_prompt: None,
        field_completion: None,
        field_text: "text".into(),
        field_system: None,
    }
}

/// The rules of data where no config says otherwise.
fn plain() -> Data {
    Data {
        datasets: Vec::new(),
        test_datasets: Vec::new(),
        retention_datasets: Vec::new(),
        retention_share: 0.0,
        val_set: ValSet::None,
        sequence_len: 2048,
        excess_length: config::ExcessLength::Truncate,
        sample_packing: true,
        train_on_inputs: false,
        roles_to_train: vec!["assistant".into()],
        train_on_eos: config::TrainOnEos::Turn,
        chat_template: None,
        shuffle: false,
        on_bad_row: config::OnBadRow::Fail,
        max_line_bytes: 32 << 20,
    }
}

/// Tokens of a question with its examples and its answer, at most.
const MOST_ASKED: usize = 1 << 17;

fn ask(
    (args, positions): (&EvalArgs, usize),
    subject: &Subject,
    decoder: &crate::model::Decoder,
    (rows, prepared): (&Rows, &Prepared),
    pattern: &Regex,
) -> Result<Exact> {
    let limit = args.limit.unwrap_or(usize::MAX);
    let of = |source, which, most| questions(source, &rows.data, which, most);
    // Without training rows the examples are the first of the file, which are then not asked.
    let own = if rows.examples.is_none() { args.shots } else { 0 };
    let source = rows.examples.as_ref().or(rows.data.datasets.first());
    let which = match prepared.held_out.first() {
        Some(held) if rows.held_out => questions::Rows::Without(held),
        _ => questions::Rows::Behind(0),
    };
    let shots = source.map_or(Ok(Vec::new()), |source| of(source, which, args.shots))?;
    let mut asked = Vec::new();
    for (at, (source, held)) in rows.data.datasets.iter().zip(&prepared.held_out).enumerate() {
        let which = match at {
            _ if rows.held_out => questions::Rows::Among(held),
            0 => questions::Rows::Behind(own),
            _ => questions::Rows::Behind(0),
        };
        asked.extend(of(source, which, limit.saturating_sub(asked.len()))?);
    }
    let (max_tokens, at_once) = (args.max_tokens, args.at_once);
    let asking = Asking { pattern, shots: &shots, max_tokens, at_once, positions };
    let (exact, answers) = examine::exact(subject, decoder, &asked, &asking)?;
    if let Some(path) = &args.answers {
        let line = |answer| serde_json::to_string(answer).map(|line| line + "\n");
        let lines: String = answers
            .iter()
            .map(line)
            .collect::<Result<_, _>>()
            .map_err(|e| Error::new(Kind::Bug, e.to_string()))?;
        crate::fs::write_durable(path, lines.as_bytes())?;
    }
    Ok(exact)
}

fn told(
    (args, files): (&EvalArgs, &[PathBuf]),
    loss: &Loss,
    exact: Option<&Exact>,
    report: &Report,
    run_id: Option<&str>,
) -> Value {
    json!({
        "run_id": run_id,
        "model": args.model,
        "adapted": !args.no_adapter,
        "data": files,
        "shots": args.shots,
        "loss": loss,
        "exact_match": exact,
        "wall_s": report.measured.wall_s,
        "peak_memory_bytes": report.measured.peak_memory_bytes,
        "energy_j": report.measured.energy_j,
        "cost_usd": cost(report),
    })
}

/// The bill, measured or, where its electricity is, modelled.
fn cost(report: &Report) -> Option<f64> {
    report.measured.cost_usd.or(report.modelled.cost_usd)
}

fn shown(loss: &Loss, exact: Option<&Exact>, report: &Report, run_id: Option<&str>) -> String {
    let mut text = format!(
        "loss            {:.4} (95 %: {:.4} to {:.4}) over {} tokens of {} rows\nperplexity      {:.3}\n\
         token accuracy  {:.1} %\n",
        loss.loss,
        loss.low,
        loss.high,
        loss.loss_tokens,
        loss.rows,
        loss.perplexity,
        100.0 * loss.token_accuracy,
    );
    if let Some(exact) = exact {
        let _ = writeln!(
            text,
            "exact match     {:.1} % (95 %: {:.1} to {:.1}): {} of {} right, {} without an answer; {} tokens said",
            100.0 * exact.share,
            100.0 * exact.low,
            100.0 * exact.high,
            exact.right,
            exact.asked,
            exact.asked - exact.answered,
            exact.tokens,
        );
    }
    let cost = cost(report).map_or_else(|| "cost unknown".to_owned(), |usd| Usd(usd).to_string());
    let took = Seconds(report.measured.wall_s.unwrap_or(0.0));
    let entered = run_id.map_or_else(String::new, |id| format!(" (run {id} of the ledger)"));
    text + &format!("took            {took}, {cost}{entered}\n")
}
