//! Opening a tokenizer: from a Hugging Face folder's files or a GGUF vocabulary, checked against the model's
//! embedding, and the files that the output folder gets in return.

use super::added::Added;
use super::patterns::Patterns;
use super::{GgufVocab, Tokenizer, guard};
use crate::arch::Arch;
use crate::data::error::Error;
use crate::data::reader::{hex, read_small};
use crate::data::template::{CHATML, MAX_TEMPLATE_BYTES, Template};
use crate::data::turns::Shapes;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::PostProcessorWrapper;

/// Longest tokenizer.json accepted, bytes.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Longest of the small JSON files beside it, bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The files of a Hugging Face folder that say how text becomes ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// The tokenizer itself.
    pub tokenizer_json: PathBuf,
    /// Names of BOS and EOS, often the chat template.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`; wins over the one in `tokenizer_config`.
    pub chat_template: Option<PathBuf>,
    /// More ids that end a text.
    pub generation_config: Option<PathBuf>,
    /// Names of BOS and EOS where `tokenizer_config` has none.
    pub special_tokens_map: Option<PathBuf>,
}

/// What both kinds of sources come down to.
struct Parts {
    place: String,
    tokenizer_json: Vec<u8>,
    config: Value,
    template: Option<String>,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Opens a Hugging Face tokenizer; `chat_template` overrides the model's own: a template, a path ending in
    /// `.jinja`, `chatml` or `tokenizer_default`.
    ///
    /// # Errors
    /// A file that is missing or cannot be used, or an id that the embedding has no row for.
    pub fn from_files(
        files: &TokenizerFiles,
        arch: &Arch,
        chat_template: Option<&str>,
    ) -> Result<Self, Error> {
        let as_tokenizer = |e: Error| match e {
            Error::File { path, cause, .. } => Error::Tokenizer {
                place: path.display().to_string(),
                fact: cause,
                hint: "the model's folder must hold tokenizer.json beside config.json; convert a tokenizer.model \
                       with transformers' `AutoTokenizer(...).save_pretrained`",
            },
            other => other,
        };
        let object = |path: &Option<PathBuf>| match path {
            Some(path) => read_object(path).map_err(as_tokenizer),
            None => Ok(Value::Null),
        };
        let tokenizer_json = read_small(&files.tokenizer_json, MAX_TOKENIZER_BYTES).map_err(as_tokenizer)?;
        let mut config = object(&files.tokenizer_config)?;
        let map = object(&files.special_tokens_map)?;
        if !config.is_object() {
            config = Value::Object(serde_json::Map::new());
        }
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let (Some(Value::Null) | None, Some(name)) = (config.get(key), map.get(key)) {
                config.as_object_mut().map(|c| c.insert(key.into(), name.clone()));
            }
        }
        let generation = object(&files.generation_config)?;
        let template = match &files.chat_template {
            Some(path) => Some(read_text(path).map_err(as_tokenizer)?),
            None => template_of(&config),
        };
        let parts = Parts {
            place: files.tokenizer_json.display().to_string(),
            tokenizer_json,
            config,
            template,
            eos_ids: ids_of(generation.get("eos_token_id")),
        };
        Self::build(&parts, arch, chat_template)
    }

    /// Builds the tokenizer that a GGUF file describes; `chat_template` as in [`Self::from_files`].
    ///
    /// # Errors
    /// A kind of tokenizer that is not read from GGUF, or metadata that contradicts itself.
    pub fn from_gguf(vocab: &GgufVocab, arch: &Arch, chat_template: Option<&str>) -> Result<Self, Error> {
        let (tokenizer, config) = vocab.to_json()?;
        let parts = Parts {
            place: vocab.file.clone(),
            tokenizer_json: tokenizer.to_string().into_bytes(),
            config,
            template: vocab.chat_template.clone(),
            eos_ids: vocab.eos.into_iter().collect(),
        };
        Self::build(&parts, arch, chat_template)
    }

    fn build(parts: &Parts, arch: &Arch, chat_template: Option<&str>) -> Result<Self, Error> {
        let place = parts.place.clone();
        let refuse = |fact: String| Error::Tokenizer {
            place: place.clone(),
            fact,
            hint: "fetch the model's files again",
        };
        let mut inner = guard(|| tokenizers::Tokenizer::from_bytes(&parts.tokenizer_json)).map_err(refuse)?;
        let patterns = Patterns::of(&parts.tokenizer_json).map_err(refuse)?;
        let prefix = prefix(&inner, &parts.config);
        let without = inner.with_truncation(None).map(|t| {
            t.with_padding(None);
            t.with_post_processor(None::<PostProcessorWrapper>);
        });
        without.map_err(|e| refuse(e.to_string()))?;
        let added = Added::of(&inner).map_err(|e| refuse(format!("added tokens: {e}")))?;
        let vocabulary = inner.get_vocab(true);
        let highest = vocabulary.iter().max_by_key(|(name, id)| (**id, name.as_str()));
        let (name, highest) = highest.ok_or_else(|| refuse("the vocabulary is empty".into()))?;
        let (rows, ids) = (arch.vocab_size, *highest as usize + 1);
        if ids > rows {
            return Err(Error::Tokenizer {
                place,
                fact: format!("token {name:?} has id {highest}, but the model's embedding has {rows} rows"),
                hint: "the tokenizer belongs to another model, or tokens were added without resizing the embedding",
            });
        }
        let mut notes = Vec::new();
        if ids < rows {
            notes.push(format!("the embedding has {rows} rows for {ids} ids: the others are padding"));
        }
        let special = |key: &str| name_of(parts.config.get(key));
        let id = |name: &str| added.id(name).or_else(|| inner.token_to_id(name));
        let mut eos_ids: Vec<u32> = special("eos_token").and_then(|name| id(&name)).into_iter().collect();
        eos_ids.extend(arch.eos_ids.iter().chain(&parts.eos_ids).filter(|&&e| (e as usize) < rows));
        let eos = eos_ids.first().copied();
        eos_ids.sort_unstable();
        eos_ids.dedup();
        if eos.is_none() {
            notes.push("the tokenizer names no EOS token".into());
        }
        let tokens: BTreeMap<String, String> = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), special(key)?)))
            .collect();
        let template = match chosen_template(chat_template, parts.template.clone())? {
            Some(source) => Some(Template::new(&source, tokens)?),
            None => None,
        };
        if template.as_ref().is_some_and(Template::asks_for_the_date) {
            notes.push(
                "the chat template asks for today's date and always gets 26 Jul 2024, so that a resumed run \
                        sees the same text"
                    .into(),
            );
        }
        let longest_token_bytes = vocabulary.keys().map(String::len).max().unwrap_or(1);
        let source = template.as_ref().map(Template::source);
        let files = files(parts, source);
        let mut hash = Sha256::new();
        for (name, bytes) in &files {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
        hash.update(format!("{eos_ids:?} {prefix:?} {rows}"));
        Ok(Self {
            inner,
            added,
            patterns,
            template,
            shapes: Shapes::default(),
            prefix,
            eos,
            eos_ids,
            vocab_size: rows,
            longest_token_bytes,
            notes,
            files,
            fingerprint: hex(&hash.finalize()),
        })
    }
}

