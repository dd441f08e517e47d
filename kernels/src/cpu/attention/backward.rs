//! Backward: a task is one head of one segment; scores are made again from q, k and the saved log-sums.

use super::{KEYS, QUERIES, Shape, Span, Tiles};
use crate::cpu::dispatch;
use crate::cpu::math::{dot, exp};
use crate::cpu::share::Shared;
use crate::cpu::tile::{Strided, multiply_add};
use rayon::prelude::*;

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
    // A key/value head gathers from its query heads in their order, whoever computed them.
    let tasks: Vec<(usize, usize)> =
        (0..spans.len()).flat_map(|s| (0..shape.heads).map(move |h| (s, h))).collect();
    let tiles = (Tiles::new(shape, spans, k), Tiles::new(shape, spans, v));
    let partials: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map(|&(s, head)| one_head(shape, &spans[s], (s, head), (q, k), &tiles, out, d_out, lse, &shared_dq))
        .collect();
    dk.fill(0.0);
    dv.fill(0.0);
    let d = shape.head_dim;
    for ((s, head), (part_k, part_v)) in tasks.into_iter().zip(partials) {
        let column = shape.kv_head(head) * d;
        for (i, row) in spans[s].k.clone().enumerate() {
            let at = row * shape.kv_width() + column;
            for (sum, x) in dk[at..at + d].iter_mut().zip(&part_k[i * d..(i + 1) * d]) {
                *sum += x;
            }
            for (sum, x) in dv[at..at + d].iter_mut().zip(&part_v[i * d..(i + 1) * d]) {
                *sum += x;
            }
        }
    }
}

dispatch! {
    fn one_head(
        shape: &Shape,
        span: &Span,
        place: (usize, usize),
        qk: (&[f32], &[f32]),
        tiles: &(Tiles, Tiles),
        out: &[f32],
        d_out: &[f32],
        lse: &[f32],
        dq: &Shared<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let ((s, head), (q, k)) = (place, qk);
        let (d, width) = (shape.head_dim, shape.q_width());
        let column = shape.kv_head(head) * d;
        let q_at = |i: usize| (span.q.start + i) * width + head * d;
        let (mut dk, mut dv) = (vec![0f32; span.k.len() * d], vec![0f32; span.k.len() * d]);
        let mut along = vec![0f32; span.q.len()];
        for (i, along) in along.iter_mut().enumerate() {
            *along = dot::<FMA>(&out[q_at(i)..q_at(i) + d], &d_out[q_at(i)..q_at(i) + d]);
        }
        let (mut p, mut ds) = ([0f32; QUERIES * KEYS], [0f32; QUERIES * KEYS]);
        let mut dq_rows = vec![0f32; QUERIES * d];
        for at in (0..span.k.len()).step_by(KEYS) {
            let n = KEYS.min(span.k.len() - at);
            let (k_t, v_t) = (tiles.0.tile(s, shape.kv_head(head), at), tiles.1.tile(s, shape.kv_head(head), at));
            for first in (0..span.q.len()).step_by(QUERIES) {
                let rows = QUERIES.min(span.q.len() - first);
                let any = span.seen(first, shape.window).start < at + n
                    && span.seen(first + rows - 1, shape.window).end > at;
                if !any {
                    continue;
                }
                let queries = Strided { data: &q[q_at(first)..], row: width, column: 1 };
                let d_outs = Strided { data: &d_out[q_at(first)..], row: width, column: 1 };
                p[..rows * KEYS].fill(0.0);
                ds[..rows * KEYS].fill(0.0);
                multiply_add::<FMA, LANES>((rows, n, d), queries, k_t, KEYS, &mut p, KEYS);
                multiply_add::<FMA, LANES>((rows, n, d), d_outs, v_t, KEYS, &mut ds, KEYS);
                for r in 0..rows {
                    let seen = span.seen(first + r, shape.window);
                    let (low, high) = (seen.start.saturating_sub(at).min(n), seen.end.saturating_sub(at).min(n));
                    let (p, ds) = (&mut p[r * KEYS..r * KEYS + n], &mut ds[r * KEYS..r * KEYS + n]);
                    p[..low].fill(0.0);
                    ds[..low].fill(0.0);
                    p[high.max(low)..].fill(0.0);
                    ds[high.max(low)..].fill(0.0);
                    if low >= high {
                        continue;
                    }
                    let lse = lse[(span.q.start + first + r) * shape.heads + head];
                    let along = along[first + r];
                    for (p, ds) in p[low..high].iter_mut().zip(&mut ds[low..high]) {
                        let mut score = *p * shape.scale;
                        let mut slope = shape.scale;
                        if let Some(cap) = shape.softcap {
                            let t = (score / cap).tanh();
                            score = cap * t;
                            slope *= 1.0 - t * t;
                        }
                        *p = exp::<FMA>(score - lse);
                        *ds = *p * (*ds - along) * slope;
                    }
                }
                let (p_t, ds_t) = (Strided { data: &p, row: 1, column: KEYS }, Strided { data: &ds, row: 1, column: KEYS });
                multiply_add::<FMA, LANES>((n, d, rows), p_t, &d_out[q_at(first)..], width, &mut dv[at * d..], d);
                multiply_add::<FMA, LANES>((n, d, rows), ds_t, &q[q_at(first)..], width, &mut dk[at * d..], d);
                let weights = Strided { data: &ds, row: KEYS, column: 1 };
                let keys = &k[(span.k.start + at) * shape.kv_width() + column..];
                let dq_rows = &mut dq_rows[..rows * d];
                dq_rows.fill(0.0);
                multiply_add::<FMA, LANES>((rows, d, n), weights, keys, shape.kv_width(), dq_rows, d);
                for r in 0..rows {
                    // SAFETY: this task alone writes this head of this span's rows.
                    let dq = unsafe { dq.part(q_at(first + r), d) };
                    for (sum, x) in dq.iter_mut().zip(&dq_rows[r * d..(r + 1) * d]) {
                        *sum += x;
                    }
                }
            }
        }
        (dk, dv)
    }
}
