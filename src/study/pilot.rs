//! A pilot: a few steps on a stratified sample, in a process of its own, and from them the whole run with its interval.
//! A smaller model of the family may stand in: what is carried over is how each op class keeps to its prediction.

use super::Error;
use super::child::Child;
use super::curve::{self, Ending};
use super::quoted;
use super::sample::{self, Drawn};
use crate::config::{self, MethodFlag};
use crate::data;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::estimate::history::{Learned, Past};
use crate::estimate::{Counts, Interval, Prediction, Quantities, rounded};
use crate::fs;
use crate::train::ground::{Ground, Spot};
use crate::train::material::counted;
use crate::train::metrics::{self, EvalRecord, StepRecord};
use crate::train::schedule::Schedule;
use crate::train::{folder, history};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What is piloted, and how.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The whole run's config.
    pub config: &'a Path,
    /// Its method, where it does not say one.
    pub method: Option<MethodFlag>,
    /// Overrides of its keys.
    pub overrides: &'a [(String, String)],
    /// A smaller model that stands in.
    pub model: Option<&'a str>,
    /// Steps; a twentieth of the run by default.
    pub steps: Option<u64>,
    /// Where the pilot is laid out.
    pub folder: &'a Path,
    /// Ledger and profile.
    pub home: &'a Path,
}

/// The pilot's own run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ran {
    /// Of the ledger, purpose `pilot`.
    pub run_id: String,
    /// Its folder.
    pub output_dir: PathBuf,
    /// The model that was trained.
    pub model: String,
    /// Another model than the whole run's.
    pub is_other_model: bool,
    /// Steps taken.
    pub steps: u64,
    /// Rows learned from.
    pub rows: usize,
    /// Rows evaluated on, disjoint from those by hash.
    pub held_out_rows: usize,
    /// Its tokens over those of the whole run.
    pub share_of_tokens: f64,
    /// What it took and cost.
    pub measured: Quantities,
    /// Predicted against measured, %, by key.
    pub error_pct: Value,
}

/// What a pilot says of the whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pilot {
    /// Its own run.
    pub pilot: Ran,
    /// The whole run as it was predicted before the pilot.
    pub cold: Quantities,
    /// The whole run, by the pilot.
    pub predicted: Quantities,
    /// The evaluation loss at the whole run's end; `None` = not predicted.
    pub eval_loss: Option<f64>,
    /// Bounds by the quantity's key, `eval_loss` among them.
    pub interval: BTreeMap<String, Interval>,
    /// What rests on data sheets, by key.
    pub modelled: BTreeMap<String, f64>,
    /// What the pilot taught.
    pub learned: Learned,
    /// Everything else that is predicted of the whole run.
    pub prediction: Prediction,
    /// What the reader must know.
    pub warnings: Vec<String>,
}

/// Of the run's steps.
const SHARE: f64 = 0.05;
/// Steps that a rate is told by, however short the run.
const LEAST_STEPS: u64 = 12;
/// Evaluations on the way, for the curve of the loss.
const EVALUATIONS: u64 = 5;
/// No pilot foretells the run that it is a sample of better than this: half of the interval, which is then ± 5 %.
const LEAST_SCATTER: f64 = 0.0245;
/// The same where another model is meant: ± 10 %.
const TRANSFER_SCATTER: f64 = 0.0485;
/// Neighbouring steps are slow together: so many of them tell as much as one.
const CORRELATED: f64 = 3.0;

