//! The names under which memory is predicted, tagged and compared.

use serde::{Deserialize, Serialize};

/// The parts that memory is accounted under, predicted and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Frozen weights of the base.
    BaseWeights,
    /// Trainable tensors; in full fine-tuning all weights.
    Adapter,
    /// Their gradients.
    Gradients,
    /// `AdamW`'s two moments.
    Moments,
    /// What the forward pass saves for the backward pass.
    Activations,
    /// The largest transient buffers.
    Workspace,
    /// One chunk of logits.
    Logits,
    /// Tokenised samples and the tokenizer.
    Data,
    /// Code, allocator, thread stacks: resident before anything is loaded.
    Runtime,
}

impl Part {
    /// All, in the order of tables.
    pub const ALL: [Self; 9] = [
        Self::BaseWeights,
        Self::Adapter,
        Self::Gradients,
        Self::Moments,
        Self::Activations,
        Self::Workspace,
        Self::Logits,
        Self::Data,
        Self::Runtime,
    ];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::BaseWeights => "base weights",
            Self::Adapter => "adapter",
            Self::Gradients => "gradients",
            Self::Moments => "moments",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
            Self::Logits => "logits",
            Self::Data => "data",
            Self::Runtime => "runtime",
        }
    }
}

/// One part of the predicted peak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// As [`Part::name`].
    pub name: String,
    /// Predicted bytes at the peak.
    #[serde(rename = "predicted_bytes")]
    pub bytes: u64,
}

/// Names and bytes for tables.
pub(crate) fn named(parts: [u64; 9]) -> Vec<MemoryPart> {
    Part::ALL
        .into_iter()
        .zip(parts)
        .map(|(part, bytes)| MemoryPart { name: part.name().into(), bytes })
        .collect()
}
