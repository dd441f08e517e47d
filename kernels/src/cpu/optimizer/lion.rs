//! Lion (Chen et al., 2023): a step of one size for every value, in the direction of the momentum's sign.

use super::super::dispatch;
use super::{CHUNK, Values};
use rayon::prelude::*;

/// The step's constants for one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Lion {
    /// Learning rate of this step.
    pub lr: f32,
    /// β₁: how much of the momentum the direction holds.
    pub beta1: f64,
    /// β₂: decay of the momentum.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Gradients are multiplied by this first.
    pub grad_scale: f32,
}

/// One update: `p ← p·(1 − lr·wd) − lr·sign(β₁·m + (1 − β₁)·g)`, then `m ← β₂·m + (1 − β₂)·g`.
pub fn lion(param: Values<'_>, m: &mut [f32], grad: &[f32], how: &Lion) {
    let parts = param.parts(CHUNK).into_par_iter();
    parts.zip(m.par_chunks_mut(CHUNK)).zip(grad.par_chunks(CHUNK)).for_each(|((param, m), grad)| {
        param.update(|param| update_part(param, m, grad, how));
    });
}

dispatch! {
    fn update_part(param: &mut [f32], m: &mut [f32], grad: &[f32], how: &Lion) {
        let keep = 1.0 - how.lr * how.weight_decay;
        #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
        let [old_1, new_1, old_2, new_2] =
            [how.beta1, 1.0 - how.beta1, how.beta2, 1.0 - how.beta2].map(|beta| beta as f32);
        for ((p, m), g) in param.iter_mut().zip(m).zip(grad) {
            let g = *g * how.grad_scale;
            let direction = *m * old_1 + g * new_1;
            let sign = if direction == 0.0 { 0.0 } else { 1f32.copysign(direction) };
            *p = *p * keep - how.lr * sign;
            *m = *m * old_2 + g * new_2;
        }
    }
}
