//! AVX2 with FMA: 6 × 16 f32 sums in 12 of the 16 registers.

use super::avx2_pack::pack;
use super::kernel::{Finish, Kernel};
use super::operand::Piece;
use std::arch::x86_64::{
    _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

pub(super) struct Avx2;

impl Kernel for Avx2 {
    const ROWS: usize = 6;
    const COLUMNS: usize = 16;
    const BF16: bool = false;
    const DEPTH: usize = 1;

    unsafe fn pack_left(piece: &Piece<'_>, words: usize, to: *mut u32) {
        // SAFETY: by the caller's promise.
        unsafe { pack::<{ Self::ROWS }>(piece, words, to) }
    }

    unsafe fn pack_right(piece: &Piece<'_>, words: usize, to: *mut u32) {
        // SAFETY: by the caller's promise.
        unsafe { pack::<{ Self::COLUMNS }>(piece, words, to) }
    }

    unsafe fn tile(
        words: usize,
        a: *const u32,
        b: *const u32,
        _: (usize, usize),
        c: *mut f32,
        c_row: usize,
        finish: Finish,
    ) {
        // SAFETY: by the caller's promise; a word is an f32.
        unsafe { tile(words, a.cast(), b.cast(), c, c_row, finish) }
    }
}

/// # Safety
/// As for [`Kernel::tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(words: usize, a: *const f32, b: *const f32, c: *mut f32, c_row: usize, finish: Finish) {
    let mut sums = [[_mm256_setzero_ps(); 2]; Avx2::ROWS];
    for w in 0..words {
        // SAFETY: word w of both blocks, by the caller's promise.
        unsafe {
            let b = b.add(w * Avx2::COLUMNS);
            let b = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(w * Avx2::ROWS + r));
                sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: these values of c, by the caller's promise.
            unsafe {
                let c = c.add(r * c_row + 8 * i);
                match finish {
                    Finish::Store => _mm256_storeu_ps(c, sum),
                    Finish::Add => _mm256_storeu_ps(c, _mm256_add_ps(_mm256_loadu_ps(c), sum)),
                }
            }
        }
    }
}
