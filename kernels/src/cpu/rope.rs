//! Rotary position embedding in halves: the pair (i, i + d/2) of a head is turned by the angle of its position.

use super::dispatch;
use rayon::prelude::*;

/// Turns `x` `[N, heads·d]` in place by tables `cos`, `sin` of `[positions, d/2]`; `inverse` turns back, which is
/// the gradient.
pub fn rope(
    x: &mut [f32],
    width: usize,
    d: usize,
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
    inverse: bool,
) {
    let sign = if inverse { -1.0 } else { 1.0 };
    x.par_chunks_mut(width * 16)
        .zip(positions.par_chunks(16))
        .for_each(|(x, positions)| turn_rows(x, width, d, positions, cos, sin, sign));
}

dispatch! {
    fn turn_rows(x: &mut [f32], width: usize, d: usize, positions: &[u32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = d / 2;
        for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
            let at = position as usize * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in row.chunks_exact_mut(d) {
                let (low, high) = head.split_at_mut(half);
                for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    let (x, y, s) = (*a, *b, *s * sign);
                    *a = x * c - y * s;
                    *b = y * c + x * s;
                }
            }
        }
    }
}
