//! The last projection and the cross-entropy as one op, in chunks over the counted tokens: logits are never whole.
//! The gradient of the hidden state is made in the forward pass, or, where the loss has first to be made of the tokens'
//! log-probabilities, from logits that are made once more.

use super::device::Gpu;
use super::gpu::{self, head::Losses, product};
use super::matmul::{self, Precision};
use super::profile::{self, Site};
use super::{Grads, Matrix, Weight, host};
use crate::error::{Error, Kind, Result};
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::cross_entropy_rows;
use std::ops::Range;

/// Values of a chunk of logits: 32 MiB of f32.
const CHUNK: usize = 1 << 23;

/// What the model makes of one counted token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// log p(token), nats: minus its loss.
    pub log_probability: f32,
    /// No other token was likelier.
    pub is_likeliest: bool,
}

/// Σ of token losses, in f64; a GPU's is read when it is asked for, so that a pass waits for nothing.
#[derive(Debug, Clone)]
pub struct LossSum(Sum);

#[derive(Debug, Clone)]
enum Sum {
    Known(f64),
    OnGpu(Losses),
}

impl LossSum {
    /// Of no tokens.
    pub const ZERO: Self = Self(Sum::Known(0.0));

    /// The sum; waits for the GPU that makes it.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn value(&self) -> Result<f64> {
        match &self.0 {
            Sum::Known(sum) => Ok(*sum),
            Sum::OnGpu(losses) => losses.sum(),
        }
    }
}

/// Rows of logits that stand at once for a vocabulary of `v`.
pub fn chunk_rows(v: usize) -> usize {
    (CHUNK / v.max(1)).clamp(32, 1024)
}

/// The projection to the vocabulary.
#[derive(Debug, Clone)]
pub struct Head {
    /// `[V, D]`; the embedding's own where tied.
    pub weight: Weight<Matrix>,
    /// What its products are rounded to.
    pub precision: Precision,
}

