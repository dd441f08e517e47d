//! The largest shapes that are believed. Every product of two of them fits 64 bits, so nothing counted or allocated
//! from a checked [`Arch`] can wrap; real models stay far below.

use super::fields::Fields;
use super::{Arch, Error};
use std::ops::RangeInclusive;

/// Blocks.
pub(super) const LAYERS: RangeInclusive<usize> = 1..=1_000;
/// D.
pub(super) const HIDDEN: RangeInclusive<usize> = 1..=1 << 20;
/// F.
pub(super) const INTERMEDIATE: RangeInclusive<usize> = 1..=1 << 24;
/// V.
pub(super) const VOCAB: RangeInclusive<usize> = 1..=1 << 24;
/// H and K.
pub(super) const HEADS: RangeInclusive<usize> = 1..=1 << 12;
/// Size of a head.
pub(super) const HEAD_DIM: RangeInclusive<usize> = 2..=1 << 12;
/// Longest sequence, and sliding windows.
pub(super) const POSITIONS: RangeInclusive<usize> = 1..=1 << 31;
/// Added to a mean square.
pub(super) const NORM_EPS: RangeInclusive<f64> = 1e-12..=1.0;
/// Base of the rope's frequencies.
pub(super) const THETA: RangeInclusive<f64> = 1.0..=1e12;
/// Stretch of the rope.
pub(super) const FACTOR: RangeInclusive<f64> = 1.0..=1e6;
/// Standard deviation of fresh weights.
pub(super) const INIT_STD: RangeInclusive<f64> = 0.0..=10.0;

/// Field names of the shapes that depend on each other, as the file calls them.
pub(super) struct Names<'a> {
    pub hidden: &'a str,
    pub heads: &'a str,
    pub kv_heads: &'a str,
    pub head_dim: &'a str,
}

/// The head's size where the file does not say: D / H, which must come out even.
pub(super) fn head_dim(
    fields: &impl Fields,
    names: &Names,
    given: Option<usize>,
    hidden: usize,
    heads: usize,
) -> Result<usize, Error> {
    match given {
        Some(size) => Ok(size),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(fields.refuse(
            names.heads,
            format!(
                "must divide `{}` ({hidden}) where `{}` is absent",
                fields.full_name(names.hidden),
                fields.full_name(names.head_dim)
            ),
            heads.to_string(),
        )),
    }
}

/// Rules between shapes.
pub(super) fn check(fields: &impl Fields, names: &Names, arch: Arch) -> Result<Arch, Error> {
    if !arch.heads.is_multiple_of(arch.kv_heads) {
        let rule = format!("must divide `{}` ({})", fields.full_name(names.heads), arch.heads);
        return Err(fields.refuse(names.kv_heads, rule, arch.kv_heads.to_string()));
    }
    if !arch.head_dim.is_multiple_of(2) || !HEAD_DIM.contains(&arch.head_dim) {
        return Err(fields.refuse(
            names.head_dim,
            format!("must be an even number from {} to {}", HEAD_DIM.start(), HEAD_DIM.end()),
            arch.head_dim.to_string(),
        ));
    }
    Ok(arch)
}
