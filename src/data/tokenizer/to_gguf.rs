//! A tokenizer.json as a GGUF file's vocabulary: byte-level BPE whose way of cutting words llama.cpp knows by a name.

use super::gguf::{CONTROL, NORMAL, UNUSED, USER_DEFINED, WORDS};
use super::{GgufVocab, Tokenizer};
use crate::arch::gguf::Value as Meta;
use crate::data::error::Error;
use serde_json::Value;

impl Tokenizer {
    /// The vocabulary as a GGUF file keeps it, with one token for each of the embedding's rows.
    ///
    /// # Errors
    /// Not byte-level BPE, or words are cut in a way that has no name there (4).
    pub fn to_gguf(&self) -> Result<GgufVocab, Error> {
        let file = |name: &str| self.files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice());
        let json = |name: &str| file(name).and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
        let (tokenizer, config) =
            (json("tokenizer.json").unwrap_or_default(), json("tokenizer_config.json").unwrap_or_default());
        let refuse = |fact: String| Error::Tokenizer {
            place: "tokenizer.json".into(),
            fact,
            hint: "merge into a Hugging Face folder instead (`fttrain merge`), or convert that with llama.cpp",
        };
        if tokenizer["model"]["type"] != "BPE" || tokenizer["model"]["byte_fallback"] == true {
            return Err(refuse("only byte-level BPE is written into a GGUF file".into()));
        }
        let pre = cutting(&tokenizer).ok_or_else(|| {
            refuse("its way of cutting words has no name in GGUF that is known here".into())
        })?;
        let (tokens, token_types) = self.tokens(&tokenizer);
        let id = |key: &str| super::open::name_of(config.get(key)).and_then(|name| self.id_of(&name));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(GgufVocab {
            file: "tokenizer.json".into(),
            model: "gpt2".into(),
            pre: Some(pre.into()),
            tokens,
            merges: merges(&tokenizer),
            token_types,
            bos: id("bos_token").or_else(|| self.prefix.first().copied()),
            eos: self.eos,
            pad: id("pad_token"),
            unk: id("unk_token"),
            add_bos: Some(!self.prefix.is_empty()),
            chat_template: file("chat_template.jinja")
                .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
                .or_else(|| text(&config["chat_template"])),
        })
    }

    fn id_of(&self, name: &str) -> Option<u32> {
        self.added.id(name).or_else(|| self.inner.token_to_id(name))
    }

    /// Names and types by id; rows that no token has get a name of their own.
    fn tokens(&self, tokenizer: &Value) -> (Vec<String>, Vec<i32>) {
        let mut tokens: Vec<String> = (0..self.vocab_size).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; self.vocab_size];
        let mut put = |name: &str, id: Option<u64>, kind: i32| {
            let id = id.and_then(|id| usize::try_from(id).ok());
            if let Some((token, its)) = id.and_then(|id| Some((tokens.get_mut(id)?, types.get_mut(id)?))) {
                (*token, *its) = (name.to_owned(), kind);
            }
        };
        for (name, id) in tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
            put(name, id.as_u64(), NORMAL);
        }
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            put(token["content"].as_str().unwrap_or_default(), token["id"].as_u64(), kind);
        }
        (tokens, types)
    }
}

impl GgufVocab {
    /// The keys of a GGUF file.
    pub fn metadata(&self) -> Vec<(&'static str, Meta)> {
        let mut all = vec![("tokenizer.ggml.model", Meta::Text(self.model.clone()))];
        let mut put = |key, value: Option<Meta>| all.extend(value.map(|value| (key, value)));
        let id = |id: Option<u32>| id.map(|id| Meta::Unsigned(id.into()));
        put("tokenizer.ggml.pre", self.pre.clone().map(Meta::Text));
        put("tokenizer.ggml.tokens", Some(Meta::Texts(self.tokens.clone())));
        let types = self.token_types.iter().map(|&t| t.into()).collect();
        put("tokenizer.ggml.token_type", Some(Meta::SignedList(types)));
        put("tokenizer.ggml.merges", Some(Meta::Texts(self.merges.clone())));
        put("tokenizer.ggml.bos_token_id", id(self.bos));
        put("tokenizer.ggml.eos_token_id", id(self.eos));
        put("tokenizer.ggml.padding_token_id", id(self.pad));
        put("tokenizer.ggml.unknown_token_id", id(self.unk));
        put("tokenizer.ggml.add_bos_token", self.add_bos.map(Meta::Flag));
        put("tokenizer.chat_template", self.chat_template.clone().map(Meta::Text));
        all
    }
}

