//! Llama 2 and 3, `SmolLM` and their kin, and Mistral, which differs only in its sliding window. Defaults are those
//! of transformers' `LlamaConfig` and `MistralConfig`.

use super::conventions::{Biases, Conventions, Windows};
use super::fields::{Fields, Json};
use super::{Error, Family, bounds};

pub(super) const LLAMA: Conventions = Conventions {
    family: Family::Llama,
    model_type: "llama",
    gguf: Some("llama"),
    head_dim: None,
    max_position: 2048,
    bos: &[1],
    eos: &[2],
    qk_norm: false,
    biases,
    windows: |_, layers| Ok(vec![None; layers]),
};

pub(super) const MISTRAL: Conventions = Conventions {
    model_type: "mistral",
    // Mistral's GGUF files call themselves llama.
    gguf: None,
    max_position: 131_072,
    biases: |_| Ok(Biases { qkv: false, o: false, mlp: false }),
    windows: mistral_windows,
    ..LLAMA
};

/// In Llama `attention_bias` covers the output projection too.
fn biases(config: &Json) -> Result<Biases, Error> {
    let attention = config.flag("attention_bias")?.unwrap_or(false);
    Ok(Biases { qkv: attention, o: attention, mlp: config.flag("mlp_bias")?.unwrap_or(false) })
}

/// Absent means 4096, null means none, as in `MistralConfig`.
fn mistral_windows(config: &Json, layers: usize) -> Result<Windows, Error> {
    let window = if config.map.contains_key("sliding_window") {
        config.whole("sliding_window", bounds::POSITIONS)?
    } else {
        Some(4096)
    };
    Ok(vec![window; layers])
}
