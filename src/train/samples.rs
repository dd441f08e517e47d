//! What the model says to a few prompts, before and after: decoded live, with the run's seed.

use crate::config::{Config, Format};
use crate::data::Message;
use crate::data::tokenizer::Tokenizer;
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
    let chat = is_chat(config, tokenizer);
    let prompts: Vec<Vec<u32>> =
        config.output.samples.iter().map(|prompt| encode(tokenizer, prompt, chat)).collect::<Result<_>>()?;
    let answers = generate(decoder, &prompts, &how, |_, _| ())?;
    Ok(answers.iter().map(|ids| tokenizer.decode(ids).trim().to_owned()).collect())
}

/// The ids of a prompt: as a user's turn of a conversation, or as plain text.
pub fn encode(tokenizer: &Tokenizer, prompt: &str, chat: bool) -> Result<Vec<u32>> {
    let fault = |fault: crate::data::RowFault| Error::new(Kind::Model, format!("prompt {prompt:?}: {fault}"));
    if chat {
        let text = tokenizer.render_chat(&[Message::new("user", prompt)], true).map_err(fault)?;
        return tokenizer.encode_rendered(&text).map_err(fault);
    }
    let mut ids = tokenizer.prefix().to_vec();
    ids.extend(tokenizer.encode(prompt).map_err(fault)?);
    Ok(ids)
}

/// Whether the run learns conversations.
pub fn is_chat(config: &Config, tokenizer: &Tokenizer) -> bool {
    let chats = |format: &Format| matches!(format, Format::ChatTemplate | Format::Sharegpt);
    tokenizer.has_template() && config.data.datasets.iter().any(|dataset| chats(&dataset.format))
}
