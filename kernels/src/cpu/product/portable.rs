//! The tile and the packing as plain loops: for any CPU, in f32.

use super::kernel::{Finish, Kernel};
use super::operand::{Piece, Values};

pub(super) struct Portable;

impl Kernel for Portable {
    const ROWS: usize = 4;
    const COLUMNS: usize = 8;
    const BF16: bool = false;
    const DEPTH: usize = 1;

    unsafe fn pack_left(piece: &Piece<'_>, words: usize, to: *mut u32) {
        // SAFETY: by the caller's promise.
        unsafe { pack::<{ Self::ROWS }>(piece, words, to) }
    }

    unsafe fn pack_right(piece: &Piece<'_>, words: usize, to: *mut u32) {
        // SAFETY: by the caller's promise.
        unsafe { pack::<{ Self::COLUMNS }>(piece, words, to) }
    }

    unsafe fn tile(
        words: usize,
        a: *const u32,
        b: *const u32,
        _: (usize, usize),
        c: *mut f32,
        c_row: usize,
        finish: Finish,
    ) {
        const COLUMNS: usize = Portable::COLUMNS;
        // SAFETY: packed blocks of `words` words, by the caller's promise; a word is an f32.
        let (a, b) = unsafe {
            (
                std::slice::from_raw_parts(a.cast::<f32>(), words * Self::ROWS),
                std::slice::from_raw_parts(b.cast::<f32>(), words * COLUMNS),
            )
        };
        let mut sums = [[0f32; COLUMNS]; Self::ROWS];
        for (a, b) in a.chunks_exact(Self::ROWS).zip(b.chunks_exact(COLUMNS)) {
            for (sums, a) in sums.iter_mut().zip(a) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                // SAFETY: c has these values, by the caller's promise.
                unsafe {
                    let c = c.add(r * c_row + i);
                    match finish {
                        Finish::Store => *c = *sum,
                        Finish::Add => *c += *sum,
                    }
                }
            }
        }
    }
}

/// Packs f32 words line by line or, where the piece is turned, word by word.
///
/// # Safety
/// `to` has room for `words·LINES` words, which hold the piece.
#[inline(always)]
pub(super) unsafe fn pack<const LINES: usize>(piece: &Piece<'_>, words: usize, to: *mut u32) {
    assert!(piece.lines <= LINES && piece.depth <= words, "a piece larger than its block");
    // SAFETY: by the caller's promise; every word is written before it is read.
    let to = unsafe {
        to.write_bytes(0, words * LINES);
        std::slice::from_raw_parts_mut(to, words * LINES)
    };
    match piece.values {
        Values::F32(values) => place::<LINES, _>(piece, values, to, |x| (x * piece.scale).to_bits()),
        Values::Bf16(values) => place::<LINES, _>(piece, values, to, |x| u32::from(x.to_bits()) << 16),
    }
}

#[inline(always)]
fn place<const LINES: usize, T: Copy>(
    piece: &Piece<'_>,
    from: &[T],
    to: &mut [u32],
    word: impl Fn(T) -> u32,
) {
    if piece.depth == 0 || piece.lines == 0 {
        return;
    }
    if piece.turned {
        for (row, to) in from.chunks(piece.stride).zip(to.chunks_exact_mut(LINES)).take(piece.depth) {
            for (to, x) in to.iter_mut().zip(&row[..piece.lines]) {
                *to = word(*x);
            }
        }
    } else {
        for (line, row) in from.chunks(piece.stride).take(piece.lines).enumerate() {
            for (to, x) in to.chunks_exact_mut(LINES).zip(&row[..piece.depth]) {
                to[line] = word(*x);
            }
        }
    }
}
