//! The optimizer of a run: a rule with its state for each trained tensor, in name order; and the check that nothing that
//! is not finite ever reaches a weight.

use super::Error;
use crate::config::Train;
use crate::data::rng::Rng;
use crate::error::Result;
use crate::model::{Params, tensors};
use crate::ops::optimizer::{self, Rule, Step, Update};
use crate::ops::{Grads, ParamId};
use candle_core::Tensor;
use std::io::{self, Read, Write};

/// The optimizer of a run.
pub struct Optimizer {
    weight_decay: f64,
    max_grad_norm: f64,
    seed: u64,
    /// Updates done.
    steps: u64,
    slots: Vec<Slot>,
}

struct Slot {
    id: ParamId,
    name: String,
    rule: Box<dyn Rule>,
}

impl Optimizer {
    /// An empty state for every trained tensor.
    pub fn new(params: &Params, train: &Train) -> Result<Self> {
        let settings = optimizer::Settings::from(train);
        let slots = params.sorted().into_iter().map(|(id, param)| {
            Ok(Slot { id, name: param.name.clone(), rule: optimizer::rule(&settings, &param.value)? })
        });
        Ok(Self {
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            seed: train.seed,
            steps: 0,
            slots: slots.collect::<Result<_>>()?,
        })
    }

    /// The norm of all gradients together.
    ///
    /// # Errors
    /// It is not finite (7): the first tensor in name order whose gradient is not.
    pub fn norm(&self, grads: &Grads) -> Result<f64, crate::error::Error> {
        let stored = self.slots.iter().filter_map(|slot| Some((slot.name.as_str(), grads.get(slot.id)?)));
        Ok(finite_squares(&stored.collect::<Vec<_>>())?.sqrt())
    }

    /// One update at the rate `lr`, with gradients scaled down to `max_grad_norm` where `norm` is above it.
    pub fn apply(&mut self, params: &Params, grads: &Grads, norm: f64, lr: f64) -> Result<()> {
        self.begin();
        // torch's clip_grad_norm_ divides by the norm plus 1e-6.
        let clip = if self.max_grad_norm > 0.0 { (self.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.update(params, |id| grads.get(id), clip, lr)
    }

    /// Begins an update whose tensors come a few at a time, as soon as their gradients are whole.
    pub fn begin(&mut self) {
        self.steps += 1;
    }

    /// Updates some tensors at the rate `lr` with their unscaled gradients; Σ g².
    ///
    /// # Errors
    /// A gradient is not finite (7): none of these is updated, and those before them were.
    pub fn update_some(&mut self, params: &Params, grads: &[(ParamId, Tensor)], lr: f64) -> Result<f64> {
        let of = |id: ParamId| grads.iter().find(|(of, _)| *of == id).map(|(_, grad)| grad);
        let stored = self.slots.iter().filter_map(|slot| Some((slot.name.as_str(), of(slot.id)?)));
        let squares = finite_squares(&stored.collect::<Vec<_>>())?;
        self.update(params, of, 1.0, lr)?;
        Ok(squares)
    }

    #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
    fn update<'g>(
        &mut self,
        params: &Params,
        grads: impl Fn(ParamId) -> Option<&'g Tensor>,
        clip: f64,
        lr: f64,
    ) -> Result<()> {
        let (seed, steps, weight_decay) = (self.seed, self.steps, self.weight_decay);
        let updates = self.slots.iter_mut().filter_map(|slot| {
            let (param, grad) = (params.get(slot.id), grads(slot.id)?);
            let step = Step {
                count: i32::try_from(steps).unwrap_or(i32::MAX),
                lr: (lr * param.lr_ratio) as f32,
                weight_decay: if param.decay { weight_decay as f32 } else { 0.0 },
                grad_scale: clip as f32,
                rounding: Rng::new(seed, &slot.name, steps, 0).at(0),
            };
            Some(Update { rule: &mut *slot.rule, value: &param.value, grad, step })
        });
        optimizer::update(updates.collect())
    }

    /// Bytes of the state.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        self.named().map(|(_, t)| bytes(t)).sum()
    }

    /// Writes the state as safetensors, `KIND.NAME` in name order.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let named: Vec<_> = self.named().collect();
        tensors::write(named.iter().map(|(name, t)| (name.as_str(), *t)), out)
    }

    /// Takes over the state that [`Self::write`] wrote after `steps` updates, a file of `size` bytes, one tensor at a time.
    ///
    /// # Errors
    /// A tensor is missing, of another shape or type, or one too many: what is wrong, in words.
    pub fn restore(&mut self, from: &mut dyn Read, size: u64, steps: u64) -> Result<(), String> {
        tensors::read(from, size, self.named().collect(), tensors::put)?;
        self.steps = steps;
        Ok(())
    }

    /// The state's tensors, `KIND.NAME`, in the order of their parameters' names.
    fn named(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.slots.iter().flat_map(|slot| {
            slot.rule.state().into_iter().map(move |(kind, t)| (format!("{kind}.{}", slot.name), t))
        })
    }
}

/// Σ g² of all gradients.
///
/// # Errors
/// It is not finite (7): the first tensor whose gradient is not.
fn finite_squares(grads: &[(&str, &Tensor)]) -> Result<f64> {
    let squares = optimizer::sums_of_squares(&grads.iter().map(|(_, grad)| *grad).collect::<Vec<_>>())?;
    match grads.iter().zip(&squares).find(|(_, squares)| !squares.is_finite()) {
        Some(((name, _), _)) => Err(Error::Gradient((*name).to_owned()).into()),
        None => Ok(squares.iter().sum()),
    }
}
