//! One side of a product as it lies in memory.

use crate::cpu::Quantised;
use half::bf16;
use std::ops::Range;

/// The values of a matrix, row by row, end to end.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half as many bits.
    Bf16(&'a [bf16]),
    /// Blocks with a scale.
    Quantised(&'a dyn Quantised),
}

/// A matrix of `lines`, which become rows or columns of the product, contracted along their `depth`.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub(super) source: Source<'a>,
    rows: usize,
    width: usize,
    /// Lines are the columns in memory, not the rows.
    pub(super) turned: bool,
    pub(super) scale: f32,
}

impl<'a> Operand<'a> {
    /// A matrix `[rows, width]` whose lines are its rows.
    ///
    /// # Panics
    /// When it does not lie inside its slice.
    pub fn new(source: Source<'a>, rows: usize, width: usize) -> Self {
        let covers = |len: usize| rows.checked_mul(width).is_some_and(|size| size <= len);
        let covered = match source {
            Source::F32(values) => covers(values.len()),
            Source::Bf16(values) => covers(values.len()),
            Source::Quantised(weight) => weight.shape() == (rows, width),
        };
        assert!(covered, "operand: {rows}×{width} outside its slice");
        Self { source, rows, width, turned: false, scale: 1.0 }
    }

    /// f32 rows that lie end to end.
    ///
    /// # Panics
    /// When the slice is too short.
    pub fn f32(values: &'a [f32], rows: usize, width: usize) -> Self {
        Self::new(Source::F32(values), rows, width)
    }

    /// Lines and depth exchanged; nothing moves.
    #[must_use]
    pub fn t(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    /// Every value times `scale`, in f32 before any rounding.
    ///
    /// # Panics
    /// When the values are not f32.
    #[must_use]
    pub fn scaled(self, scale: f32) -> Self {
        assert!(matches!(self.source, Source::F32(_)), "only f32 operands are scaled");
        Self { scale: self.scale * scale, ..self }
    }

    /// Rows or columns that it gives the product.
    pub fn lines(&self) -> usize {
        if self.turned { self.width } else { self.rows }
    }

    /// What is summed over.
    pub fn depth(&self) -> usize {
        if self.turned { self.rows } else { self.width }
    }

    /// Values of a line that have to be read together.
    pub(super) fn block(&self) -> usize {
        match self.source {
            Source::Quantised(weight) => weight.block(),
            _ => 1,
        }
    }

    /// The piece `lines` × `depth`; a quantised one is dequantised into `scratch`.
    pub(super) fn piece<'b>(
        &self,
        lines: Range<usize>,
        depth: Range<usize>,
        scratch: &'b mut Vec<f32>,
    ) -> Piece<'b>
    where
        'a: 'b,
    {
        let (rows, columns) = if self.turned { (depth, lines) } else { (lines, depth) };
        assert!(rows.end <= self.rows && columns.end <= self.width, "a piece outside its operand");
        let first = rows.start * self.width + columns.start;
        let (values, stride) = match self.source {
            Source::F32(values) => (Values::F32(values.get(first..).unwrap_or(&[])), self.width),
            Source::Bf16(values) => (Values::Bf16(values.get(first..).unwrap_or(&[])), self.width),
            Source::Quantised(weight) => {
                let block = weight.block();
                let first = columns.start / block * block;
                let whole = first..columns.end.next_multiple_of(block).min(self.width);
                scratch.resize(rows.len() * whole.len(), 0.0);
                for (row, out) in rows.clone().zip(scratch.chunks_exact_mut(whole.len().max(1))) {
                    weight.dequantise(row, whole.clone(), out);
                }
                (Values::F32(&scratch[columns.start - first..]), whole.len())
            }
        };
        let (lines, depth) =
            if self.turned { (columns.len(), rows.len()) } else { (rows.len(), columns.len()) };
        Piece { values, stride, turned: self.turned, lines, depth, scale: self.scale }
    }
}

/// Values of a piece, from its first.
#[derive(Clone, Copy)]
pub(super) enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A part of an operand, ready to be packed; it lies inside its slice.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) values: Values<'a>,
    pub(super) stride: usize,
    pub(super) turned: bool,
    pub(super) lines: usize,
    pub(super) depth: usize,
    pub(super) scale: f32,
}

impl Piece<'_> {
    /// The lines from `first` on, `count` at most.
    pub(super) fn some_lines(&self, first: usize, count: usize) -> Self {
        let lines = count.min(self.lines.saturating_sub(first));
        let skipped = if self.turned { first } else { first * self.stride };
        let values = match self.values {
            Values::F32(x) => Values::F32(x.get(skipped..).unwrap_or(&[])),
            Values::Bf16(x) => Values::Bf16(x.get(skipped..).unwrap_or(&[])),
        };
        Self { values, lines, ..*self }
    }
}
