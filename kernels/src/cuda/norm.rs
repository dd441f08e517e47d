//! `RMSNorm` and the sums over rows that gradients of norms and biases are.

use super::launch::{Address, Launch, THREADS, flag, number, size};

/// Threads for a row of `d` values: short ones, a head of q or k, leave no warp idle.
fn threads(d: usize) -> u32 {
    number(d.next_multiple_of(32)).clamp(32, THREADS)
}

/// x, y `[N, d]`; w `[d]`; rstd `[N]`.
pub fn forward(
    x: Address,
    w: Address,
    eps: f32,
    (n, d): (usize, usize),
    y: Address,
    rstd: Address,
) -> Launch {
    let arguments = [x.into(), w.into(), eps.into(), size(d), y.into(), rstd.into()];
    Launch::rows(("norm", "norm_forward"), n, threads(d), &arguments)
}

/// dx is written, or added to where `adds`.
pub fn backward(
    (x, w, rstd): (Address, Address, Address),
    dy: Address,
    (n, d): (usize, usize),
    adds: bool,
    dx: Address,
) -> Launch {
    let arguments = [x.into(), w.into(), rstd.into(), dy.into(), size(d), flag(adds), dx.into()];
    Launch::rows(("norm", "norm_backward"), n, threads(d), &arguments)
}

/// `dw += Σ dy·x·rstd`.
pub fn weight_gradient(dy: Address, x: Address, rstd: Address, shape: (usize, usize), dw: Address) -> Launch {
    sums(dy, (x, rstd), shape, dw)
}

/// `sum += Σ dy` over rows.
pub fn column_sums(dy: Address, shape: (usize, usize), sum: Address) -> Launch {
    sums(dy, (Address(0), Address(0)), shape, sum)
}

fn sums(dy: Address, (x, rstd): (Address, Address), (n, d): (usize, usize), sum: Address) -> Launch {
    let arguments = [dy.into(), x.into(), rstd.into(), size(n), size(d), sum.into()];
    Launch::rows(("norm", "column_sums"), d.div_ceil(32), 256, &arguments)
}
