//! NF4 (Dettmers et al., 2023): 4 bits a value, a scale per 64 of them, the scales themselves in 8 bits where asked.
//! Codes and scales are those of bitsandbytes 0.50.2 on the CPU, bit for bit: blocks run over the flattened matrix.

use super::{DynamicCode, Quantised};
use crate::cpu::dispatch;
use rayon::prelude::*;
use std::ops::Range;

/// Values that share a scale.
const BLOCK: usize = 64;
/// Blocks that are encoded at a time: 64 KiB of f32.
const CHUNK: usize = 256;

/// The values that four bits stand for: quantiles of a normal distribution, with 0 and ±1 among them (their appendix E).
pub const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A value above a bound rounds to the code behind it.
const BOUNDS: [f32; 15] = {
    let mut bounds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        bounds[i] = VALUES[i].midpoint(VALUES[i + 1]);
        i += 1;
    }
    bounds
};

/// Keeps the scale of a block of zeros divisible; bitsandbytes' number.
const LEAST: f32 = 1e-38;

/// A matrix in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    rows: usize,
    width: usize,
    /// Two values a byte, the first in the high half.
    pub(super) codes: Vec<u8>,
    pub(super) scales: Scales,
}

/// A matrix's bytes, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Two values a byte, the first in the high half.
    pub codes: &'a [u8],
    /// One for 64 values.
    pub scales: PartScales<'a>,
}

/// A matrix's scales, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum PartScales<'a> {
    /// As they are.
    Plain(&'a [f32]),
    /// In 8 bits, less their mean.
    Double {
        /// The scales less the mean.
        code: &'a DynamicCode,
        /// What was taken off.
        mean: f32,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scales {
    Plain(Vec<f32>),
    Double {
        /// The scales less their mean.
        code: DynamicCode,
        mean: f32,
    },
}

impl Nf4 {
    /// Encodes a matrix piece by piece: `values` writes the numbers of a range of the flattened matrix.
    pub fn encode(
        (rows, width): (usize, usize),
        double_quant: bool,
        values: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let count = rows * width;
        let mut codes = vec![0; count.div_ceil(2)];
        let mut absmax = vec![0f32; count.div_ceil(BLOCK)];
        let pieces = codes.par_chunks_mut(CHUNK * BLOCK / 2).zip(absmax.par_chunks_mut(CHUNK));
        pieces.enumerate().for_each(|(piece, (codes, absmax))| {
            let first = piece * CHUNK * BLOCK;
            let mut numbers = vec![0f32; (CHUNK * BLOCK).min(count - first)];
            values(first..first + numbers.len(), &mut numbers);
            encode_blocks(&numbers, codes, absmax);
        });
        let scales = if double_quant { Scales::double(&absmax) } else { Scales::Plain(absmax) };
        Self { rows, width, codes, scales }
    }

    /// As it lies in memory, for another device.
    pub fn parts(&self) -> Parts<'_> {
        let scales = match &self.scales {
            Scales::Plain(scales) => PartScales::Plain(scales),
            Scales::Double { code, mean } => PartScales::Double { code, mean: *mean },
        };
        Parts { codes: &self.codes, scales }
    }

    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Plain(scales) => scales[block],
            Scales::Double { code, mean } => code.value(block) + mean,
        }
    }
}

impl Scales {
    fn double(absmax: &[f32]) -> Self {
        let mean = mean(absmax);
        let centred: Vec<f32> = absmax.iter().map(|x| x - mean).collect();
        Self::Double { code: DynamicCode::encode(&centred), mean }
    }
}

/// The mean as torch makes it on one thread, which bitsandbytes takes from a matrix's scales: eight lanes, four
/// accumulators each, cascaded over four levels.
pub(super) fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const LEVELS: usize = 4;
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (groups, odd) = vectors.as_chunks::<ROWS>();
    let mut sums = [[[0f32; LANES]; ROWS]; LEVELS];
    let step = 1_usize << (groups.len().next_power_of_two().ilog2() as usize / LEVELS).max(4);
    for (i, group) in groups.iter().enumerate() {
        add(sums[0].as_flattened_mut(), group.as_flattened());
        let mut place = i + 1;
        for level in 1..LEVELS {
            if !place.is_multiple_of(step) {
                break;
            }
            let (lower, upper) = sums.split_at_mut(level);
            add(upper[0].as_flattened_mut(), lower[level - 1].as_flattened());
            lower[level - 1] = Default::default();
            place /= step;
        }
    }
    let [mut sum, upper @ ..] = sums;
    for level in &upper {
        add(sum.as_flattened_mut(), level.as_flattened());
    }
    let [mut lanes, rows @ ..] = sum;
    for vector in odd.iter().chain(&rows) {
        add(&mut lanes, vector);
    }
    let total = rest.iter().chain(&lanes).fold(0f32, |sum, x| sum + x);
    #[expect(clippy::cast_precision_loss, reason = "as torch divides")]
    let count = values.len() as f32;
    total / count
}

fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(values) {
        *sum += x;
    }
}

impl Quantised for Nf4 {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    fn bytes(&self) -> u64 {
        let scales = match &self.scales {
            Scales::Plain(scales) => 4 * scales.len() as u64,
            Scales::Double { code, .. } => code.bytes() + 4,
        };
        self.codes.len() as u64 + scales
    }

    fn block(&self) -> usize {
        BLOCK
    }

    fn dequantise(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        assert!(row < self.rows && columns.end <= self.width, "row {row}, {columns:?} outside the matrix");
        assert_eq!(columns.len(), out.len(), "{columns:?} into another length");
        // Where the width is no multiple of 64, blocks run across rows.
        let mut at = row * self.width + columns.start;
        let mut out = out;
        while !out.is_empty() {
            let in_block = (BLOCK - at % BLOCK).min(out.len());
            let whole = if in_block == BLOCK { out.len() / BLOCK * BLOCK } else { 0 };
            let (piece, rest) = out.split_at_mut(whole.max(in_block));
            if whole > 0 {
                whole_blocks(self, at / BLOCK, piece);
            } else {
                let scale = self.scale(at / BLOCK);
                for (i, out) in (at..).zip(&mut *piece) {
                    let byte = self.codes[i / 2];
                    *out = VALUES[usize::from(if i % 2 == 0 { byte >> 4 } else { byte & 15 })] * scale;
                }
            }
            at += piece.len();
            out = rest;
        }
    }
}

dispatch! {
    /// Codes and scales of whole blocks, and of a shorter last one.
    fn encode_blocks(values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
        let blocks = values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(absmax);
        for ((values, codes), absmax) in blocks {
            let mut largest = 0f32;
            for x in values {
                largest = largest.max(x.abs());
            }
            // bitsandbytes multiplies whole blocks and divides a rest.
            let is_whole = values.len() == BLOCK;
            let divisor = largest.max(LEAST);
            *absmax = if is_whole { largest } else { divisor };
            // What an odd end is padded with.
            let mut numbered = [7_u8; BLOCK];
            for (code, x) in numbered.iter_mut().zip(values) {
                let x = if is_whole { x * (1.0 / divisor) } else { x / divisor };
                *code = code_of(x.clamp(-1.0, 1.0));
            }
            for (byte, pair) in codes.iter_mut().zip(numbered.chunks_exact(2)) {
                *byte = pair[0] << 4 | pair[1];
            }
        }
    }
}

#[inline(always)]
fn code_of(x: f32) -> u8 {
    let mut code = 0;
    for bound in BOUNDS {
        code += u8::from(x > bound);
    }
    code
}

dispatch! {
    /// Blocks from number `first`, as many as `out` holds.
    fn whole_blocks(matrix: &Nf4, first: usize, out: &mut [f32]) {
        let (out, _) = out.as_chunks_mut::<BLOCK>();
        let (codes, _) = matrix.codes[first * BLOCK / 2..].as_chunks::<{ BLOCK / 2 }>();
        for (i, (codes, out)) in codes.iter().zip(out).enumerate() {
            let scale = matrix.scale(first + i);
            #[cfg(target_arch = "x86_64")]
            if LANES == 16 {
                // SAFETY: `LANES` is 16 only in the body that is compiled for AVX-512 and called on such a CPU.
                unsafe { x86::block_avx512(codes, scale, out) };
                continue;
            } else if FMA {
                // SAFETY: as above, for AVX2.
                unsafe { x86::block_avx2(codes, scale, out) };
                continue;
            }
            let scaled = VALUES.map(|value| value * scale);
            for (pair, byte) in out.chunks_exact_mut(2).zip(codes) {
                pair[0] = scaled[usize::from(byte >> 4)];
                pair[1] = scaled[usize::from(byte & 15)];
            }
        }
    }
}

