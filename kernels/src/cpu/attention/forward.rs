//! Forward: a task is one head and one tile of queries, with a running softmax over tiles of keys.

use super::{Across, BLOCK, KEYS, QUERIES, Shape, Span, Tiles, rows_of_head};
use crate::cpu::dispatch;
use crate::cpu::math::{exp, fma, fold, largest};
use crate::cpu::share::Shared;
use crate::cpu::tile::{Strided, multiply};
use rayon::prelude::*;
use std::ops::Range;

/// `q`, `out` `[N, H·d]`; `k`, `v` `[Nk, K·d]`; `lse` `[N, H]`: log Σ exp of each query's scores, for the backward pass.
///
/// # Panics
/// When spans share rows of q, or lie outside the slices.
pub fn forward(
    shape: &Shape,
    spans: &[Span],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    shape.check(spans, q.len() / shape.q_width(), k.len() / shape.kv_width());
    let kv = (Tiles::new(shape, spans, k, Across::Keys), Tiles::new(shape, spans, v, Across::Head));
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    tasks(shape, spans).into_par_iter().for_each(|task| {
        tile_of_queries(shape, &spans[task.span], &task, q, &kv, &out, &lse);
    });
}

/// Some queries of one head.
pub(super) struct Task {
    pub(super) span: usize,
    pub(super) head: usize,
    /// The first query, from 0 in the span.
    pub(super) first: usize,
}

/// Tiles of queries of all heads and spans.
pub(super) fn tasks(shape: &Shape, spans: &[Span]) -> Vec<Task> {
    let heads = shape.heads;
    let of = |(span, s): (usize, &Span)| {
        let rows = s.q.len();
        (0..heads)
            .flat_map(move |head| (0..rows).step_by(QUERIES).map(move |first| Task { span, head, first }))
    };
    spans.iter().enumerate().flat_map(of).collect()
}

/// A query's softmax over the keys so far.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The largest score.
    top: f32,
    /// Σ exp(score − top).
    total: f32,
}

impl Running {
    pub(super) const NONE: Self = Self { top: f32::NEG_INFINITY, total: 0.0 };

    /// Divides the sums of values into `out` → the log-sum.
    #[inline(always)]
    pub(super) fn finish(self, sums: &[f32], out: &mut [f32]) -> f32 {
        for (o, x) in out.iter_mut().zip(sums) {
            *o = x / self.total;
        }
        self.top + self.total.ln()
    }
}

/// Turns a row of products q·k, in whole blocks, into weights exp(score − top), 0 where the query does not see, and
/// brings what was summed before to the new top.
#[inline(always)]
pub(super) fn soften<const FMA: bool>(
    shape: &Shape,
    row: &mut [f32],
    seen: Range<usize>,
    running: &mut Running,
    sums: &mut [f32],
) {
    if seen.is_empty() {
        row.fill(0.0);
        return;
    }
    let mut scale = shape.scale;
    if let Some(cap) = shape.softcap {
        for x in &mut row[seen.clone()] {
            *x = cap * (*x * scale / cap).tanh();
        }
        scale = 1.0;
    }
    row[..seen.start].fill(f32::NEG_INFINITY);
    row[seen.end..].fill(f32::NEG_INFINITY);
    let top = (largest(row) * scale).max(running.top);
    let shrink = exp::<FMA>(running.top - top);
    let mut parts = [0f32; BLOCK];
    for chunk in row.chunks_exact_mut(BLOCK) {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *x = exp::<FMA>(fma::<FMA>(*x, scale, -top));
            *part += *x;
        }
    }
    *running = Running { top, total: running.total * shrink + fold(parts) };
    if shrink < 1.0 {
        for x in sums {
            *x *= shrink;
        }
    }
}

dispatch! {
    fn tile_of_queries(
        shape: &Shape,
        span: &Span,
        task: &Task,
        q: &[f32],
        kv: &(Tiles, Tiles),
        out: &Shared<'_>,
        lse: &Shared<'_>,
    ) {
        let (d, head, first) = (shape.head_dim, task.head, task.first);
        let rows = QUERIES.min(span.q.len() - first);
        let kv_head = shape.kv_head(head);
        let keys = span.seen(first, shape.window).start..span.seen(first + rows - 1, shape.window).end;
        let mut scores = [0f32; QUERIES * KEYS];
        let mut sums = vec![0f32; rows * d];
        let mut running = [Running::NONE; QUERIES];
        let queries = rows_of_head(shape, head, (span.q.start + first, rows), q);
        let queries = Strided { data: &queries, row: d, column: 1 };
        for at in (keys.start - keys.start % KEYS..keys.end).step_by(KEYS) {
            let n = KEYS.min(keys.end - at);
            let (keys, values) = (kv.0.tile(task.span, kv_head, at), kv.1.tile(task.span, kv_head, at));
            // Whole blocks, which the tile's zeros fill up, cost less than their edges.
            let wide = n.next_multiple_of(BLOCK);
            multiply::<FMA, LANES, false>((rows, wide, d), queries, keys, &mut scores, KEYS);
            for r in 0..rows {
                let seen = span.seen_in(first + r, shape.window, at, n);
                let row = &mut scores[r * KEYS..r * KEYS + wide];
                soften::<FMA>(shape, row, seen, &mut running[r], &mut sums[r * d..(r + 1) * d]);
            }
            let weights = Strided { data: &scores, row: KEYS, column: 1 };
            multiply::<FMA, LANES, true>((rows, d, n), weights, values, &mut sums, d);
        }
        for r in 0..rows {
            let row = span.q.start + first + r;
            // SAFETY: this task alone writes this head of these rows.
            let (out, lse) = unsafe {
                (out.part(row * shape.q_width() + head * d, d), lse.part(row * shape.heads + head, 1))
            };
            lse[0] = running[r].finish(&sums[r * d..(r + 1) * d], out);
        }
    }
}
