//! Adafactor: the second moment of a matrix as the means of its rows and columns, of a vector whole; no first moment.

use super::{Rule, Step, with};
use crate::error::Result;
use crate::ops::host;
use candle_core::Tensor;
use fttrain_kernels::cpu::optimizer as kernels;

/// transformers' `decay_rate`: β₂ is `1 − t^−0.8` at update t.
const DECAY_RATE: f64 = -0.8;

pub(super) enum Adafactor {
    Matrix { rows: Tensor, columns: Tensor },
    Vector { v: Tensor },
}

impl Adafactor {
    pub(super) fn new(value: &Tensor) -> Result<Self> {
        Ok(match value.dims() {
            &[rows, columns] => Self::Matrix { rows: host::zeros(rows)?, columns: host::zeros(columns)? },
            _ => Self::Vector { v: host::zeros(value.shape())? },
        })
    }
}

impl Rule for Adafactor {
    fn update(&mut self, value: &Tensor, grad: &Tensor, step: &Step) -> Result<()> {
        let grad = host::read(grad)?;
        #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
        let new = f64::from(step.count).powf(DECAY_RATE) as f32;
        let how = kernels::Adafactor {
            lr: step.lr,
            new,
            weight_decay: step.weight_decay,
            grad_scale: step.grad_scale,
        };
        with(value, step, |value| match self {
            Self::Matrix { rows, columns } => host::edit(rows, |rows| {
                host::edit(columns, |columns| kernels::adafactor_matrix(value, rows, columns, &grad, &how))
            })?,
            Self::Vector { v } => host::edit(v, |v| kernels::adafactor(value, v, &grad, &how)),
        })
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Matrix { rows, columns } => vec![("rows", rows), ("columns", columns)],
            Self::Vector { v } => vec![("v", v)],
        }
    }
}
