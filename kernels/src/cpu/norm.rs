//! `RMSNorm` over rows: `y = x · rstd · w`, `rstd = 1/√(mean(x²) + ε)` (Zhang & Sennrich, 2019).

use super::dispatch;
use super::math::{dot, fma};
use rayon::prelude::*;

/// Rows that share one partial sum of the weight's gradient: fixed, so that the sum does not depend on the threads.
const ROWS: usize = 64;

/// `x`, `y` `[N, D]`; `w` `[D]`; `rstd` `[N]` is saved for the backward pass.
pub fn norm_forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let d = w.len();
    y.par_chunks_mut(d * ROWS)
        .zip(x.par_chunks(d * ROWS))
        .zip(rstd.par_chunks_mut(ROWS))
        .for_each(|((y, x), rstd)| forward_rows(x, w, eps, y, rstd));
}

/// `dx` is overwritten, or added to where `accumulate`; `dw` `[D]`, where wanted, is added to.
pub fn norm_backward(
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dy: &[f32],
    accumulate: bool,
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
) {
    let d = w.len();
    let wanted = dw.is_some();
    let partials: Vec<Vec<f32>> = dx
        .par_chunks_mut(d * ROWS)
        .zip(x.par_chunks(d * ROWS))
        .zip(dy.par_chunks(d * ROWS))
        .zip(rstd.par_chunks(ROWS))
        .map(|(((dx, x), dy), rstd)| {
            let mut partial = vec![0f32; if wanted { d } else { 0 }];
            backward_rows(x, w, rstd, dy, accumulate, dx, &mut partial);
            partial
        })
        .collect();
    if let Some(dw) = dw {
        for partial in partials {
            for (sum, p) in dw.iter_mut().zip(partial) {
                *sum += p;
            }
        }
    }
}

dispatch! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let d = w.len();
        for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
            let r = 1.0 / (dot::<FMA>(x, x) / d as f32 + eps).sqrt();
            *rstd = r;
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = *x * r * *w;
            }
        }
    }
}

dispatch! {
    fn backward_rows(
        x: &[f32],
        w: &[f32],
        rstd: &[f32],
        dy: &[f32],
        accumulate: bool,
        dx: &mut [f32],
        dw: &mut [f32],
    ) {
        let d = w.len();
        let mut weighted = vec![0f32; d];
        for (((x, dy), dx), &r) in x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd) {
            for ((g, dy), w) in weighted.iter_mut().zip(dy).zip(w) {
                *g = dy * w;
            }
            let along = dot::<FMA>(&weighted, x) * r * r / d as f32;
            if accumulate {
                for ((dx, g), x) in dx.iter_mut().zip(&weighted).zip(x) {
                    *dx += r * fma::<FMA>(-along, *x, *g);
                }
            } else {
                for ((dx, g), x) in dx.iter_mut().zip(&weighted).zip(x) {
                    *dx = r * fma::<FMA>(-along, *x, *g);
                }
            }
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw = fma::<FMA>(*dy * r, *x, *dw);
            }
        }
    }
}