/// A block by the CPU's own look-up in a register: the values times their scale, then 64 look-ups.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, VALUES};
    use std::arch::x86_64::{
        __m128i, _mm_and_si128, _mm_set_epi64x, _mm_set1_epi8, _mm_srli_epi16, _mm_srli_si128,
        _mm_unpackhi_epi8, _mm_unpacklo_epi8, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepu8_epi32,
        _mm256_loadu_ps, _mm256_mul_ps, _mm256_permutevar8x32_ps, _mm256_set1_ps, _mm256_slli_epi32,
        _mm256_storeu_ps, _mm512_cvtepu8_epi32, _mm512_loadu_ps, _mm512_mul_ps, _mm512_permutexvar_ps,
        _mm512_set1_ps, _mm512_storeu_ps,
    };

    /// The codes of 16 bytes in order: high halves in even places.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn codes_of(bytes: &[u8; 16]) -> [__m128i; 2] {
        let bytes = _mm_set_epi64x(
            i64::from_le_bytes(*bytes.last_chunk().unwrap_or(&[0; 8])),
            i64::from_le_bytes(*bytes.first_chunk().unwrap_or(&[0; 8])),
        );
        let low_half = _mm_set1_epi8(15);
        let (high, low) =
            (_mm_and_si128(_mm_srli_epi16::<4>(bytes), low_half), _mm_and_si128(bytes, low_half));
        [_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low)]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx2")]
    pub(super) fn block_avx512(bytes: &[u8; BLOCK / 2], scale: f32, out: &mut [f32; BLOCK]) {
        // SAFETY: sixteen floats are read.
        let values = unsafe { _mm512_loadu_ps(VALUES.as_ptr()) };
        let scaled = _mm512_mul_ps(values, _mm512_set1_ps(scale));
        let ((bytes, _), (out, _)) = (bytes.as_chunks::<16>(), out.as_chunks_mut::<32>());
        for (bytes, out) in bytes.iter().zip(out) {
            let (out, _) = out.as_chunks_mut::<16>();
            for (codes, out) in codes_of(bytes).into_iter().zip(out) {
                let found = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), scaled);
                // SAFETY: `out` holds sixteen floats.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), found) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn block_avx2(bytes: &[u8; BLOCK / 2], scale: f32, out: &mut [f32; BLOCK]) {
        let scale = _mm256_set1_ps(scale);
        // SAFETY: eight floats are read twice.
        let (lower, upper) =
            unsafe { (_mm256_loadu_ps(VALUES.as_ptr()), _mm256_loadu_ps(VALUES.as_ptr().add(8))) };
        let (lower, upper) = (_mm256_mul_ps(lower, scale), _mm256_mul_ps(upper, scale));
        let ((bytes, _), (out, _)) = (bytes.as_chunks::<16>(), out.as_chunks_mut::<32>());
        for (bytes, out) in bytes.iter().zip(out) {
            let [first, second] = codes_of(bytes);
            let quarters = [first, _mm_srli_si128::<8>(first), second, _mm_srli_si128::<8>(second)];
            let (out, _) = out.as_chunks_mut::<8>();
            for (codes, out) in quarters.into_iter().zip(out) {
                let codes = _mm256_cvtepu8_epi32(codes);
                let (low, high) =
                    (_mm256_permutevar8x32_ps(lower, codes), _mm256_permutevar8x32_ps(upper, codes));
                // The code's fourth bit, as the sign that a blend looks at.
                let is_upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                // SAFETY: `out` holds eight floats.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(low, high, is_upper)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::cast_precision_loss)]
    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 % 1013) as f32 - 506.0) * 0.37e-3).collect()
    }

    fn encode(shape: (usize, usize), double_quant: bool) -> (Nf4, Vec<f32>) {
        let values = numbers(shape.0 * shape.1);
        (Nf4::encode(shape, double_quant, |range, out| out.copy_from_slice(&values[range])), values)
    }

    #[test]
    fn any_piece_of_any_width_equals_the_plain_formula() {
        for (rows, width) in [(1, 1), (3, 5), (2, 64), (5, 192), (7, 100), (300, 70), (9, 640)] {
            for double_quant in [false, true] {
                let (matrix, _) = encode((rows, width), double_quant);
                for row in 0..rows {
                    for start in (0..width).step_by(BLOCK) {
                        let columns = start..width.min(start + 3 * BLOCK);
                        let mut out = vec![0f32; columns.len()];
                        matrix.dequantise(row, columns.clone(), &mut out);
                        for (i, out) in (row * width + start..).zip(out) {
                            let code = matrix.codes[i / 2] >> (4 * (1 - i % 2)) & 15;
                            let exact = VALUES[usize::from(code)] * matrix.scale(i / BLOCK);
                            assert_eq!(out.to_bits(), exact.to_bits(), "{rows}×{width}, value {i}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_value_is_off_by_half_a_step_of_its_block_at_most() {
        // The widest step is that between −1 and its neighbour; double quantisation moves the scale a little.
        let widest = (VALUES[1] - VALUES[0]) / 2.0;
        for (double_quant, slack) in [(false, 1e-6), (true, 2e-2)] {
            let (matrix, values) = encode((40, 128), double_quant);
            let mut out = vec![0f32; 128];
            for (row, values) in values.chunks(128).enumerate() {
                matrix.dequantise(row, 0..128, &mut out);
                for (values, out) in values.chunks(BLOCK).zip(out.chunks(BLOCK)) {
                    let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
                    for (x, y) in values.iter().zip(out) {
                        assert!(
                            (x - y).abs() <= largest * (widest + slack),
                            "{x} became {y}, scale {largest}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn quantised_linears_take_less_than_a_third_of_their_bf16() {
        let bytes = |double_quant| encode((576, 576), double_quant).0.bytes() as f64 / (2.0 * 576.0 * 576.0);
        assert!(bytes(true) < 0.26 && bytes(false) < 0.30, "{}, {}", bytes(true), bytes(false));
    }
}
