//! Decoding: one new query of each text against all keys and values that were kept for it, each read once for the query
//! heads that share it.

use super::Shape;
use crate::cpu::dispatch;
use crate::cpu::math::{dot, exp, fma, fold, largest};
use rayon::prelude::*;

/// Keys and values of one text, `[tokens, K·d]` each; the last token is the query's own.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// `q`, `out` `[texts, H·d]`.
///
/// # Panics
/// When a text has no keys, or slices do not fit the shape.
pub fn decode(shape: &Shape, q: &[f32], kept: &[Kept], out: &mut [f32]) {
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
    assert!(q.len() == kept.len() * shape.q_width() && q.len() == out.len(), "{} texts", kept.len());
    for text in kept {
        let is_whole = !text.k.is_empty() && text.k.len().is_multiple_of(shape.kv_width());
        assert!(is_whole && text.k.len() == text.v.len(), "{} keys, {} values", text.k.len(), text.v.len());
    }
    let group = shape.heads / shape.kv_heads * shape.head_dim;
    let tasks = out.par_chunks_mut(group).zip(q.par_chunks(group)).enumerate();
    tasks.for_each(|(i, (out, q))| {
        group_of_heads(shape, q, kept[i / shape.kv_heads], i % shape.kv_heads, out);
    });
}

dispatch! {
    fn group_of_heads(shape: &Shape, q: &[f32], kept: Kept<'_>, kv_head: usize, out: &mut [f32]) {
        let (d, width) = (shape.head_dim, shape.kv_width());
        let tokens = kept.k.len() / width;
        let seen = tokens.min(shape.window.unwrap_or(tokens));
        let from = (tokens - seen) * width + kv_head * d;
        let mut scores = vec![0f32; q.len() / d * seen];
        for (t, k) in kept.k[from..].chunks(width).enumerate() {
            for (head, q) in q.chunks_exact(d).enumerate() {
                scores[head * seen + t] = dot::<FMA>(q, &k[..d]);
            }
        }
        for scores in scores.chunks_exact_mut(seen) {
            let mut scale = shape.scale;
            if let Some(cap) = shape.softcap {
                for x in scores.iter_mut() {
                    *x = cap * (*x * scale / cap).tanh();
                }
                scale = 1.0;
            }
            let top = largest(scores) * scale;
            let mut parts = [0f32; 32];
            for chunk in scores.chunks_mut(32) {
                for (part, x) in parts.iter_mut().zip(chunk) {
                    *x = exp::<FMA>(fma::<FMA>(*x, scale, -top));
                    *part += *x;
                }
            }
            let share = 1.0 / fold(parts);
            for x in scores.iter_mut() {
                *x *= share;
            }
        }
        out.fill(0.0);
        for (t, v) in kept.v[from..].chunks(width).enumerate() {
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                let share = scores[head * seen + t];
                for (o, v) in out.iter_mut().zip(v) {
                    *o = fma::<FMA>(share, *v, *o);
                }
            }
        }
    }
}
