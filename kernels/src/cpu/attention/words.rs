//! bf16 in words of two, for products by `vdpbf16ps`. Everything is filled up with zeros to whole register blocks, so
//! that no block has an edge.

use super::KEYS;
use crate::cpu::widen::Value;
use half::bf16;
use std::arch::x86_64::{
    __m256bh, __m256i, __m512bh, __m512i, _mm256_storeu_si256, _mm512_add_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_or_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512,
};

/// Rows of a register block.
pub(super) const TALL: usize = 8;
/// Columns of a register block.
pub(super) const WIDE: usize = 32;

/// Numbers of one head of a span, row by row.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    /// From the first row's first value on.
    pub(super) data: &'a [T],
    /// Values from row to row.
    pub(super) stride: usize,
    /// Rows.
    pub(super) count: usize,
    /// Values of a row.
    pub(super) width: usize,
}

impl<T: Value> Rows<'_, T> {
    fn row(&self, i: usize) -> &[T] {
        if i < self.count { &self.data[i * self.stride..][..self.width] } else { &[] }
    }

    fn height(&self) -> usize {
        self.count.next_multiple_of(WIDE)
    }

    /// `[count, width/2]`: words along each row; a row is as long as [`Self::pairs`]' halved.
    #[inline(always)]
    pub(super) fn along(&self) -> Vec<u32> {
        let stride = self.width.next_multiple_of(WIDE) / 2;
        let mut words = vec![0; self.height() * stride];
        for (i, to) in words.chunks_exact_mut(stride).enumerate() {
            pack_along(self.row(i), to);
        }
        words
    }

    /// `[count/2, width]`: words of two rows, value by value.
    #[inline(always)]
    pub(super) fn pairs(&self) -> Vec<u32> {
        let stride = self.width.next_multiple_of(WIDE);
        let mut words = vec![0; self.height() / 2 * stride];
        for (i, to) in words.chunks_exact_mut(stride).enumerate() {
            let (even, odd) = (self.row(2 * i), self.row(2 * i + 1));
            pack_pair(even, odd, to);
        }
        words
    }

    /// `[count/KEYS][width/2, KEYS]`: in tiles of rows, words along each row, row beside row.
    #[inline(always)]
    pub(super) fn across(&self) -> Vec<u32> {
        let depth = self.width.div_ceil(2);
        let mut words = vec![0; self.count.div_ceil(KEYS) * depth * KEYS];
        for i in 0..self.count {
            let to = &mut words[i / KEYS * depth * KEYS + i % KEYS..];
            for (pair, to) in self.row(i).chunks(2).zip(to.chunks_mut(KEYS)) {
                to[0] = word(pair[0], pair.get(1).copied());
            }
        }
        words
    }
}

#[inline(always)]
fn word<T: Value>(low: T, high: Option<T>) -> u32 {
    let bits = |x: T| u32::from(bf16::narrow(x.wide()).to_bits());
    bits(low) | high.map_or(0, bits) << 16
}

/// A row's values, two a word.
#[inline(always)]
fn pack_along<T: Value>(row: &[T], to: &mut [u32]) {
    let (pairs, rest) = row.as_chunks::<2>();
    for ([low, high], to) in pairs.iter().zip(&mut *to) {
        *to = word(*low, Some(*high));
    }
    if let ([last], Some(to)) = (rest, to.get_mut(pairs.len())) {
        *to = word(*last, None);
    }
}

/// Two rows' values, one of each a word; `odd` may be empty.
#[inline(always)]
fn pack_pair<T: Value>(even: &[T], odd: &[T], to: &mut [u32]) {
    if odd.is_empty() {
        for (x, to) in even.iter().zip(to) {
            *to = word(*x, None);
        }
    } else {
        for ((x, y), to) in even.iter().zip(odd).zip(to) {
            *to = word(*x, Some(*y));
        }
    }
}

