//! Attention: grouped heads, segments, windows, soft caps, queries at the end of longer keys; tiles are 32 queries by
//! 128 keys, so 33 and 129 cross them.

use super::references::{Input, Ours, agree, random, values};
use candle_core::{D, DType, Device, Tensor};
use fttrain::ops::attention::{self, Shape, Span};
use fttrain::ops::host;
use std::ops::Range;

const PLAIN: Shape = Shape { heads: 1, kv_heads: 1, head_dim: 6, scale: 0.4, softcap: None, window: None };

/// Keys that query `i` of a span sees: the queries stand at the end of the keys.
fn seen(span: &Span, i: usize, window: Option<usize>) -> Range<usize> {
    let end = span.k.len() - span.q.len() + i + 1;
    span.k.start + window.map_or(0, |w| end.saturating_sub(w))..span.k.start + end
}

/// Segments of these lengths end to end, queries and keys alike.
fn segments(lengths: &[usize]) -> Vec<Span> {
    let mut start = 0;
    let mut next = |n: &usize| {
        start += n;
        Span { q: start - n..start, k: start - n..start }
    };
    lengths.iter().map(&mut next).collect()
}

fn plain(shape: &Shape, spans: &[Span], q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let (d, kv_width) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut out = vec![0f64; q.len()];
    for span in spans {
        for (i, row) in span.q.clone().enumerate() {
            for head in 0..shape.heads {
                let at = (row * shape.heads + head) * d;
                let column = head / (shape.heads / shape.kv_heads) * d;
                let score = |j: usize| {
                    let k = &k[j * kv_width + column..][..d];
                    let score =
                        f64::from(shape.scale) * q[at..at + d].iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                    shape.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                };
                let keys = seen(span, i, shape.window);
                let scores: Vec<f64> = keys.clone().map(score).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (j, weight) in keys.zip(&weights) {
                    for c in 0..d {
                        out[at + c] += weight / total * v[j * kv_width + column + c];
                    }
                }
            }
        }
    }
    out
}

/// One head of one span in candle's plain ops; scores are small enough for exp without the largest taken off.
fn one_head(shape: &Shape, span: &Span, head: usize, t: &[Tensor]) -> candle_core::Result<Tensor> {
    let d = shape.head_dim;
    let column = head / (shape.heads / shape.kv_heads) * d;
    let q = t[0].narrow(0, span.q.start, span.q.len())?.narrow(1, head * d, d)?.contiguous()?;
    let part = |x: &Tensor| x.narrow(0, span.k.start, span.k.len())?.narrow(1, column, d)?.contiguous();
    let (k, v) = (part(&t[1])?, part(&t[2])?);
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(shape.scale))?;
    if let Some(cap) = shape.softcap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let visible = |i| {
        let keys = seen(span, i, shape.window);
        span.k.clone().map(move |j| if keys.contains(&j) { 1f64 } else { 0.0 })
    };
    let mask: Vec<f64> = (0..span.q.len()).flat_map(visible).collect();
    let weights = (scores.exp()? * Tensor::from_vec(mask, (span.q.len(), span.k.len()), &Device::Cpu)?)?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.matmul(&v)
}

fn candle(shape: &Shape, spans: &[Span], t: &[Tensor]) -> candle_core::Result<Tensor> {
    let rows = |span: &Span| {
        let heads = (0..shape.heads).map(|head| one_head(shape, span, head, t));
        Tensor::cat(&heads.collect::<candle_core::Result<Vec<_>>>()?, 1)
    };
    let spans = spans.iter().filter(|span| !span.q.is_empty());
    Tensor::cat(&spans.map(rows).collect::<candle_core::Result<Vec<_>>>()?, 0)
}

fn check(shape: Shape, spans: &[Span], largest: f64) {
    let (q_rows, k_rows) = (spans.last().unwrap().q.end, spans.last().unwrap().k.end);
    let input = |name: &str, rows: usize, heads: usize, largest: f64| {
        let width = heads * shape.head_dim;
        Input { values: random(name, rows * width, largest), shape: vec![rows, width] }
    };
    let inputs = [
        input("q", q_rows, shape.heads, largest),
        input("k", k_rows, shape.kv_heads, largest),
        input("v", k_rows, shape.kv_heads, 1.0),
    ];
    let [q, k, v] = inputs.each_ref().map(Input::tensor);
    let (y, saved) = attention::forward(&shape, spans, &q, &k, &v).unwrap();
    let dy = random("dy", inputs[0].values.len(), 1.0);
    let d =
        attention::backward(&shape, spans, &saved, &host::tensor(dy.clone(), y.shape()).unwrap()).unwrap();
    agree(
        &format!("{shape:?} {spans:?}"),
        &inputs,
        &Ours { y: values(&y), dy, grads: [d.q, d.k, d.v].iter().map(|d| Some(values(d))).collect() },
        |t| candle(&shape, spans, t),
        |t| plain(&shape, spans, &t[0], &t[1], &t[2]),
    );
}

