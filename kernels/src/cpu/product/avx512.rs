//! AVX-512: 12 × 32 sums in 24 of the 32 registers, by f32 FMA or by `vdpbf16ps`, which takes two bf16 at once.

use super::avx512_pack::pack_with;
use super::kernel::{Finish, Kernel};
use super::operand::Piece;
use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castsi512_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};

const ROWS: usize = 12;
const COLUMNS: usize = 32;
/// Words of the right side that are fetched ahead of their use: it comes from the core's second cache, and the loads
/// that wait for it took a quarter of the time on an Emerald Rapids.
const AHEAD: usize = 8;

/// f32 products.
pub(super) struct Avx512;

/// bf16 products.
pub(super) struct Avx512Bf16;

macro_rules! kernel {
    ($name:ident, $bf16:literal, $features:literal, $step:expr) => {
        impl Kernel for $name {
            const ROWS: usize = ROWS;
            const COLUMNS: usize = COLUMNS;
            const BF16: bool = $bf16;
            const DEPTH: usize = 1;

            unsafe fn pack_left(piece: &Piece<'_>, words: usize, to: *mut u32) {
                #[target_feature(enable = $features)]
                unsafe fn pack(piece: &Piece<'_>, words: usize, to: *mut u32) {
                    // SAFETY: by the caller's promise.
                    unsafe { pack_with::<ROWS, $bf16, false>(piece, words, to) }
                }
                // SAFETY: by the caller's promise.
                unsafe { pack(piece, words, to) }
            }

            unsafe fn pack_right(piece: &Piece<'_>, words: usize, to: *mut u32) {
                #[target_feature(enable = $features)]
                unsafe fn pack(piece: &Piece<'_>, words: usize, to: *mut u32) {
                    // SAFETY: by the caller's promise.
                    unsafe { pack_with::<COLUMNS, $bf16, false>(piece, words, to) }
                }
                // SAFETY: by the caller's promise.
                unsafe { pack(piece, words, to) }
            }

            unsafe fn tile(
                words: usize,
                a: *const u32,
                b: *const u32,
                (rows, columns): (usize, usize),
                c: *mut f32,
                c_row: usize,
                finish: Finish,
            ) {
                #[target_feature(enable = $features)]
                unsafe fn tile<const TALL: usize, const WIDE: usize>(
                    words: usize,
                    a: *const u32,
                    b: *const u32,
                    c: *mut f32,
                    c_row: usize,
                    finish: Finish,
                ) {
                    let mut sums = [[_mm512_setzero_ps(); WIDE]; TALL];
                    for w in 0..words {
                        // SAFETY: word w of both blocks, by the caller's promise.
                        unsafe {
                            let mut line = [_mm512_setzero_si512(); WIDE];
                            for (i, line) in line.iter_mut().enumerate() {
                                let b = b.add(w * COLUMNS + 16 * i);
                                *line = _mm512_loadu_si512(b.cast());
                                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * COLUMNS).cast());
                            }
                            for (r, sums) in sums.iter_mut().enumerate() {
                                #[allow(clippy::cast_possible_wrap)] // Bits, not a number.
                                let a = _mm512_set1_epi32(*a.add(w * ROWS + r) as i32);
                                for (sum, b) in sums.iter_mut().zip(line) {
                                    *sum = $step(a, b, *sum);
                                }
                            }
                        }
                    }
                    for (r, sums) in sums.into_iter().enumerate() {
                        for (i, sum) in sums.into_iter().enumerate() {
                            // SAFETY: these values of c, by the caller's promise.
                            unsafe {
                                let c = c.add(r * c_row + 16 * i);
                                match finish {
                                    Finish::Store => _mm512_storeu_ps(c, sum),
                                    Finish::Add => {
                                        _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), sum))
                                    }
                                }
                            }
                        }
                    }
                }
                // SAFETY: by the caller's promise.
                unsafe {
                    match (rows, columns) {
                        (..=4, ..=16) => tile::<4, 1>(words, a, b, c, c_row, finish),
                        (..=4, _) => tile::<4, 2>(words, a, b, c, c_row, finish),
                        (_, ..=16) => tile::<ROWS, 1>(words, a, b, c, c_row, finish),
                        _ => tile::<ROWS, 2>(words, a, b, c, c_row, finish),
                    }
                }
            }
        }
    };
}

kernel!(Avx512, false, "avx512f,avx512bw,avx512vl", |a, b, sum| _mm512_fmadd_ps(
    _mm512_castsi512_ps(a),
    _mm512_castsi512_ps(b),
    sum
));
kernel!(Avx512Bf16, true, "avx512f,avx512bw,avx512vl,avx512bf16", |a: __m512i, b: __m512i, sum| {
    _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512i, __m512bh>(a),
        std::mem::transmute::<__m512i, __m512bh>(b),
    )
});
