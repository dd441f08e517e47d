//! One optimizer step's gradients: `Σ token losses / Σ counted tokens` over all its micro-batches, whatever they are.

use super::Error;
use crate::data::packing::Step;
use crate::error::Result;
use crate::model::decoder::{Memory, Training};
use crate::model::{Decoder, Params};
use crate::ops::Grads;
use crate::ops::dropout::Noise;

/// What the passes of one step left.
pub struct Accumulated {
    /// Of the mean over the step's counted tokens.
    pub grads: Grads,
    /// Σ token losses / Σ counted tokens; 0 where nothing is counted.
    pub loss: f64,
    /// Tensors that stood at the passes' peak.
    pub memory: Memory,
}

/// Runs the micro-batches of step `k` forward and backward.
///
/// # Errors
/// The loss is not finite (7).
pub fn accumulate(
    decoder: &Decoder,
    params: &Params,
    step: &Step,
    k: u64,
    seed: u64,
    recompute: bool,
) -> Result<Accumulated> {
    let counted: usize = step.batches.iter().map(|b| b.targets.len()).sum();
    let mut grads = params.no_grads();
    let mut memory = Memory::default();
    let mut sum = 0.0;
    for batch in &step.batches {
        #[allow(clippy::cast_possible_truncation)] // The scale is applied in f32.
        let how = Training {
            scale: (1.0 / counted.max(1) as f64) as f32,
            recompute,
            noise: Noise { seed, step: k, first_token: batch.first_token },
        };
        let pass = decoder.loss_and_backward(batch, how, &mut grads)?;
        sum += pass.sum;
        memory = memory.max(pass.memory);
    }
    let loss = sum / counted.max(1) as f64;
    if !loss.is_finite() {
        return Err(Error::Loss(loss).into());
    }
    Ok(Accumulated { grads, loss, memory })
}
