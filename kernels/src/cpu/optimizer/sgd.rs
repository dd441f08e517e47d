//! Stochastic gradient descent as torch computes it, with momentum or without.

use super::super::dispatch;
use super::{CHUNK, Values};
use rayon::prelude::*;

/// The step's constants for one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f32,
    /// μ; the momentum is empty where it is 0.
    pub momentum: f32,
    /// Added to the gradient, times the value.
    pub weight_decay: f32,
    /// Gradients are multiplied by this first.
    pub grad_scale: f32,
}

/// One update: `g ← g + wd·p`, `m ← μ·m + g`, `p ← p − lr·m`; without momentum `p ← p − lr·g`.
pub fn sgd(param: Values<'_>, m: &mut [f32], grad: &[f32], how: &Sgd) {
    let parts = param.parts(CHUNK).into_par_iter().zip(grad.par_chunks(CHUNK));
    if m.is_empty() {
        parts.for_each(|(param, grad)| param.update(|param| plain_part(param, grad, how)));
    } else {
        parts.zip(m.par_chunks_mut(CHUNK)).for_each(|((param, grad), m)| {
            param.update(|param| momentum_part(param, m, grad, how));
        });
    }
}

dispatch! {
    fn plain_part(param: &mut [f32], grad: &[f32], how: &Sgd) {
        for (p, g) in param.iter_mut().zip(grad) {
            *p -= how.lr * (*g * how.grad_scale + how.weight_decay * *p);
        }
    }
}

dispatch! {
    fn momentum_part(param: &mut [f32], m: &mut [f32], grad: &[f32], how: &Sgd) {
        for ((p, m), g) in param.iter_mut().zip(m).zip(grad) {
            *m = how.momentum * *m + (*g * how.grad_scale + how.weight_decay * *p);
            *p -= how.lr * *m;
        }
    }
}
