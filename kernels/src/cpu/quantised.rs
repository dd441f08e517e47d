//! What a product needs to know of a weight that lies in memory in fewer bits: pieces of its rows as f32.

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
