//! AdamW with its moments in 8 bits (Dettmers et al., 2022), as bitsandbytes 0.50.2 computes it: blocks of 256, each with
//! its largest magnitude in f32, codes of the dynamic type, signed for m and unsigned for v.

use super::super::codebook::Codebook;
use super::super::dispatch;
use super::super::math::fma;
use super::{AdamW, CHUNK, Values};
use rayon::prelude::*;

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// A moment.
#[derive(Debug)]
pub struct Blocks<'a> {
    /// A code a value.
    pub codes: &'a mut [u8],
    /// The largest magnitude of each block of 256.
    pub absmax: &'a mut [f32],
}

/// One update as [`super::adamw`], on moments that are taken apart and put together again block by block.
pub fn adamw_8bit(param: Values<'_>, m: &mut Blocks<'_>, v: &mut Blocks<'_>, grad: &[f32], how: &AdamW) {
    let per_part = CHUNK / BLOCK;
    let m = m.codes.par_chunks_mut(CHUNK).zip(m.absmax.par_chunks_mut(per_part));
    let v = v.codes.par_chunks_mut(CHUNK).zip(v.absmax.par_chunks_mut(per_part));
    let parts = param.parts(CHUNK).into_par_iter().zip(grad.par_chunks(CHUNK));
    parts.zip(m).zip(v).for_each(|(((param, grad), m), v)| {
        param.update(|param| update_part(param, m, v, grad, how));
    });
}

type Part<'a> = (&'a mut [u8], &'a mut [f32]);

fn update_part(param: &mut [f32], m: Part<'_>, v: Part<'_>, grad: &[f32], how: &AdamW) {
    let (signed, unsigned) = (Codebook::signed(), Codebook::unsigned());
    let (mut wide_m, mut wide_v) = ([0f32; BLOCK], [0f32; BLOCK]);
    let m = m.0.chunks_mut(BLOCK).zip(m.1);
    let v = v.0.chunks_mut(BLOCK).zip(v.1);
    for (((param, grad), m), v) in param.chunks_mut(BLOCK).zip(grad.chunks(BLOCK)).zip(m).zip(v) {
        let (wide_m, wide_v) = (&mut wide_m[..grad.len()], &mut wide_v[..grad.len()]);
        signed.decode(m.0, *m.1, wide_m);
        unsigned.decode(v.0, *v.1, wide_v);
        update_block(param, wide_m, wide_v, grad, how);
        *m.1 = signed.encode(wide_m, m.0);
        *v.1 = unsigned.encode(wide_v, v.0);
    }
}

dispatch! {
    fn update_block(param: &mut [f32], m: &mut [f32], v: &mut [f32], grad: &[f32], how: &AdamW) {
        let keep = 1.0 - how.lr * how.weight_decay;
        let step = how.lr / how.correction1;
        #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
        let [old_m, new_m, old_v, new_v] =
            [how.beta1, 1.0 - how.beta1, how.beta2, 1.0 - how.beta2].map(|beta| beta as f32);
        for (((p, m), v), g) in param.iter_mut().zip(m).zip(v).zip(grad) {
            let g = *g * how.grad_scale;
            *m = fma::<FMA>(g, new_m, *m * old_m);
            // In the order in which torch rounds.
            *v = fma::<FMA>(new_v * g, g, *v * old_v);
            let denominator = v.sqrt() / how.correction2_sqrt + how.eps;
            *p = *p * keep - step * *m / denominator;
        }
    }
}
