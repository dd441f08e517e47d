//! Token embedding: rows gathered forward, added back by token.

use super::device::Gpu;
use super::profile::{self, Site};
use super::{Grads, Matrix, Weight, gpu, host};
use crate::error::{Error, Kind, Result};
use candle_core::{DType, Tensor};

/// Rows of the weight `[V, D]` for N ids → `[N, D]` in f32.
///
/// # Errors
/// An id is V or above: the data room checks ids, so this is a fault of the program.
pub fn forward(weight: &Weight<Matrix>, ids: &[u32]) -> Result<Tensor> {
    let _span = profile::op(Site::Embedding);
    let (rows, _) = weight.value.shape()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        return Err(Error::new(Kind::Bug, format!("token {id} in an embedding of {rows} rows")));
    }
    weight.value.rows(ids)
}

/// dy `[N, D]` into the gradient of a trained weight, row after row.
pub fn backward(weight: &Weight<Matrix>, ids: &[u32], dy: &Tensor, grads: &mut Grads) -> Result<()> {
    let Some(id) = weight.param else {
        return Ok(());
    };
    let _span = profile::op(Site::Embedding);
    let width = dy.dim(1)?;
    let sum = match grads.slot(id) {
        Some(sum) => sum,
        empty => empty.insert(Tensor::zeros(weight.value.shape()?, DType::F32, dy.device())?),
    };
    if let Some(gpu) = Gpu::of(dy) {
        return gpu::embedding::scatter(&gpu, ids, dy, sum);
    }
    let dy = host::read(dy)?;
    host::edit(sum, |sum| {
        for (&id, row) in ids.iter().zip(dy.chunks_exact(width)) {
            let at = id as usize * width;
            for (s, x) in sum[at..at + width].iter_mut().zip(row) {
                *s += x;
            }
        }
    })
}
