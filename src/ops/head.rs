//! The last projection and the cross-entropy as one op, in chunks over the counted tokens: logits are never whole,
//! and the gradient of the hidden state is made in the forward pass.

use super::matmul::{self, Precision};
use super::profile::{self, Site};
use super::{Grads, Matrix, Weight, host};
use crate::error::Result;
use candle_core::Tensor;
use fttrain_kernels::cpu::cross_entropy_rows;

/// Values of a chunk of logits: 32 MiB of f32.
const CHUNK: usize = 1 << 23;

/// Rows of logits that stand at once for a vocabulary of `v`.
pub fn chunk_rows(v: usize) -> usize {
    (CHUNK / v.max(1)).clamp(32, 1024)
}

/// hidden `[C, D]` of the counted tokens, weight `[V, D]` → Σ of the token losses, in f64.
pub fn loss(hidden: &Tensor, weight: &Weight<Matrix>, targets: &[u32]) -> Result<f64> {
    let _span = profile::op(Site::Head);
    let mut sum = 0.0;
    for (rows, targets) in chunks(hidden, weight, targets)? {
        let logits = matmul::nt(&rows, &weight.value)?;
        sum += sum_losses(&logits, weight, targets, None)?;
    }
    Ok(sum)
}

/// Σ of the token losses and the gradient of `scale·Σ` with respect to hidden `[C, D]`; a trained weight's too.
pub fn loss_and_backward(
    hidden: &Tensor,
    weight: &Weight<Matrix>,
    targets: &[u32],
    scale: f32,
    grads: &mut Grads,
) -> Result<(f64, Tensor)> {
    let _span = profile::op(Site::Head);
    let mut sum = 0.0;
    let mut parts = Vec::new();
    for (rows, targets) in chunks(hidden, weight, targets)? {
        let logits = matmul::nt(&rows, &weight.value)?;
        sum += sum_losses(&logits, weight, targets, Some(scale))?;
        parts.push(matmul::nn(&logits, &weight.value)?);
        if let Some(id) = weight.param {
            matmul::tn(grads.slot(id), &logits, &rows, 1.0, Precision::F32)?;
        }
    }
    let d_hidden = match parts.len() {
        0 => host::zeros(hidden.shape())?,
        1 => parts.remove(0),
        _ => Tensor::cat(&parts, 0)?,
    };
    Ok((sum, d_hidden))
}

/// The loss of each token, and whether it was the likeliest.
pub fn score(hidden: &Tensor, weight: &Weight<Matrix>, targets: &[u32]) -> Result<Vec<(f32, bool)>> {
    let vocabulary = weight.value.shape()?.0;
    let mut scores = Vec::with_capacity(targets.len());
    for (rows, targets) in chunks(hidden, weight, targets)? {
        let logits = matmul::nt(&rows, &weight.value)?;
        let right = |(row, &target): (&[f32], &u32)| {
            let own = row.get(target as usize).copied().unwrap_or(f32::NEG_INFINITY);
            row.iter().all(|&logit| logit <= own)
        };
        let right: Vec<bool> =
            host::read(&logits)?.chunks_exact(vocabulary).zip(targets).map(right).collect();
        let losses = host::edit(&logits, |logits| cross_entropy_rows(logits, vocabulary, targets, None))?;
        scores.extend(losses.into_iter().zip(right));
    }
    Ok(scores)
}

fn chunks<'a>(
    hidden: &Tensor,
    weight: &Weight<Matrix>,
    targets: &'a [u32],
) -> Result<Vec<(Tensor, &'a [u32])>> {
    let rows = chunk_rows(weight.value.shape()?.0);
    targets
        .chunks(rows)
        .enumerate()
        .map(|(i, targets)| Ok((hidden.narrow(0, i * rows, targets.len())?, targets)))
        .collect()
}

fn sum_losses(logits: &Tensor, weight: &Weight<Matrix>, targets: &[u32], scale: Option<f32>) -> Result<f64> {
    let vocabulary = weight.value.shape()?.0;
    let losses = host::edit(logits, |logits| cross_entropy_rows(logits, vocabulary, targets, scale))?;
    Ok(losses.into_iter().map(f64::from).sum())
}
