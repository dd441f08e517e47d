//! `y = x·Wᵀ + bias + s·drop(x)·Aᵀ·Bᵀ`, frozen and trained, with every combination of parts.

use super::references::{Input, Ours, agree, constant, random, values};
use candle_core::DType;
use fttrain::ops::dropout::{self, Noise};
use fttrain::ops::linear::{self, Linear, Lora};
use fttrain::ops::matmul::Precision;
use fttrain::ops::{Grads, ParamId, Weight, host};

/// Rows, inputs, outputs: single ones, and sizes that no tile divides.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 3, 5), (2, 6, 7), (33, 17, 19), (5, 130, 65), (129, 31, 33)];
const NOISE: Noise = Noise { seed: 3, step: 5, first_token: 11 };
const SITE: u64 = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    bf16: bool,
    train_weight: bool,
    bias: Option<Trained>,
    /// Rank, probability of dropout.
    lora: Option<(usize, f32)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Trained {
    Yes,
    No,
}

/// A layer in its parts, the inputs of the references in this order: x, W, bias, A, B.
struct Made {
    layer: Linear,
    inputs: Vec<Input>,
    noise: Option<Noise>,
}

fn make(parts: Parts, (n, inputs, outputs): (usize, usize, usize)) -> Made {
    let (r, p) = parts.lora.unwrap_or((1, 0.0));
    let w = if parts.bf16 { Input::random_bf16 } else { Input::random }("w", &[outputs, inputs]);
    let (x, bias) = (Input::random("x", &[n, inputs]), Input::random("bias", &[outputs]));
    let (a, b) = (Input::random("a", &[r, inputs]), Input::random("b", &[outputs, r]));
    let kind = if parts.bf16 { DType::BF16 } else { DType::F32 };
    let weight = |input: &Input, id: usize, trained: bool| Weight {
        value: input.tensor(),
        param: trained.then_some(ParamId(id)),
    };
    let layer = Linear {
        weight: Weight {
            value: w.tensor().to_dtype(kind).unwrap().into(),
            param: parts.train_weight.then_some(ParamId(1)),
        },
        bias: parts.bias.map(|trained| weight(&bias, 2, trained == Trained::Yes)),
        lora: parts.lora.map(|_| Lora {
            a: weight(&a, 3, true),
            b: weight(&b, 4, true),
            scale: 0.75,
            dropout: p,
            site: SITE,
            dora: None,
        }),
        precision: Precision::F32,
    };
    Made { layer, inputs: vec![x, w, bias, a, b], noise: (p > 0.0).then_some(NOISE) }
}

/// What dropout multiplies x with: 0 or 1 / (1 − p).
fn mask(p: f32, n: usize, width: usize, noise: Option<Noise>) -> Vec<f32> {
    let Some(noise) = noise else { return vec![1.0; n * width] };
    let ones = host::tensor(vec![1.0; n * width], (n, width)).unwrap();
    values(&dropout::apply(&ones, p, SITE, noise).unwrap())
}

/// `y[n, o] = Σ x[n, i]·w[o, i]`
fn rows_times(x: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks(width).flat_map(|x| w.chunks(width).map(move |w| dot(x, w))).collect()
}

