//! AMX: 32 × 32 sums in four of the eight tile registers, bf16 in, f32 out. The loop is written over the instructions
//! as a trait, so that a model of them in plain Rust drives the same loop in tests and in the check at start-up.

use super::Precision;
use super::avx512_pack::pack_with;
use super::kernel::{Finish, Kernel};
use super::operand::{Operand, Piece};
use super::pack::Pack;
use super::run::{Out, Product, Run, Start, Term, Work};
use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile register, and its words of 32 bits a row.
const SIDE: usize = 16;
/// Rows and columns of c in registers.
const BLOCK: usize = 2 * SIDE;

/// The tile instructions that the loop uses, on registers 0 to 7 of 16 rows of 64 bytes.
pub(super) trait Tiles {
    /// `ldtilecfg`: all registers whole, all zero.
    ///
    /// # Safety
    /// The machine has the instructions, and the kernel lets this process use them.
    unsafe fn configure() -> Self;

    /// `tileloadd`: 16 rows of 64 bytes, `stride` bytes apart.
    ///
    /// # Safety
    /// As for [`Self::configure`]; the rows can be read.
    unsafe fn load<const TILE: u8>(&mut self, from: *const u32, stride: usize);

    /// `tdpbf16ps`: c += a·b, a in rows of pairs of bf16, b in rows of pairs by column.
    ///
    /// # Safety
    /// As for [`Self::configure`].
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>(&mut self);

    /// `tilestored`: 16 rows of 64 bytes, `stride` bytes apart.
    ///
    /// # Safety
    /// As for [`Self::configure`]; the rows can be written.
    unsafe fn store<const TILE: u8>(&mut self, to: *mut f32, stride: usize);
}

/// The instructions themselves. Tiles 0 to 3 hold c, 4 and 5 rows of a, 6 and 7 columns of b.
struct Real;

/// `ldtilecfg`'s operand: palette 1, then bytes a row and rows of each register.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

// The compiler has no tile registers of its own, so what one instruction leaves in them the next one finds.
impl Tiles for Real {
    #[inline(always)]
    unsafe fn configure() -> Self {
        // SAFETY: by the caller's promise; the operand is 64 bytes of a valid configuration.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly, preserves_flags));
        }
        Self
    }

    #[inline(always)]
    unsafe fn load<const TILE: u8>(&mut self, from: *const u32, stride: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const TILE, from = in(reg) from, stride = in(reg) stride,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: by the caller's promise; registers only.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: u8>(&mut self, to: *mut f32, stride: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const TILE, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }
}

/// The same in plain Rust, after Intel's description: even and odd products are summed apart, then added to c.
struct Model([[[u32; SIDE]; SIDE]; 8]);

impl Tiles for Model {
    unsafe fn configure() -> Self {
        Self([[[0; SIDE]; SIDE]; 8])
    }

    unsafe fn load<const TILE: u8>(&mut self, from: *const u32, stride: usize) {
        for (r, row) in self.0[usize::from(TILE)].iter_mut().enumerate() {
            // SAFETY: the rows can be read, by the caller's promise.
            *row = unsafe { from.byte_add(r * stride).cast::<[u32; SIDE]>().read_unaligned() };
        }
    }

    unsafe fn multiply<const C: u8, const A: u8, const B: u8>(&mut self) {
        let (a, b) = (self.0[usize::from(A)], self.0[usize::from(B)]);
        let low = |word: u32| f32::from_bits(word << 16);
        let high = |word: u32| f32::from_bits(word & 0xffff_0000);
        for (c, a) in self.0[usize::from(C)].iter_mut().zip(&a) {
            for (n, c) in c.iter_mut().enumerate() {
                let (mut even, mut odd) = (0f32, 0f32);
                for (a, b) in a.iter().zip(&b) {
                    even = low(*a).mul_add(low(b[n]), even);
                    odd = high(*a).mul_add(high(b[n]), odd);
                }
                *c = (f32::from_bits(*c) + (even + odd)).to_bits();
            }
        }
    }

    unsafe fn store<const TILE: u8>(&mut self, to: *mut f32, stride: usize) {
        for (r, row) in self.0[usize::from(TILE)].iter().enumerate() {
            // SAFETY: the rows can be written, by the caller's promise.
            unsafe { to.byte_add(r * stride).cast::<[u32; SIDE]>().write_unaligned(*row) }
        }
    }
}

