//! `fttrain generate MODEL --prompt TEXT`: what a base, a run or an adapter says, one beside the other where asked.

use crate::config::Method;
use crate::error::{Error, Kind, Result};
use crate::model::Decoder;
use crate::model::generate::{Settings, generate};
use crate::train::samples::{self, Asked};
use crate::train::subject::{Named, Subject};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `generate`.
#[derive(Args)]
pub(super) struct GenerateArgs {
    /// A run's id or folder, or a base model: a folder, a GGUF file or a hub name.
    model: String,
    /// What to go on from; may be given several times.
    #[arg(long, required = true)]
    prompt: Vec<String>,
    /// A PEFT adapter for the base model.
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// The base model of an adapter, where its folder does not say it.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// What the base model says, too.
    #[arg(long)]
    compare: bool,
    /// Take the prompt as plain text although the model has a chat template, or the run Alpaca's.
    #[arg(long)]
    raw: bool,
    /// Tokens at most.
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Only the likeliest tokens that together reach this probability.
    #[arg(long, value_parser = share)]
    top_p: Option<f64>,
    /// Only this many likeliest tokens.
    #[arg(long, value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Of the sampler.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Worker threads; by default the cores that this process may use.
    #[arg(long, value_parser = at_least_one)]
    threads: Option<usize>,
    /// Print JSON, when all is said.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &GenerateArgs) -> Result<u8> {
    let named = Named {
        model: &args.model,
        adapter: args.adapter.as_deref(),
        base: args.base.as_deref(),
        ..Named::default()
    };
    let subject = Subject::open(&named, args.threads)?;
    let prompts = prompts(&subject, args)?;
    // A base that is compared with; its prompts are those of the run.
    let base = if args.compare { Some(base_of(&subject, args)?) } else { None };
    let name = if subject.adapter.is_some() { "adapter" } else { "model" };
    let turns = base.iter().map(|(base, adapted)| ("base", base.as_ref().unwrap_or(&subject), *adapted));
    let mut all = vec![Vec::new(); prompts.len()];
    for (name, subject, adapted) in turns.chain([(name, &subject, true)]) {
        let decoder = subject.decoder(adapted, subject.frozen(), longest(&prompts, subject, args))?;
        for (said, (prompt, text)) in all.iter_mut().zip(prompts.iter().zip(&args.prompt)) {
            if !args.json && (args.compare || prompts.len() > 1) {
                super::print(&format!("--- {name}: {}\n", crate::train::screen::visible(text)));
            }
            said.push((name, answer(&decoder, subject, prompt, args)?));
        }
    }
    if args.json {
        super::print(&format!("{:#}\n", told(&args.prompt, all)));
    }
    Ok(0)
}

/// Ids of each prompt, as the run or the model's template has it.
fn prompts(subject: &Subject, args: &GenerateArgs) -> Result<Vec<Vec<u32>>> {
    let asked = match &subject.run {
        _ if args.raw => Asked::Plain,
        Some(run) => Asked::by(run, &subject.tokenizer),
        None if subject.tokenizer.has_template() => Asked::Turn,
        None => Asked::Plain,
    };
    let encode = |prompt: &String| {
        let ids = samples::encode(&subject.tokenizer, prompt, asked)?;
        if ids.len() < subject.arch.max_position {
            return Ok(ids);
        }
        let positions = subject.arch.max_position;
        let fact = format!("the prompt has {} tokens, the model {positions} positions", ids.len());
        Err(Error::new(Kind::Usage, fact).hint("shorten the prompt"))
    };
    args.prompt.iter().map(encode).collect()
}

fn longest(prompts: &[Vec<u32>], subject: &Subject, args: &GenerateArgs) -> usize {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    subject.arch.max_position.min(longest.saturating_add(args.max_tokens))
}

/// The base to compare with: another subject where the run left a whole model, and whether to adapt it.
fn base_of(subject: &Subject, args: &GenerateArgs) -> Result<(Option<Subject>, bool)> {
    match &subject.run {
        _ if subject.adapter.is_some() => Ok((None, false)),
        Some(run) if run.method == Method::Full => {
            let base = Subject::open(&Named { model: &run.base.model, ..Named::default() }, args.threads)?;
            Ok((Some(base), true))
        }
        _ => {
            let fact = format!("`--compare`: {} is neither a run nor an adapter", args.model);
            Err(Error::new(Kind::Usage, fact).hint("name a run, or an adapter with `--adapter`"))
        }
    }
}

/// What the model says, printed as far as it can no longer change: a character may be several tokens.
fn answer(decoder: &Decoder, subject: &Subject, prompt: &[u32], args: &GenerateArgs) -> Result<String> {
    let how = Settings {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        ..Settings::greedy(args.max_tokens, subject.tokenizer.stop_ids(), subject.arch.max_position)
    };
    let show = |text: &str| {
        if !args.json {
            super::print(text);
        }
    };
    let (mut ids, mut shown) = (Vec::new(), 0);
    generate(decoder, &[prompt.to_vec()], &how, |_, token| {
        ids.push(token);
        let text = subject.tokenizer.decode(&ids);
        if !text.ends_with('\u{fffd}') {
            show(text.get(shown..).unwrap_or_default());
            shown = text.len();
        }
    })?;
    let text = subject.tokenizer.decode(&ids);
    // A character that never became whole.
    show(text.get(shown..).unwrap_or_default());
    show("\n");
    Ok(text)
}

fn told(prompts: &[String], all: Vec<Vec<(&str, String)>>) -> Value {
    let one = |(prompt, said): (&String, Vec<(&str, String)>)| {
        let mut object = serde_json::Map::new();
        object.insert("prompt".into(), json!(prompt));
        object.extend(said.into_iter().map(|(name, text)| (name.to_owned(), json!(text))));
        Value::Object(object)
    };
    prompts.iter().zip(all).map(one).collect()
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number from 1".into())
}

fn temperature(text: &str) -> Result<f64, String> {
    let is_heat = |t: &f64| t.is_finite() && *t >= 0.0;
    text.parse().ok().filter(is_heat).ok_or_else(|| "expected a number from 0".into())
}

fn share(text: &str) -> Result<f64, String> {
    let is_share = |p: &f64| *p > 0.0 && *p <= 1.0;
    text.parse().ok().filter(is_share).ok_or_else(|| "expected a number above 0, at most 1".into())
}
