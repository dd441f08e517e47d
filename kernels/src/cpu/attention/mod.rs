//! Causal attention inside segments, tiled: no matrix of scores is ever whole (Dao et al., 2022). Query heads share
//! key/value heads without repeating them.

mod backward;
mod decode;
mod forward;
#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "x86_64")]
mod words;

pub use backward::backward;
pub use decode::{Kept, decode};
pub use forward::forward;

use super::tile::{PANEL, Panels};
use super::widened;
#[cfg(target_arch = "x86_64")]
use super::{Path, path};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of a tile.
const QUERIES: usize = 32;
/// Key rows of a tile.
const KEYS: usize = 128;
/// Keys of a block of scores in registers; divides a tile.
const BLOCK: usize = 32;

/// What does not change from segment to segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// H: query heads.
    pub heads: usize,
    /// K: key/value heads; divides H.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Scores are q·k times this.
    pub scale: f32,
    /// Scores pass through `c·tanh(s/c)`.
    pub softcap: Option<f32>,
    /// A query sees this many keys at most, its own among them.
    pub window: Option<usize>,
}

impl Shape {
    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Tasks write disjoint rows only where spans are disjoint, so this is checked before any is started.
    ///
    /// # Panics
    /// When key/value heads do not divide the heads, or spans are not ascending, disjoint and inside `n` queries and
    /// `keys` keys, or one has more queries than keys.
    fn check(&self, spans: &[Span], n: usize, keys: usize) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "{self:?}");
        let mut end = 0;
        for span in spans {
            let is_sound = end <= span.q.start
                && span.q.start <= span.q.end
                && span.q.end <= n
                && span.k.start <= span.k.end
                && span.k.end <= keys
                && span.q.len() <= span.k.len();
            assert!(
                is_sound,
                "spans overlap or lie outside: {span:?} behind query {end} of {n}, keys {keys}"
            );
            end = span.q.end;
        }
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// Rows that may see each other: the queries stand at the end of the keys (the same rows in training; fewer queries
/// than keys with a key/value cache).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Rows of q.
    pub q: Range<usize>,
    /// Rows of k and v.
    pub k: Range<usize>,
}

impl Span {
    /// Keys that query `i` (from 0 in the span) sees, from 0 in the span.
    fn seen(&self, i: usize, window: Option<usize>) -> Range<usize> {
        let end = i + 1 + self.k.len() - self.q.len();
        end.saturating_sub(window.unwrap_or(end))..end
    }

    /// The same within `n` keys from key `at` on, from there; empty where it sees none of them.
    fn seen_in(&self, i: usize, window: Option<usize>, at: usize, n: usize) -> Range<usize> {
        let seen = self.seen(i, window);
        let low = seen.start.saturating_sub(at).min(n);
        low..seen.end.saturating_sub(at).min(n).max(low)
    }
}

/// [`forward`] of bf16: products are of bf16, too, where the path in use has them in vector registers.
///
/// # Panics
/// As [`forward`].
pub fn forward_bf16(
    shape: &Shape,
    spans: &[Span],
    (q, k, v): (&[bf16], &[bf16], &[bf16]),
    out: &mut [f32],
    lse: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if path() == Path::Avx512Bf16 {
        shape.check(spans, q.len() / shape.q_width(), k.len() / shape.kv_width());
        // SAFETY: the path was chosen for this CPU.
        unsafe { narrow::forward(shape, spans, (q, k, v), out, lse) }
        return;
    }
    forward(shape, spans, &widened(q), &widened(k), &widened(v), out, lse);
}

/// [`backward`] of bf16, in the same way; gradients are f32.
///
/// # Panics
/// As [`backward`].
pub fn backward_bf16(
    shape: &Shape,
    spans: &[Span],
    (q, k, v): (&[bf16], &[bf16], &[bf16]),
    out: &[bf16],
    d_out: &[f32],
    lse: &[f32],
    grads: (&mut [f32], &mut [f32], &mut [f32]),
) {
    #[cfg(target_arch = "x86_64")]
    if path() == Path::Avx512Bf16 {
        shape.check(spans, q.len() / shape.q_width(), k.len() / shape.kv_width());
        // SAFETY: the path was chosen for this CPU.
        unsafe { narrow::backward(shape, spans, (q, k, v), (out, d_out), lse, grads) }
        return;
    }
    let (q, k, v) = (&widened(q), &widened(k), &widened(v));
    backward(shape, spans, (q, k, v), &widened(out), d_out, lse, grads);
}

/// What lies beside each other in a panel of a tile.
#[derive(Clone, Copy)]
enum Across {
    /// Values of a head: a product's sum goes over keys.
    Head,
    /// Keys: it goes over the head.
    Keys,
}

/// Keys (or values) of every span and key/value head in tiles of [`KEYS`] rows and panels; what is short is filled up
/// with zeros.
struct Tiles {
    values: Vec<f32>,
    /// First tile of each span.
    first: Vec<usize>,
    kv_heads: usize,
    /// Rows of a panel.
    rows: usize,
    /// Values of a tile.
    size: usize,
}

impl Tiles {
    fn new(shape: &Shape, spans: &[Span], from: &[f32], across: Across) -> Self {
        let d = shape.head_dim;
        let (rows, size) = match across {
            Across::Head => (KEYS, d.next_multiple_of(PANEL) * KEYS),
            Across::Keys => (d, d * KEYS),
        };
        let mut places = Vec::new();
        let mut first = Vec::with_capacity(spans.len());
        for span in spans {
            first.push(places.len());
            places.extend(span.k.clone().step_by(KEYS).map(|at| (at, KEYS.min(span.k.end - at))));
        }
        let mut values = vec![0f32; places.len() * shape.kv_heads * size];
        values.par_chunks_mut(size).enumerate().for_each(|(i, to)| {
            let ((at, n), head) = (places[i / shape.kv_heads], i % shape.kv_heads);
            for j in 0..n {
                let row = &from[(at + j) * shape.kv_width() + head * d..][..d];
                match across {
                    Across::Head => {
                        for (to, row) in to.chunks_exact_mut(KEYS * PANEL).zip(row.chunks(PANEL)) {
                            to[j * PANEL..][..row.len()].copy_from_slice(row);
                        }
                    }
                    Across::Keys => {
                        let to = &mut to[j / PANEL * d * PANEL + j % PANEL..];
                        for (to, x) in to.iter_mut().step_by(PANEL).zip(row) {
                            *to = *x;
                        }
                    }
                }
            }
        });
        Self { values, first, kv_heads: shape.kv_heads, rows, size }
    }

    /// The tile that begins at key `at`, from 0 in the span.
    fn tile(&self, span: usize, kv_head: usize, at: usize) -> Panels<'_> {
        let i = (self.first[span] + at / KEYS) * self.kv_heads + kv_head;
        let data = &self.values[i * self.size..(i + 1) * self.size];
        Panels { data, row: PANEL, panel: self.rows * PANEL }
    }
}

/// One head of the rows from `first` on, row by row: heads beside it would take the nearest cache's places.
fn rows_of_head(shape: &Shape, head: usize, (first, count): (usize, usize), from: &[f32]) -> Vec<f32> {
    let (d, width) = (shape.head_dim, shape.q_width());
    let mut rows = Vec::with_capacity(count * d);
    for row in from[first * width..(first + count) * width].chunks_exact(width) {
        rows.extend_from_slice(&row[head * d..(head + 1) * d]);
    }
    rows
}
