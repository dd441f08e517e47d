//! Kinds of ops: by the rate that they run at, by what they are done for, by how the weights that they read are kept.

use crate::config::Optimizer;
use serde::{Deserialize, Serialize};

/// Ops that run at one kind of rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The blocks' linears, with the adapters on them.
    Linear,
    /// Scores and values.
    Attention,
    /// The output projection and the loss, counted tokens only.
    Head,
    /// Norms, rope, gate, residuals: bound by memory.
    Elementwise,
    /// Clipping and the update of `AdamW` in f32: bound by memory.
    Optimizer,
    /// The same with moments in 8 bits.
    Adamw8bit,
    /// Of Adafactor.
    Adafactor,
    /// Of Lion.
    Lion,
    /// Of gradient descent.
    Sgd,
}

/// What an op is done for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The output; of the head the loss alone.
    Forward,
    /// The gradient of the input, and of the adapter; of the head loss and gradient.
    Backward,
    /// The same, and the gradient of the weight itself.
    Trained,
}

/// How the frozen weights that an op reads are kept, or the activations that it reads in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, widened or multiplied as they are.
    Bf16,
    /// Blocks of few bits.
    Quantised,
}

impl Stored {
    /// How an op of a class keeps what it reads, beside such a base: what no weight is multiplied with is kept as products
    /// round it.
    #[must_use]
    pub fn beside(self, class: Class) -> Self {
        match (class, self) {
            (Class::Linear | Class::Head, _) => self,
            (_, Self::F32) => Self::F32,
            _ => Self::Bf16,
        }
    }
}

impl Class {
    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::Head => "head",
            Self::Elementwise => "elementwise",
            Self::Optimizer | Self::Adamw8bit | Self::Adafactor | Self::Lion | Self::Sgd => "optimizer",
        }
    }

    /// What people call its ops.
    pub fn words(self) -> &'static str {
        match self {
            Self::Linear => "linear products",
            Self::Attention => "attention",
            Self::Head => "head and loss",
            Self::Elementwise => "element-wise work",
            Self::Optimizer | Self::Adamw8bit | Self::Adafactor | Self::Lion | Self::Sgd => "the optimizer",
        }
    }

    /// An optimizer's updates.
    pub fn of(optimizer: Optimizer) -> Self {
        match optimizer {
            Optimizer::Adamw => Self::Optimizer,
            Optimizer::Adamw8bit => Self::Adamw8bit,
            Optimizer::Adafactor => Self::Adafactor,
            Optimizer::Lion => Self::Lion,
            Optimizer::Sgd => Self::Sgd,
        }
    }

    /// Whose updates these are; `None` of what is no update.
    pub fn optimizer(self) -> Option<Optimizer> {
        Some(match self {
            Self::Optimizer => Optimizer::Adamw,
            Self::Adamw8bit => Optimizer::Adamw8bit,
            Self::Adafactor => Optimizer::Adafactor,
            Self::Lion => Optimizer::Lion,
            Self::Sgd => Optimizer::Sgd,
            Self::Linear | Self::Attention | Self::Head | Self::Elementwise => return None,
        })
    }
}

impl Way {
    /// Products of the weight's size that it takes.
    pub(super) fn products(self) -> f64 {
        if self == Self::Trained { 2.0 } else { 1.0 }
    }

    /// Products of the adapter's size: x·Aᵀ and ·Bᵀ forward; dy·B, ·A, dA and dB backward.
    pub(super) fn adapter_products(self) -> f64 {
        if self == Self::Forward { 1.0 } else { 2.0 }
    }
}
