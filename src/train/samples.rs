//! What the model says to a few prompts, before and after: decoded live, with the run's seed.

use crate::config::{Config, Format};
use crate::data::tokenizer::Tokenizer;
use crate::data::{Message, RowFault, alpaca_prompt};
use crate::error::{Error, Kind, Result};
use crate::estimate::SAMPLE_TOKENS;
use crate::fs;
use crate::model::Decoder;
use crate::model::generate::{Settings, generate};
use std::collections::BTreeMap;
use std::path::Path;

/// What the base model said, kept over a resume.
const BEFORE: &str = "samples.json";

/// Keeps what the base model said to the prompts in the run's folder.
pub fn keep(out: &Path, prompts: &[String], answers: &[String]) -> Result<()> {
    if prompts.is_empty() {
        return Ok(());
    }
    let all: BTreeMap<&String, &String> = prompts.iter().zip(answers).collect();
    let text = serde_json::to_string_pretty(&all).map_err(|e| Error::new(Kind::Bug, e.to_string()))?;
    fs::write_durable(&out.join(BEFORE), text.as_bytes())
}

/// What the base model said to each prompt, where it was kept.
pub fn kept(out: &Path, prompts: &[String]) -> Vec<Option<String>> {
    let bytes = fs::read_at_most(&out.join(BEFORE), 64 << 20).unwrap_or_default();
    let mut all: BTreeMap<String, String> = serde_json::from_slice(&bytes).unwrap_or_default();
    prompts.iter().map(|prompt| all.remove(prompt)).collect()
}

/// The model's answers to the config's `sample_prompts`, the likeliest token each time.
pub fn answers(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    config: &Config,
    longest: usize,
) -> Result<Vec<String>> {
    let how = Settings::greedy(SAMPLE_TOKENS, tokenizer.stop_ids(), longest);
    let asked = Asked::by(config, tokenizer);
    let prompts: Vec<Vec<u32>> =
        config.output.samples.iter().map(|prompt| encode(tokenizer, prompt, asked)).collect::<Result<_>>()?;
    let answers = generate(decoder, &prompts, &how, |_, _| ())?;
    Ok(answers.iter().map(|ids| tokenizer.decode(ids).trim().to_owned()).collect())
}

/// How a prompt is put to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// As a user's turn of a conversation.
    Turn,
    /// As an instruction in the words of Stanford Alpaca.
    Alpaca,
    /// As plain text.
    Plain,
}

impl Asked {
    /// As the run's rows put theirs: in the words of its first rows where these are Alpaca's, else as a turn where it
    /// learns conversations.
    pub fn by(config: &Config, tokenizer: &Tokenizer) -> Self {
        let chats = |format: Format| matches!(format, Format::ChatTemplate | Format::Sharegpt);
        let mut formats = config.data.datasets.iter().map(|dataset| dataset.format);
        match formats.clone().next() {
            Some(Format::Alpaca) => Self::Alpaca,
            _ if tokenizer.has_template() && formats.any(chats) => Self::Turn,
            _ => Self::Plain,
        }
    }
}

/// The ids of a prompt.
pub fn encode(tokenizer: &Tokenizer, prompt: &str, asked: Asked) -> Result<Vec<u32>> {
    let fault = |fault: RowFault| Error::new(Kind::Model, format!("prompt {prompt:?}: {fault}"));
    let text = match asked {
        Asked::Turn => {
            let text = tokenizer.render_chat(&[Message::new("user", prompt)], true).map_err(fault)?;
            return tokenizer.encode_rendered(&text).map_err(fault);
        }
        Asked::Alpaca => alpaca_prompt(prompt, None),
        Asked::Plain => prompt.to_owned(),
    };
    let mut ids = tokenizer.prefix().to_vec();
    ids.extend(tokenizer.encode(&text).map_err(fault)?);
    Ok(ids)
}
