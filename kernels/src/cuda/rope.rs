//! Rotary embedding of q and k at once, in place.

use super::launch::{Address, Launch, at_once, size};

/// q `[N, H·d]`, k `[N, K·d]`; positions `[N]`; tables `[positions, d/2]`; `inverse` is the gradient.
pub fn turn(
    (q, k): (Address, Address),
    positions: Address,
    (cos, sin): (Address, Address),
    rows: usize,
    (heads, kv_heads, d): (usize, usize, usize),
    inverse: bool,
) -> Launch {
    let sign = if inverse { -1.0 } else { 1.0 };
    let arguments = [
        q.into(),
        k.into(),
        positions.into(),
        cos.into(),
        sin.into(),
        size(heads),
        size(kv_heads),
        size(d),
        sign.into(),
    ];
    let at_once = at_once(d / 2, &[q, k, cos, sin]);
    Launch::rows(("rope", "rope"), rows, 128, &arguments).taking(at_once)
}
