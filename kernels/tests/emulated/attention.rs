//! Attention, forward and backward, over segments, shared heads, windows and soft caps.

use super::{Array, both_orders, close, random};
use fttrain_kernels::cpu::attention::{self as cpu, Shape, Span};
use fttrain_kernels::cuda::attention::{self, Attention};

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

/// Values as the kernels keep them.
fn kept(values: &[f32], bf16: bool) -> Array {
    if bf16 {
        Array::new(&values.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>())
    } else {
        Array::new(values)
    }
}

fn values(array: &Array, bf16: bool) -> Vec<f32> {
    if bf16 {
        array.u16().into_iter().map(|bits| half::bf16::from_bits(bits).to_f32()).collect()
    } else {
        array.f32()
    }
}

/// What the CPU makes of `q`, `k`, `v` and `d_out`, values of bf16 where the products are.
fn check(shape: &Shape, lengths: &[i32], bf16: bool) {
    let what = format!("{shape:?} {lengths:?} bf16: {bf16}");
    let (spans, n) = spans(lengths);
    let (wide, narrow) = (n * shape.heads * shape.head_dim, n * shape.kv_heads * shape.head_dim);
    let (q, k, v, d_out) =
        (random(1, wide, 1.0), random(2, narrow, 1.0), random(3, narrow, 1.0), random(4, wide, 1.0));
    let rounded = |values: Vec<f32>| {
        let round = |x| if bf16 { half::bf16::from_f32(x).to_f32() } else { x };
        values.into_iter().map(round).collect::<Vec<f32>>()
    };
    let [q, k, v, d_out] = [q, k, v, d_out].map(rounded);
    let (mut out, mut lse) = (vec![0.0; wide], vec![0.0; n * shape.heads]);
    cpu::forward(shape, &spans, &q, &k, &v, &mut out, &mut lse);
    let (mut dq, mut dk, mut dv) = (vec![0.0; wide], vec![0.0; narrow], vec![0.0; narrow]);
    cpu::backward(shape, &spans, (&q, &k, &v), &out, &d_out, &lse, (&mut dq, &mut dk, &mut dv));

    let [q, k, v, our_out] = [q, k, v, vec![f32::NAN; wide]].map(|values| kept(&values, bf16));
    let starts = Array::new(&attention::starts(&spans, n));
    let outputs = [n * shape.heads, n * shape.heads, wide, narrow, narrow].map(Array::unwritten);
    let [our_lse, along, our_dq, our_dk, our_dv] = outputs;
    let arrays = [q, k, v, starts, Array::new(&d_out), our_out, our_lse, along, our_dq, our_dk, our_dv];
    let ours = both_orders(arrays, |[q, k, v, starts, d_out, out, lse, along, dq, dk, dv]| {
        let [q, k, v, starts] = [q, k, v, starts].map(Array::address);
        let inputs = attention::Inputs { q, k, v, starts };
        let attention = Attention { shape, rows: n, bf16 };
        let [out, lse, d_out, along] = [out, lse, d_out, along].map(Array::address);
        let grads = (dq.address(), dk.address(), dv.address());
        let mut all = vec![attention.forward(inputs, out, lse)];
        let of = attention::Backward { out, lse, d_out, along };
        all.extend(attention.backward(inputs, of, grads));
        all
    });
    let close = |what: &str, ours: &[f32], cpu: &[f32]| {
        // Weights and slopes are rounded, too.
        if bf16 { near(what, ours, cpu) } else { close(what, ours, cpu) }
    };
    close(&format!("{what}: out"), &values(&ours[5], bf16), &out);
    close(&format!("{what}: lse"), &ours[6].f32(), &lse);
    close(&format!("{what}: dq"), &ours[8].f32(), &dq);
    close(&format!("{what}: dk"), &ours[9].f32(), &dk);
    close(&format!("{what}: dv"), &ours[10].f32(), &dv);
}

/// bf16 has 8 bits: each value is off by 2⁻⁹ of it at most, and errors of a sum's terms are independent.
fn near(what: &str, ours: &[f32], cpu: &[f32]) {
    assert_eq!(ours.len(), cpu.len(), "{what}");
    let largest = cpu.iter().fold(0f32, |m, x| m.max(x.abs()));
    let mut squares = 0.0;
    for (i, (a, b)) in ours.iter().zip(cpu).enumerate() {
        assert!(
            (a - b).abs() <= 8e-3 * largest + 1e-6,
            "{what}: [{i}] is {a}, on the CPU {b}, largest {largest}"
        );
        squares += f64::from(a - b).powi(2);
    }
    let length = cpu.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
    assert!(squares.sqrt() <= 4e-3 * length + 1e-5, "{what}: {} of {length}", squares.sqrt());
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
            check(&shape(heads, kv_heads, d), lengths, false);
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn attention_on_tensor_cores_is_the_cpus_but_for_rounding() {
    for (heads, kv_heads, d) in [(1, 1, 2), (3, 1, 8), (4, 2, 64), (2, 2, 80), (2, 1, 128)] {
        for lengths in [&[1][..], &[150], &[5, 70, 31], &[65, -7, 20, -4]] {
            check(&shape(heads, kv_heads, d), lengths, true);
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn windows_and_soft_caps_equal_the_cpus() {
    for window in [Some(1), Some(5), Some(33), Some(500), None] {
        for softcap in [None, Some(0.5)] {
            for (kv_heads, d) in [(1, 16), (2, 96)] {
                let of = Shape { window, softcap, ..shape(2, kv_heads, d) };
                check(&of, &[50, 3, 47], false);
                check(&of, &[70, 3, 27], true);
            }
        }
    }
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_value_that_is_not_finite_comes_through() {
    let (shape, n) = (&shape(1, 1, 8), 40);
    for bf16 in [false, true] {
        let mut q = random(1, n * 8, 1.0);
        q[35 * 8] = f32::NAN;
        let [q, k, v] = [q, random(2, n * 8, 1.0), random(3, n * 8, 1.0)].map(|values| kept(&values, bf16));
        let starts = Array::new(&vec![0u32; n]);
        let ours = both_orders(
            [q, k, v, starts, kept(&vec![f32::NAN; n * 8], bf16), Array::unwritten(n)],
            |[q, k, v, starts, out, lse]| {
                let [q, k, v, starts] = [q, k, v, starts].map(Array::address);
                let inputs = attention::Inputs { q, k, v, starts };
                vec![Attention { shape, rows: n, bf16 }.forward(inputs, out.address(), lse.address())]
            },
        );
        let out = values(&ours[4], bf16);
        assert!(out[35 * 8..36 * 8].iter().all(|x| x.is_nan()), "bf16: {bf16}");
        assert!(out[..35 * 8].iter().all(|x| x.is_finite()), "bf16: {bf16}");
    }
}