/// 16 values of f32 as bf16.
///
/// # Safety
/// The CPU has AVX-512 F and BF16; 16 values can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn sixteen(from: *const f32) -> __m256i {
    // SAFETY: by the caller's promise; a register is a register.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from))) }
}

/// A row of scores in words along it; as long as whole blocks are.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn narrow_along(row: &[f32], to: &mut [u32]) {
    for (from, to) in row.chunks_exact(16).zip(to.chunks_exact_mut(8)) {
        // SAFETY: 16 values become 8 words.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), sixteen(from.as_ptr())) }
    }
}

/// Two rows of scores in words of one of each; as long as whole blocks are.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn narrow_pair(even: &[f32], odd: Option<&[f32]>, to: &mut [u32]) {
    for (i, (even, to)) in even.chunks_exact(16).zip(to.chunks_exact_mut(16)).enumerate() {
        // SAFETY: 16 values of each row become 16 words.
        unsafe {
            let mut words = _mm512_cvtepu16_epi32(sixteen(even.as_ptr()));
            if let Some(odd) = odd.and_then(|odd| odd.get(16 * i..16 * i + 16)) {
                let odd = _mm512_cvtepu16_epi32(sixteen(odd.as_ptr()));
                words = _mm512_or_si512(words, _mm512_slli_epi32::<16>(odd));
            }
            _mm512_storeu_si512(to.as_mut_ptr().cast(), words);
        }
    }
}

/// Words with word (i, k) of the left side at `i·row + k·column`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) words: &'a [u32],
    pub(super) row: usize,
    pub(super) column: usize,
}

/// `c[m, n] = a·b`, or `+=` with `ADD`, over `k` words; m is a multiple of [`TALL`], n of [`WIDE`].
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply<const ADD: bool>(
    (m, n, k): (usize, usize, usize),
    a: Left<'_>,
    b: &[u32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(m.is_multiple_of(TALL) && n.is_multiple_of(WIDE), "{m}×{n} is not in whole blocks");
    assert!(k == 0 || (m - 1) * a.row + (k - 1) * a.column < a.words.len(), "a: {m}×{k} outside its slice");
    assert!(n <= b_row && (k == 0 || (k - 1) * b_row + n <= b.len()), "b: {k}×{n} outside its slice");
    assert!(n <= c_row && (m - 1) * c_row + n <= c.len(), "c: {m}×{n} outside its slice");
    for j in (0..n).step_by(WIDE) {
        for i in (0..m).step_by(TALL) {
            // SAFETY: the block lies inside the slices by the assertions above.
            unsafe {
                let left = a.words.as_ptr().wrapping_add(i * a.row);
                let right = b.as_ptr().wrapping_add(j);
                let to = c.as_mut_ptr().add(i * c_row + j);
                block::<ADD>(k, left, (a.row, a.column), right, b_row, to, c_row);
            }
        }
    }
}

/// # Safety
/// As for [`multiply`]; all three blocks can be read, and c be written.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn block<const ADD: bool>(
    k: usize,
    a: *const u32,
    (a_row, a_column): (usize, usize),
    b: *const u32,
    b_row: usize,
    c: *mut f32,
    c_row: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; TALL];
    for p in 0..k {
        // SAFETY: row p of b and column p of a, by the caller's promise; a register is a register.
        unsafe {
            let b = b.add(p * b_row);
            let b = [b, b.add(16)]
                .map(|b| std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast())));
            let a = a.add(p * a_column);
            for (r, sums) in sums.iter_mut().enumerate() {
                #[allow(clippy::cast_possible_wrap)] // Bits, not a number.
                let a = _mm512_set1_epi32(*a.add(r * a_row) as i32);
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: row r of c, by the caller's promise.
            unsafe {
                let c = c.add(r * c_row + 16 * i);
                let sum = if ADD { _mm512_add_ps(_mm512_loadu_ps(c), sum) } else { sum };
                _mm512_storeu_ps(c, sum);
            }
        }
    }
}
