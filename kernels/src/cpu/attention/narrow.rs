//! Attention of bf16 by `vdpbf16ps`: as the f32 passes, tile by tile, with both sides of every product in words; scores,
//! softmax and all sums stay in f32.

use super::backward::{add_heads, heads, slopes};
use super::forward::{Running, Task, soften, tasks};
use super::words::{Left, Rows, TALL, WIDE, multiply, narrow_along, narrow_pair};
use super::{BLOCK, KEYS, QUERIES, Shape, Span};
use crate::cpu::math::dot;
use crate::cpu::share::Shared;
use crate::cpu::widen::Value;
use half::bf16;
use rayon::prelude::*;

/// One head of a span's keys or values.
struct Head {
    /// For products along the head.
    across: Vec<u32>,
    /// For products along the keys.
    pairs: Vec<u32>,
}

/// Of all spans and key/value heads; what is not `wanted` (across, pairs) is left out.
struct Heads(Vec<Head>, usize);

impl Heads {
    /// # Safety
    /// As for [`forward`].
    unsafe fn new(shape: &Shape, spans: &[Span], from: &[bf16], wanted: (bool, bool)) -> Self {
        let places: Vec<(&Span, usize)> =
            spans.iter().flat_map(|span| (0..shape.kv_heads).map(move |head| (span, head))).collect();
        let pack = |(span, head): (&Span, usize)| {
            let rows = Rows {
                data: from.get(span.k.start * shape.kv_width() + head * shape.head_dim..).unwrap_or(&[]),
                stride: shape.kv_width(),
                count: span.k.len(),
                width: shape.head_dim,
            };
            // SAFETY: by the caller's promise.
            unsafe { packed(rows, wanted) }
        };
        Self(places.into_par_iter().map(pack).collect(), shape.kv_heads)
    }

    fn of(&self, span: usize, kv_head: usize) -> &Head {
        &self.0[span * self.1 + kv_head]
    }
}

/// # Safety
/// As for [`forward`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn packed(rows: Rows<'_, bf16>, wanted: (bool, bool)) -> Head {
    let across = if wanted.0 { rows.across() } else { Vec::new() };
    Head { across, pairs: if wanted.1 { rows.pairs() } else { Vec::new() } }
}

/// Queries, or gradients of outputs, of one head from row `first` of the span on.
fn queries<'a, T>(
    shape: &Shape,
    span: &Span,
    head: usize,
    (first, count): (usize, usize),
    from: &'a [T],
) -> Rows<'a, T> {
    let at = (span.q.start + first) * shape.q_width() + head * shape.head_dim;
    Rows { data: &from[at..], stride: shape.q_width(), count, width: shape.head_dim }
}

/// As [`super::forward`].
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and BF16.
pub(super) unsafe fn forward(
    shape: &Shape,
    spans: &[Span],
    (q, k, v): (&[bf16], &[bf16], &[bf16]),
    out: &mut [f32],
    lse: &mut [f32],
) {
    // SAFETY: by the caller's promise.
    let (keys, values) =
        unsafe { (Heads::new(shape, spans, k, (true, false)), Heads::new(shape, spans, v, (false, true))) };
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    tasks(shape, spans).into_par_iter().for_each(|task| {
        let kv_head = shape.kv_head(task.head);
        let kv = (&keys.of(task.span, kv_head).across[..], &values.of(task.span, kv_head).pairs[..]);
        // SAFETY: by the caller's promise.
        unsafe { tile_of_queries(shape, &spans[task.span], &task, q, kv, &out, &lse) }
    });
}

