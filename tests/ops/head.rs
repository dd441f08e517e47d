//! The last projection and the cross-entropy, in one op and in chunks.

use super::references::{Input, Ours, agree, random, values};
use candle_core::{D, DType, Device, Tensor};
use fttrain::ops::head::Head;
use fttrain::ops::matmul::Precision;
use fttrain::ops::{Grads, Matrix, ParamId, Weight, host};
use fttrain_kernels::cpu::path;

/// Counted rows, hidden size, vocabulary. The last crosses a chunk of 1024 rows.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 6, 2), (33, 17, 131), (70, 3, 7), (2, 32, 1000), (1027, 3, 5)];

fn targets(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| u32::try_from((i * 7 + 3) % vocabulary).unwrap()).collect()
}

fn exact(weight: Weight<Matrix>) -> Head {
    Head { weight, precision: Precision::F32 }
}

fn trained(w: &Input, precision: Precision) -> Head {
    Head { weight: Weight { value: w.tensor().into(), param: Some(ParamId(0)) }, precision }
}

fn loss_and_backward(
    head: &Head,
    hidden: &Tensor,
    targets: &[u32],
    scale: f32,
    grads: &mut Grads,
) -> (f64, Tensor) {
    let (sum, dx) = head.loss_and_backward(hidden, targets, scale, grads).unwrap();
    (sum.value().unwrap(), dx)
}

fn check(shape: (usize, usize, usize), largest: f64) {
    let (c, d, v) = shape;
    let hidden = Input { values: random("hidden", c * d, largest), shape: vec![c, d] };
    let w = Input::random("w", &[v, d]);
    let targets = targets(c, v);
    let head = trained(&w, Precision::F32);
    let scale = 1.0 / c as f32;
    let mut grads = Grads::new(1);
    let (sum, dx) = loss_and_backward(&head, &hidden.tensor(), &targets, scale, &mut grads);
    let again = head.loss(&hidden.tensor(), &targets).unwrap();
    assert_eq!(sum.to_bits(), again.to_bits(), "{shape:?}: with and without a backward pass");
    agree(
        &format!("{shape:?} up to {largest}"),
        &[hidden, w],
        &Ours {
            y: vec![sum as f32],
            dy: vec![scale],
            grads: vec![Some(values(&dx)), grads.get(ParamId(0)).map(values)],
        },
        |t| {
            let logits = t[0].matmul(&t[1].t()?)?;
            let ids = Tensor::from_slice(&targets, (c, 1), &Device::Cpu)?;
            let at_target = logits.gather(&ids, D::Minus1)?;
            (logits.exp()?.sum_keepdim(D::Minus1)?.log()? - at_target)?.sum_all()?.reshape(1)
        },
        |t| {
            let mut sum = 0.0;
            for (x, &target) in t[0].chunks(d).zip(&targets) {
                let logit = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                let logits: Vec<f64> = t[1].chunks(d).map(logit).collect();
                let top = logits.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
                sum += total.ln() + top - logits[target as usize];
            }
            vec![sum]
        },
    );
}

#[test]
fn the_head_agrees_with_both_references_on_odd_shapes() {
    for shape in SHAPES {
        check(shape, 1.0);
    }
}

/// A gradient of its own for each token, of either sign, as a loss of preferences gives; and those log-probabilities
/// sum to the loss.
#[test]
fn log_probabilities_and_their_backward_agree_with_both_references_on_odd_shapes() {
    for (c, d, v) in SHAPES {
        let (hidden, w) = (Input::random("hidden", &[c, d]), Input::random("w", &[v, d]));
        let (targets, dy) = (targets(c, v), random("d", c, 1.0));
        let head = trained(&w, Precision::F32);
        let scored = head.log_probabilities(&hidden.tensor(), &targets).unwrap();
        let mut grads = Grads::new(1);
        let dx = head.log_probabilities_backward(&hidden.tensor(), &targets, &dy, &mut grads).unwrap();
        let y: Vec<f32> = scored.iter().map(|token| token.log_probability).collect();
        let loss = head.loss(&hidden.tensor(), &targets).unwrap();
        let sum: f64 = y.iter().copied().map(f64::from).sum();
        assert_eq!(sum.to_bits(), (-loss).to_bits(), "{:?}", (c, d, v));
        let grads = vec![Some(values(&dx)), grads.get(ParamId(0)).map(values)];
        agree(
            &format!("{:?}", (c, d, v)),
            &[hidden, w],
            &Ours { y, dy, grads },
            |t| {
                let logits = t[0].matmul(&t[1].t()?)?;
                let ids = Tensor::from_slice(&targets, (c, 1), &Device::Cpu)?;
                let at_target = logits.gather(&ids, D::Minus1)?;
                (at_target - logits.exp()?.sum_keepdim(D::Minus1)?.log()?)?.reshape(c)
            },
            |t| {
                let one = |(x, &target): (&[f64], &u32)| {
                    let logit = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                    let logits: Vec<f64> = t[1].chunks(d).map(logit).collect();
                    let top = logits.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
                    logits[target as usize] - top - total.ln()
                };
                t[0].chunks(d).zip(&targets).map(one).collect()
            },
        );
    }
}