/// Runs a pilot and predicts the whole run; `said` hears what is being done.
///
/// # Errors
/// The config, its model or its data cannot be used; the pilot's run fails; the folder cannot be written.
pub fn pilot(asked: &Asked<'_>, said: &mut dyn FnMut(&str)) -> Result<Pilot> {
    let target = Ground::lay(config::load(asked.config, asked.method, asked.overrides)?)?;
    let (counts, _) = counted(&target)?;
    let (mut machine, limits, notes) = target.ahead(&counts)?;
    let spot = Spot { machine: &machine, limits: &limits, price: &target.price };
    let cold = target.predict_on(&counts, spot, &target.learned(&machine)).predicted;
    let other = asked.model.map(|model| stand_in(asked, model)).transpose()?;
    let subject = other.as_ref().unwrap_or(&target);

    let least = LEAST_STEPS.max(rounded((SHARE * counts.steps as f64).ceil()));
    let steps = asked.steps.unwrap_or(least).clamp(1, counts.steps.max(1));
    let drawn = draw(subject, &counts, steps)?;
    let config = lay(asked.folder, subject, &drawn, &counts, steps)?;
    said(&format!(
        "pilot: {steps} of {} steps of {} on {} rows, judged by {} others",
        counts.steps,
        subject.source.name(),
        drawn.train.len(),
        drawn.held_out.len()
    ));
    let child = Child::new(asked.home)?;
    let flag = subject.resolved.config.method.flag().to_string();
    let report = child.json(&[flag, config.display().to_string(), "--json".into(), "--profile".into()])?;
    let ran = Finished::read(asked.folder, report)?;

    let transfer = if other.is_some() { TRANSFER_SCATTER } else { LEAST_SCATTER };
    let learned = Learned::from_pilot(&ran.past, scatter(&ran.steps), transfer);
    if let Some(joules) = ran.past.measured.energy_j {
        machine.power_w = ran.past.measured.wall_s.map(|s| joules / s);
    }
    let spot = Spot { machine: &machine, limits: &limits, price: &target.price };
    let prediction = target.predict_on(&counts, spot, &learned);
    let ending = if other.is_none() { ran.ending(&target, &counts, &drawn) } else { None };
    let mut warnings = prediction.warnings.clone();
    warnings.extend(notes);
    warnings.extend(target.resolved.warnings.iter().cloned());
    warnings.extend(doubts(&target, &counts, other.is_some(), ending.is_some()));
    let mut interval = prediction.interval.clone();
    interval.extend(ending.map(|e| ("eval_loss".to_owned(), Interval { low: e.low, high: e.high })));
    let taken = ran.steps.iter().map(|s| s.tokens).sum::<u64>() as f64;
    Ok(Pilot {
        pilot: Ran {
            run_id: ran.report["run_id"].as_str().unwrap_or_default().to_owned(),
            output_dir: out(asked.folder),
            model: subject.source.name().to_owned(),
            is_other_model: other.is_some(),
            steps,
            rows: drawn.train.len(),
            held_out_rows: drawn.held_out.len(),
            share_of_tokens: taken / counts.tokens.max(1) as f64,
            measured: ran.past.measured,
            error_pct: ran.report["error_pct"].clone(),
        },
        cold,
        predicted: prediction.predicted,
        eval_loss: ending.map(|e| e.loss),
        interval,
        modelled: prediction.modelled.clone(),
        learned,
        prediction,
        warnings,
    })
}

/// The same run of a smaller model.
fn stand_in(asked: &Asked<'_>, model: &str) -> Result<Ground> {
    let mut overrides = asked.overrides.to_vec();
    overrides.retain(|(key, _)| key != "base_model");
    overrides.push(("base_model".into(), model.into()));
    Ground::lay(config::load(asked.config, asked.method, &overrides)?)
}

/// As many rows as the steps take.
fn draw(subject: &Ground, counts: &Counts, steps: u64) -> Result<Drawn> {
    let config = &subject.resolved.config;
    let template = config.data.chat_template.as_deref();
    let tokenizer = Tokenizer::open(&subject.source.tokenizer()?, &subject.arch, template)?;
    let prepared = data::prepare(config, &tokenizer, Some(&fs::home()?.join("tokenised")))?;
    let tokens = counts.tokens as f64 * steps as f64 / counts.steps.max(1) as f64;
    Ok(sample::draw(&prepared.train, &prepared.eval, rounded(tokens), config.train.seed))
}