#[test]
fn odd_rows_and_heads_agree_with_both_references() {
    for rows in [1, 2, 31, 33, 65] {
        check(PLAIN, &segments(&[rows]), 1.0);
    }
    for head_dim in [1, 2, 7, 33, 80] {
        check(Shape { head_dim, heads: 2, kv_heads: 2, ..PLAIN }, &segments(&[35]), 1.0);
    }
    for rows in [127, 129, 257] {
        check(Shape { head_dim: 4, ..PLAIN }, &segments(&[rows]), 1.0);
    }
}

#[test]
fn grouped_heads_agree_with_both_references() {
    for (heads, kv_heads) in [(2, 1), (4, 2), (3, 1), (9, 3)] {
        check(Shape { heads, kv_heads, head_dim: 10, ..PLAIN }, &segments(&[33]), 1.0);
    }
}

#[test]
fn segments_see_nothing_of_each_other() {
    let shape = Shape { heads: 4, kv_heads: 2, ..PLAIN };
    check(shape, &segments(&[5, 1, 33, 2]), 1.0);
    check(shape, &segments(&[40, 129, 1]), 1.0);
    check(shape, &segments(&[3, 0, 4]), 1.0);
}

#[test]
fn windows_agree_with_both_references() {
    for window in [1, 5, 31, 64, 200] {
        let shape = Shape { heads: 2, window: Some(window), ..PLAIN };
        check(shape, &segments(&[70]), 1.0);
        check(shape, &segments(&[3, 40]), 1.0);
    }
    // A query's window ends in one tile of keys and begins in another; whole tiles lie outside it.
    for window in [3, 128, 130] {
        check(Shape { head_dim: 4, window: Some(window), ..PLAIN }, &segments(&[290]), 1.0);
    }
}

#[test]
fn a_soft_cap_agrees_with_both_references() {
    let shape = Shape { heads: 4, kv_heads: 2, scale: 2.0, softcap: Some(1.5), ..PLAIN };
    check(shape, &segments(&[33, 6]), 1.0);
    check(Shape { window: Some(4), ..shape }, &segments(&[40]), 1.0);
}

#[test]
fn queries_at_the_end_of_longer_keys_agree_with_both_references() {
    let shape = Shape { heads: 4, kv_heads: 2, ..PLAIN };
    let one = |q: usize, k: usize| vec![Span { q: 0..q, k: 0..k }];
    for (q, k) in [(1, 1), (1, 129), (3, 40), (33, 129), (32, 160)] {
        check(shape, &one(q, k), 1.0);
        check(Shape { window: Some(7), ..shape }, &one(q, k), 1.0);
    }
    check(shape, &[Span { q: 0..2, k: 0..9 }, Span { q: 2..3, k: 9..50 }], 1.0);
}

#[test]
fn scores_far_apart_agree_with_both_references() {
    // Up to ±100: the running softmax rescales, and most weights vanish.
    check(Shape { scale: 1.0, heads: 2, kv_heads: 1, ..PLAIN }, &segments(&[129]), 4.0);
}

#[test]
fn scores_beyond_the_range_of_exp_stay_finite() {
    let (q, k) = (host::tensor(vec![100.0; 40 * 6], (40, 6)).unwrap(), random("k", 40 * 6, 1e4));
    let k = host::tensor(k, (40, 6)).unwrap();
    let v = Input::random("v", &[40, 6]).tensor();
    let (y, saved) = attention::forward(&PLAIN, &segments(&[40]), &q, &k, &v).unwrap();
    let d = attention::backward(&PLAIN, &segments(&[40]), &saved, &v).unwrap();
    for tensor in [y, d.q, d.k, d.v] {
        assert_eq!(tensor.dtype(), DType::F32);
        assert!(values(&tensor).iter().all(|x| x.is_finite()));
    }
}
