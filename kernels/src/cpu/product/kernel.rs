//! What a path gives the driver: a register tile and the way to pack for it.

use super::operand::Piece;

/// How a tile ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Finish {
    /// c is overwritten and never read.
    Store,
    /// The sums are added to c.
    Add,
}

/// A register tile. Packed sides are made of words of 32 bits: an f32, or two bf16 that stand beside each other along
/// the depth. Word `w` of line `l` stands at `w·LINES + l`.
pub(super) trait Kernel {
    /// Rows of the tile: lines of a packed left block.
    const ROWS: usize;
    /// Columns of the tile: lines of a packed right block.
    const COLUMNS: usize;
    /// Whether a word is a pair of bf16.
    const BF16: bool;
    /// Words are packed up to a multiple of this, with zeros.
    const DEPTH: usize;

    /// Packs `piece` as a left block of `ROWS` lines and `words` words; lines and words beyond the piece become 0.
    ///
    /// # Safety
    /// The CPU has the path; `to` has room for `words·ROWS` words.
    unsafe fn pack_left(piece: &Piece<'_>, words: usize, to: *mut u32);

    /// Packs `piece` as a right block of `COLUMNS` lines, in the same way.
    ///
    /// # Safety
    /// The CPU has the path; `to` has room for `words·COLUMNS` words.
    unsafe fn pack_right(piece: &Piece<'_>, words: usize, to: *mut u32);

    /// `c[ROWS, COLUMNS] = a·b`, or `+=`; only the first rows and columns of `shape` have to be right.
    ///
    /// # Safety
    /// The CPU has the path; `a` and `b` are packed blocks of `words` words; c has `ROWS` rows of `COLUMNS` values,
    /// `c_row` apart, initialised where they are added to.
    unsafe fn tile(
        words: usize,
        a: *const u32,
        b: *const u32,
        shape: (usize, usize),
        c: *mut f32,
        c_row: usize,
        finish: Finish,
    );
}

/// Words that `depth` values take.
pub(super) fn words<K: Kernel>(depth: usize) -> usize {
    depth.div_ceil(if K::BF16 { 2 } else { 1 }).next_multiple_of(K::DEPTH)
}