fn check(parts: Parts, shape: (usize, usize, usize)) {
    let (n, inputs, outputs) = shape;
    let Made { layer, inputs: given, noise } = make(parts, shape);
    let x = given[0].tensor();
    let dy = random("dy", n * outputs, 1.0);
    let mut grads = Grads::new(5);
    let (y, saved) = layer.forward(&x, noise).unwrap();
    let dy_tensor = host::tensor(dy.clone(), (n, outputs)).unwrap();
    let dx = layer.backward(&x, &saved, &dy_tensor, true, noise, &mut grads).unwrap().unwrap();
    let gradient = |id| grads.get(ParamId(id)).map(values);
    let ours = Ours {
        y: values(&y),
        dy,
        grads: vec![Some(values(&dx)), gradient(1), gradient(2), gradient(3), gradient(4)],
    };
    let trained = [true, parts.train_weight, parts.bias == Some(Trained::Yes), parts.lora.is_some()];
    let given_grads: Vec<bool> = ours.grads.iter().map(Option::is_some).collect();
    assert_eq!(given_grads[..4], trained, "{parts:?}: only what is trained gets a gradient");
    assert_eq!(given_grads[3], given_grads[4]);
    let (has_bias, lora) = (parts.bias.is_some(), parts.lora);
    let (r, p) = lora.unwrap_or((1, 0.0));
    let mask = mask(p, n, inputs, noise);
    agree(
        &format!("{parts:?} {shape:?}"),
        &given,
        &ours,
        |t| {
            let mut y = t[0].matmul(&t[1].t()?)?;
            if has_bias {
                y = y.broadcast_add(&t[2])?;
            }
            if lora.is_some() {
                let low = (&t[0] * constant(&mask, &[n, inputs])?)?.matmul(&t[3].t()?)?;
                y = (y + (low.matmul(&t[4].t()?)? * 0.75)?)?;
            }
            Ok(y)
        },
        |t| {
            let mut y = rows_times(&t[0], &t[1], inputs);
            if has_bias {
                y.chunks_mut(outputs).for_each(|y| y.iter_mut().zip(&t[2]).for_each(|(y, b)| *y += b));
            }
            if lora.is_some() {
                let dropped: Vec<f64> = t[0].iter().zip(&mask).map(|(x, m)| x * f64::from(*m)).collect();
                let up = rows_times(&rows_times(&dropped, &t[3], inputs), &t[4], r);
                y.iter_mut().zip(up).for_each(|(y, up)| *y += 0.75 * up);
            }
            y
        },
    );
}

#[test]
fn a_linear_of_any_parts_agrees_with_both_references_on_odd_shapes() {
    let no = Parts::default();
    let lora = |r, p| Parts { lora: Some((r, p)), ..no };
    let variants = [
        no,
        Parts { bf16: true, ..no },
        Parts { train_weight: true, ..no },
        Parts { bias: Some(Trained::No), ..no },
        Parts { train_weight: true, bias: Some(Trained::Yes), ..no },
        lora(1, 0.0),
        lora(4, 0.0),
        lora(3, 0.4),
        Parts { bf16: true, bias: Some(Trained::No), ..lora(5, 0.0) },
        Parts { bf16: true, bias: Some(Trained::No), ..lora(5, 0.4) },
        Parts { train_weight: true, bias: Some(Trained::Yes), ..lora(2, 0.4) },
    ];
    for parts in variants {
        for shape in SHAPES {
            check(parts, shape);
        }
    }
}

/// All parts at once, with dropout.
fn full() -> Made {
    make(
        Parts { bias: Some(Trained::Yes), lora: Some((3, 0.4)), train_weight: true, ..Parts::default() },
        (9, 6, 7),
    )
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let Made { layer, inputs, noise } = full();
    let (x, dy) = (inputs[0].tensor(), Input::random("dy", &[9, 7]).tensor());
    let (_, saved) = layer.forward(&x, noise).unwrap();
    let mut grads = Grads::new(5);
    let mut backward = || {
        layer.backward(&x, &saved, &dy, true, noise, &mut grads).unwrap();
        (1..5).flat_map(|id| values(grads.get(ParamId(id)).unwrap())).collect::<Vec<f32>>()
    };
    let (once, twice) = (backward(), backward());
    for (i, twice) in twice.iter().enumerate() {
        assert!((twice - 2.0 * once[i]).abs() < 1e-5 * once[i].abs().max(1.0), "gradient {i}");
    }
}

