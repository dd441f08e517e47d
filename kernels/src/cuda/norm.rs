//! `RMSNorm` and the sums over rows that gradients of norms and biases are.

use super::launch::{Address, Launch, THREADS, at_once, flag, number, size};

/// Rows that one block sums at least, so that its part is worth writing.
const ROWS_EACH: usize = 64;
/// Parts that a sum of columns is made of at most.
const MOST_PARTS: usize = 256;

/// Threads for a row of `d` values, `at_once` each: short ones, a head of q or k, leave no warp idle.
fn threads(d: usize, at_once: usize) -> u32 {
    number((d / at_once).next_multiple_of(32)).clamp(32, THREADS)
}

/// x `[N, d]`, w `[d]` → y `[N, d]` in f32 or in bf16, rstd `[N]`.
pub fn forward(
    x: Address,
    w: Address,
    eps: f32,
    (n, d): (usize, usize),
    (y, is_bf16): (Address, bool),
    rstd: Address,
) -> Launch {
    let arguments = [x.into(), w.into(), eps.into(), size(d), y.into(), rstd.into()];
    let at_once = at_once(d, &[x, w, y]);
    let kernel = if is_bf16 { "norm_forward_bf16" } else { "norm_forward" };
    Launch::rows(("norm", kernel), n, threads(d, at_once), &arguments).taking(at_once)
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
    let at_once = at_once(d, &[x, w, dy, dx]);
    Launch::rows(("norm", "norm_backward"), n, threads(d, at_once), &arguments).taking(at_once)
}

/// Rows of a part of a sum over N.
fn rows_each(n: usize) -> usize {
    n.div_ceil(MOST_PARTS).max(ROWS_EACH)
}

/// How many parts a sum over N rows is made of: what [`column_sums`] needs room `[parts, d]` for, unless it is one.
pub fn parts(n: usize) -> usize {
    n.div_ceil(rows_each(n))
}

/// `sum += Σ dy·x·rstd` over rows, the gradient of a norm's weight, or `sum += Σ dy`, that of a bias: in parts by many
/// blocks, and then the parts, in one order. dy, x `[N, d]`; rstd `[N]`; sum `[d]`; room `[parts(N), d]`.
pub fn column_sums(
    dy: Address,
    of: Option<(Address, Address)>,
    (n, d): (usize, usize),
    sum: Address,
    room: Option<Address>,
) -> Vec<Launch> {
    match room {
        None => vec![sums(dy, of, (n, n), d, true, sum)],
        Some(room) => vec![
            sums(dy, of, (n, rows_each(n)), d, false, room),
            sums(room, None, (parts(n), parts(n)), d, true, sum),
        ],
    }
}

/// Row i of `to` from rows i·each … of dy, or added to it.
fn sums(
    dy: Address,
    of: Option<(Address, Address)>,
    (n, each): (usize, usize),
    d: usize,
    adds: bool,
    to: Address,
) -> Launch {
    let (x, rstd) = of.unwrap_or((Address(0), Address(0)));
    let arguments = [dy.into(), x.into(), rstd.into(), size(n), size(each), size(d), flag(adds), to.into()];
    let at_once = at_once(d, &[dy, x, to]);
    let grid = [number(d.div_ceil(32 * at_once)), number(n.div_ceil(each))];
    Launch::new(("norm", "column_sums"), grid, 256, &arguments).taking(at_once)
}
