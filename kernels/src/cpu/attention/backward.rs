//! Backward: a task is one head of one segment; scores are made again from q, k and the saved log-sums.

use super::{Across, BLOCK, KEYS, QUERIES, Shape, Span, Tiles, rows_of_head};
use crate::cpu::dispatch;
use crate::cpu::math::{dot, exp, fma};
use crate::cpu::share::Shared;
use crate::cpu::tile::{Panels, Strided, multiply};
use rayon::prelude::*;
use std::ops::Range;

/// Gradients of q, k, v from that of out, with `P = exp(S − lse)`, `dS = P·(dP − Σ dO·O)`; all three are overwritten.
///
/// # Panics
/// When spans share rows of q, or lie outside the slices.
pub fn backward(
    shape: &Shape,
    spans: &[Span],
    (q, k, v): (&[f32], &[f32], &[f32]),
    out: &[f32],
    d_out: &[f32],
    lse: &[f32],
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
) {
    shape.check(spans, q.len() / shape.q_width(), k.len() / shape.kv_width());
    dq.fill(0.0);
    let shared_dq = Shared::new(dq);
    let tasks = heads(shape, spans);
    let right = RightSides {
        keys: Tiles::new(shape, spans, k, Across::Head),
        keys_t: Tiles::new(shape, spans, k, Across::Keys),
        values_t: Tiles::new(shape, spans, v, Across::Keys),
    };
    let partials: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map(|&(s, head)| one_head(shape, &spans[s], (s, head), q, &right, out, d_out, lse, &shared_dq))
        .collect();
    add_heads(shape, spans, &tasks, &partials, shape.head_dim, (dk, dv));
}

/// Right sides of the products.
struct RightSides {
    keys: Tiles,
    keys_t: Tiles,
    values_t: Tiles,
}

/// Every head of every span.
pub(super) fn heads(shape: &Shape, spans: &[Span]) -> Vec<(usize, usize)> {
    (0..spans.len()).flat_map(|s| (0..shape.heads).map(move |head| (s, head))).collect()
}

/// Sums what each head of `tasks` found for its key/value head, in their order, whoever computed them: rows of keys
/// and of values, `width` apart.
pub(super) fn add_heads(
    shape: &Shape,
    spans: &[Span],
    tasks: &[(usize, usize)],
    partials: &[(Vec<f32>, Vec<f32>)],
    width: usize,
    (dk, dv): (&mut [f32], &mut [f32]),
) {
    let d = shape.head_dim;
    [(dk, 0), (dv, 1)].into_par_iter().for_each(|(to, part)| {
        to.fill(0.0);
        for (&(s, head), (part_k, part_v)) in tasks.iter().zip(partials) {
            let (column, from) = (shape.kv_head(head) * d, if part == 0 { part_k } else { part_v });
            for (row, from) in spans[s].k.clone().zip(from.chunks(width)) {
                let at = row * shape.kv_width() + column;
                for (sum, x) in to[at..at + d].iter_mut().zip(from) {
                    *sum += x;
                }
            }
        }
    });
}

/// Turns a row of products q·k, in whole blocks, into weights P, and dO·v into dS; 0 where the query does not see.
#[inline(always)]
pub(super) fn slopes<const FMA: bool>(
    shape: &Shape,
    p: &mut [f32],
    ds: &mut [f32],
    seen: Range<usize>,
    lse: f32,
    along: f32,
) {
    if let Some(cap) = shape.softcap {
        for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen.clone()]) {
            let t = (*p * shape.scale / cap).tanh();
            *p = exp::<FMA>(cap * t - lse);
            *ds = *p * (*ds - along) * shape.scale * (1.0 - t * t);
        }
    } else {
        // Whole blocks: what is not seen costs less than the ends of a loop over what is.
        for (p, ds) in p.chunks_exact_mut(BLOCK).zip(ds.chunks_exact_mut(BLOCK)) {
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = exp::<FMA>(fma::<FMA>(*p, shape.scale, -lse));
                *ds = *p * (*ds - along) * shape.scale;
            }
        }
    }
    for row in [p, ds] {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
}