#[test]
fn the_likeliest_token_is_said_to_be_it() {
    // Logits are 2, 1, 2 and 3, -1, 0: the second row's top is token 0, the first has two.
    let head = exact(Weight::frozen(host::tensor(vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0], (3, 2)).unwrap()));
    let hidden = host::tensor(vec![2.0, 1.0, 3.0, -1.0], (2, 2)).unwrap();
    for (targets, wanted) in [([0, 0], [true, true]), ([1, 1], [false, false]), ([2, 2], [true, true])] {
        let scored = head.log_probabilities(&hidden, &targets).unwrap();
        assert_eq!([scored[0].is_likeliest, scored[1].is_likeliest], wanted, "{targets:?}");
    }
}

#[test]
fn as_many_gradients_as_tokens_are_asked_for() {
    let head = exact(Weight::frozen(Input::random("w", &[5, 3]).tensor()));
    let hidden = Input::random("hidden", &[2, 3]).tensor();
    let mut grads = Grads::new(0);
    assert!(head.log_probabilities_backward(&hidden, &[1, 2], &[1.0], &mut grads).is_err());
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_loss() {
    check((5, 17, 33), 60.0);
}

#[test]
fn nothing_counted_costs_nothing() {
    let head = trained(&Input::random("w", &[7, 3]), Precision::F32);
    let none = host::zeros((0, 3)).unwrap();
    let mut grads = Grads::new(1);
    let (sum, dx) = loss_and_backward(&head, &none, &[], 1.0, &mut grads);
    assert_eq!((sum.to_bits(), dx.dims()), (0f64.to_bits(), &[0, 3][..]));
    assert!(grads.get(ParamId(0)).is_none());
}

/// What the vocabulary's products round to bf16 is off by 2⁻⁹ of itself at most, both sides together by 2⁻⁸.
#[test]
fn products_in_bf16_give_nearly_what_they_give_in_f32() {
    let (hidden, w) = (Input::random_bf16("hidden", &[33, 17]), Input::random_bf16("w", &[131, 17]));
    let targets = targets(33, 131);
    let frozen = |dtype| Weight::frozen(w.tensor().to_dtype(dtype).unwrap());
    let cases = [
        exact(frozen(DType::F32)),
        Head { weight: frozen(DType::BF16), precision: Precision::Bf16 },
        trained(&w, Precision::F32),
        trained(&w, Precision::Bf16),
    ];
    let [wanted, frozen, exact, narrow] = cases.map(|head| {
        let mut grads = Grads::new(1);
        let (sum, dx) = loss_and_backward(&head, &hidden.tensor(), &targets, 0.5, &mut grads);
        (sum, values(&dx), grads.get(ParamId(0)).map(values))
    });
    assert!(wanted.2.is_none() && frozen.2.is_none(), "a frozen head gets no gradient");
    assert_eq!((&exact.0, &exact.1), (&wanted.0, &wanted.1));
    let near = |a: &[f32], b: &[f32]| {
        let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= largest / 256.0, "{a}, in f32 {b} of {largest}");
        }
    };
    for (sum, dx, dw) in [frozen, narrow] {
        assert!((sum - wanted.0).abs() < 1e-5 * wanted.0, "{sum}, in f32 {}", wanted.0);
        near(&dx, &wanted.1);
        if let Some(dw) = dw {
            let exact = exact.2.as_ref().unwrap();
            assert_eq!(
                dw != *exact,
                path().has_bf16(),
                "rounded where the CPU multiplies in bf16, and only there"
            );
            near(&dw, exact);
        }
    }
}

#[test]
fn a_value_that_is_not_finite_makes_the_loss_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut hidden = Input::random("hidden", &[3, 4]);
        hidden.values[5] = bad;
        let head = exact(Weight::frozen(Input::random("w", &[9, 4]).tensor()));
        let sum = head.loss(&hidden.tensor(), &targets(3, 9)).unwrap();
        assert!(!sum.is_finite(), "{bad} gives {sum}");
    }
}
