//! Kernels over single values: gate, optimizer, sums, conversions.

use super::{close, on_the_path, random, wide};
use fttrain_kernels::cpu::optimizer::{AdamW, Values, adamw};
use fttrain_kernels::cpu::{
    gate_backward, gate_backward_bf16, gate_forward, gate_forward_bf16, narrowed, sum_of_squares, widened,
};
use half::bf16;

/// The last ones cross the chunks that tasks take.
const LENGTHS: [usize; 7] = [1, 3, 15, 16, 33, 16_385, 32_770];

#[test]
fn gates_and_their_gradients_equal_plain_loops() {
    on_the_path();
    for n in LENGTHS {
        for largest in [1.0, 100.0] {
            let (gate, up, d_act) = (random(1, n, largest), random(2, n, 1.0), random(3, n, 1.0));
            let act = gate_forward(&gate, &up);
            let mut d_gate = d_act.clone();
            let d_up = gate_backward(&gate, &up, &mut d_gate);
            let each = |f: fn(f64, f64, f64) -> f64| -> Vec<f64> {
                let inputs = wide(&gate).into_iter().zip(wide(&up)).zip(wide(&d_act));
                inputs.map(|((g, u), d)| f(g, u, d)).collect()
            };
            close("act", &act, &each(|g, u, _| g / (1.0 + (-g).exp()) * u));
            close("d_up", &d_up, &each(|g, _, d| d * g / (1.0 + (-g).exp())));
            let slope = |g: f64, u: f64, d: f64| {
                let s = 1.0 / (1.0 + (-g).exp());
                d * u * (s + g * s * (1.0 - s))
            };
            close("d_gate", &d_gate, &each(slope));
        }
    }
}

/// Kept in half the bytes, they are computed in f32 like their widened copies; the activation is rounded once more.
#[test]
fn narrow_gates_give_what_their_widened_copies_give() {
    on_the_path();
    for n in LENGTHS {
        let (gate, up) = (narrowed(&random(1, n, 9.0)), narrowed(&random(2, n, 1.0)));
        let (wide_gate, wide_up, mut d) = (widened(&gate), widened(&up), random(3, n, 1.0));
        let mut wide_d = d.clone();
        assert_eq!(gate_forward_bf16(&gate, &up), narrowed(&gate_forward(&wide_gate, &wide_up)));
        let d_up = gate_backward_bf16(&gate, &up, &mut d);
        assert_eq!(d_up, gate_backward(&wide_gate, &wide_up, &mut wide_d));
        assert_eq!(d, wide_d);
    }
}

#[test]
fn updates_equal_plain_loops() {
    on_the_path();
    for n in LENGTHS {
        let (start, grad) = (random(1, n, 1.0), random(2, n, 3.0));
        let (m0, v0) = (random(3, n, 0.1), random(4, n, 0.1).into_iter().map(f32::abs).collect::<Vec<_>>());
        let how = AdamW {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.3,
            correction1: 0.271,
            correction2_sqrt: 0.054,
            grad_scale: 0.5,
        };
        let (mut p, mut m, mut v) = (start.clone(), m0.clone(), v0.clone());
        adamw(Values::F32(&mut p), &mut m, &mut v, &grad, &how);
        let (lr, c1, c2) = (f64::from(how.lr), f64::from(how.correction1), f64::from(how.correction2_sqrt));
        let mut exact = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let g = 0.5 * f64::from(grad[i]);
            let m = 0.9 * f64::from(m0[i]) + 0.1 * g;
            let v = 0.999 * f64::from(v0[i]) + 0.001 * g * g;
            let decayed = f64::from(start[i]) * (1.0 - lr * f64::from(how.weight_decay));
            exact.0.push(decayed - lr * (m / c1) / (v.sqrt() / c2 + 1e-6));
            exact.1.push(m);
            exact.2.push(v);
        }
        close("parameter", &p, &exact.0);
        close("first moment", &m, &exact.1);
        close("second moment", &v, &exact.2);
    }
}

#[test]
fn sums_equal_plain_loops() {
    on_the_path();
    for n in LENGTHS {
        let x = random(1, n, 1.0);
        let exact: f64 = wide(&x).iter().map(|x| x * x).sum();
        assert!((sum_of_squares(&x) - exact).abs() <= 1e-12 * exact, "{n}");
    }
    assert!(sum_of_squares(&[]) == 0.0);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = vec![1.0; 20_000];
        x[17_001] = bad;
        assert!(!sum_of_squares(&x).is_finite());
    }
}

#[test]
fn every_bf16_widens_exactly_and_narrows_back() {
    on_the_path();
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let wide = widened(&all);
    for ((from, wide), back) in all.iter().zip(&wide).zip(narrowed(&wide)) {
        if from.is_nan() {
            assert!(wide.is_nan() && back.is_nan());
        } else {
            assert_eq!((from.to_f32().to_bits(), from.to_bits()), (wide.to_bits(), back.to_bits()), "{from}");
        }
    }
}

#[test]
fn narrowing_takes_the_nearest_and_the_even_one_between_two() {
    on_the_path();
    // bf16 has 8 bits of fraction: neighbours of 1 are 1/128 apart above.
    let step = 1.0 / 128.0;
    let cases = [(1.0 + 0.4 * step, 1.0), (1.0 + 0.6 * step, 1.0 + step), (1.0 + 0.5 * step, 1.0)];
    for (from, to) in [&cases[..], &[(1.0 + 1.5 * step, 1.0 + 2.0 * step)]].concat() {
        assert_eq!(narrowed(&[from])[0].to_f32().to_bits(), f32::to_bits(to), "{from}");
    }
}
