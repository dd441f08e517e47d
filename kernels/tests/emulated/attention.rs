//! Attention, forward and backward, over segments, shared heads, windows and soft caps.

use super::{Array, both_orders, close, random};
use fttrain_kernels::cpu::attention::{self as cpu, Shape, Span};
use fttrain_kernels::cuda::attention;

/// Spans of these lengths, end to end; a negative length is rows that belong to no segment.
fn spans(lengths: &[i32]) -> (Vec<Span>, usize) {
    let (mut spans, mut at) = (Vec::new(), 0);
    for &length in lengths {
        let end = at + length.unsigned_abs() as usize;
        if length > 0 {
            spans.push(Span { q: at..end, k: at..end });
        }
        at = end;
    }
    (spans, at)
}

fn check(shape: &Shape, lengths: &[i32]) {
    let what = format!("{shape:?} {lengths:?}");
    let (spans, n) = spans(lengths);
    let (wide, narrow) = (n * shape.heads * shape.head_dim, n * shape.kv_heads * shape.head_dim);
    let (q, k, v, d_out) =
        (random(1, wide, 1.0), random(2, narrow, 1.0), random(3, narrow, 1.0), random(4, wide, 1.0));
    let (mut out, mut lse) = (vec![0.0; wide], vec![0.0; n * shape.heads]);
    cpu::forward(shape, &spans, &q, &k, &v, &mut out, &mut lse);
    let (mut dq, mut dk, mut dv) = (vec![0.0; wide], vec![0.0; narrow], vec![0.0; narrow]);
    cpu::backward(shape, &spans, (&q, &k, &v), &out, &d_out, &lse, (&mut dq, &mut dk, &mut dv));

    let inputs = [Array::new(&q), Array::new(&k), Array::new(&v), Array::new(&attention::starts(&spans, n))];
    let [q, k, v, starts] = inputs;
    let outputs = [wide, n * shape.heads, n * shape.heads, wide, narrow, narrow].map(Array::unwritten);
    let [our_out, our_lse, along, our_dq, our_dk, our_dv] = outputs;
    let arrays = [q, k, v, starts, Array::new(&d_out), our_out, our_lse, along, our_dq, our_dk, our_dv];
    let ours = both_orders(arrays, |[q, k, v, starts, d_out, out, lse, along, dq, dk, dv]| {
        let [q, k, v, starts] = [q, k, v, starts].map(Array::address);
        let inputs = attention::Inputs { q, k, v, starts };
        let [out, lse, d_out, along] = [out, lse, d_out, along].map(Array::address);
        let grads = (dq.address(), dk.address(), dv.address());
        let mut all = vec![attention::forward(shape, n, inputs, out, lse)];
        let of = attention::Backward { out, lse, d_out, along };
        all.extend(attention::backward(shape, n, inputs, of, grads));
        all
    });
    close(&format!("{what}: out"), &ours[5].f32(), &out);
    close(&format!("{what}: lse"), &ours[6].f32(), &lse);
    close(&format!("{what}: dq"), &ours[8].f32(), &dq);
    close(&format!("{what}: dk"), &ours[9].f32(), &dk);
    close(&format!("{what}: dv"), &ours[10].f32(), &dv);
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Shape { heads, kv_heads, head_dim, scale, softcap: None, window: None }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn attention_and_its_gradients_equal_the_cpus() {
    for (heads, kv_heads, d) in [(1, 1, 2), (3, 1, 8), (4, 2, 64), (2, 2, 80), (2, 1, 128)] {
        for lengths in [&[1][..], &[70], &[5, 40, 31], &[33, -7, 20, -4]] {
            check(&shape(heads, kv_heads, d), lengths);
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn windows_and_soft_caps_equal_the_cpus() {
    for window in [Some(1), Some(5), Some(33), Some(500), None] {
        for softcap in [None, Some(0.5)] {
            for (kv_heads, d) in [(1, 16), (2, 96)] {
                check(&Shape { window, softcap, ..shape(2, kv_heads, d) }, &[50, 3, 47]);
            }
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_value_that_is_not_finite_comes_through() {
    let (of, n) = (shape(1, 1, 8), 40);
    let mut q = random(1, n * 8, 1.0);
    q[35 * 8] = f32::NAN;
    let [q, k, v] = [q, random(2, n * 8, 1.0), random(3, n * 8, 1.0)].map(|values| Array::new(&values));
    let starts = Array::new(&vec![0u32; n]);
    let ours = both_orders(
        [q, k, v, starts, Array::unwritten(n * 8), Array::unwritten(n)],
        |[q, k, v, starts, out, lse]| {
            let [q, k, v, starts] = [q, k, v, starts].map(Array::address);
            vec![attention::forward(
                &of,
                n,
                attention::Inputs { q, k, v, starts },
                out.address(),
                lse.address(),
            )]
        },
    );
    let out = ours[4].f32();
    assert!(out[35 * 8..36 * 8].iter().all(|x| x.is_nan()));
    assert!(out[..35 * 8].iter().all(|x| x.is_finite()));
}
