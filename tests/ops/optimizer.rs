//! AdamW against candle's, in f64, and plain loops. It has no backward pass.

use super::references::{close, random, values, wide};
use candle_core::{Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use fttrain::ops::host;
use fttrain::ops::optimizer::{AdamW, adamw, sum_of_squares};

const STEPS: i32 = 12;
const HOW: ParamsAdamW = ParamsAdamW { lr: 3e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
/// Rounding to f32 in twelve updates of values around 1.
const TOLERANCE: f64 = 2e-6;

fn gradient(length: usize, t: i32) -> Vec<f32> {
    random(&format!("gradient {t}"), length, 10f64.powi(-t % 4))
}

fn ours(start: &[f32], how: &ParamsAdamW, clip: f64) -> Vec<f64> {
    let length = start.len();
    let tensor = |values: Vec<f32>| host::tensor(values, length).unwrap();
    let (param, m, v) = (tensor(start.to_vec()), tensor(vec![0.0; length]), tensor(vec![0.0; length]));
    for t in 1..=STEPS {
        let how = AdamW {
            lr: how.lr as f32,
            beta1: how.beta1,
            beta2: how.beta2,
            eps: how.eps as f32,
            weight_decay: how.weight_decay as f32,
            correction1: (1.0 - how.beta1.powi(t)) as f32,
            correction2_sqrt: (1.0 - how.beta2.powi(t)).sqrt() as f32,
            grad_scale: clip as f32,
        };
        adamw(&param, &m, &v, &tensor(gradient(length, t)), &how).unwrap();
    }
    wide(&values(&param))
}

fn plain(start: &[f32], how: &ParamsAdamW, clip: f64) -> Vec<f64> {
    let mut param = wide(start);
    let (mut m, mut v) = (vec![0f64; param.len()], vec![0f64; param.len()]);
    for t in 1..=STEPS {
        let (c1, c2) = (1.0 - how.beta1.powi(t), 1.0 - how.beta2.powi(t));
        for (i, g) in gradient(param.len(), t).iter().enumerate() {
            let g = f64::from(*g) * clip;
            m[i] = how.beta1 * m[i] + (1.0 - how.beta1) * g;
            v[i] = how.beta2 * v[i] + (1.0 - how.beta2) * g * g;
            let step = how.lr * (m[i] / c1) / ((v[i] / c2).sqrt() + how.eps);
            param[i] = param[i] * (1.0 - how.lr * how.weight_decay) - step;
        }
    }
    param
}

/// candle's optimizer on Σ g·p, whose gradient is g.
fn candles(start: &[f32], how: &ParamsAdamW, clip: f64) -> candle_core::Result<Vec<f64>> {
    let param = Var::from_vec(wide(start), start.len(), &Device::Cpu)?;
    let mut optimizer = candle_nn::AdamW::new(vec![param.clone()], how.clone())?;
    for t in 1..=STEPS {
        let g = Tensor::from_vec(wide(&gradient(start.len(), t)), start.len(), &Device::Cpu)?;
        optimizer.backward_step(&(param.as_tensor() * (g * clip)?)?.sum_all()?)?;
    }
    param.as_tensor().to_vec1()
}

#[test]
fn updates_agree_with_both_references() {
    // The last crosses the chunk of values that one task takes.
    for length in [1, 7, 33, 16_400] {
        let start = random("start", length, 1.0);
        for (how, clip) in [
            (HOW, 1.0),
            (HOW, 0.25),
            (ParamsAdamW { weight_decay: 0.0, ..HOW }, 1.0),
            (ParamsAdamW { beta1: 0.8, beta2: 0.95, eps: 1e-3, ..HOW }, 1.0),
        ] {
            let what = format!("{length} values, {how:?}, clip {clip}");
            let exact = plain(&start, &how, clip);
            close(&what, &candles(&start, &how, clip).unwrap(), &exact, 1e-12);
            close(&what, &ours(&start, &how, clip), &exact, TOLERANCE);
        }
    }
}

#[test]
fn a_gradient_of_zero_leaves_decay_alone() {
    let start = [1.0f32, -2.0];
    let tensor = |values: [f32; 2]| host::tensor(values.to_vec(), 2).unwrap();
    let (param, m, v) = (tensor(start), tensor([0.0; 2]), tensor([0.0; 2]));
    let how = AdamW {
        lr: 0.5,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.5,
        correction1: 0.1,
        correction2_sqrt: 0.03,
        grad_scale: 1.0,
    };
    adamw(&param, &m, &v, &tensor([0.0; 2]), &how).unwrap();
    assert_eq!(values(&param), [0.75, -1.5]);
    assert_eq!([values(&m), values(&v)].concat(), [0.0; 4]);
}

#[test]
fn a_norm_is_summed_in_f64_and_shows_what_is_not_finite() {
    for length in [1, 17, 16_400, 50_000] {
        let g = random("g", length, 1.0);
        let exact: f64 = wide(&g).iter().map(|g| g * g).sum();
        let sum = sum_of_squares(&host::tensor(g, length).unwrap()).unwrap();
        assert!((sum - exact).abs() <= 1e-13 * exact * 100.0, "{length}: {sum}, exact {exact}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 16_384, 20_000] {
            let mut g = vec![1.0; 20_001];
            g[at] = bad;
            assert!(!sum_of_squares(&host::tensor(g, 20_001).unwrap()).unwrap().is_finite(), "{bad} at {at}");
        }
    }
    // The square of a large f32 overflows f32, not f64.
    assert!(sum_of_squares(&host::tensor(vec![1e30; 3], 3).unwrap()).unwrap().is_finite());
}
