//! Forward: a task is one head and one tile of queries, with a running softmax over tiles of keys.

use super::{KEYS, QUERIES, Shape, Span, Tiles};
use crate::cpu::dispatch;
use crate::cpu::math::{exp, fma, fold, largest};
use crate::cpu::share::Shared;
use crate::cpu::tile::{Strided, multiply_add};
use rayon::prelude::*;

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
    let tasks: Vec<Task> = spans
        .iter()
        .enumerate()
        .flat_map(|(s, span)| {
            (0..shape.heads).flat_map(move |head| {
                (0..span.q.len()).step_by(QUERIES).map(move |first| Task { span: s, head, first })
            })
        })
        .collect();
    let keys = Tiles::new(shape, spans, k);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    tasks.into_par_iter().for_each(|task| {
        tile_of_queries(shape, &spans[task.span], &task, q, &keys, v, &out, &lse);
    });
}

/// Some queries of one head.
struct Task {
    span: usize,
    head: usize,
    /// The first query, from 0 in the span.
    first: usize,
}

dispatch! {
    fn tile_of_queries(
        shape: &Shape,
        span: &Span,
        task: &Task,
        q: &[f32],
        k: &Tiles,
        v: &[f32],
        out: &Shared<'_>,
        lse: &Shared<'_>,
    ) {
        let (d, head, first) = (shape.head_dim, task.head, task.first);
        let rows = QUERIES.min(span.q.len() - first);
        let kv_head = shape.kv_head(head);
        let keys = span.seen(first, shape.window).start..span.seen(first + rows - 1, shape.window).end;
        let mut scores = [0f32; QUERIES * KEYS];
        let mut sums = vec![0f32; rows * d];
        let (mut top, mut total) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
        let queries = Strided {
            data: &q[(span.q.start + first) * shape.q_width() + head * d..],
            row: shape.q_width(),
            column: 1,
        };
        for at in (keys.start - keys.start % KEYS..keys.end).step_by(KEYS) {
            let n = KEYS.min(keys.end - at);
            scores[..rows * KEYS].fill(0.0);
            multiply_add::<FMA, LANES>((rows, n, d), queries, k.tile(task.span, kv_head, at), KEYS, &mut scores, KEYS);
            for r in 0..rows {
                let seen = span.seen(first + r, shape.window);
                let (low, high) = (seen.start.saturating_sub(at).min(n), seen.end.saturating_sub(at).min(n));
                let row = &mut scores[r * KEYS..r * KEYS + n];
                row[..low].fill(0.0);
                row[high.max(low)..].fill(0.0);
                if low >= high {
                    continue;
                }
                let seen = &mut row[low..high];
                let mut scale = shape.scale;
                if let Some(cap) = shape.softcap {
                    for x in seen.iter_mut() {
                        *x = cap * (*x * scale / cap).tanh();
                    }
                    scale = 1.0;
                }
                let new_top = (largest(seen) * scale).max(top[r]);
                let shrink = exp::<FMA>(top[r] - new_top);
                let mut parts = [0f32; 32];
                for chunk in seen.chunks_mut(32) {
                    for (part, x) in parts.iter_mut().zip(chunk) {
                        *x = exp::<FMA>(fma::<FMA>(*x, scale, -new_top));
                        *part += *x;
                    }
                }
                total[r] = total[r] * shrink + fold(parts);
                top[r] = new_top;
                if shrink < 1.0 {
                    for x in &mut sums[r * d..(r + 1) * d] {
                        *x *= shrink;
                    }
                }
            }
            let weights = Strided { data: &scores, row: KEYS, column: 1 };
            let values = &v[(span.k.start + at) * shape.kv_width() + kv_head * d..];
            multiply_add::<FMA, LANES>((rows, d, n), weights, values, shape.kv_width(), &mut sums, d);
        }
        for r in 0..rows {
            let row = span.q.start + first + r;
            // SAFETY: this task alone writes this head of these rows.
            let (out, lse) = unsafe {
                (out.part(row * shape.q_width() + head * d, d), lse.part(row * shape.heads + head, 1))
            };
            for (o, x) in out.iter_mut().zip(&sums[r * d..(r + 1) * d]) {
                *o = x / total[r];
            }
            lse[0] = top[r] + total[r].ln();
        }
    }
}
