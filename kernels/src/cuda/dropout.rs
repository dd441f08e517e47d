//! Dropout with the CPU's mask.

use super::launch::{Address, Argument, Launch, at_once, long, size};

/// x, y `[N, width]`, both f32 or both bf16; the first row is `first_row` of the stream; what lies below `threshold` of
/// 2³² is dropped, the rest multiplied by `keep`.
pub fn apply(
    x: Address,
    (n, width): (usize, usize),
    (stream, first_row): (u64, u64),
    (threshold, keep): (u64, f32),
    y: Address,
    bf16: bool,
) -> Launch {
    let arguments = [
        x.into(),
        long(n * width),
        size(width),
        Argument::U64(stream),
        Argument::U64(first_row),
        Argument::U64(threshold),
        keep.into(),
        y.into(),
    ];
    let kernel = if bf16 { "dropout_bf16" } else { "dropout" };
    Launch::elements(("dropout", kernel), n * width, at_once(width, &[x, y]), &arguments)
}
