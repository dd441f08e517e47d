//! Packing with AVX-512: 16 words of 16 lines at a time, converted and turned in registers.

use super::operand::{Piece, Values};
use half::bf16;
use std::arch::x86_64::{
    __m256i, __m512bh, __m512i, __mmask16, __mmask32, _MM_HINT_T0, _mm_prefetch, _mm256_maskz_loadu_epi16,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_loadu_si512,
    _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_or_si512, _mm512_permutexvar_epi16, _mm512_set1_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Blocks of a line that are fetched before they are read: 16 lines are more than the processor's own prefetching follows.
const BLOCKS_AHEAD: usize = 2;
/// The same in rows, which it does not follow from page to page.
const ROWS_AHEAD: usize = 64;

/// Packs lines in words (`Kernel::pack_left`, `pack_right`) or, with `IN_ROWS`, in rows of 16 words, a panel of rows
/// behind the other.
///
/// # Safety
/// As for `Kernel::pack_left` with `LINES` lines, inside a function with AVX-512 F, BW and VL, and BF16 with `TO_BF16`;
/// with `IN_ROWS`, both are multiples of 16.
#[inline(always)]
pub(super) unsafe fn pack_with<const LINES: usize, const TO_BF16: bool, const IN_ROWS: bool>(
    piece: &Piece<'_>,
    words: usize,
    to: *mut u32,
) {
    let depth = piece.depth.div_ceil(if TO_BF16 { 2 } else { 1 });
    assert!(piece.lines <= LINES && depth <= words, "a piece larger than its block");
    // SAFETY: by the caller's promise.
    unsafe {
        match piece.values {
            Values::F32(x) => blocks::<LINES, TO_BF16, IN_ROWS, _>(piece, words, to, x),
            Values::Bf16(x) => blocks::<LINES, TO_BF16, IN_ROWS, _>(piece, words, to, x),
        }
    }
}

/// # Safety
/// As for [`pack_with`]; the piece lies inside `from`.
#[inline(always)]
unsafe fn blocks<const LINES: usize, const TO_BF16: bool, const IN_ROWS: bool, T: Value>(
    piece: &Piece<'_>,
    words: usize,
    to: *mut u32,
    from: &[T],
) {
    for word in (0..words).step_by(16) {
        for first in (0..LINES).step_by(16) {
            // SAFETY: only values of the piece are read; only words below `words` and lines below `LINES` are written.
            unsafe {
                let mut block = if piece.turned {
                    across::<TO_BF16, T>(piece, from, first, word)
                } else {
                    along::<TO_BF16, T>(piece, from, first, word)
                };
                if piece.turned == IN_ROWS {
                    block = turned(block);
                }
                if IN_ROWS {
                    for (i, line) in block.into_iter().enumerate() {
                        _mm512_storeu_si512(to.add(word * LINES + (first + i) * 16).cast(), line);
                    }
                } else {
                    let lanes = low16(LINES - first);
                    for (i, line) in block.into_iter().enumerate().take(words - word) {
                        _mm512_mask_storeu_epi32(to.add((word + i) * LINES + first).cast(), lanes, line);
                    }
                }
            }
        }
    }
}

/// 16 lines that lie along memory, 16 words of each.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn along<const TO_BF16: bool, T: Value>(
    piece: &Piece<'_>,
    from: &[T],
    first: usize,
    word: usize,
) -> [__m512i; 16] {
    let at = word * if TO_BF16 { 2 } else { 1 };
    let left = piece.depth.saturating_sub(at);
    let lines = piece.lines.saturating_sub(first);
    let read = 16 * size_of::<T>() * if TO_BF16 { 2 } else { 1 };
    // SAFETY: `left` values of each line of the piece can be read; of a line beyond it none is.
    unsafe {
        let mut block = [_mm512_setzero_si512(); 16];
        for (i, line) in block.iter_mut().enumerate() {
            let at = from.as_ptr().wrapping_add((first + i) * piece.stride + at);
            for byte in (0..read).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(read * BLOCKS_AHEAD + byte).cast());
            }
            *line = T::line::<TO_BF16>(at, if i < lines { left } else { 0 }, piece.scale);
        }
        block
    }
}

/// 16 words of 16 lines that lie across memory: each row, or pair of rows, is one word of all lines.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn across<const TO_BF16: bool, T: Value>(
    piece: &Piece<'_>,
    from: &[T],
    first: usize,
    word: usize,
) -> [__m512i; 16] {
    let per_word = if TO_BF16 { 2 } else { 1 };
    let lanes = low16(piece.lines.saturating_sub(first));
    let row = |i: usize| {
        let row = word * per_word + i;
        let at = from.as_ptr().wrapping_add(row * piece.stride + first);
        let ahead = at.wrapping_add(ROWS_AHEAD * piece.stride);
        // SAFETY: a prefetch touches nothing, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        (at, if row < piece.depth { lanes } else { 0 })
    };
    // SAFETY: only rows and lanes of the piece are read.
    unsafe {
        let mut block = [_mm512_setzero_si512(); 16];
        for (i, value) in block.iter_mut().enumerate() {
            *value = if TO_BF16 {
                T::pair(row(2 * i), row(2 * i + 1), piece.scale)
            } else {
                T::row(row(i), piece.scale)
            };
        }
        block
    }
}

