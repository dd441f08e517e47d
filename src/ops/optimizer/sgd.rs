//! Gradient descent, with a momentum where the config gives one.

use super::{Rule, Settings, Step, with};
use crate::error::Result;
use crate::ops::host;
use candle_core::Tensor;
use fttrain_kernels::cpu::optimizer as kernels;

pub(super) struct Sgd {
    momentum: f64,
    m: Option<Tensor>,
}

impl Sgd {
    pub(super) fn new(settings: &Settings, value: &Tensor) -> Result<Self> {
        let m = (settings.momentum > 0.0).then(|| host::zeros(value.shape())).transpose()?;
        Ok(Self { momentum: settings.momentum, m })
    }
}

impl Rule for Sgd {
    fn update(&mut self, value: &Tensor, grad: &Tensor, step: &Step) -> Result<()> {
        let grad = host::read(grad)?;
        #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
        let how = kernels::Sgd {
            lr: step.lr,
            momentum: self.momentum as f32,
            weight_decay: step.weight_decay,
            grad_scale: step.grad_scale,
        };
        with(value, step, |value| {
            if let Some(m) = &self.m {
                return host::edit(m, |m| kernels::sgd(value, m, &grad, &how));
            }
            kernels::sgd(value, &mut [], &grad, &how);
            Ok(())
        })
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        self.m.iter().map(|m| ("m", m)).collect()
    }
}