/// # Safety
/// As for [`forward`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn tile_of_queries(
    shape: &Shape,
    span: &Span,
    task: &Task,
    q: &[bf16],
    (keys, values): (&[u32], &[u32]),
    out: &Shared<'_>,
    lse: &Shared<'_>,
) {
    let (d, head, first) = (shape.head_dim, task.head, task.first);
    let (depth, wide_d) = (d.div_ceil(2), d.next_multiple_of(WIDE));
    let rows = QUERIES.min(span.q.len() - first);
    let tall = rows.next_multiple_of(TALL);
    let seen = span.seen(first, shape.window).start..span.seen(first + rows - 1, shape.window).end;
    let q = queries(shape, span, head, (first, rows), q).along();
    let q = Left { words: &q, row: wide_d / 2, column: 1 };
    let mut scores = [0f32; QUERIES * KEYS];
    let mut weights = [0u32; QUERIES * KEYS / 2];
    let mut sums = vec![0f32; QUERIES * wide_d];
    let mut running = [Running::NONE; QUERIES];
    for at in (seen.start - seen.start % KEYS..seen.end).step_by(KEYS) {
        let n = KEYS.min(seen.end - at);
        let wide = n.next_multiple_of(BLOCK);
        // SAFETY: by the caller's promise.
        unsafe { multiply::<false>((tall, wide, depth), q, &keys[at * depth..], KEYS, &mut scores, KEYS) }
        for r in 0..rows {
            let seen = span.seen_in(first + r, shape.window, at, n);
            let row = &mut scores[r * KEYS..r * KEYS + wide];
            soften::<true>(shape, row, seen, &mut running[r], &mut sums[r * wide_d..r * wide_d + d]);
            // SAFETY: by the caller's promise.
            unsafe { narrow_along(row, &mut weights[r * KEYS / 2..]) }
        }
        let weights = Left { words: &weights, row: KEYS / 2, column: 1 };
        let values = &values[at / 2 * wide_d..];
        // SAFETY: by the caller's promise.
        unsafe { multiply::<true>((tall, wide_d, n.div_ceil(2)), weights, values, wide_d, &mut sums, wide_d) }
    }
    for r in 0..rows {
        let row = span.q.start + first + r;
        // SAFETY: this task alone writes this head of these rows.
        let (out, lse) =
            unsafe { (out.part(row * shape.q_width() + head * d, d), lse.part(row * shape.heads + head, 1)) };
        lse[0] = running[r].finish(&sums[r * wide_d..r * wide_d + d], out);
    }
}

/// As [`super::backward`].
///
/// # Safety
/// The CPU has AVX-512 F, BW, DQ, VL and BF16.
pub(super) unsafe fn backward(
    shape: &Shape,
    spans: &[Span],
    (q, k, v): (&[bf16], &[bf16], &[bf16]),
    (out, d_out): (&[bf16], &[f32]),
    lse: &[f32],
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
) {
    dq.fill(0.0);
    let shared = Shared::new(dq);
    // SAFETY: by the caller's promise.
    let (keys, values) =
        unsafe { (Heads::new(shape, spans, k, (true, true)), Heads::new(shape, spans, v, (true, false))) };
    let tasks = heads(shape, spans);
    let partials: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map(|&(s, head)| {
            let kv_head = shape.kv_head(head);
            let kv = (keys.of(s, kv_head), values.of(s, kv_head));
            // SAFETY: by the caller's promise.
            unsafe { one_head(shape, &spans[s], head, q, kv, (out, d_out), lse, &shared) }
        })
        .collect();
    let width = shape.head_dim.next_multiple_of(WIDE);
    add_heads(shape, spans, &tasks, &partials, width, (dk, dv));
}