/// A kind of value in memory.
trait Value: Copy {
    /// The next 16 words of a line, of which `left` values are there; the others become 0.
    ///
    /// # Safety
    /// `left` values can be read at `at`, and the CPU has the features.
    unsafe fn line<const TO_BF16: bool>(at: *const Self, left: usize, scale: f32) -> __m512i;

    /// An f32 of each of 16 lines: the lanes of a row; the others become 0.
    ///
    /// # Safety
    /// The lanes can be read, and the CPU has the features.
    unsafe fn row(row: (*const Self, __mmask16), scale: f32) -> __m512i;

    /// Two bf16 of each: a row and the row behind it.
    ///
    /// # Safety
    /// As for `row`, for both.
    unsafe fn pair(first: (*const Self, __mmask16), second: (*const Self, __mmask16), scale: f32) -> __m512i;
}

impl Value for f32 {
    #[inline(always)]
    unsafe fn line<const TO_BF16: bool>(at: *const Self, left: usize, scale: f32) -> __m512i {
        // SAFETY: by the caller's promise; lanes beyond `left` are not read.
        unsafe {
            let scale = _mm512_set1_ps(scale);
            let low = _mm512_mul_ps(_mm512_maskz_loadu_ps(low16(left), at), scale);
            if !TO_BF16 {
                return _mm512_castps_si512(low);
            }
            let high = at.wrapping_add(16);
            let high = _mm512_mul_ps(_mm512_maskz_loadu_ps(low16(left.saturating_sub(16)), high), scale);
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[inline(always)]
    unsafe fn row((at, lanes): (*const Self, __mmask16), scale: f32) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_castps_si512(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, at), _mm512_set1_ps(scale))) }
    }

    #[inline(always)]
    unsafe fn pair(first: (*const Self, __mmask16), second: (*const Self, __mmask16), scale: f32) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe {
            let first = _mm512_castsi512_ps(Self::row(first, scale));
            let second = _mm512_castsi512_ps(Self::row(second, scale));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            _mm512_permutexvar_epi16(_mm512_loadu_si512(PAIRS.as_ptr().cast()), both)
        }
    }
}

impl Value for bf16 {
    #[inline(always)]
    unsafe fn line<const TO_BF16: bool>(at: *const Self, left: usize, _: f32) -> __m512i {
        // SAFETY: by the caller's promise; lanes beyond `left` are not read.
        unsafe {
            if TO_BF16 {
                _mm512_maskz_loadu_epi16(low32(left), at.cast())
            } else {
                widened(_mm256_maskz_loadu_epi16(low16(left), at.cast()))
            }
        }
    }

    #[inline(always)]
    unsafe fn row((at, lanes): (*const Self, __mmask16), _: f32) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe { widened(_mm256_maskz_loadu_epi16(lanes, at.cast())) }
    }

    #[inline(always)]
    unsafe fn pair(first: (*const Self, __mmask16), second: (*const Self, __mmask16), scale: f32) -> __m512i {
        // SAFETY: by the caller's promise.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first.1, first.0.cast()));
            _mm512_or_si512(low, Self::row(second, scale))
        }
    }
}

/// Puts value i of the lower half beside value i of the upper.
static PAIRS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[2 * i as usize] = i;
        order[2 * i as usize + 1] = i + 16;
        i += 1;
    }
    order
};

/// bf16 in the upper half of each word: an f32.
#[inline(always)]
unsafe fn widened(x: __m256i) -> __m512i {
    // SAFETY: the caller's function has AVX-512.
    unsafe { _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)) }
}

fn low16(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

fn low32(count: usize) -> __mmask32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

/// Rows to columns of 16 × 16 words: pairs, quadruples, then lanes of 128 bits.
#[inline(always)]
unsafe fn turned(rows: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller's function has AVX-512.
    unsafe {
        let mut pairs = rows;
        for i in (0..16).step_by(2) {
            pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        let mut quads = pairs;
        for i in (0..16).step_by(4) {
            quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
            quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        let mut columns = quads;
        for j in 0..4 {
            let even = |a, b| _mm512_shuffle_i32x4::<0x88>(a, b);
            let odd = |a, b| _mm512_shuffle_i32x4::<0xdd>(a, b);
            let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
            columns[j] = even(even(a, b), even(c, d));
            columns[4 + j] = even(odd(a, b), odd(c, d));
            columns[8 + j] = odd(even(a, b), even(c, d));
            columns[12 + j] = odd(odd(a, b), odd(c, d));
        }
        columns
    }
}