dispatch! {
    fn one_head(
        shape: &Shape,
        span: &Span,
        place: (usize, usize),
        q: &[f32],
        right: &RightSides,
        out: &[f32],
        d_out: &[f32],
        lse: &[f32],
        dq: &Shared<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (s, head) = place;
        let (d, kv_head) = (shape.head_dim, shape.kv_head(head));
        let [q, d_out] = [q, d_out].map(|from| rows_of_head(shape, head, (span.q.start, span.q.len()), from));
        let at_head = |row: usize| row * shape.q_width() + head * d;
        let (mut dk, mut dv) = (vec![0f32; span.k.len() * d], vec![0f32; span.k.len() * d]);
        let mut dq_rows = vec![0f32; q.len()];
        let mut along = vec![0f32; span.q.len()];
        for ((along, row), d_out) in along.iter_mut().zip(span.q.clone()).zip(d_out.chunks_exact(d)) {
            *along = dot::<FMA>(&out[at_head(row)..][..d], d_out);
        }
        let (mut p, mut ds) = ([0f32; QUERIES * KEYS], [0f32; QUERIES * KEYS]);
        for at in (0..span.k.len()).step_by(KEYS) {
            let n = KEYS.min(span.k.len() - at);
            let [k, k_t, v_t] = [&right.keys, &right.keys_t, &right.values_t].map(|tiles| tiles.tile(s, kv_head, at));
            for first in (0..span.q.len()).step_by(QUERIES) {
                let rows = QUERIES.min(span.q.len() - first);
                let any = span.seen(first, shape.window).start < at + n
                    && span.seen(first + rows - 1, shape.window).end > at;
                if !any {
                    continue;
                }
                // Keys that some query of the tile sees, from the tile's first; whole blocks of scores, which the tiles'
                // zeros fill up, cost less than the edges of blocks.
                let last = span.seen(first + rows - 1, shape.window).end.saturating_sub(at).min(n);
                let wide = last.next_multiple_of(BLOCK);
                let (q, d_out) = (&q[first * d..], &d_out[first * d..]);
                let in_rows = |data| Strided { data, row: d, column: 1 };
                multiply::<FMA, LANES, false>((rows, wide, d), in_rows(q), k_t, &mut p, KEYS);
                multiply::<FMA, LANES, false>((rows, wide, d), in_rows(d_out), v_t, &mut ds, KEYS);
                for r in 0..rows {
                    let seen = span.seen_in(first + r, shape.window, at, last);
                    let (p, ds) = (&mut p[r * KEYS..r * KEYS + wide], &mut ds[r * KEYS..r * KEYS + wide]);
                    let lse = lse[(span.q.start + first + r) * shape.heads + head];
                    slopes::<FMA>(shape, p, ds, seen, lse, along[first + r]);
                }
                let (p_t, ds_t) = (Strided { data: &p, row: 1, column: KEYS }, Strided { data: &ds, row: 1, column: KEYS });
                let reached = wide.min(n);
                multiply::<FMA, LANES, true>((reached, d, rows), p_t, Panels::rows(d_out, d), &mut dv[at * d..], d);
                multiply::<FMA, LANES, true>((reached, d, rows), ds_t, Panels::rows(q, d), &mut dk[at * d..], d);
                let slopes = Strided { data: &ds, row: KEYS, column: 1 };
                multiply::<FMA, LANES, true>((rows, d, last), slopes, k, &mut dq_rows[first * d..], d);
            }
        }
        for (row, from) in span.q.clone().zip(dq_rows.chunks_exact(d)) {
            // SAFETY: this task alone writes this head of this span's rows.
            unsafe { dq.part(at_head(row), d) }.copy_from_slice(from);
        }
        (dk, dv)
    }
}
