//! bf16 to f32 and back.

use super::dispatch;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

const CHUNK: usize = 32_768;

/// A number as it is kept in memory; it is computed with in f32.
pub(crate) trait Value: Copy + Send + Sync {
    /// Exact.
    fn wide(self) -> f32;
    /// To the nearest, ties to even; NaN stays NaN.
    fn narrow(x: f32) -> Self;
}

impl Value for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without branches, so that a loop over it vectorises.
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1);
        let quiet = bits | 0x0040_0000;
        let kept = if x.is_nan() { quiet } else { rounded };
        #[allow(clippy::cast_possible_truncation)] // 16 bits are left.
        Self::from_bits((kept >> 16) as u16)
    }
}

/// Exact.
pub fn widened(from: &[bf16]) -> Vec<f32> {
    converted(from, widen_part)
}

/// To the nearest, ties to even.
pub fn narrowed(from: &[f32]) -> Vec<bf16> {
    converted(from, narrow_part)
}

dispatch! {
    fn widen_part(from: &[bf16], to: &mut [MaybeUninit<f32>]) {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(from.wide());
        }
    }
}

dispatch! {
    fn narrow_part(from: &[f32], to: &mut [MaybeUninit<bf16>]) {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(bf16::narrow(*from));
        }
    }
}

fn converted<A: Sync, B: Send>(from: &[A], part: fn(&[A], &mut [MaybeUninit<B>])) -> Vec<B> {
    let mut to = Vec::with_capacity(from.len());
    to.spare_capacity_mut()[..from.len()]
        .par_chunks_mut(CHUNK)
        .zip(from.par_chunks(CHUNK))
        .for_each(|(to, from)| part(from, to));
    // SAFETY: the parts are the whole, and each was written from one of the same length.
    unsafe { to.set_len(from.len()) }
    to
}
