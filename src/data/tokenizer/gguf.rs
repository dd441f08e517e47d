//! A GGUF file's vocabulary as a tokenizer.json: byte-level BPE from its tokens, merges and token types.

use super::super::error::Error;
use serde_json::{Value, json};
use std::collections::HashSet;

/// What a GGUF file says of its tokenizer: the metadata under `tokenizer.`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GgufVocab {
    /// The file, for messages.
    pub file: String,
    /// `tokenizer.ggml.model`; `gpt2` is byte-level BPE.
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut into words.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.merges`: `left right`, best first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.token_type`, by id; empty = all normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`
    pub pad: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<String>,
}

/// Token types of GGUF. Of control and user-defined ones, texts are searched before they are cut into words.
pub(super) const NORMAL: i32 = 1;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;

/// How Llama 3 cuts words; Qwen 2 cuts numbers into single digits instead.
pub(super) const WORDS: (&str, &str, &str) = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// How a `tokenizer.ggml.pre` cuts text.
struct Cutting {
    normalizer: Value,
    pre_tokenizer: Value,
    /// A word that is a token stays one, whatever the merges.
    ignore_merges: bool,
    add_bos: bool,
}

impl Cutting {
    fn of(pre: &str) -> Option<Self> {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let words = |numbers: &str| {
            let regex = format!("{}{numbers}{}", WORDS.0, WORDS.2);
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        };
        let (normalizer, pre_tokenizer, llama) = match pre {
            // As transformers reads `smollm`, so that a GGUF file and its conversion see the same ids; llama.cpp
            // also cuts numbers off the spaces before them.
            "gpt-2" | "gpt2" | "default" | "smollm" => (Value::Null, byte_level(true), false),
            "starcoder" | "refact" | "codeshell" | "command-r" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                let both = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
                (Value::Null, both, false)
            }
            "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, words(WORDS.1), true),
            "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), words(r"\p{N}"), false),
            _ => return None,
        };
        Some(Self { normalizer, pre_tokenizer, ignore_merges: llama, add_bos: llama })
    }
}

impl GgufVocab {
    /// The vocabulary as `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// Another kind of tokenizer, or lists that contradict each other.
    pub(super) fn to_json(&self) -> Result<(Value, Value), Error> {
        let refuse = |fact: String| Error::Tokenizer {
            place: self.file.clone(),
            fact,
            hint: "use the model's Hugging Face folder with its tokenizer.json instead",
        };
        if self.model != "gpt2" {
            return Err(refuse(format!(
                "tokenizer.ggml.model = {:?}; only \"gpt2\" (byte-level BPE) is read from a GGUF file",
                self.model
            )));
        }
        let pre = self.pre.as_deref().unwrap_or("default");
        let cutting = Cutting::of(pre)
            .ok_or_else(|| refuse(format!("tokenizer.ggml.pre = {pre:?} is not known here")))?;
        if self.tokens.is_empty() {
            return Err(refuse("tokenizer.ggml.tokens is missing or empty".into()));
        }
        if !self.token_types.is_empty() && self.token_types.len() != self.tokens.len() {
            return Err(refuse(format!(
                "{} tokens but {} token types",
                self.tokens.len(),
                self.token_types.len()
            )));
        }
        let mut seen = HashSet::with_capacity(self.tokens.len());
        if let Some(twice) = self.tokens.iter().find(|t| !seen.insert(t.as_str())) {
            return Err(refuse(format!("the token {twice:?} stands twice in tokenizer.ggml.tokens")));
        }
        let merges = self.pairs(&seen).map_err(refuse)?;
        let vocabulary: serde_json::Map<String, Value> =
            self.tokens.iter().zip(0u32..).map(|(t, id)| (t.clone(), id.into())).collect();
        let bos = self.add_bos.unwrap_or(cutting.add_bos).then_some(self.bos).flatten();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": cutting.normalizer,
            "pre_tokenizer": cutting.pre_tokenizer,
            "post_processor": bos.and_then(|id| self.name(Some(id)).map(|name| bos_first(id, name))),
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": cutting.ignore_merges, "vocab": vocabulary, "merges": merges,
            },
        });
        Ok((tokenizer, self.config()))
    }

    fn name(&self, id: Option<u32>) -> Option<&str> {
        let id = usize::try_from(id?).ok()?;
        self.tokens.get(id).map(String::as_str)
    }

    fn pairs<'a>(&'a self, known: &HashSet<&str>) -> Result<Vec<[&'a str; 2]>, String> {
        let pair = |(line, merge): (usize, &'a String)| {
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| format!("merge {line}: {merge:?} is not a pair"))?;
            let whole = format!("{left}{right}");
            match [left, right, &whole].into_iter().find(|t| !known.contains(t)) {
                Some(missing) => Err(format!("merge {line}: {missing:?} is not among the tokens")),
                None => Ok([left, right]),
            }
        };
        self.merges.iter().enumerate().map(pair).collect()
    }

    fn added(&self) -> Vec<Value> {
        let types = self.token_types.iter().zip(&self.tokens).zip(0u32..);
        types
            .filter(|((kind, _), _)| matches!(**kind, CONTROL | USER_DEFINED))
            .map(|((kind, content), id)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL})
            })
            .collect()
    }

    fn config(&self) -> Value {
        let mut config =
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        let named = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("pad_token", self.pad),
            ("unk_token", self.unk),
        ];
        for (key, id) in named {
            if let (Some(name), Some(object)) = (self.name(id), config.as_object_mut()) {
                object.insert(key.into(), name.into());
            }
        }
        config
    }
}

/// The post-processor that puts BOS in front, for whoever opens the saved tokenizer.
fn bos_first(id: u32, name: &str) -> Value {
    let token = json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |which: &str| json!({"Sequence": {"id": which, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [token, text("A")],
        "pair": [token, text("A"), text("B")],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}},
    })
}
