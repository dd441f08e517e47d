//! A layer with trained lengths of rows, with and without dropout and bias; the norm is a constant, as in PEFT.

use super::references::{Input, Ours, agree, constant, random, values};
use candle_core::{DType, Tensor};
use fttrain::ops::dora::{Dora, norms};
use fttrain::ops::dropout::{self, Noise};
use fttrain::ops::linear::{Linear, Lora};
use fttrain::ops::matmul::Precision;
use fttrain::ops::{Grads, Matrix, ParamId, Weight, host};
use std::sync::Arc;

/// Rows, inputs, outputs, rank.
const SHAPES: [(usize, usize, usize, usize); 4] =
    [(1, 1, 1, 1), (2, 6, 7, 3), (33, 17, 19, 5), (5, 130, 65, 4)];
const NOISE: Noise = Noise { seed: 3, step: 5, first_token: 11 };
const SCALE: f32 = 0.75;
const SITE: u64 = 4;

/// The layer, and its parts in this order: x, W, bias, A, B, m.
fn make((n, inputs, outputs, r): (usize, usize, usize, usize), p: f32, bf16: bool) -> (Linear, Vec<Input>) {
    let w = if bf16 { Input::random_bf16 } else { Input::random }("w", &[outputs, inputs]);
    let (x, bias) = (Input::random("x", &[n, inputs]), Input::random("bias", &[outputs]));
    let (a, b) = (Input::random("a", &[r, inputs]), Input::random("b", &[outputs, r]));
    let m = Input::random("m", &[outputs]);
    let trained = |input: &Input, id| Weight { value: input.tensor(), param: Some(ParamId(id)) };
    let weight = w.tensor().to_dtype(if bf16 { DType::BF16 } else { DType::F32 }).unwrap();
    let squares = Arc::new(Matrix::from(weight.clone()).row_squares().unwrap());
    let dora = Some(Dora { magnitude: trained(&m, 2), squares });
    let lora = Lora { a: trained(&a, 0), b: trained(&b, 1), scale: SCALE, dropout: p, site: SITE, dora };
    let layer = Linear {
        weight: Weight::frozen(weight),
        bias: Some(Weight::frozen(bias.tensor())),
        lora: Some(lora),
        precision: Precision::F32,
    };
    (layer, vec![x, w, bias, a, b, m])
}

/// ‖W + s·B·A‖ of each row in f64, the whole sum made.
fn exact_norms(parts: &[Input], (_, inputs, outputs, r): (usize, usize, usize, usize)) -> Vec<f64> {
    let at = |input: usize, i: usize| f64::from(parts[input].values[i]);
    let value = |o: usize, i: usize| {
        let ba: f64 = (0..r).map(|k| at(4, o * r + k) * at(3, k * inputs + i)).sum();
        at(1, o * inputs + i) + f64::from(SCALE) * ba
    };
    (0..outputs).map(|o| (0..inputs).map(|i| value(o, i).powi(2)).sum::<f64>().sqrt()).collect()
}

fn check(shape: (usize, usize, usize, usize), p: f32, bf16: bool) {
    let (n, inputs, outputs, _) = shape;
    let (layer, parts) = make(shape, p, bf16);
    let noise = (p > 0.0).then_some(NOISE);
    let (x, dy) = (parts[0].tensor(), random("dy", n * outputs, 1.0));
    let mut grads = Grads::new(3);
    let (y, saved) = layer.forward(&x, noise).unwrap();
    let dy_tensor = host::tensor(dy.clone(), (n, outputs)).unwrap();
    let dx = layer.backward(&x, &saved, &dy_tensor, true, noise, &mut grads).unwrap().unwrap();
    let gradient = |id| Some(values(grads.get(ParamId(id)).unwrap()));
    let ours = Ours {
        y: values(&y),
        dy,
        grads: vec![Some(values(&dx)), None, None, gradient(0), gradient(1), gradient(2)],
    };
    let ones = host::tensor(vec![1.0; n * inputs], (n, inputs)).unwrap();
    let mask = noise.map_or_else(
        || vec![1.0; n * inputs],
        |noise| values(&dropout::apply(&ones, p, SITE, noise).unwrap()),
    );
    let norms = exact_norms(&parts, shape);
    agree(
        &format!("{shape:?} dropout {p} bf16 {bf16}"),
        &parts,
        &ours,
        |t| {
            let ratio = (&t[5] / Tensor::from_slice(&norms, outputs, t[5].device())?)?;
            let dropped = (&t[0] * constant(&mask, &[n, inputs])?)?;
            let base = dropped.matmul(&t[1].t()?)?;
            let low = (dropped.matmul(&t[3].t()?)?.matmul(&t[4].t()?)? * f64::from(SCALE))?;
            let more = ((&base + low)?.broadcast_mul(&ratio)? - base)?;
            (t[0].matmul(&t[1].t()?)? + more)?.broadcast_add(&t[2])
        },
        |t| plain(t, shape, &mask, &norms),
    );
}

