//! ggml's block formats, as GGUF files hold them. Every value is made by the operations of the `gguf` Python package in
//! their order and without fusing, so that it is the same to the last bit.

mod plain;
mod superblocks;

use super::{Quantised, half};
use crate::cpu::dispatch;
use std::ops::Range;

/// A block format; f32 and bf16 need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names are ggml's")]
#[expect(missing_docs, reason = "each is ggml's type of that name")]
pub enum GgmlKind {
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl GgmlKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Values and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }
}

/// A matrix of blocks, as its file had them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ggml {
    kind: GgmlKind,
    rows: usize,
    width: usize,
    blocks: Vec<u8>,
}

impl Ggml {
    /// A matrix of these blocks; `None` where a row is no whole number of them, or they are not as many as the shape
    /// makes.
    pub fn new(kind: GgmlKind, (rows, width): (usize, usize), blocks: Vec<u8>) -> Option<Self> {
        let (values, bytes) = kind.block();
        let count = rows.checked_mul(width).filter(|_| width % values == 0)? / values;
        (count.checked_mul(bytes)? == blocks.len()).then_some(Self { kind, rows, width, blocks })
    }

    /// As it lies in memory, for another device.
    pub fn parts(&self) -> (GgmlKind, &[u8]) {
        (self.kind, &self.blocks)
    }
}

impl Quantised for Ggml {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    fn bytes(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn block(&self) -> usize {
        self.kind.block().0
    }

    fn dequantise(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let (values, bytes) = self.kind.block();
        let at = columns.clone();
        assert!(row < self.rows && at.end <= self.width, "row {row}, {columns:?} outside the matrix");
        assert!(
            at.start.is_multiple_of(values) && at.end.is_multiple_of(values),
            "{columns:?} cuts a block of {values}"
        );
        assert_eq!(at.len(), out.len(), "{columns:?} into another length");
        let first = (row * self.width + at.start) / values * bytes;
        widen(self.kind, &self.blocks[first..first + at.len() / values * bytes], out);
    }
}

dispatch! {
    /// The values of whole blocks.
    fn widen(kind: GgmlKind, blocks: &[u8], out: &mut [f32]) {
        match kind {
            GgmlKind::F16 => each(blocks, out, |bits: &[u8; 2], out: &mut [f32; 1]| out[0] = half(*bits)),
            GgmlKind::Q4_0 => each(blocks, out, plain::q4_0),
            GgmlKind::Q4_1 => each(blocks, out, plain::q4_1),
            GgmlKind::Q5_0 => each(blocks, out, plain::q5_0),
            GgmlKind::Q5_1 => each(blocks, out, plain::q5_1),
            GgmlKind::Q8_0 => each(blocks, out, plain::q8_0),
            GgmlKind::Q2_K => each(blocks, out, superblocks::q2_k),
            GgmlKind::Q3_K => each(blocks, out, superblocks::q3_k),
            GgmlKind::Q4_K => each(blocks, out, superblocks::q4_k),
            GgmlKind::Q5_K => each(blocks, out, superblocks::q5_k),
            GgmlKind::Q6_K => each(blocks, out, superblocks::q6_k),
        }
    }
}

#[inline(always)]
fn each<const BYTES: usize, const VALUES: usize>(
    blocks: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let ((blocks, _), (out, _)) = (blocks.as_chunks::<BYTES>(), out.as_chunks_mut::<VALUES>());
    for (bytes, out) in blocks.iter().zip(out) {
        block(bytes, out);
    }
}

/// The `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block whose scales are finite.
    fn blocks(kind: GgmlKind, count: usize) -> Vec<u8> {
        let (_, bytes) = kind.block();
        let mut state = 0x9e37_79b9_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Below 0x7c each half is finite, wherever a format keeps its own.
            (state >> 24) as u8 & 0x3b
        };
        (0..bytes * count).map(|_| next()).collect()
    }

    #[test]
    fn a_piece_of_a_row_is_that_piece_of_the_whole_row() {
        for kind in GgmlKind::ALL {
            let (values, _) = kind.block();
            let width = 5 * values;
            let matrix = Ggml::new(kind, (3, width), blocks(kind, 15)).unwrap();
            let mut whole = vec![0f32; width];
            matrix.dequantise(2, 0..width, &mut whole);
            assert!(whole.iter().all(|x| x.is_finite()) && whole.iter().any(|x| *x != 0.0), "{kind:?}");
            let mut piece = vec![0f32; 2 * values];
            matrix.dequantise(2, values..3 * values, &mut piece);
            assert_eq!(piece, whole[values..3 * values], "{kind:?}");
        }
    }

    #[test]
    fn blocks_that_do_not_fill_the_shape_are_refused() {
        assert!(Ggml::new(GgmlKind::Q4_0, (2, 32), vec![0; 36]).is_some());
        assert!(Ggml::new(GgmlKind::Q4_0, (2, 32), vec![0; 35]).is_none());
        assert!(Ggml::new(GgmlKind::Q4_0, (2, 16), vec![0; 18]).is_none());
        assert!(Ggml::new(GgmlKind::F16, (usize::MAX, 2), vec![]).is_none());
    }
}
