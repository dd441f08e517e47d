//! Token embedding: rows gathered forward, added back by token.

use super::{Grads, Weight, host};
use crate::error::{Error, Kind, Result};
use candle_core::{DType, Device, Tensor};

/// Rows of the weight `[V, D]` for N ids → `[N, D]` in f32.
///
/// # Errors
/// An id is V or above: the data room checks ids, so this is a fault of the program.
pub fn forward(weight: &Weight, ids: &[u32]) -> Result<Tensor> {
    let rows = weight.value.dim(0)?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        return Err(Error::new(Kind::Bug, format!("token {id} in an embedding of {rows} rows")));
    }
    let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?;
    Ok(weight.value.index_select(&ids, 0)?.to_dtype(DType::F32)?)
}

/// dy `[N, D]` into the gradient of a trained weight, row after row.
pub fn backward(weight: &Weight, ids: &[u32], dy: &Tensor, grads: &mut Grads) -> Result<()> {
    let Some(id) = weight.param else {
        return Ok(());
    };
    let width = dy.dim(1)?;
    let sum = match grads.slot(id) {
        Some(sum) => sum,
        empty => empty.insert(host::zeros(weight.value.shape())?),
    };
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
