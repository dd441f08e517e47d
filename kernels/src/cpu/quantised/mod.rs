//! Weights that lie in memory in fewer bits: what a product needs to know of them, and the formats there are.

mod dynamic;
mod ggml;
#[cfg(test)]
mod golden;
mod nf4;

pub use dynamic::DynamicCode;
pub use ggml::{Ggml, GgmlKind};
pub use nf4::{Nf4, PartScales as Nf4Scales, Parts as Nf4Parts, VALUES as NF4_VALUES};

use std::fmt::Debug;
use std::ops::Range;

/// A frozen matrix `[rows, width]` whose rows are made of blocks of [`block`](Self::block) values.
pub trait Quantised: Debug + Send + Sync {
    /// Number of rows and values of a row.
    fn shape(&self) -> (usize, usize);

    /// Bytes that it takes in memory.
    fn bytes(&self) -> u64;

    /// Values that share a scale; pieces of a row begin at its multiples.
    fn block(&self) -> usize;

    /// Writes the values `columns` of row `row` to `out`, dequantised.
    ///
    /// # Panics
    /// When the piece lies outside the matrix, does not begin and end at a block's edge (the row's end is one), or `out`
    /// has another length.
    fn dequantise(&self, row: usize, columns: Range<usize>, out: &mut [f32]);
}

/// Half precision from its bits, exactly; plain arithmetic, so that loops around it become vectors.
#[inline(always)]
fn half(bits: [u8; 2]) -> f32 {
    /// 2¹¹²: the distance of the two exponents' biases.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes(bits));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
    let special = if bits & 0x7c00 == 0x7c00 { 0xff << 23 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn every_half_widens_to_its_value() {
        for bits in 0..=u16::MAX {
            let (ours, exact) = (half(bits.to_le_bytes()), ::half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == exact.to_bits() || ours.is_nan() && exact.is_nan(), "{bits:#x}");
        }
    }
}
