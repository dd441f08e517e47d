//! bf16 to f32 and back.

use super::dispatch;
use half::bf16;
use rayon::prelude::*;

const CHUNK: usize = 32_768;

/// Exact.
pub fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| widen_part(from, to));
}

dispatch! {
    fn widen_part(from: &[bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

/// To the nearest, ties to even.
pub fn narrow_bf16(from: &[f32], to: &mut [bf16]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = bf16::from_f32(*from);
        }
    });
}
