//! Attention, whose tiles are 32 queries by 128 keys.

use super::{close, on_the_path, random, wide, within};
use fttrain_kernels::cpu::attention::{
    Kept, Shape, Span, backward, backward_bf16, decode, forward, forward_bf16,
};
use fttrain_kernels::cpu::{narrowed, widened};

/// Of bf16 in the same tiles: weights, their slopes and gradients are rounded by 2⁻⁹ of themselves at most before they
/// are multiplied, and a few of them stand in each product; by no more than this of the largest result.
const NARROW: f64 = 1.0 / 64.0;

struct Exact {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

/// Outputs and gradients, one query at a time, as the formulas stand in the paper.
fn exact(shape: &Shape, spans: &[Span], [q, k, v, d_out]: &[Vec<f64>; 4]) -> Exact {
    let (heads, d, width) = (shape.heads, shape.head_dim, shape.kv_heads * shape.head_dim);
    let zeros = |like: &[f64]| vec![0f64; like.len()];
    let mut e =
        Exact { out: zeros(q), lse: vec![0.0; q.len() / d], dq: zeros(q), dk: zeros(k), dv: zeros(k) };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (span, i, head) in
        spans.iter().flat_map(|s| (0..s.q.len()).flat_map(move |i| (0..heads).map(move |h| (s, i, h))))
    {
        let end = i + 1 + span.k.len() - span.q.len();
        let at = ((span.q.start + i) * heads + head) * d;
        let column = head / (heads / shape.kv_heads) * d;
        let keys: Vec<usize> = (end.saturating_sub(shape.window.unwrap_or(end))..end)
            .map(|j| (span.k.start + j) * width + column)
            .collect();
        let raw: Vec<f64> =
            keys.iter().map(|&j| dot(&q[at..at + d], &k[j..j + d]) * f64::from(shape.scale)).collect();
        let cap = shape.softcap.map(f64::from);
        let scores: Vec<f64> = raw.iter().map(|s| cap.map_or(*s, |c| c * (s / c).tanh())).collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        e.lse[at / d] = top + total.ln();
        let p: Vec<f64> = scores.iter().map(|s| (s - top).exp() / total).collect();
        let dp: Vec<f64> = keys.iter().map(|&j| dot(&d_out[at..at + d], &v[j..j + d])).collect();
        let along = dot(&p, &dp);
        for (n, &j) in keys.iter().enumerate() {
            let slope = cap.map_or(1.0, |c| 1.0 - (raw[n] / c).tanh().powi(2));
            let ds = p[n] * (dp[n] - along) * slope * f64::from(shape.scale);
            for c in 0..d {
                e.out[at + c] += p[n] * v[j + c];
                e.dq[at + c] += ds * k[j + c];
                e.dk[j + c] += ds * q[at + c];
                e.dv[j + c] += p[n] * d_out[at + c];
            }
        }
    }
    e
}

fn check(shape: Shape, spans: &[Span]) {
    let (rows, keys) = (spans.last().unwrap().q.end, spans.last().unwrap().k.end);
    let (q_len, k_len) = (rows * shape.heads * shape.head_dim, keys * shape.kv_heads * shape.head_dim);
    let (q, k) = (random(1, q_len, 1.0), random(2, k_len, 1.0));
    let (v, d_out) = (random(3, k_len, 1.0), random(4, q_len, 1.0));
    let (mut out, mut lse) = (vec![7.0; q_len], vec![7.0; rows * shape.heads]);
    forward(&shape, spans, &q, &k, &v, &mut out, &mut lse);
    // Gradients are overwritten, whatever stood there.
    let (mut dq, mut dk, mut dv) = (vec![7.0; q_len], vec![7.0; k_len], vec![7.0; k_len]);
    backward(&shape, spans, (&q, &k, &v), &out, &d_out, &lse, (&mut dq, &mut dk, &mut dv));
    let exact = exact(&shape, spans, &[wide(&q), wide(&k), wide(&v), wide(&d_out)]);
    let what = |part| format!("{part} of {shape:?} {spans:?}");
    close(&what("out"), &out, &exact.out);
    close(&what("lse"), &lse, &exact.lse);
    close(&what("dq"), &dq, &exact.dq);
    close(&what("dk"), &dk, &exact.dk);
    close(&what("dv"), &dv, &exact.dv);
    check_bf16(&shape, spans, [&q, &k, &v], &d_out);
}

/// The same of inputs that bf16 holds. Scores are sums of exact products; the rest is rounded.
fn check_bf16(shape: &Shape, spans: &[Span], qkv: [&[f32]; 3], d_out: &[f32]) {
    let [q, k, v] = qkv.map(narrowed);
    let rows = q.len() / shape.head_dim / shape.heads;
    let (mut out, mut lse) = (vec![7.0; q.len()], vec![7.0; rows * shape.heads]);
    forward_bf16(shape, spans, (&q, &k, &v), &mut out, &mut lse);
    let (mut dq, mut dk, mut dv) = (vec![7.0; q.len()], vec![7.0; k.len()], vec![7.0; k.len()]);
    let grads = (&mut dq[..], &mut dk[..], &mut dv[..]);
    backward_bf16(shape, spans, (&q, &k, &v), &narrowed(&out), d_out, &lse, grads);
    let exact =
        exact(shape, spans, &[wide(&widened(&q)), wide(&widened(&k)), wide(&widened(&v)), wide(d_out)]);
    let what = |part| format!("{part} in bf16 of {shape:?} {spans:?}");
    close(&what("lse"), &lse, &exact.lse);
    // Where a query sees one key, dS is the difference of what is rounded apart: of d·P, not of itself.
    let slope = exact.dv.iter().fold(0f64, |m, x| m.max(x.abs()));
    within(&what("out"), &out, &exact.out, NARROW, 0.0);
    within(&what("dv"), &dv, &exact.dv, NARROW, 0.0);
    within(&what("dq"), &dq, &exact.dq, NARROW, NARROW * slope);
    within(&what("dk"), &dk, &exact.dk, NARROW, NARROW * slope);
}

const PLAIN: Shape = Shape { heads: 1, kv_heads: 1, head_dim: 6, scale: 0.7, softcap: None, window: None };

fn whole(rows: usize) -> Vec<Span> {
    vec![Span { q: 0..rows, k: 0..rows }]
}

#[test]
fn attention_equals_plain_loops_around_every_edge_of_its_tiles() {
    on_the_path();
    for rows in [1, 2, 31, 32, 33, 127, 128, 129, 161, 257] {
        check(PLAIN, &whole(rows));
    }
    for head_dim in [1, 2, 7, 15, 16, 17, 31, 32, 33, 64, 65, 80, 128] {
        check(Shape { head_dim, ..PLAIN }, &whole(41));
    }
}

#[test]
fn grouped_heads_segments_windows_and_caps_equal_plain_loops() {
    on_the_path();
    let segments = [0..5, 5..5, 5..6, 6..140, 140..173].map(|r| Span { q: r.clone(), k: r });
    for (heads, kv_heads) in [(1, 1), (4, 2), (3, 1)] {
        let shape = Shape { heads, kv_heads, ..PLAIN };
        check(shape, &segments);
        for window in [1, 7, 33, 500] {
            check(Shape { window: Some(window), ..shape }, &segments);
        }
        check(Shape { softcap: Some(0.8), ..shape }, &segments);
        check(Shape { softcap: Some(0.8), window: Some(9), ..shape }, &segments);
    }
}

#[test]
fn windows_that_leave_whole_tiles_out_equal_plain_loops() {
    on_the_path();
    for window in [2, 100, 128, 129] {
        check(Shape { window: Some(window), ..PLAIN }, &whole(400));
    }
}

#[test]
fn fewer_queries_than_keys_equal_plain_loops() {
    on_the_path();
    let shape = Shape { heads: 4, kv_heads: 2, ..PLAIN };
    for (q, k) in [(1, 1), (1, 128), (1, 129), (3, 40), (33, 200)] {
        let span = [Span { q: 0..q, k: 0..k }];
        check(shape, &span);
        check(Shape { window: Some(5), ..shape }, &span);
    }
}

#[test]
fn one_query_a_text_equals_attention_over_each_text() {
    on_the_path();
    for (heads, kv_heads, head_dim, window, softcap) in [
        (1, 1, 6, None, None),
        (4, 2, 17, None, None),
        (6, 2, 64, Some(9), None),
        (3, 1, 40, None, Some(0.8)),
    ] {
        let shape = Shape { heads, kv_heads, head_dim, window, softcap, scale: 0.3 };
        let (width, lengths) = (kv_heads * head_dim, [1, 7, 33, 200]);
        let tokens: usize = lengths.iter().sum();
        let q = random(1, lengths.len() * heads * head_dim, 1.0);
        let (k, v) = (random(2, tokens * width, 1.0), random(3, tokens * width, 1.0));
        let mut at = 0;
        let spans: Vec<Span> = lengths
            .iter()
            .enumerate()
            .map(|(i, n)| {
                at += n;
                Span { q: i..i + 1, k: at - n..at }
            })
            .collect();
        let kept: Vec<Kept> = spans
            .iter()
            .map(|s| Kept {
                k: &k[s.k.start * width..s.k.end * width],
                v: &v[s.k.start * width..s.k.end * width],
            })
            .collect();
        let (mut out, mut lse) = (vec![7.0; q.len()], vec![0.0; lengths.len() * heads]);
        decode(&shape, &q, &kept, &mut out);
        let mut expected = vec![7.0; q.len()];
        forward(&shape, &spans, &q, &k, &v, &mut expected, &mut lse);
        close(&format!("{shape:?}"), &out, &wide(&expected));
    }
}

#[test]
#[should_panic(expected = "spans overlap")]
fn spans_that_share_a_row_are_refused() {
    check(PLAIN, &[Span { q: 0..5, k: 0..5 }, Span { q: 4..6, k: 4..6 }]);
}

#[test]
#[should_panic(expected = "spans overlap")]
fn a_backward_pass_over_spans_that_share_a_row_is_refused() {
    let spans = [Span { q: 0..2, k: 0..2 }, Span { q: 1..3, k: 1..3 }];
    let x = [0.0; 18];
    let (mut dq, mut dk, mut dv) = (x, x, x);
    backward(&PLAIN, &spans, (&x, &x, &x), &x, &x, &[0.0; 3], (&mut dq, &mut dk, &mut dv));
}
