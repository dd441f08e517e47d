//! AdamW with both moments in f32.

use super::{Rule, Settings, Step, with};
use crate::error::Result;
use crate::ops::device::Gpu;
use crate::ops::gpu::optimizer::Entry;
use crate::ops::{gpu, host};
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::optimizer as kernels;

/// β and ε of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants {
    beta1: f64,
    beta2: f64,
    eps: f64,
}

impl Constants {
    pub(super) fn of(settings: &Settings) -> Self {
        Self { beta1: settings.beta1, beta2: settings.beta2, eps: settings.eps }
    }

    /// For one update.
    #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
    pub(super) fn at(self, step: &Step) -> kernels::AdamW {
        kernels::AdamW {
            lr: step.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps as f32,
            weight_decay: step.weight_decay,
            correction1: (1.0 - self.beta1.powi(step.count)) as f32,
            correction2_sqrt: (1.0 - self.beta2.powi(step.count)).sqrt() as f32,
            grad_scale: step.grad_scale,
        }
    }
}

pub(super) struct AdamW {
    constants: Constants,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    pub(super) fn new(settings: &Settings, value: &Tensor) -> Result<Self> {
        let zeros = || Tensor::zeros(value.shape(), DType::F32, value.device());
        Ok(Self { constants: Constants::of(settings), m: zeros()?, v: zeros()? })
    }
}

impl Rule for AdamW {
    fn update(&mut self, value: &Tensor, grad: &Tensor, step: &Step) -> Result<()> {
        let how = self.constants.at(step);
        let grad = host::read(grad)?;
        with(value, step, |value| {
            host::edit(&self.m, |m| host::edit(&self.v, |v| kernels::adamw(value, m, v, &grad, &how)))?
        })
    }

    fn entry(&self, gpu: &Gpu, value: &Tensor, grad: &Tensor, step: &Step) -> Result<Entry> {
        gpu::optimizer::entry(gpu, [value, &self.m, &self.v, grad], (step.lr, step.weight_decay))
    }

    fn launch(&self, step: &Step) -> Result<kernels::AdamW> {
        Ok(self.constants.at(step))
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("m", &self.m), ("v", &self.v)]
    }
}