fn out(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// Writes rows and config of the pilot; gives the config's path.
fn lay(folder: &Path, subject: &Ground, drawn: &Drawn, counts: &Counts, steps: u64) -> Result<PathBuf> {
    fs::create_folders(folder)?;
    let (train, held_out) = (folder.join("rows.jsonl"), folder.join("held-out.jsonl"));
    fs::write_durable(&train, sample::jsonl(&drawn.train).as_bytes())?;
    fs::write_durable(&held_out, sample::jsonl(&drawn.held_out).as_bytes())?;
    let warmup = (0..counts.steps).take_while(|k| is_warming(subject, counts, *k)).count() as u64;
    let mut settings = subject.resolved.settings.clone();
    settings.retain(|key, _| !is_replaced(key));
    for (key, value) in [
        ("output_dir", quoted(&out(folder))?),
        ("purpose", "\"pilot\"".to_owned()),
        ("max_steps", steps.to_string()),
        ("eval_steps", (steps / EVALUATIONS).max(1).to_string()),
        ("lr_scheduler", "\"constant\"".to_owned()),
        ("warmup_steps", warmup.min(steps / 4).to_string()),
    ] {
        settings.insert(key.to_owned(), value);
    }
    let mut text = String::new();
    for (key, value) in settings {
        let _ = writeln!(text, "{key} = {value}");
    }
    let _ = writeln!(text, "\n[[datasets]]\npath = {}\ntype = \"tokenized\"", quoted(&train)?);
    if !drawn.held_out.is_empty() {
        let _ = writeln!(text, "\n[[test_datasets]]\npath = {}\ntype = \"tokenized\"", quoted(&held_out)?);
    }
    text += &retention(&subject.resolved.settings);
    let config = folder.join("pilot.toml");
    fs::write_durable(&config, text.as_bytes())?;
    Ok(config)
}

/// What is not to be forgotten is the whole run's, judged before and after as there: replay and pulls are part of each step.
fn retention(settings: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for row in 0.. {
        let prefix = format!("retention_datasets.{row}.");
        let of: Vec<_> =
            settings.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value))).collect();
        if of.is_empty() {
            break;
        }
        text += "\n[[retention_datasets]]\n";
        for (key, value) in of {
            let _ = writeln!(text, "{key} = {value}");
        }
    }
    text
}

fn is_warming(subject: &Ground, counts: &Counts, k: u64) -> bool {
    let schedule = Schedule::new(&subject.resolved.config.train, counts.steps);
    schedule.lr_at(k) < schedule.lr_at(k + 1)
}

/// Keys of the whole run that the pilot has otherwise, or not at all: a cap of the budget is the whole run's.
fn is_replaced(key: &str) -> bool {
    const KEYS: [&str; 14] = [
        "auto_resume_from_checkpoints",
        "cosine_min_lr_ratio",
        "early_stopping_patience",
        "load_best_model_at_end",
        "mlflow_experiment_name",
        "mlflow_tracking_uri",
        "num_epochs",
        "report_to",
        "sample_prompts",
        "save_steps",
        "save_total_limit",
        "val_set_size",
        "warmup_ratio",
        "warmup_steps",
    ];
    let tables = ["datasets.", "test_datasets.", "retention_datasets.", "budget."];
    KEYS.contains(&key) || tables.iter().any(|table| key.starts_with(table))
}

/// What the pilot's process left.
struct Finished {
    report: Value,
    past: Past,
    steps: Vec<StepRecord>,
    evals: Vec<EvalRecord>,
}

impl Finished {
    fn read(folder: &Path, report: Value) -> Result<Self> {
        let out = out(folder);
        let path = out.join(folder::ESTIMATE);
        let broken = |fact: String| Error::Output { arguments: path.display().to_string(), fact };
        let text = fs::read_at_most(&path, 64 << 20)?;
        let prediction: Prediction = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
        let past = history::past(&prediction, &report)
            .ok_or_else(|| broken("the report holds no measurement".into()))?;
        let (steps, evals) =
            (metrics::read(&out.join("metrics.jsonl"))?, metrics::read(&out.join("eval.jsonl"))?);
        Ok(Self { report, past, steps, evals })
    }

