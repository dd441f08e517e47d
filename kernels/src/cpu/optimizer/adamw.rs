//! AdamW (Loshchilov & Hutter, 2019) as torch computes it.

use super::super::dispatch;
use super::super::math::fma;
use super::{CHUNK, Values};
use rayon::prelude::*;

/// The step's constants for one tensor.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// β₁, in f64 because 1 − β is taken before it is rounded, as torch does.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε, added to the corrected √v.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// 1 − β₁ᵗ.
    pub correction1: f32,
    /// √(1 − β₂ᵗ).
    pub correction2_sqrt: f32,
    /// Gradients are multiplied by this first: clipping without a pass of its own.
    pub grad_scale: f32,
}

/// One update: `p ← p·(1 − lr·wd) − lr/c₁ · m/(√v/√c₂ + ε)`, all of one length.
pub fn adamw(param: Values<'_>, m: &mut [f32], v: &mut [f32], grad: &[f32], how: &AdamW) {
    let parts = param.parts(CHUNK).into_par_iter();
    parts
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(grad.par_chunks(CHUNK))
        .for_each(|(((param, m), v), grad)| param.update(|param| update_part(param, m, v, grad, how)));
}

dispatch! {
    fn update_part(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], how: &AdamW) {
        let keep = 1.0 - how.lr * how.weight_decay;
        let step = how.lr / how.correction1;
        #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
        let (new_m, new_v, old_v) = ((1.0 - how.beta1) as f32, (1.0 - how.beta2) as f32, how.beta2 as f32);
        for (((p, m), v), g) in param.iter_mut().zip(m).zip(v).zip(grad) {
            let g = *g * how.grad_scale;
            *m = fma::<FMA>(new_m, g - *m, *m);
            *v = fma::<FMA>(g * g, new_v, *v * old_v);
            let denominator = v.sqrt() / how.correction2_sqrt + how.eps;
            *p = *p * keep - step * (*m / denominator);
        }
    }
}
