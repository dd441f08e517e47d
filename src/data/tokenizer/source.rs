//! The tokenizer of a base model, wherever the base lies.

use super::{GgufVocab, Tokenizer, TokenizerFiles};
use crate::arch::Arch;
use crate::arch::gguf::{Header, Value};
use crate::arch::source::TokenizerSource;
use crate::error::Result;

impl Tokenizer {
    /// Opens the tokenizer of a base model; `chat_template` as in [`Self::from_files`].
    ///
    /// # Errors
    /// A file is missing or broken, or an id has no row in the embedding (4).
    pub fn open(source: &TokenizerSource, arch: &Arch, chat_template: Option<&str>) -> Result<Self> {
        Ok(match source {
            TokenizerSource::Files {
                tokenizer_json,
                tokenizer_config,
                chat_template: own,
                generation_config,
                special_tokens_map,
            } => {
                let files = TokenizerFiles {
                    tokenizer_json: tokenizer_json.clone(),
                    tokenizer_config: tokenizer_config.clone(),
                    chat_template: own.clone(),
                    generation_config: generation_config.clone(),
                    special_tokens_map: special_tokens_map.clone(),
                };
                Self::from_files(&files, arch, chat_template)?
            }
            TokenizerSource::Gguf(header) => Self::from_gguf(&vocabulary(header), arch, chat_template)?,
        })
    }
}

fn vocabulary(header: &Header) -> GgufVocab {
    let text = |key: &str| header.text(key).map(str::to_owned);
    let id = |key: &str| header.unsigned(key).and_then(|id| u32::try_from(id).ok());
    let texts = |key: &str| header.texts(key).unwrap_or_default().to_vec();
    let token_types = match header.metadata.get("tokenizer.ggml.token_type") {
        Some(Value::SignedList(types)) => types.iter().filter_map(|t| i32::try_from(*t).ok()).collect(),
        Some(Value::UnsignedList(types)) => types.iter().filter_map(|t| i32::try_from(*t).ok()).collect(),
        _ => Vec::new(),
    };
    GgufVocab {
        file: header.path.display().to_string(),
        model: text("tokenizer.ggml.model").unwrap_or_default(),
        pre: text("tokenizer.ggml.pre"),
        tokens: texts("tokenizer.ggml.tokens"),
        merges: texts("tokenizer.ggml.merges"),
        token_types,
        bos: id("tokenizer.ggml.bos_token_id"),
        eos: id("tokenizer.ggml.eos_token_id"),
        pad: id("tokenizer.ggml.padding_token_id"),
        unk: id("tokenizer.ggml.unknown_token_id"),
        add_bos: header.flag("tokenizer.ggml.add_bos_token"),
        chat_template: text("tokenizer.chat_template"),
    }
}
