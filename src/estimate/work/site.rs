//! Where in the model an op stands, and on which way through it: what a profile tells apart.

use super::Class;
use crate::arch::Proj;
use serde::Serialize;

/// Where in the model an op stands: what a profile tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// Rows of the embedding, gathered or added back.
    Embedding,
    /// `RMSNorm`s.
    Norm,
    /// The projections into attention, adapters included.
    Qkv,
    /// Rotary positions.
    Rope,
    /// Scores and values.
    Attention,
    /// The projection out of attention, adapter included.
    Output,
    /// The projections into the MLP, adapters included.
    GateUp,
    /// The gated activation.
    Gate,
    /// The projection out of the MLP, adapter included.
    Down,
    /// Residual sums.
    Residual,
    /// The last projection with the loss and the hidden gradient.
    Head,
    /// The gradient norm and the optimizer.
    Update,
}

impl Site {
    /// The name in tables and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::Qkv => "q k v",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::Output => "o",
            Self::GateUp => "gate up",
            Self::Gate => "activation",
            Self::Down => "down",
            Self::Residual => "residual",
            Self::Head => "head and loss",
            Self::Update => "update",
        }
    }

    /// The class of its ops.
    pub fn class(self) -> Class {
        match self {
            Self::Qkv | Self::Output | Self::GateUp | Self::Down => Class::Linear,
            Self::Attention => Class::Attention,
            Self::Head => Class::Head,
            Self::Embedding | Self::Norm | Self::Rope | Self::Gate | Self::Residual => Class::Elementwise,
            Self::Update => Class::Optimizer,
        }
    }

    pub(super) fn of(proj: Proj) -> Self {
        match proj {
            Proj::Q | Proj::K | Proj::V => Self::Qkv,
            Proj::O => Self::Output,
            Proj::Gate | Proj::Up => Self::GateUp,
            Proj::Down => Self::Down,
        }
    }
}

/// Which way through the model an op runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// The loss; the head makes its gradient on the way.
    Forward,
    /// A block once more, for what it did not keep.
    Recompute,
    /// Gradients.
    Backward,
    /// New weights.
    Update,
}

impl Pass {
    /// The name in tables and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Recompute => "recompute",
            Self::Backward => "backward",
            Self::Update => "update",
        }
    }
}