/// A left block is rows of 16 words, one panel of rows behind the other; a right block is words of 32 columns.
///
/// # Safety
/// As for [`Kernel::tile`]; `words` is a multiple of 16, c has 32 rows of 32 values.
#[inline(always)]
unsafe fn block<T: Tiles>(words: usize, a: *const u32, b: *const u32, c: *mut f32, c_row: usize) {
    const ROW: usize = 4 * SIDE;
    // SAFETY: by the caller's promise.
    unsafe {
        let mut tiles = T::configure();
        for w in (0..words).step_by(SIDE) {
            let (a, b) = (a.add(w * BLOCK), b.add(w * BLOCK));
            tiles.load::<4>(a, ROW);
            tiles.load::<6>(b, 2 * ROW);
            tiles.multiply::<0, 4, 6>();
            tiles.load::<7>(b.add(SIDE), 2 * ROW);
            tiles.multiply::<1, 4, 7>();
            tiles.load::<5>(a.add(SIDE * SIDE), ROW);
            tiles.multiply::<2, 5, 6>();
            tiles.multiply::<3, 5, 7>();
        }
        tiles.store::<0>(c, 4 * c_row);
        tiles.store::<1>(c.add(SIDE), 4 * c_row);
        tiles.store::<2>(c.add(SIDE * c_row), 4 * c_row);
        tiles.store::<3>(c.add(SIDE * c_row + SIDE), 4 * c_row);
    }
}

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $tiles:ident) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Kernel for $name {
            const ROWS: usize = BLOCK;
            const COLUMNS: usize = BLOCK;
            const BF16: bool = true;
            const DEPTH: usize = SIDE;

            unsafe fn pack_left(piece: &Piece<'_>, words: usize, to: *mut u32) {
                // SAFETY: by the caller's promise.
                unsafe { pack_left(piece, words, to) }
            }

            unsafe fn pack_right(piece: &Piece<'_>, words: usize, to: *mut u32) {
                // SAFETY: by the caller's promise.
                unsafe { pack_right(piece, words, to) }
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
                // SAFETY: by the caller's promise.
                unsafe {
                    match finish {
                        Finish::Store => block::<$tiles>(words, a, b, c, c_row),
                        Finish::Add => {
                            let mut sums = [0f32; BLOCK * BLOCK];
                            block::<$tiles>(words, a, b, sums.as_mut_ptr(), BLOCK);
                            add(&sums, c, c_row);
                        }
                    }
                }
            }
        }
    };
}

kernel!(
    /// bf16 products by the matrix unit.
    Amx,
    Real
);
kernel!(
    /// The same loop on the model of its instructions: slow, for tests and for the check at start-up.
    AmxModel,
    Model
);

/// # Safety
/// c has 32 rows of 32 values, `c_row` apart.
#[target_feature(enable = "avx512f")]
unsafe fn add(sums: &[f32; BLOCK * BLOCK], c: *mut f32, c_row: usize) {
    for (r, sums) in sums.chunks_exact(BLOCK).enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { *c.add(r * c_row + i) += sum }
        }
    }
}

/// # Safety
/// As for [`Kernel::pack_right`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_right(piece: &Piece<'_>, words: usize, to: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe { pack_with::<BLOCK, true, false>(piece, words, to) }
}

/// Rows of 16 words each: a word of 16 lines that lies across is turned back.
///
/// # Safety
/// As for [`Kernel::pack_left`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_left(piece: &Piece<'_>, words: usize, to: *mut u32) {
    // SAFETY: by the caller's promise.
    unsafe { pack_with::<BLOCK, true, true>(piece, words, to) }
}

/// Whether this process may use AMX and its products are what the model of its instructions gives: asked once, so
/// that a machine on which they are not never trains with them.
pub(in crate::cpu) fn is_sound() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        crate::sys::may_use_amx() && {
            let (real, model) = (trial::<Amx>(), trial::<AmxModel>());
            !real.is_empty()
                && real.len() == model.len()
                && real.iter().zip(&model).all(|(a, b)| (a - b).abs() <= 1e-4)
        }
    })
}

/// A product with tails in every direction and two terms, of numbers up to about 1.
fn trial<K: Kernel>() -> Vec<f32> {
    let (m, n, k) = (37, 45, 71);
    let numbers = |step: u16| -> Vec<f32> {
        (0..8192u16).map(|i| f32::from(i.wrapping_mul(step) % 257) / 128.0 - 1.0).collect()
    };
    let (a, b) = (numbers(7919), numbers(6007));
    let precision = Precision::Bf16;
    let packed = [Operand::f32(&a, m, k), Operand::f32(&a, k, m).t()]
        .map(|operand| Pack { operand, precision }.with::<K>());
    let rights = [Operand::f32(&b, n, k), Operand::f32(&b, k, n).t()];
    let terms = packed.iter().zip(rights).map(|(left, right)| Term { left, right }).collect();
    let mut c = Vec::new();
    let product = Product { shape: (m, n), terms, start: Start::Nothing, out: Out::Fresh(&mut c) };
    // Without room for it nothing is multiplied, and c stays empty.
    let _ = Run { all: vec![product], precision }.with::<K>();
    c
}

#[cfg(test)]
mod tests {
    use super::super::avx512::Avx512Bf16;
    use super::*;
    use crate::cpu::Path;

    /// The loop of the matrix unit, on the model of its instructions, against the products of another unit. (Where
    /// there is AMX, `is_sound` holds the instructions themselves against the model.)
    #[test]
    fn the_loop_gives_what_other_bf16_products_give() {
        if !Path::Avx512Bf16.is_here() {
            println!("left out: packing for AMX takes AVX-512 BF16, which this CPU lacks");
            return;
        }
        let (model, other) = (trial::<AmxModel>(), trial::<Avx512Bf16>());
        assert_eq!(model.len(), 37 * 45);
        for (i, (a, b)) in model.iter().zip(&other).enumerate() {
            assert!((a - b).abs() <= 1e-4, "[{i}]: {a}, by vdpbf16ps {b}");
        }
        assert!(model.iter().any(|x| x.abs() > 1.0));
    }
}
