//! Qwen 3 (dense): norms on the heads of q and k, heads of 128 whatever D / H is, biases only where the config asks.
//! Defaults are those of transformers' `Qwen3Config`.

use super::Family;
use super::conventions::{Biases, Conventions};
use super::fields::Fields;
use super::qwen2;

pub(super) const QWEN3: Conventions = Conventions {
    family: Family::Qwen3,
    model_type: "qwen3",
    gguf: Some("qwen3"),
    head_dim: Some(128),
    max_position: 32_768,
    bos: &[],
    eos: &[],
    qk_norm: true,
    biases: |config| {
        let attention = config.flag("attention_bias")?.unwrap_or(false);
        Ok(Biases { qkv: attention, o: attention, mlp: false })
    },
    windows: qwen2::windows,
};
