//! Sums of two vectors: the residual connections.

use super::dispatch;
use rayon::prelude::*;

const CHUNK: usize = 32_768;

/// `to += x`, element by element.
pub fn add(to: &mut [f32], x: &[f32]) {
    to.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(to, x)| add_part(to, x));
}

dispatch! {
    fn add_part(to: &mut [f32], x: &[f32]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to += x;
        }
    }
}
