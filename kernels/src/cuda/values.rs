//! Sums, conversions and scalings of single values.

use super::launch::{Address, Launch, long, size};

/// `to += x`.
pub fn add(to: Address, x: Address, count: usize) -> Launch {
    Launch::elements(("elementwise", "add"), count, &[to.into(), x.into(), long(count)])
}

/// `y[n, i] += bias[i]`, y `[N, width]`.
pub fn add_to_rows(y: Address, bias: Address, (n, width): (usize, usize)) -> Launch {
    let count = n * width;
    let arguments = [y.into(), bias.into(), long(count), size(width)];
    Launch::elements(("elementwise", "add_to_rows"), count, &arguments)
}

/// f32 to bf16.
pub fn narrow_bf16(x: Address, count: usize, y: Address) -> Launch {
    Launch::elements(("elementwise", "narrow_bf16"), count, &[x.into(), long(count), y.into()])
}

/// bf16 to f32.
pub fn widen_bf16(x: Address, count: usize, y: Address) -> Launch {
    Launch::elements(("elementwise", "widen_bf16"), count, &[x.into(), long(count), y.into()])
}
