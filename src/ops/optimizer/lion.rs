//! Lion: one moment, of which the sign counts.

use super::{Rule, Settings, Step, with};
use crate::error::Result;
use crate::ops::host;
use candle_core::Tensor;
use fttrain_kernels::cpu::optimizer as kernels;

pub(super) struct Lion {
    beta1: f64,
    beta2: f64,
    m: Tensor,
}

impl Lion {
    pub(super) fn new(settings: &Settings, value: &Tensor) -> Result<Self> {
        Ok(Self { beta1: settings.beta1, beta2: settings.beta2, m: host::zeros(value.shape())? })
    }
}

impl Rule for Lion {
    fn update(&mut self, value: &Tensor, grad: &Tensor, step: &Step) -> Result<()> {
        let grad = host::read(grad)?;
        let how = kernels::Lion {
            lr: step.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: step.weight_decay,
            grad_scale: step.grad_scale,
        };
        with(value, step, |value| host::edit(&self.m, |m| kernels::lion(value, m, &grad, &how)))
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("m", &self.m)]
    }
}
