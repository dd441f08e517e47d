//! Small values for this room's tests: a config, shapes, and a byte-level tokenizer with `ChatML`'s special tokens.

use super::template::CHATML;
use super::tokenizer::{GgufVocab, Tokenizer};
use crate::arch::{Arch, Family};
use crate::config::{Data, ExcessLength, Format, OnBadRow, Source, TrainOnEos, ValSet};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

pub(super) const VOCAB: usize = 300;

pub(super) fn arch() -> Arch {
    Arch {
        family: Family::Llama,
        vocab_size: VOCAB,
        hidden_size: 8,
        intermediate_size: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_position: 64,
        ropes: Vec::new(),
        layers: Vec::new(),
        init_std: 0.02,
        bos_ids: Vec::new(),
        eos_ids: Vec::new(),
    }
}

/// Every byte, a few merges, and three special tokens.
pub(super) fn vocab() -> GgufVocab {
    let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    letters.sort_unstable();
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec();
    tokens.extend(letters.iter().map(char::to_string));
    let merges = ["t h", "th e", "Ġ the", "a n", "an d", "Ġ and"].map(str::to_owned).to_vec();
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let token_types = (0..tokens.len()).map(|i| if i < 3 { 3 } else { 1 }).collect();
    GgufVocab {
        file: "tiny.gguf".into(),
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        merges,
        token_types,
        bos: Some(1),
        eos: Some(2),
        chat_template: Some(CHATML.into()),
        ..GgufVocab::default()
    }
}

pub(super) fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(&vocab(), &arch(), None).unwrap()
}

pub(super) fn with_template(template: &str) -> Tokenizer {
    Tokenizer::from_gguf(&vocab(), &arch(), Some(template)).unwrap()
}

pub(super) fn source(path: &str, format: Format) -> Source {
    Source {
        path: path.into(),
        format,
        split: None,
        field_messages: if format == Format::Sharegpt { "conversations" } else { "messages" }.into(),
        field_prompt: None,
        field_completion: None,
        field_text: "text".into(),
        field_system: None,
    }
}

pub(super) fn data(datasets: Vec<Source>) -> Data {
    Data {
        datasets,
        test_datasets: Vec::new(),
        retention_datasets: Vec::new(),
        retention_share: 0.0,
        val_set: ValSet::None,
        sequence_len: 256,
        excess_length: ExcessLength::Drop,
        sample_packing: true,
        train_on_inputs: false,
        roles_to_train: vec!["assistant".into()],
        train_on_eos: TrainOnEos::Turn,
        chat_template: None,
        shuffle: true,
        on_bad_row: OnBadRow::Fail,
        max_line_bytes: 32 << 20,
    }
}