/// # Safety
/// As for [`backward`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn one_head(
    shape: &Shape,
    span: &Span,
    head: usize,
    q: &[bf16],
    (keys, values): (&Head, &Head),
    (out, d_out): (&[bf16], &[f32]),
    lse: &[f32],
    dq: &Shared<'_>,
) -> (Vec<f32>, Vec<f32>) {
    let d = shape.head_dim;
    let (depth, wide_d) = (d.div_ceil(2), d.next_multiple_of(WIDE));
    let size = span.k.len().next_multiple_of(BLOCK) * wide_d;
    let (mut dk, mut dv) = (vec![0f32; size], vec![0f32; size]);
    if span.q.is_empty() {
        return (dk, dv);
    }
    let all = (0, span.q.len());
    let along = along(queries(shape, span, head, all, out), queries(shape, span, head, all, d_out));
    let (q, d_out) = (queries(shape, span, head, all, q), queries(shape, span, head, all, d_out));
    // Rounded row by row first: words of what is narrow already are only moved.
    let mut narrow = vec![bf16::ZERO; d_out.count * d];
    for (row, to) in d_out.data.chunks(d_out.stride).zip(narrow.chunks_exact_mut(d)) {
        for (x, to) in row.iter().zip(to) {
            *to = bf16::narrow(*x);
        }
    }
    let d_out = Rows { data: &narrow[..], stride: d, count: q.count, width: d };
    let (q_along, q_pairs, do_along, do_pairs) = (q.along(), q.pairs(), d_out.along(), d_out.pairs());
    let (mut p, mut ds) = ([0f32; QUERIES * KEYS], [0f32; QUERIES * KEYS]);
    let (mut p_pairs, mut ds_pairs) = ([0u32; QUERIES / 2 * KEYS], [0u32; QUERIES / 2 * KEYS]);
    let mut ds_along = [0u32; QUERIES * KEYS / 2];
    let mut dq_rows = vec![0f32; QUERIES * wide_d];
    for at in (0..span.k.len()).step_by(KEYS) {
        let n = KEYS.min(span.k.len() - at);
        for first in (0..span.q.len()).step_by(QUERIES) {
            let rows = QUERIES.min(span.q.len() - first);
            let (low, high) =
                (span.seen(first, shape.window).start, span.seen(first + rows - 1, shape.window).end);
            if low >= at + n || high <= at {
                continue;
            }
            let last = (high - at).min(n);
            let wide = last.next_multiple_of(BLOCK);
            let tall = rows.next_multiple_of(TALL);
            let left = |words| Left { words, row: wide_d / 2, column: 1 };
            let (k_t, v_t) = (&keys.across[at * depth..], &values.across[at * depth..]);
            // SAFETY: by the caller's promise.
            unsafe {
                let shape = (tall, wide, depth);
                multiply::<false>(shape, left(&q_along[first * wide_d / 2..]), k_t, KEYS, &mut p, KEYS);
                multiply::<false>(shape, left(&do_along[first * wide_d / 2..]), v_t, KEYS, &mut ds, KEYS);
            }
            for r in 0..rows {
                let seen = span.seen_in(first + r, shape.window, at, last);
                let (p, ds) = (&mut p[r * KEYS..r * KEYS + wide], &mut ds[r * KEYS..r * KEYS + wide]);
                let lse = lse[(span.q.start + first + r) * shape.heads + head];
                slopes::<true>(shape, p, ds, seen, lse, along[first + r]);
                // SAFETY: by the caller's promise.
                unsafe { narrow_along(ds, &mut ds_along[r * KEYS / 2..]) }
            }
            let words = rows.div_ceil(2);
            for (from, to) in [(&p, &mut p_pairs), (&ds, &mut ds_pairs)] {
                for (i, to) in to.chunks_exact_mut(KEYS).take(words).enumerate() {
                    let even = &from[2 * i * KEYS..][..wide];
                    let odd = (2 * i + 1 < rows).then(|| &from[(2 * i + 1) * KEYS..][..wide]);
                    // SAFETY: by the caller's promise.
                    unsafe { narrow_pair(even, odd, to) }
                }
            }
            let turned = |words| Left { words, row: 1, column: KEYS };
            let (q_pairs, do_pairs) = (&q_pairs[first / 2 * wide_d..], &do_pairs[first / 2 * wide_d..]);
            let k_pairs = &keys.pairs[at / 2 * wide_d..];
            let ds_along = Left { words: &ds_along, row: KEYS / 2, column: 1 };
            // SAFETY: by the caller's promise.
            unsafe {
                let shape = (wide, wide_d, words);
                multiply::<true>(shape, turned(&p_pairs), do_pairs, wide_d, &mut dv[at * wide_d..], wide_d);
                multiply::<true>(shape, turned(&ds_pairs), q_pairs, wide_d, &mut dk[at * wide_d..], wide_d);
                let shape = (tall, wide_d, last.div_ceil(2));
                multiply::<false>(shape, ds_along, k_pairs, wide_d, &mut dq_rows, wide_d);
            }
            for r in 0..rows {
                let row = (span.q.start + first + r) * shape.q_width() + head * d;
                // SAFETY: this task alone writes this head of this span's rows.
                let dq = unsafe { dq.part(row, d) };
                for (sum, x) in dq.iter_mut().zip(&dq_rows[r * wide_d..]) {
                    *sum += x;
                }
            }
        }
    }
    (dk, dv)
}

/// Σ dO·O of each row. Loops, no iterators' closures: these would be compiled for any CPU.
#[inline(always)]
fn along(out: Rows<'_, bf16>, d_out: Rows<'_, f32>) -> Vec<f32> {
    let mut wide = vec![0f32; out.width];
    let mut sums = vec![0f32; out.count];
    for (i, sum) in sums.iter_mut().enumerate() {
        let (out, d_out) = (&out.data[i * out.stride..], &d_out.data[i * d_out.stride..]);
        for (wide, x) in wide.iter_mut().zip(out) {
            *wide = x.wide();
        }
        *sum = dot::<true>(&wide, &d_out[..wide.len()]);
    }
    sums
}