    /// The evaluation loss at the whole run's end.
    fn ending(&self, target: &Ground, counts: &Counts, drawn: &Drawn) -> Option<Ending> {
        let spent = |until: u64| -> f64 {
            self.steps.iter().filter(|s| s.step <= until).map(|s| s.learning_rate).sum()
        };
        let points: Vec<(f64, f64)> = self.evals.iter().map(|e| (spent(e.step), e.loss)).collect();
        let schedule = Schedule::new(&target.resolved.config.train, counts.steps);
        let sampled = curve::sampled(drawn.held_out.len(), drawn.candidates);
        curve::ending(&points, (0..counts.steps).map(|k| schedule.lr_at(k)).sum(), sampled)
    }
}

/// How far the mean of the pilot's steps may be off, relative; 0 of a single step.
fn scatter(steps: &[StepRecord]) -> f64 {
    let rates = steps.iter().skip(1).filter(|s| s.tokens > 0).map(|s| s.step_s / s.tokens as f64);
    let rates: Vec<f64> = rates.filter(|r| r.is_finite() && *r > 0.0).collect();
    let n = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / n;
    let sd = (rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    Some(sd / mean * (CORRELATED / n).sqrt()).filter(|s| s.is_finite()).unwrap_or(0.0)
}

/// What the pilot cannot know.
fn doubts(target: &Ground, counts: &Counts, is_other: bool, has_ending: bool) -> Vec<String> {
    let mut all = Vec::new();
    if is_other {
        all.push("the evaluation loss is not predicted: another model was piloted".into());
    } else if !has_ending {
        all.push("the evaluation loss is not predicted: too few evaluations for a curve".into());
    } else if counts.tokens > 2 * counts.data_tokens {
        all.push(
            "rows come more than twice: the held-out loss may rise again, which no short run can show".into(),
        );
    }
    if target.resolved.config.schedule.early_stopping_patience.is_some() {
        all.push("the run may stop early: it is predicted to its last step".into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step_s: f64) -> StepRecord {
        StepRecord {
            step: 1,
            epoch: 0.1,
            loss: 1.0,
            grad_norm: 1.0,
            learning_rate: 0.1,
            tokens: 10,
            penalty: None,
            padded_tokens: 0,
            loss_tokens: 5,
            step_s,
            rss_bytes: None,
            device_bytes: None,
        }
    }

    #[test]
    fn steps_scatter_as_far_as_they_differ() {
        let steady = vec![step(1.0); 20];
        assert!(scatter(&steady).abs() < 1e-12);
        let uneven: Vec<_> = (0..20).map(|i| step(if i % 2 == 0 { 1.0 } else { 2.0 })).collect();
        assert!(scatter(&uneven) > 0.1);
        assert!(scatter(&steady[..1]).abs() < 1e-12, "one step scatters not at all");
    }

    #[test]
    fn what_is_not_to_be_forgotten_is_the_whole_runs() {
        let text = "base_model = \"model\"\nadapter = \"lora\"\noutput_dir = \"out\"\nretention_share = 0.1\n\
                    [[datasets]]\npath = \"rows.jsonl\"\ntype = \"completion\"\n\
                    [[retention_datasets]]\npath = \"old.jsonl\"\ntype = \"tokenized\"\n\
                    [[retention_datasets]]\npath = \"older.jsonl\"\n";
        let whole = config::parse("whole", text, None, &[]).unwrap();
        let rows = text.split("[[datasets]]").next().unwrap().to_owned();
        let own = "[[datasets]]\npath = \"rows.jsonl\"\ntype = \"completion\"\n";
        let again = rows + own + &retention(&whole.settings);
        let again = config::parse("again", &again, None, &[]).unwrap();
        assert_eq!(again.config.data.retention_datasets, whole.config.data.retention_datasets);
        assert_eq!(again.config.data.retention_datasets.len(), 2);
        assert!(is_replaced("retention_datasets.0.path") && !is_replaced("retention_share"));
    }

    #[test]
    fn caps_and_data_of_the_whole_run_are_not_the_pilots() {
        for key in ["budget.max_hours", "datasets.0.path", "test_datasets.1.type", "num_epochs"] {
            assert!(is_replaced(key), "{key}");
        }
        for key in ["learning_rate", "lora_r", "cost.machine", "sequence_len", "micro_batch_size"] {
            assert!(!is_replaced(key), "{key}");
        }
    }
}