/// Merges as pairs or, in older files, as one text with a space.
fn merges(tokenizer: &Value) -> Vec<String> {
    let merge = |merge: &Value| match merge {
        Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        text => text.as_str().map(str::to_owned),
    };
    tokenizer["model"]["merges"].as_array().into_iter().flatten().filter_map(merge).collect()
}

/// llama.cpp's name for how words are cut. Digits on their own are what it calls `smollm`.
fn cutting(tokenizer: &Value) -> Option<&'static str> {
    let whole = &tokenizer["pre_tokenizer"];
    let steps: Vec<&Value> = match whole["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![whole],
    };
    let bytes = |step: &Value, words: bool| {
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] != true
            && step["use_regex"].as_bool().unwrap_or(true) == words
    };
    let words = |numbers: &str| format!("{}{numbers}{}", WORDS.0, WORDS.2);
    let normalizer = tokenizer["normalizer"]["type"].as_str();
    match (steps.as_slice(), normalizer) {
        ([only], None) if bytes(only, true) => Some("gpt-2"),
        ([digits, last], None)
            if digits["type"] == "Digits" && digits["individual_digits"] == true && bytes(last, true) =>
        {
            Some("smollm")
        }
        ([split, last], _) if split["type"] == "Split" && bytes(last, false) => {
            let pattern = split["pattern"]["Regex"].as_str()?;
            match normalizer {
                None if pattern == words(WORDS.1) => Some("llama-bpe"),
                Some("NFC") if pattern == words(r"\p{N}") => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{arch, vocab};

    #[test]
    fn a_vocabulary_comes_back_through_a_tokenizer() {
        for pre in ["gpt-2", "llama-bpe", "qwen2"] {
            let first = GgufVocab { pre: Some(pre.into()), add_bos: Some(true), ..vocab() };
            let tokenizer = Tokenizer::from_gguf(&first, &arch(), None).unwrap();
            let again = tokenizer.to_gguf().unwrap();
            assert_eq!(again.pre.as_deref(), Some(pre));
            assert_eq!(again.tokens[..first.tokens.len()], first.tokens);
            assert_eq!(again.tokens.len(), arch().vocab_size);
            assert_eq!(again.merges, first.merges);
            assert_eq!((again.bos, again.eos, again.add_bos), (first.bos, first.eos, Some(true)));
            let text = "It's the 1234 and\n\n  more é<|im_end|>";
            let reopened = Tokenizer::from_gguf(&again, &arch(), None).unwrap();
            assert_eq!(reopened.encode_rendered(text), tokenizer.encode_rendered(text), "{pre}");
            assert_eq!(reopened.prefix(), tokenizer.prefix());
        }
    }

    #[test]
    fn single_digits_are_cut_as_smollm_cuts_them() {
        let first = GgufVocab { pre: Some("starcoder".into()), ..vocab() };
        let tokenizer = Tokenizer::from_gguf(&first, &arch(), None).unwrap();
        assert_eq!(tokenizer.to_gguf().unwrap().pre.as_deref(), Some("smollm"));
    }

    #[test]
    fn the_keys_are_those_that_the_reader_asks_for() {
        let keys: Vec<&str> = vocab().metadata().into_iter().map(|(key, _)| key).collect();
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id"] {
            assert!(keys.contains(&key), "{keys:?}");
        }
    }
}
