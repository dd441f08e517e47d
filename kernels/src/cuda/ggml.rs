//! ggml's block formats back to bf16 or f32.

use super::launch::{Address, Launch, at_once, long, size};
use crate::cpu::GgmlKind;

/// Which rows of a matrix of blocks.
#[derive(Debug, Clone, Copy)]
pub enum Rows {
    /// All, so many.
    All(usize),
    /// So many ids, which lie there.
    Some(Address, usize),
}

/// ggml's number of the type.
fn number(kind: GgmlKind) -> usize {
    match kind {
        GgmlKind::F16 => 1,
        GgmlKind::Q4_0 => 2,
        GgmlKind::Q4_1 => 3,
        GgmlKind::Q5_0 => 6,
        GgmlKind::Q5_1 => 7,
        GgmlKind::Q8_0 => 8,
        GgmlKind::Q2_K => 10,
        GgmlKind::Q3_K => 11,
        GgmlKind::Q4_K => 12,
        GgmlKind::Q5_K => 13,
        GgmlKind::Q6_K => 14,
    }
}

/// Rows of `width` values → y in bf16 or in f32.
pub fn dequantise(
    kind: GgmlKind,
    blocks: Address,
    rows: Rows,
    width: usize,
    (y, is_bf16): (Address, bool),
) -> Launch {
    let (ids, rows) = match rows {
        Rows::All(rows) => (Address(0), rows),
        Rows::Some(ids, rows) => (ids, rows),
    };
    let count = rows * width;
    let arguments = [blocks.into(), size(number(kind)), ids.into(), size(width), long(count), y.into()];
    let kernel = if is_bf16 { "ggml_bf16" } else { "ggml_f32" };
    Launch::elements(("ggml", kernel), count, at_once(width, &[y]), &arguments)
}
