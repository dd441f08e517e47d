//! One optimizer step's gradients: `Σ token losses / Σ counted tokens` over all its micro-batches, whatever they are and
//! whichever process takes them.

use super::Error;
use super::anchor::Anchor;
use super::exchange::Exchange;
use super::optimizer::Optimizer;
use crate::data::Batch;
use crate::data::packing::Step;
use crate::error::Result;
use crate::model::decoder::{Memory, Training};
use crate::model::{Decoder, Params};
use crate::ops::dropout::Noise;
use crate::ops::head::LossSum;
use crate::ops::{Grads, profile};
use crate::ranks::Ranks;

/// What the passes of one step left.
pub struct Accumulated {
    /// Of the mean over the step's counted tokens.
    pub grads: Grads,
    /// Σ token losses / Σ counted tokens; 0 where nothing is counted.
    pub loss: f64,
    /// Tensors that stood at the passes' peak.
    pub memory: Memory,
}

/// What a step left when its update was done.
pub struct Descended {
    /// Σ token losses / Σ counted tokens; 0 where nothing is counted.
    pub loss: f64,
    /// The norm of all gradients together, pulls included.
    pub norm: f64,
    /// What regularisers add to the loss; `None` without one.
    pub penalty: Option<f64>,
    /// Tensors that stood at the pass's peak.
    pub memory: Memory,
}

impl Accumulated {
    /// Adds the pulls of `anchor`, judges the gradients, then updates every tensor at the rate `lr`.
    ///
    /// # Errors
    /// A gradient is not finite (7), and no tensor was updated.
    pub fn apply(
        self,
        params: &Params,
        optimizer: &mut Optimizer,
        anchor: Option<&Anchor>,
        lr: f64,
    ) -> Result<Descended> {
        let _span = profile::update();
        let penalty = anchor.map(|anchor| self.pull(params, anchor)).transpose()?;
        let norm = optimizer.norm(&self.grads)?;
        optimizer.apply(params, &self.grads, norm, lr)?;
        Ok(Descended { loss: self.loss, norm, penalty, memory: self.memory })
    }

    fn pull(&self, params: &Params, anchor: &Anchor) -> Result<f64> {
        let mut penalty = 0.0;
        for (id, param) in params.sorted() {
            if let Some(grad) = self.grads.get(id) {
                penalty += anchor.pull(id, &param.value, grad)?;
            }
        }
        Ok(penalty)
    }
}

/// How a step's tensors are updated while its backward pass runs.
#[derive(Debug, Clone, Copy)]
pub struct Descent {
    /// The step, from 0.
    pub k: u64,
    /// Of dropout.
    pub seed: u64,
    /// Blocks keep their input alone.
    pub recompute: bool,
    /// Learning rate.
    pub lr: f64,
}

/// Runs the one micro-batch of a step, or each process's own, forward and backward, and updates tensors as soon as
/// their gradients are whole: those of the head, then those of one block after the other.
///
/// # Errors
/// The loss is not finite (7), and no tensor was updated; or a gradient is not (7), and the blocks before its own were.
pub fn descend(
    decoder: &Decoder,
    params: &Params,
    optimizer: &mut Optimizer,
    anchor: Option<&Anchor>,
    step: &Step,
    how: Descent,
    ranks: &Ranks,
) -> Result<Descended> {
    let counted: usize = step.batches.iter().map(|b| b.targets.len()).sum();
    let mut grads = params.no_grads();
    let mut squares = 0.0;
    let mut sum = None;
    let mut penalty = anchor.map(|_| 0.0);
    let mut memory = Memory::default();
    let mut exchange = Exchange::new(ranks, decoder, params);
    optimizer.begin();
    let mut settle = |own: &LossSum, grads: &mut Grads, open| {
        let sum = match sum {
            Some(sum) => sum,
            None => *sum.insert(ranks.sum(own.value()?)),
        };
        if !sum.is_finite() {
            return Err(Error::Loss(sum / counted.max(1) as f64).into());
        }
        let _span = profile::update();
        let whole = if ranks.is_alone() {
            grads.take_but(open)
        } else {
            exchange.begin(grads)?;
            exchange.take()?
        };
        if let (Some(anchor), Some(penalty)) = (anchor, &mut penalty) {
            for (id, grad) in &whole {
                *penalty += anchor.pull(*id, &params.get(*id).value, grad)?;
            }
        }
        squares += optimizer.update_some(params, &whole, how.lr)?;
        Ok(exchange.is_open())
    };
    for batch in ranks.place().share(&step.batches) {
        let passes = training(batch, counted, how.k, how.seed, how.recompute);
        let settle = &mut |own: &LossSum, grads: &mut Grads, open| settle(own, grads, open).map(|_| ());
        memory = memory.max(decoder.loss_and_descent(batch, passes, &mut grads, settle)?.memory);
    }
    // A process without a micro-batch of its own updates by those of the others.
    if counted > 0 && !ranks.is_alone() {
        while settle(&LossSum::ZERO, &mut grads, None)? {}
    }
    let loss = sum.unwrap_or(0.0) / counted.max(1) as f64;
    Ok(Descended { loss, norm: squares.sqrt(), penalty, memory })
}

fn training(batch: &Batch, counted: usize, k: u64, seed: u64, recompute: bool) -> Training {
    Training {
        #[allow(clippy::cast_possible_truncation)] // The scale is applied in f32.
        scale: (1.0 / counted.max(1) as f64) as f32,
        recompute,
        noise: Some(Noise { seed, step: k, first_token: batch.first_token }),
    }
}

/// Runs this process's micro-batches of step `k` forward and backward; the gradients are those of all.
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
    ranks: &Ranks,
) -> Result<Accumulated> {
    let counted: usize = step.batches.iter().map(|b| b.targets.len()).sum();
    let mut grads = params.no_grads();
    let mut memory = Memory::default();
    let mut sums = Vec::new();
    let mut exchange = Exchange::new(ranks, decoder, params);
    let mut own = ranks.place().share(&step.batches);
    while let Some(batch) = own.next() {
        let how = training(batch, counted, k, seed, recompute);
        // What the last one adds makes gradients whole.
        let is_last = own.len() == 0;
        let pass = decoder.loss_and_descent(batch, how, &mut grads, &mut |_, grads, _| {
            if is_last { exchange.begin(grads) } else { Ok(()) }
        })?;
        sums.push(pass.sum);
        memory = memory.max(pass.memory);
    }
    if counted > 0 {
        exchange.finish(&mut grads)?;
    }
    // Only now, with all of the step's work before it, is a GPU waited for.
    let sum = sums.iter().try_fold(0.0, |sum, own| Ok::<_, crate::error::Error>(sum + own.value()?))?;
    let loss = ranks.sum(sum) / counted.max(1) as f64;
    if !loss.is_finite() {
        return Err(Error::Loss(loss).into());
    }
    Ok(Accumulated { grads, loss, memory })
}
