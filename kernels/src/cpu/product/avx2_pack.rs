//! Packing with AVX2: 8 words of 8 lines at a time, turned in registers.

use super::operand::{Piece, Values};
use super::portable;
use crate::cpu::widen::Value;
use half::bf16;
use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm_storel_epi64, _mm_storeu_ps, _mm256_castps_si256, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_mul_ps,
    _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32,
    _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

/// Packs a whole block, and others as [`portable::pack`] does.
///
/// # Safety
/// As for `Kernel::pack_left` with `LINES` lines.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn pack<const LINES: usize>(piece: &Piece<'_>, words: usize, to: *mut u32) {
    const { assert!(LINES == 6 || LINES.is_multiple_of(8), "eight lines are stored, or six") }
    // SAFETY: by the caller's promise; the piece is as large as the block.
    unsafe {
        if piece.lines != LINES || piece.depth != words {
            return portable::pack::<LINES>(piece, words, to);
        }
        match (piece.values, piece.turned) {
            (Values::F32(x), false) => along::<LINES, _>(piece, to.cast(), x),
            (Values::Bf16(x), false) => along::<LINES, _>(piece, to.cast(), x),
            (Values::F32(x), true) => across::<LINES, _>(piece, to.cast(), x),
            (Values::Bf16(x), true) => across::<LINES, _>(piece, to.cast(), x),
        }
    }
}

/// Rows that are one word of all lines.
///
/// # Safety
/// As for [`pack`]; the piece is a whole block.
#[inline(always)]
unsafe fn across<const LINES: usize, T: Eight>(piece: &Piece<'_>, to: *mut f32, from: &[T]) {
    for word in 0..piece.depth {
        let row = &from[word * piece.stride..][..LINES];
        for (i, x) in row.iter().enumerate() {
            // SAFETY: the block has this word and line.
            unsafe { *to.add(word * LINES + i) = x.wide() * piece.scale }
        }
    }
}

/// Lines that lie along memory.
///
/// # Safety
/// As for [`pack`]; the piece is a whole block.
#[inline(always)]
unsafe fn along<const LINES: usize, T: Eight>(piece: &Piece<'_>, to: *mut f32, from: &[T]) {
    let Piece { stride, depth, scale, .. } = *piece;
    assert!((LINES - 1) * stride + depth <= from.len(), "a piece outside its slice");
    let line = |i: usize, word: usize| from.as_ptr().wrapping_add(i * stride + word);
    let whole = depth - depth % 8;
    for word in (0..whole).step_by(8) {
        for first in (0..LINES).step_by(8) {
            // SAFETY: whole lines of the piece are read, 8 words of each, and so much of the block is written.
            unsafe {
                let mut block = [_mm256_setzero_ps(); 8];
                for (i, to) in block.iter_mut().enumerate().take(LINES - first) {
                    *to = T::eight(line(first + i, word), scale);
                }
                for (i, values) in turned(block).into_iter().enumerate() {
                    let to = to.add((word + i) * LINES + first);
                    if LINES - first >= 8 {
                        _mm256_storeu_ps(to, values);
                    } else {
                        _mm_storeu_ps(to, _mm256_castps256_ps128(values));
                        let high = _mm256_extracti128_si256::<1>(_mm256_castps_si256(values));
                        _mm_storel_epi64(to.add(4).cast(), high);
                    }
                }
            }
        }
    }
    for (word, i) in (whole..depth).flat_map(|word| (0..LINES).map(move |i| (word, i))) {
        // SAFETY: as above, of one word and line.
        unsafe { *to.add(word * LINES + i) = (*line(i, word)).wide() * scale }
    }
}

/// Lines and words exchanged.
#[inline(always)]
unsafe fn turned(lines: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: by the promise of [`pack`], which alone calls it.
    unsafe {
        let mut pairs = lines;
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(lines[i], lines[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(lines[i], lines[i + 1]);
        }
        let mut fours = pairs;
        for i in [0, 1, 4, 5] {
            // Of pairs 0 and 2, then 1 and 3: words 0 to 3 of four lines, beside words 4 to 7.
            let at = i / 4 * 4 + i % 2 * 2;
            fours[at] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i], pairs[i + 2]);
            fours[at + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i], pairs[i + 2]);
        }
        let mut words = fours;
        for i in 0..4 {
            words[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            words[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
        }
        words
    }
}

/// A kind of value in memory that is read eight at a time.
trait Eight: Value {
    /// 8 values, times `scale` where values are scaled.
    ///
    /// # Safety
    /// They can be read, and the CPU has AVX2.
    unsafe fn eight(at: *const Self, scale: f32) -> __m256;
}

impl Eight for f32 {
    #[inline(always)]
    unsafe fn eight(at: *const Self, scale: f32) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_mul_ps(_mm256_loadu_ps(at), _mm256_set1_ps(scale)) }
    }
}

impl Eight for bf16 {
    /// Only f32 values are scaled.
    #[inline(always)]
    unsafe fn eight(at: *const Self, _: f32) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
}
