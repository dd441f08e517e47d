//! A left side, packed whole.

use super::kernel::{Kernel, words};
use super::operand::Operand;
use super::{Precision, run};
use crate::cpu::share::Shared;
use rayon::prelude::*;

/// A left side in blocks of the lines that a register tile takes: it serves any number of products.
pub struct Packed {
    values: Vec<u32>,
    lines: usize,
    pub(super) depth: usize,
    pub(super) words: usize,
    pub(super) precision: Precision,
}

impl Packed {
    /// Packs `operand` for products in `precision`.
    pub fn new(operand: Operand<'_>, precision: Precision) -> Self {
        run::with_kernel(precision, Pack { operand, precision })
    }

    /// Rows that it gives a product.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// `words` words from word `word` on, of block `block` of `rows` lines.
    pub(super) fn block(&self, block: usize, rows: usize, word: usize, words: usize) -> &[u32] {
        &self.values[(block * self.words + word) * rows..][..words * rows]
    }
}

/// A side that is packed whole.
pub(super) struct Pack<'a> {
    pub(super) operand: Operand<'a>,
    pub(super) precision: Precision,
}

impl run::Work for Pack<'_> {
    type Output = Packed;

    fn with<K: Kernel>(self) -> Packed {
        let (lines, depth) = (self.operand.lines(), self.operand.depth());
        let words = words::<K>(depth);
        let size = lines.div_ceil(K::ROWS) * K::ROWS * words;
        let mut values: Vec<u32> = Vec::with_capacity(size);
        let shared = Shared::room(&mut values);
        (0..lines.div_ceil(K::ROWS)).into_par_iter().for_each_init(Vec::new, |scratch, block| {
            let first = block * K::ROWS;
            let piece = self.operand.piece(first..lines.min(first + K::ROWS), 0..depth, scratch);
            // SAFETY: the path was chosen for this CPU; this task alone writes this block, which holds the piece.
            unsafe { K::pack_left(&piece, words, shared.place(first * words, K::ROWS * words)) }
        });
        // SAFETY: the blocks written are the whole buffer.
        unsafe { values.set_len(size) }
        Packed { values, lines, depth, words, precision: self.precision }
    }
}
