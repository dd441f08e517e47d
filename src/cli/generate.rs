//! `fttrain generate MODEL --prompt TEXT`

use crate::config::{Base, Config};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Kind, Result};
use crate::model::Frozen;
use crate::model::adapter::Adapter;
use crate::model::build::{self, Trained};
use crate::model::generate::{Settings, generate};
use crate::model::weights::Loader;
use crate::train::{folder, samples, session};
use candle_core::DType;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of `generate`.
#[derive(Args)]
pub(super) struct GenerateArgs {
    /// A run's folder, or a base model: a folder, a GGUF file or a hub name.
    model: String,
    /// What to go on from.
    #[arg(long)]
    prompt: String,
    /// A PEFT adapter for the base model.
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// The base model of an adapter, where its folder does not say it.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Take the prompt as plain text although the model has a chat template.
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
}

pub(super) fn run(args: &GenerateArgs) -> Result<u8> {
    let chosen = resolve(args)?;
    let source = crate::arch::source::Source::locate(&chosen.base)?;
    let arch = source.arch()?;
    let adapter = match chosen.adapter {
        Some(folder) => Some(Adapter::resolve(&arch, &continued(folder), None, args.seed)?),
        None => None,
    };
    let run = chosen.run.as_ref();
    let template = run.and_then(|run| run.data.chat_template.as_deref());
    let tokenizer = Tokenizer::open(&source.tokenizer()?, &arch, template)?;
    let chat = run.map_or(tokenizer.has_template(), |run| samples::is_chat(run, &tokenizer));
    let prompt = samples::encode(&tokenizer, &args.prompt, chat && !args.raw)?;
    let longest = arch.max_position.min(prompt.len().saturating_add(args.max_tokens));
    let loader = Loader::open(&source.weights()?, &arch, args.seed, source.name())?;
    let trained = adapter.as_ref().map_or(Trained::Nothing, Trained::Adapter);
    let frozen = run.map_or(Frozen::Dense(DType::F32), |run| session::frozen(run, &source, false));
    let (decoder, _) = build::decoder(&arch, trained, frozen, longest, &loader)?;
    let how = Settings {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        stop_ids: tokenizer.stop_ids(),
        longest,
    };
    if prompt.len() >= longest {
        let fact =
            format!("the prompt has {} tokens, the model {} positions", prompt.len(), arch.max_position);
        return Err(Error::new(Kind::Usage, fact).hint("shorten the prompt"));
    }
    // Text is printed as far as it can no longer change: a character may be several tokens.
    let (mut ids, mut shown) = (Vec::new(), 0);
    generate(&decoder, &prompt, &how, |token| {
        ids.push(token);
        let text = tokenizer.decode(&ids);
        if !text.ends_with('\u{fffd}') {
            super::print(text.get(shown..).unwrap_or_default());
            shown = text.len();
        }
    })?;
    // A character that never became whole.
    super::print(tokenizer.decode(&ids).get(shown..).unwrap_or_default());
    super::print("\n");
    Ok(0)
}

fn at_least_one(text: &str) -> Result<usize, String> {
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

/// What the arguments name.
struct Chosen {
    base: Base,
    adapter: Option<PathBuf>,
    /// The run that the folder is of: it says how a prompt becomes a conversation.
    run: Option<Config>,
}

fn resolve(args: &GenerateArgs) -> Result<Chosen> {
    let folder = Path::new(&args.model);
    let run = config_of(folder)?;
    let plain = |model: &str| Base {
        model: model.to_owned(),
        revision: None,
        reinit_weights: false,
        bf16: Some(false),
    };
    if !folder.join("adapter_config.json").is_file() {
        return Ok(Chosen { base: plain(&args.model), adapter: args.adapter.clone(), run });
    }
    let adapter = Some(args.adapter.clone().unwrap_or_else(|| folder.to_owned()));
    let base = match (&args.base, &run) {
        (Some(base), _) => plain(base),
        (None, Some(run)) => run.base.clone(),
        (None, None) => {
            let fact = format!("{}: an adapter whose base model is not known", folder.display());
            return Err(Error::new(Kind::Usage, fact).hint("name it with `--base`"));
        }
    };
    Ok(Chosen { base, adapter, run })
}

/// The config of the run that left this folder, or this checkpoint.
fn config_of(folder: &Path) -> Result<Option<Config>> {
    let run = folder.parent().and_then(Path::parent);
    let places = [Some(folder), run.filter(|_| folder.join("manifest.json").is_file())];
    let found =
        places.into_iter().flatten().map(|place| place.join(folder::CONFIG)).find(|path| path.is_file());
    found.map(|path| Ok(crate::config::load(&path, None, &[])?.config)).transpose()
}

/// An adapter as it is.
fn continued(folder: PathBuf) -> crate::config::Lora {
    crate::config::Lora {
        r: None,
        alpha: None,
        dropout: 0.0,
        targets: None,
        rslora: None,
        modules_to_save: Vec::new(),
        model_dir: Some(folder),
    }
}
