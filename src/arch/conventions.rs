//! What a family's files leave unsaid: defaults of absent keys, where biases and windows are, and its name in GGUF.
//! One constant a family; [`ALL`] is the only list of them.

use super::fields::Json;
use super::{Error, Family, llama, qwen2, qwen3};

/// Biases that a `config.json` asks for.
pub(super) struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
}

/// The sliding window of each layer in tokens; `None` = full attention.
pub(super) type Windows = Vec<Option<usize>>;

/// One family's conventions.
pub(super) struct Conventions {
    pub family: Family,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `general.architecture` in GGUF, where the family has its own.
    pub gguf: Option<&'static str>,
    /// `head_dim` where absent; `None` = D / H.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings` where absent.
    pub max_position: usize,
    /// `bos_token_id` where absent.
    pub bos: &'static [u32],
    /// `eos_token_id` where absent.
    pub eos: &'static [u32],
    /// Heads of q and k are normed.
    pub qk_norm: bool,
    /// Which linears have a bias.
    pub biases: fn(&Json) -> Result<Biases, Error>,
    /// The sliding window of each layer.
    pub windows: fn(&Json, usize) -> Result<Windows, Error>,
}

/// Every family that is supported.
pub(super) const ALL: [&Conventions; 4] = [&llama::LLAMA, &llama::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3];

/// The names of all, for messages.
pub(super) fn supported(name: impl Fn(&Conventions) -> Option<&'static str>) -> String {
    ALL.into_iter().filter_map(name).collect::<Vec<_>>().join(", ")
}