/// What the tokenizer's own post-processor puts in front of a text; `add_bos_token` decides where it is set.
fn prefix(tokenizer: &tokenizers::Tokenizer, config: &Value) -> Vec<u32> {
    let named = name_of(config.get("bos_token")).and_then(|name| tokenizer.token_to_id(&name));
    match (config.get("add_bos_token").and_then(Value::as_bool), named) {
        (Some(true), Some(bos)) => return vec![bos],
        (Some(false), _) => return Vec::new(),
        _ => {}
    }
    let ids =
        |special| guard(|| tokenizer.encode("a", special)).map(|e| e.get_ids().to_vec()).unwrap_or_default();
    let (with, without) = (ids(true), ids(false));
    let at = with.windows(without.len().max(1)).position(|window| window == without);
    with.get(..at.unwrap_or(0)).unwrap_or_default().to_vec()
}

/// A token's name: a string, or an object with `content`.
pub(super) fn name_of(value: Option<&Value>) -> Option<String> {
    let value = value?;
    let name = value.as_str().or_else(|| value.get("content")?.as_str())?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// One id or a list of them.
fn ids_of(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// `chat_template` of `tokenizer_config.json`: a text, or a list of named ones of which `default` is taken.
fn template_of(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(all) => all
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| Some(t.get("template")?.as_str()?.to_owned())),
        _ => None,
    }
}

fn chosen_template(wanted: Option<&str>, own: Option<String>) -> Result<Option<String>, Error> {
    match wanted {
        None | Some("tokenizer_default") => Ok(own),
        Some("chatml") => Ok(Some(CHATML.to_owned())),
        Some(text) if text.contains('{') => Ok(Some(text.to_owned())),
        Some(path) if Path::new(path).extension().is_some_and(|e| e == "jinja") => {
            read_text(Path::new(path)).map(Some)
        }
        Some(other) => Err(Error::Tokenizer {
            place: "chat_template".into(),
            fact: format!("{other:?} is neither a template nor a file"),
            hint: "give a Jinja template, a path ending in .jinja, \"chatml\" or \"tokenizer_default\"",
        }),
    }
}

fn read_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(read_small(path, MAX_TEMPLATE_BYTES)?).map_err(|e| Error::File {
        path: path.to_owned(),
        cause: e.to_string(),
        hint: None,
    })
}

fn read_object(path: &Path) -> Result<Value, Error> {
    let bytes = read_small(path, MAX_CONFIG_BYTES)?;
    let value: Result<Value, _> = serde_json::from_slice(&bytes);
    let cause = match value {
        Ok(value) if value.is_object() => return Ok(value),
        Ok(_) => "must be a JSON object".to_owned(),
        Err(e) => e.to_string(),
    };
    Err(Error::File { path: path.to_owned(), cause, hint: None })
}

/// What the output folder gets; the template stands in both places where readers look for it.
fn files(parts: &Parts, template: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let mut config = parts.config.clone();
    let mut files = vec![("tokenizer.json".to_owned(), parts.tokenizer_json.clone())];
    if let (Some(template), Some(object)) = (template, config.as_object_mut()) {
        object.insert("chat_template".into(), template.into());
        files.push(("chat_template.jinja".to_owned(), template.as_bytes().to_vec()));
    }
    files.push(("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes()));
    files
}
