//! A kernel's launch as a value.

use std::borrow::Cow;

/// The files of `cuda/`, by the names of their modules.
pub const FILES: [&str; 12] = [
    "adamw",
    "attention",
    "attention_bf16",
    "dropout",
    "elementwise",
    "embedding",
    "gate",
    "ggml",
    "head",
    "nf4",
    "norm",
    "rope",
];

/// Threads of a block where a kernel does not need another number.
pub(super) const THREADS: u32 = 256;
/// Blocks beyond which elements are taken in turns: a few for each multiprocessor of any card.
const MOST_BLOCKS: usize = 4096;

/// Neighbours that a thread of a kernel's `_vec` form takes at once, as in `common.cuh`.
const VECTOR: usize = 4;

/// An address in the device's memory; 0 is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub u64);

/// An argument as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// 32 bits without a sign.
    U32(u32),
    /// 64 bits without a sign.
    U64(u64),
    /// A float.
    F32(f32),
}

impl Argument {
    /// Its bytes, little end first; a shorter one is followed by zeros.
    pub fn bits(self) -> u64 {
        match self {
            Self::Address(Address(bits)) | Self::U64(bits) => bits,
            Self::U32(value) => u64::from(value),
            Self::F32(value) => u64::from(value.to_bits()),
        }
    }
}

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// A kernel with its grid and arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Its file, one of [`FILES`].
    pub file: &'static str,
    /// Its plain form's name.
    pub kernel: &'static str,
    /// Whether it is the form that takes several neighbours at once.
    pub by_vectors: bool,
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block, whole warps.
    pub threads: u32,
    /// In the kernel's order.
    pub arguments: Vec<Argument>,
}

impl Launch {
    pub(super) fn new(
        (file, kernel): (&'static str, &'static str),
        grid: [u32; 2],
        threads: u32,
        arguments: &[Argument],
    ) -> Self {
        Self { file, kernel, by_vectors: false, grid, threads, arguments: arguments.to_vec() }
    }

    /// The kernel's name in its file.
    pub fn symbol(&self) -> Cow<'static, str> {
        if self.by_vectors { format!("{}_vec", self.kernel).into() } else { self.kernel.into() }
    }

    /// In the form for `at_once` values, which [`at_once`] gave.
    pub(super) fn taking(mut self, at_once: usize) -> Self {
        self.by_vectors = at_once > 1;
        self
    }

    /// A block for each of `blocks` rows or pieces.
    pub(super) fn rows(
        of: (&'static str, &'static str),
        blocks: usize,
        threads: u32,
        arguments: &[Argument],
    ) -> Self {
        Self::new(of, [number(blocks), 1], threads, arguments)
    }

    /// A thread for each of `count` elements, or for several; it takes `at_once` of them.
    pub(super) fn elements(
        of: (&'static str, &'static str),
        count: usize,
        at_once: usize,
        arguments: &[Argument],
    ) -> Self {
        let blocks = count.div_ceil(THREADS as usize * at_once).clamp(1, MOST_BLOCKS);
        Self::rows(of, blocks, THREADS, arguments).taking(at_once)
    }
}

/// How many neighbours a thread takes: [`VECTOR`] where rows of `width` values let it and all arrays begin at a multiple
/// of 16 bytes, else one.
pub(super) fn at_once(width: usize, arrays: &[Address]) -> usize {
    let fits = width.is_multiple_of(VECTOR) && arrays.iter().all(|array| array.0.is_multiple_of(16));
    if fits { VECTOR } else { 1 }
}

/// A size as kernels count: no tensor has a side of 2³² (the config and the model's shapes are checked), and a grid that
/// large the driver refuses.
pub(super) fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

pub(super) fn size(n: usize) -> Argument {
    Argument::U32(number(n))
}

pub(super) fn long(n: usize) -> Argument {
    Argument::U64(n as u64)
}

pub(super) fn flag(yes: bool) -> Argument {
    Argument::U32(u32::from(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_taken_where_every_row_of_every_array_lets_them() {
        let [aligned, beside] = [32, 40].map(Address);
        assert_eq!(at_once(8, &[aligned, Address(0)]), VECTOR);
        assert_eq!(at_once(6, &[aligned]), 1);
        assert_eq!(at_once(8, &[aligned, beside]), 1);
        let launch = Launch::elements(("gate", "gate_forward"), 1 << 12, VECTOR, &[]);
        assert_eq!((&*launch.symbol(), launch.grid), ("gate_forward_vec", [4, 1]));
    }
}