fn plain(
    t: &[Vec<f64>],
    (n, inputs, outputs, r): (usize, usize, usize, usize),
    mask: &[f32],
    norms: &[f64],
) -> Vec<f64> {
    let mut y = Vec::new();
    for row in 0..n {
        let x = |i: usize| t[0][row * inputs + i];
        let dropped = |i: usize| x(i) * f64::from(mask[row * inputs + i]);
        for o in 0..outputs {
            let whole: f64 = (0..inputs).map(|i| x(i) * t[1][o * inputs + i]).sum();
            let base: f64 = (0..inputs).map(|i| dropped(i) * t[1][o * inputs + i]).sum();
            let low = |k: usize| (0..inputs).map(|i| dropped(i) * t[3][k * inputs + i]).sum::<f64>();
            let up: f64 = (0..r).map(|k| low(k) * t[4][o * r + k]).sum();
            let ratio = t[5][o] / norms[o];
            y.push(whole + t[2][o] + (ratio - 1.0) * base + ratio * f64::from(SCALE) * up);
        }
    }
    y
}

#[test]
fn lengths_agree_with_both_references_on_odd_shapes() {
    for shape in SHAPES {
        for (p, bf16) in [(0.0, false), (0.4, false), (0.0, true), (0.4, true)] {
            check(shape, p, bf16);
        }
    }
}

#[test]
fn lengths_that_are_the_norms_change_nothing() {
    let shape = (9, 12, 7, 3);
    let (mut layer, parts) = make(shape, 0.0, false);
    layer.bias = None; // A plain layer adds it in another order.
    let x = parts[0].tensor();
    let lora = layer.lora.as_mut().unwrap();
    let dora = lora.dora.as_mut().unwrap();
    let own = norms(&layer.weight, &lora.a.value, &lora.b.value, SCALE, &dora.squares).unwrap();
    dora.magnitude.value = host::tensor(own, shape.2).unwrap();
    let with = values(&layer.forward(&x, None).unwrap().0);
    layer.lora.as_mut().unwrap().dora = None;
    assert_eq!(with, values(&layer.forward(&x, None).unwrap().0));
}

#[test]
fn a_gradient_is_added_to_what_is_there() {
    let (layer, parts) = make((9, 6, 7, 3), 0.4, false);
    let (x, dy) = (parts[0].tensor(), Input::random("dy", &[9, 7]).tensor());
    let (_, saved) = layer.forward(&x, Some(NOISE)).unwrap();
    let mut grads = Grads::new(3);
    let mut backward = |wanted| {
        let dx = layer.backward(&x, &saved, &dy, wanted, Some(NOISE), &mut grads).unwrap();
        (dx.map(|dx| values(&dx)), (0..3).flat_map(|id| values(grads.get(ParamId(id)).unwrap())).collect())
    };
    let (dx, once): (_, Vec<f32>) = backward(true);
    let (again, twice) = backward(true);
    let (none, thrice) = backward(false);
    assert_eq!(dx, again);
    assert!(none.is_none());
    for ((once, twice), thrice) in once.iter().zip(twice).zip(thrice) {
        let allowed = 1e-5 * once.abs().max(1.0);
        assert!((twice - 2.0 * once).abs() < allowed && (thrice - 3.0 * once).abs() < 2.0 * allowed);
    }
}
