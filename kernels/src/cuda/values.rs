//! Sums and conversions of single values.

use super::launch::{Address, Launch, at_once, long, size};

/// `to += x`.
pub fn add(to: Address, x: Address, count: usize) -> Launch {
    let at_once = at_once(count, &[to, x]);
    Launch::elements(("elementwise", "add"), count, at_once, &[to.into(), x.into(), long(count)])
}

/// `y[n, i] += bias[i]`, y `[N, width]`.
pub fn add_to_rows(y: Address, bias: Address, (n, width): (usize, usize)) -> Launch {
    let count = n * width;
    let arguments = [y.into(), bias.into(), long(count), size(width)];
    Launch::elements(("elementwise", "add_to_rows"), count, at_once(width, &[y, bias]), &arguments)
}

/// f32 to bf16.
pub fn narrow_bf16(x: Address, count: usize, y: Address) -> Launch {
    convert("narrow_bf16", x, count, y)
}

/// bf16 to f32.
pub fn widen_bf16(x: Address, count: usize, y: Address) -> Launch {
    convert("widen_bf16", x, count, y)
}

fn convert(kernel: &'static str, x: Address, count: usize, y: Address) -> Launch {
    let arguments = [x.into(), long(count), y.into()];
    Launch::elements(("elementwise", kernel), count, at_once(count, &[x, y]), &arguments)
}
