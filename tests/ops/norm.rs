//! RMS norms of whole rows and of each head of a row.

use super::references::{Input, Ours, agree, random, values};
use candle_core::{D, DType};
use fttrain::ops::matmul::Precision;
use fttrain::ops::norm::Norm;
use fttrain::ops::{Grads, ParamId, Weight, host};

/// Rows, heads of a row, size of a head; 65 and 130 cross the rows that share a partial sum.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 1, 7), (33, 1, 17), (2, 3, 6), (65, 2, 33), (130, 1, 32), (5, 1, 577)];

fn norm(weight: &Input, eps: f32) -> Norm {
    Norm { weight: Weight { value: weight.tensor(), param: Some(ParamId(0)) }, eps, reader: Precision::F32 }
}

fn check(shape: (usize, usize, usize), eps: f32, zero_row: bool) {
    let (n, heads, d) = shape;
    let mut x = Input::random("x", &[n, heads * d]);
    if zero_row {
        x.values[..heads * d].fill(0.0);
    }
    let w = Input::random("w", &[d]);
    let norm = norm(&w, eps);
    let (y, saved) = norm.forward(&x.tensor()).unwrap();
    assert_eq!(values(&y), values(&norm.again(&saved).unwrap()), "made again, it is the same");
    let dy = random("dy", n * heads * d, 1.0);
    let mut grads = Grads::new(1);
    let dx = norm.backward(&saved, &host::tensor(dy.clone(), y.shape()).unwrap(), None, &mut grads).unwrap();
    let grads = vec![Some(values(&dx)), grads.get(ParamId(0)).map(values)];
    assert!(grads[1].is_some());
    let eps = f64::from(eps);
    agree(
        &format!("{shape:?} eps {eps} zero row {zero_row}"),
        &[x, w],
        &Ours { y: values(&y), dy, grads },
        |t| {
            let x = t[0].reshape((n * heads, d))?;
            let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / d as f64)?;
            x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(&t[1])?.reshape((n, heads * d))
        },
        |t| {
            let scale = |x: &[f64]| 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + eps).sqrt();
            let row = |x: &[f64]| x.iter().zip(&t[1]).map(|(v, w)| v * scale(x) * w).collect::<Vec<_>>();
            t[0].chunks(d).flat_map(row).collect()
        },
    );
}

#[test]
fn norms_of_rows_and_heads_agree_with_both_references_on_odd_shapes() {
    for shape in SHAPES {
        check(shape, 1e-5, false);
        check(shape, 0.3, false);
    }
}

#[test]
fn a_row_of_zeros_has_the_gradient_that_epsilon_gives_it() {
    check((2, 2, 6), 1e-2, true);
    check((1, 1, 1), 1e-2, true);
}

#[test]
fn the_residuals_gradient_runs_through_the_same_sum() {
    let (x, w) = (Input::random("x", &[33, 17]), Input::random("w", &[17]));
    let norm = norm(&w, 1e-5);
    let (y, saved) = norm.forward(&x.tensor()).unwrap();
    let dy = Input::random("dy", &[33, 17]).tensor();
    let mut grads = Grads::new(1);
    let alone = values(&norm.backward(&saved, &dy, None, &mut grads).unwrap());
    let once = values(grads.get(ParamId(0)).unwrap());
    let before = random("before", alone.len(), 1.0);
    let dx = Some(host::tensor(before.clone(), y.shape()).unwrap());
    let sum = values(&norm.backward(&saved, &dy, dx, &mut grads).unwrap());
    for (i, sum) in sum.iter().enumerate() {
        assert!((sum - (before[i] + alone[i])).abs() < 1e-5, "dx[{i}]");
    }
    for (i, twice) in values(grads.get(ParamId(0)).unwrap()).iter().enumerate() {
        assert!((twice - 2.0 * once[i]).abs() < 1e-5, "dw[{i}]");
    }
}

#[test]
fn a_frozen_bf16_weight_gives_what_its_f32_copy_gives_and_gets_no_gradient() {
    let (x, w) = (Input::random("x", &[3, 12]), Input::random_bf16("w", &[6]));
    let trained = norm(&w, 1e-5);
    let frozen = Norm {
        weight: Weight::frozen(w.tensor().to_dtype(DType::BF16).unwrap()),
        eps: 1e-5,
        reader: Precision::F32,
    };
    let (y, saved) = frozen.forward(&x.tensor()).unwrap();
    let (y_trained, saved_trained) = trained.forward(&x.tensor()).unwrap();
    assert_eq!(values(&y), values(&y_trained));
    let mut grads = Grads::new(1);
    let dx = values(&frozen.backward(&saved, &y, None, &mut grads).unwrap());
    assert!(grads.get(ParamId(0)).is_none());
    assert_eq!(dx, values(&trained.backward(&saved_trained, &y, None, &mut grads).unwrap()));
    assert!(grads.get(ParamId(0)).is_some());
}
