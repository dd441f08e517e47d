//! How a model's weights are kept in memory and multiplied: a frozen base, or one that is trained whole.

use super::weights::Kept;
use crate::ops::matmul::Precision;
use candle_core::DType;

/// How weights are kept that are no adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    /// All in one type: f32 or bf16.
    Dense(DType),
    /// All in one type, trained, and multiplied in either: f32, or bf16 that updates round at random.
    Trained {
        /// What they are kept in.
        dtype: DType,
        /// What their products are rounded to.
        precision: Precision,
    },
    /// The blocks' linears in NF4.
    Nf4 {
        /// Their scales in 8 bits.
        double_quant: bool,
        /// Embedding, head, norms and biases.
        others: DType,
    },
    /// Matrices as the file has them, norms and biases in f32.
    AsStored {
        /// What products with them are rounded to.
        precision: Precision,
    },
}

impl Frozen {
    /// The linears of the blocks.
    pub fn linears(self) -> Kept {
        match self {
            Self::Dense(dtype) | Self::Trained { dtype, .. } => Kept::Dense(dtype),
            Self::Nf4 { double_quant, .. } => Kept::Nf4 { double_quant },
            Self::AsStored { .. } => Kept::AsStored,
        }
    }

    /// Embedding and head.
    pub fn tables(self) -> Kept {
        match self {
            Self::Dense(dtype) | Self::Trained { dtype, .. } | Self::Nf4 { others: dtype, .. } => {
                Kept::Dense(dtype)
            }
            Self::AsStored { .. } => Kept::AsStored,
        }
    }

    /// Norms and biases.
    pub fn vectors(self) -> DType {
        match self {
            Self::Dense(dtype) | Self::Trained { dtype, .. } | Self::Nf4 { others: dtype, .. } => dtype,
            Self::AsStored { .. } => DType::F32,
        }
    }

    /// What its products are rounded to: a base that is kept in bf16 is also multiplied in it.
    pub fn precision(self) -> Precision {
        match self {
            Self::Dense(DType::BF16) | Self::Nf4 { others: DType::BF16, .. } => Precision::Bf16,
            Self::AsStored { precision } | Self::Trained { precision, .. } => precision,
            _ => Precision::F32,
        }
    }

    /// The name in checkpoints and reports: a run that goes on with another is not the same run.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense(DType::BF16) | Self::Trained { dtype: DType::BF16, precision: Precision::Bf16 } => {
                "bf16"
            }
            Self::Trained { dtype: DType::BF16, .. } => "bf16, products in f32",
            Self::Trained { precision: Precision::Bf16, .. } => "f32, products in bf16",
            Self::Dense(_) | Self::Trained { .. } => "f32",
            Self::Nf4 { double_quant: true, others: DType::BF16 } => "nf4, double quantisation, bf16",
            Self::Nf4 { double_quant: true, .. } => "nf4, double quantisation, f32",
            Self::Nf4 { double_quant: false, others: DType::BF16 } => "nf4, bf16",
            Self::Nf4 { double_quant: false, .. } => "nf4, f32",
            Self::AsStored { precision: Precision::Bf16 } => "the file's own types, bf16",
            Self::AsStored { .. } => "the file's own types",
        }
    }
}
