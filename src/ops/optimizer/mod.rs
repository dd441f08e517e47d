//! Updates of one trained tensor, in place, by each optimizer, and the norm of a gradient. A tensor is f32, or bf16 that
//! is rounded at random.

mod adafactor;
mod adamw;
mod adamw_8bit;
mod lion;
mod sgd;

use super::device::Gpu;
use super::gpu::optimizer::Entry;
use super::{gpu, host};
use crate::config::{Optimizer, Train};
use crate::error::{Error, Kind, Result};
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::optimizer::{self as kernels, Values};
use half::bf16;

/// How one tensor is updated, and what is remembered from one update to the next.
pub trait Rule: Send {
    /// Moves the tensor against its f32 gradient of the same shape, in place.
    ///
    /// # Errors
    /// A tensor of another kind: a fault of the program.
    fn update(&mut self, value: &Tensor, grad: &Tensor, step: &Step) -> Result<()>;

    /// The same as a part of one launch over all tensors of a GPU.
    ///
    /// # Errors
    /// This rule has no kernel: a run with it does not begin on a GPU, so this is a fault of the program.
    fn entry(&self, _gpu: &Gpu, _value: &Tensor, _grad: &Tensor, _step: &Step) -> Result<Entry> {
        Err(no_kernel())
    }

    /// How that launch updates; rates and decays are the entries' own.
    ///
    /// # Errors
    /// As [`Self::entry`].
    fn launch(&self, _step: &Step) -> Result<kernels::AdamW> {
        Err(no_kernel())
    }

    /// What it remembers, by names that a checkpoint uses.
    fn state(&self) -> Vec<(&'static str, &Tensor)>;
}

/// One tensor's part of an update.
pub struct Update<'a> {
    /// How it is updated.
    pub rule: &'a mut dyn Rule,
    /// What moves.
    pub value: &'a Tensor,
    /// In f32, of the same shape.
    pub grad: &'a Tensor,
    /// What the rule is told.
    pub step: Step,
}

/// Updates tensors of one device, on a GPU all together.
///
/// # Errors
/// A tensor of another kind: a fault of the program.
pub fn update(all: Vec<Update<'_>>) -> Result<()> {
    let Some((first, gpu)) = all.first().and_then(|first| Some((first, Gpu::of(first.value)?))) else {
        return all.into_iter().try_for_each(|one| one.rule.update(one.value, one.grad, &one.step));
    };
    let how = first.rule.launch(&first.step)?;
    let entries = all.iter().map(|one| one.rule.entry(&gpu, one.value, one.grad, &one.step));
    gpu::optimizer::adamw(&gpu, &entries.collect::<Result<Vec<_>>>()?, &how)
}

fn no_kernel() -> Error {
    Error::new(Kind::Bug, "an optimizer that has no kernel on a GPU")
}

/// An optimizer with its constants.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Which.
    pub optimizer: Optimizer,
    /// Decay of the first moment; Lion's first β.
    pub beta1: f64,
    /// Decay of the second moment; Lion's second β.
    pub beta2: f64,
    /// Added to AdamW's denominator.
    pub eps: f64,
    /// SGD's μ; 0 = none.
    pub momentum: f64,
}

impl From<&Train> for Settings {
    fn from(train: &Train) -> Self {
        Self {
            optimizer: train.optimizer,
            beta1: train.adam_beta1,
            beta2: train.adam_beta2,
            eps: train.adam_epsilon,
            momentum: train.momentum,
        }
    }
}

/// What an update of one tensor is told.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Updates of it, with this one.
    pub count: i32,
    /// Learning rate of this tensor.
    pub lr: f32,
    /// Weight decay of this tensor.
    pub weight_decay: f32,
    /// What the gradient is multiplied with first: clipping.
    pub grad_scale: f32,
    /// Decides how a bf16 tensor is rounded.
    pub rounding: u64,
}

/// The rule with an empty state, for a tensor like `value`.
///
/// # Errors
/// A fault of the program.
pub fn rule(settings: &Settings, value: &Tensor) -> Result<Box<dyn Rule>> {
    Ok(match settings.optimizer {
        Optimizer::Adamw => Box::new(adamw::AdamW::new(settings, value)?),
        // bitsandbytes' own bound: below it 8 bits save nothing worth their noise.
        Optimizer::Adamw8bit if value.elem_count() < Optimizer::LEAST_IN_8_BITS => {
            Box::new(adamw::AdamW::new(settings, value)?)
        }
        Optimizer::Adamw8bit => Box::new(adamw_8bit::AdamW8bit::new(settings, value)?),
        Optimizer::Adafactor => Box::new(adafactor::Adafactor::new(value)?),
        Optimizer::Lion => Box::new(lion::Lion::new(settings, value)?),
        Optimizer::Sgd => Box::new(sgd::Sgd::new(settings, value)?),
    })
}

/// Σ g² of each gradient; they lie on one device.
///
/// # Errors
/// A tensor of another kind: a fault of the program.
pub fn sums_of_squares(grads: &[&Tensor]) -> Result<Vec<f64>> {
    if let Some(gpu) = grads.first().and_then(|first| Gpu::of(first)) {
        return gpu::optimizer::sums_of_squares(&gpu, grads);
    }
    grads.iter().map(|grad| Ok(kernels::sum_of_squares(&host::read(grad)?))).collect()
}

/// Lets `update` work on the values of a tensor, whichever of the two types it is.
fn with(value: &Tensor, step: &Step, update: impl FnOnce(Values<'_>) -> Result<()>) -> Result<()> {
    if value.dtype() == DType::BF16 {
        host::edit_as(value, |values: &mut [bf16]| update(Values::Bf16(values, step.rounding)))?
    } else {
        host::edit(value, |values| update(Values::F32(values)))?
    }
}