impl Head {
    /// hidden `[N, D]` → logits `[N, V]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match Gpu::of(hidden) {
            Some(gpu) => matmul::nt(hidden, &self.on(&gpu)?),
            None => matmul::nt_in(hidden, &self.weight.value, self.precision),
        }
    }

    /// hidden `[C, D]` of the counted tokens → Σ of the token losses, in f64.
    pub fn loss(&self, hidden: &Tensor, targets: &[u32]) -> Result<f64> {
        let _span = profile::op(Site::Head);
        if let Some(gpu) = Gpu::of(hidden) {
            return self.on_gpu(&gpu, hidden, targets, None, &mut Grads::new(0))?.0.sum();
        }
        let mut sum = 0.0;
        for rows in self.chunks(targets)? {
            let logits = self.logits(&of(hidden, &rows)?)?;
            sum += total(&losses(&logits, &targets[rows], None)?);
        }
        Ok(sum)
    }

    /// Σ of the token losses and the gradient of `scale·Σ` with respect to hidden `[C, D]`; a trained weight's too.
    pub fn loss_and_backward(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        scale: f32,
        grads: &mut Grads,
    ) -> Result<(LossSum, Tensor)> {
        self.backward(hidden, targets, &vec![scale; targets.len()], grads)
    }

    /// Each token's log-probability, and whether it was the likeliest.
    pub fn log_probabilities(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<Scored>> {
        let _span = profile::op(Site::Head);
        let mut scored = Vec::with_capacity(targets.len());
        for rows in self.chunks(targets)? {
            let (logits, targets) = (self.logits(&of(hidden, &rows)?)?, &targets[rows]);
            let likeliest = likeliest(&logits, targets)?;
            let losses = losses(&logits, targets, None)?;
            let both = losses.into_iter().zip(likeliest);
            scored.extend(both.map(|(loss, is_likeliest)| Scored { log_probability: -loss, is_likeliest }));
        }
        Ok(scored)
    }

    /// The backward of [`Self::log_probabilities`]: `d` `[C]`, the gradient of any loss of them → that of hidden `[C, D]`;
    /// a trained weight's too.
    pub fn log_probabilities_backward(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        d: &[f32],
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let scales: Vec<f32> = d.iter().map(|d| -d).collect();
        Ok(self.backward(hidden, targets, &scales, grads)?.1)
    }

    /// Σ of the token losses, and gradients of `Σ scale·loss`, `scales` `[C]`.
    fn backward(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        scales: &[f32],
        grads: &mut Grads,
    ) -> Result<(LossSum, Tensor)> {
        let _span = profile::op(Site::Head);
        if scales.len() != targets.len() {
            let fact = format!("{} gradients of {} tokens", scales.len(), targets.len());
            return Err(Error::new(Kind::Bug, fact));
        }
        if let Some(gpu) = Gpu::of(hidden) {
            let (losses, d_hidden) = self.on_gpu(&gpu, hidden, targets, Some(scales), grads)?;
            return Ok((LossSum(Sum::OnGpu(losses)), d_hidden));
        }
        let mut sum = 0.0;
        let mut parts = Vec::new();
        for rows in self.chunks(targets)? {
            let inputs = of(hidden, &rows)?;
            let slopes = self.logits(&inputs)?;
            sum += total(&losses(&slopes, &targets[rows.clone()], Some(&scales[rows]))?);
            parts.push(matmul::nn_in(&slopes, &self.weight.value, self.precision)?);
            if let Some(id) = self.weight.param {
                matmul::tn(grads.slot(id), &slopes, &inputs, 1.0, self.precision)?;
            }
        }
        let d_hidden = match parts.len() {
            0 => host::zeros(hidden.shape())?,
            1 => parts.remove(0),
            _ => Tensor::cat(&parts, 0)?,
        };
        Ok((LossSum(Sum::Known(sum)), d_hidden))
    }

    /// The weight on a GPU, in what its products are rounded to.
    fn on(&self, gpu: &Gpu) -> Result<Tensor> {
        product::weight(gpu, &self.weight.value, self.precision)
    }

    /// The rows of each chunk.
    fn chunks(&self, targets: &[u32]) -> Result<impl Iterator<Item = Range<usize>> + use<>> {
        let (rows, count) = (chunk_rows(self.weight.value.shape()?.0), targets.len());
        // As many chunks as it takes, all of nearly one size: the weight is read once for each, however few its rows.
        let even = count.div_ceil(count.div_ceil(rows).max(1)).max(1);
        Ok((0..count).step_by(even).map(move |first| first..count.min(first + even)))
    }

    /// Losses and gradients on a GPU; without scales the gradient is 0.
    fn on_gpu(
        &self,
        gpu: &Gpu,
        hidden: &Tensor,
        targets: &[u32],
        scales: Option<&[f32]>,
        grads: &mut Grads,
    ) -> Result<(Losses, Tensor)> {
        let losses = Losses::new(gpu)?;
        let w = &self.on(gpu)?;
        let d_hidden = Tensor::zeros(hidden.shape(), DType::F32, hidden.device())?;
        for rows in self.chunks(targets)? {
            let inputs = gpu::values::as_dtype(gpu, &of(hidden, &rows)?, w.dtype())?;
            let logits = product::fresh(gpu, (&inputs, false), (w, true), 1.0)?;
            let Some(scales) = scales else {
                losses.add(&logits, &targets[rows])?;
                continue;
            };
            let (targets, scales) = (&targets[rows.clone()], &scales[rows.clone()]);
            let slopes = losses.add_with_slopes(&logits, targets, scales, w.dtype())?;
            drop(logits);
            product::multiply(gpu, (&slopes, false), (w, false), &of(&d_hidden, &rows)?, 1.0, false)?;
            if let Some(id) = self.weight.param {
                product::gradient(gpu, grads.slot(id), &slopes, &inputs, 1.0)?;
            }
        }
        Ok((losses, d_hidden))
    }
}

fn of(x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?)
}

/// The loss of each row of logits, which is used up; it becomes its gradient where there are scales.
fn losses(logits: &Tensor, targets: &[u32], scales: Option<&[f32]>) -> Result<Vec<f32>> {
    let vocabulary = logits.dim(1)?;
    host::edit(logits, |logits| cross_entropy_rows(logits, vocabulary, targets, scales))
}

fn total(losses: &[f32]) -> f64 {
    losses.iter().copied().map(f64::from).sum()
}

/// Whether no other logit of a row is above that of its target.
fn likeliest(logits: &Tensor, targets: &[u32]) -> Result<Vec<bool>> {
    let vocabulary = logits.dim(1)?;
    let values = host::read(logits)?;
    let is_top = |(row, &target): (&[f32], &u32)| {
        let own = row.get(target as usize).copied().unwrap_or(f32::NEG_INFINITY);
        row.iter().all(|&logit| logit <= own)
    };
    Ok(values.chunks_exact(vocabulary).zip(targets).map(is_top).collect())
}