#[test]
fn layers_that_share_their_input_give_what_each_gives_alone() {
    for p in [0.0, 0.4] {
        let lora = Parts { lora: Some((3, p)), ..Parts::default() };
        let with = |parts, outputs| make(parts, (33, 40, outputs)).layer;
        let (a, b) = (with(lora, 37), with(Parts { bias: Some(Trained::No), ..lora }, 37));
        let c = with(Parts::default(), 5);
        let (layers, noise) = ([&a, &b, &c], Some(NOISE));
        let x = Input::random("x", &[33, 40]).tensor();
        let shared = linear::forward(layers, &x, noise, Precision::F32).unwrap();
        let mut dx_alone = vec![0.0; 33 * 40];
        let (mut grads_shared, mut grads_alone) = (Grads::new(5), Grads::new(5));
        let mut parts = Vec::new();
        let dys = [37, 37, 5].map(|outputs| Input::random("dy", &[33, outputs]).tensor());
        for ((layer, (y, saved)), dy) in layers.into_iter().zip(&shared).zip(&dys) {
            let (alone, saved_alone) = layer.forward(&x, noise).unwrap();
            assert_eq!(values(y), values(&alone));
            let dx = layer.backward(&x, &saved_alone, dy, true, noise, &mut grads_alone).unwrap().unwrap();
            dx_alone.iter_mut().zip(values(&dx)).for_each(|(sum, dx)| *sum += dx);
            parts.push((layer, saved, dy));
        }
        let dx = linear::backward(&parts, &x, true, noise, &mut grads_shared).unwrap().unwrap();
        for (i, (dx, alone)) in values(&dx).iter().zip(&dx_alone).enumerate() {
            assert!((dx - alone).abs() < 1e-4, "dx[{i}]: {dx}, alone {alone}");
        }
        for id in [3, 4].map(ParamId) {
            assert_eq!(values(grads_shared.get(id).unwrap()), values(grads_alone.get(id).unwrap()));
        }
    }
}

/// bf16 keeps 8 bits: two rounded sides are off by 2⁻⁸ together, and sums of them by less.
#[test]
fn products_in_bf16_are_near_those_in_f32() {
    for parts in [
        Parts { bf16: true, ..Parts::default() },
        Parts { lora: Some((4, 0.0)), bf16: true, ..Parts::default() },
    ] {
        let Made { mut layer, inputs, noise } = make(parts, (33, 130, 65));
        let (x, dy) = (inputs[0].tensor(), Input::random("dy", &[33, 65]).tensor());
        let mut run = |precision| {
            layer.precision = precision;
            let mut grads = Grads::new(5);
            let (y, saved) = layer.forward(&x, noise).unwrap();
            let dx = layer.backward(&x, &saved, &dy, true, noise, &mut grads).unwrap().unwrap();
            let of_weights = [3, 4].into_iter().filter_map(|id| grads.get(ParamId(id)).map(values));
            [values(&y), values(&dx)].into_iter().chain(of_weights).collect::<Vec<_>>()
        };
        for (exact, rounded) in run(Precision::F32).iter().zip(run(Precision::Bf16)) {
            let largest = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (a, b) in exact.iter().zip(&rounded) {
                assert!((a - b).abs() <= largest / 128.0, "{a} and {b} of {largest}");
            }
        }
    }
}

#[test]
fn an_unwanted_input_gradient_is_not_made_and_changes_no_other() {
    let Made { layer, inputs, noise } = full();
    let (x, dy) = (inputs[0].tensor(), Input::random("dy", &[9, 7]).tensor());
    let (_, saved) = layer.forward(&x, noise).unwrap();
    let (mut with, mut without) = (Grads::new(5), Grads::new(5));
    assert!(layer.backward(&x, &saved, &dy, true, noise, &mut with).unwrap().is_some());
    assert!(layer.backward(&x, &saved, &dy, false, noise, &mut without).unwrap().is_none());
    for id in (1..5).map(ParamId) {
        assert_eq!(values(with.get(id).unwrap()), values(without.get(id).unwrap()), "{id:?}");
    }
}

#[test]
fn without_noise_dropout_does_nothing() {
    let Made { mut layer, inputs, noise } = full();
    let x = inputs[0].tensor();
    let training = values(&layer.forward(&x, noise).unwrap().0);
    let outside = values(&layer.forward(&x, None).unwrap().0);
    layer.lora.as_mut().unwrap().dropout = 0.0;
    assert_eq!(outside, values(&layer.forward(&x, noise).unwrap().0));
    assert_ne!(outside, training);
}

#[test]
fn a_layer_says_whether_anything_in_it_is_trained() {
    let shape = (1, 3, 5);
    let trained = |parts| make(parts, shape).layer.is_trained();
    assert!(!trained(Parts { bias: Some(Trained::No), ..Parts::default() }));
    assert!(trained(Parts { bias: Some(Trained::Yes), ..Parts::default() }));
    assert!(trained(Parts { train_weight: true, ..Parts::default() }));
    assert!(trained(Parts { lora: Some((1, 0.0)), ..Parts::default() }));
}
