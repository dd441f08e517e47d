//! Each optimizer against its makers' own numbers (`tests/golden/optimizers.py`), AdamW against candle's and plain loops
//! in f64 beside it, and what holds for all of them whatever the numbers are.

use super::references::{close, random, values, wide};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer as _, ParamsAdamW};
use fttrain::config::Optimizer;
use fttrain::ops::host;
use fttrain::ops::optimizer::{Rule, Settings, Step, rule, sums_of_squares};
use safetensors::SafeTensors;
use std::path::Path;

const STEPS: i32 = 12;
const HOW: ParamsAdamW = ParamsAdamW { lr: 3e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
/// Rounding to f32 in twelve updates of values around 1.
const TOLERANCE: f64 = 2e-6;
const ALL: [Optimizer; 5] =
    [Optimizer::Adamw, Optimizer::Adamw8bit, Optimizer::Adafactor, Optimizer::Lion, Optimizer::Sgd];

fn settings(optimizer: Optimizer) -> Settings {
    let beta2 = if optimizer == Optimizer::Lion { 0.99 } else { 0.999 };
    Settings { optimizer, beta1: 0.9, beta2, eps: 1e-8, momentum: 0.0 }
}

fn step(count: i32) -> Step {
    Step { count, lr: 3e-2, weight_decay: 0.1, grad_scale: 1.0, rounding: 0 }
}

fn gradient(length: usize, t: i32) -> Vec<f32> {
    random(&format!("gradient {t}"), length, 10f64.powi(-t % 4))
}

fn ours(start: &[f32], how: &ParamsAdamW, clip: f64) -> Vec<f64> {
    let length = start.len();
    let tensor = |values: Vec<f32>| host::tensor(values, length).unwrap();
    let param = tensor(start.to_vec());
    let (beta1, beta2, eps) = (how.beta1, how.beta2, how.eps);
    let settings = Settings { beta1, beta2, eps, ..settings(Optimizer::Adamw) };
    let mut rule = rule(&settings, &param).unwrap();
    for t in 1..=STEPS {
        let step = Step {
            lr: how.lr as f32,
            weight_decay: how.weight_decay as f32,
            grad_scale: clip as f32,
            ..step(t)
        };
        rule.update(&param, &tensor(gradient(length, t)), &step).unwrap();
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

/// The updates in the goldens, four of them; the tensor and its rule afterwards.
fn golden(file: &SafeTensors<'_>, settings: &Settings, shape: &str) -> (Tensor, Box<dyn Rule>) {
    let tensor = |name: &str| {
        let view = file.tensor(name).unwrap();
        host::tensor(floats(view.data()), view.shape()).unwrap()
    };
    let param = tensor(&format!("start.{shape}"));
    let mut rule = rule(settings, &param).unwrap();
    for t in 1..=4 {
        rule.update(&param, &tensor(&format!("grad.{shape}.{t}")), &step(t)).unwrap();
    }
    (param, rule)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn every_optimizer_moves_as_its_makers_own() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/optimizers/updates.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let plain = ALL.map(|optimizer| (serde_json::to_value(optimizer).unwrap(), settings(optimizer)));
    let momentum = Settings { momentum: 0.9, ..settings(Optimizer::Sgd) };
    for (name, settings) in plain.into_iter().chain([("sgd_momentum".into(), momentum)]) {
        let name = name.as_str().unwrap();
        for shape in ["matrix", "vector"] {
            let (param, rule) = golden(&file, &settings, shape);
            let what = format!("{name}.{shape}");
            let theirs = wide(&floats(file.tensor(&what).unwrap().data()));
            close(&what, &wide(&values(&param)), &theirs, TOLERANCE);
            for (part, tensor) in rule.state() {
                let Ok(theirs) = file.tensor(&format!("{what}.{part}")) else { continue };
                if tensor.dtype() == DType::U8 {
                    assert_eq!(tensor.to_vec1::<u8>().unwrap(), theirs.data(), "{what}.{part}");
                } else {
                    close(&what, &wide(&values(tensor)), &wide(&floats(theirs.data())), 1e-7);
                }
            }
        }
        let is_8_bit = |name: &str| name.contains("8bit.matrix.m.codes");
        assert_eq!(file.names().into_iter().filter(|name| is_8_bit(name)).count(), 1);
    }
}

#[test]
fn a_gradient_of_zero_leaves_decay_alone() {
    for optimizer in ALL {
        for length in [2, 5000] {
            let start = random("start", length, 1.0);
            let param = host::tensor(start.clone(), length).unwrap();
            let mut rule = rule(&settings(optimizer), &param).unwrap();
            let step = Step { lr: 0.5, weight_decay: 0.5, ..step(1) };
            rule.update(&param, &host::zeros(length).unwrap(), &step).unwrap();
            let decayed: Vec<f64> = start.iter().map(|x| 0.75 * f64::from(*x)).collect();
            close(&format!("{optimizer:?} {length}"), &wide(&values(&param)), &decayed, 1e-7);
        }
    }
}

/// On `½‖x − target‖²` of f32 values, and of bf16 ones whose last bit is far larger than most steps are.
#[test]
fn every_optimizer_finds_the_bottom_of_a_bowl_in_f32_and_in_bf16() {
    let (rows, width) = (40, 128);
    let shape = (rows, width);
    let target = random("target", rows * width, 1.0);
    let target = host::tensor(target, shape).unwrap();
    for optimizer in ALL {
        for dtype in [DType::F32, DType::BF16] {
            let param = Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
            let mut rule = rule(&settings(optimizer), &param).unwrap();
            let distance = || {
                let off = (param.to_dtype(DType::F32).unwrap() - &target).unwrap();
                let mean = off.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
                (off, mean)
            };
            let before = distance().1;
            for t in 1..=300i32 {
                let lr = 1e-2 * (1.0 - t as f32 / 300.0);
                let lr = if optimizer == Optimizer::Sgd { 10.0 * lr } else { lr };
                let step = Step { lr, weight_decay: 0.0, rounding: u64::from(t.unsigned_abs()), ..step(t) };
                rule.update(&param, &distance().0, &step).unwrap();
            }
            let after = distance().1;
            // Lion's steps have one size: it swings around the bottom, by as much as its momentum is late.
            assert!(after < 1e-2 * before, "{optimizer:?} {dtype:?}: {after} of {before}");
        }
    }
}

#[test]
fn a_scaled_gradient_is_a_smaller_one() {
    for optimizer in ALL {
        let after = |scale: f32, given: f32| {
            let param = host::tensor(random("start", 4800, 1.0), (40, 120)).unwrap();
            let mut rule = rule(&settings(optimizer), &param).unwrap();
            for t in 1..=3 {
                let grad: Vec<f32> = gradient(4800, t).iter().map(|g| g * given).collect();
                let grad = host::tensor(grad, (40, 120)).unwrap();
                rule.update(&param, &grad, &Step { grad_scale: scale, ..step(t) }).unwrap();
            }
            values(&param)
        };
        // A power of two: scaling is exact.
        assert_eq!(after(0.25, 1.0), after(1.0, 0.25), "{optimizer:?}");
    }
}

fn sum_of_squares(values: Vec<f32>) -> f64 {
    let length = values.len();
    sums_of_squares(&[&host::tensor(values, length).unwrap()]).unwrap()[0]
}

#[test]
fn a_norm_is_summed_in_f64_and_shows_what_is_not_finite() {
    for length in [1, 17, 16_400, 50_000] {
        let g = random("g", length, 1.0);
        let exact: f64 = wide(&g).iter().map(|g| g * g).sum();
        let sum = sum_of_squares(g);
        assert!((sum - exact).abs() <= 1e-13 * exact * 100.0, "{length}: {sum}, exact {exact}");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 16_384, 20_000] {
            let mut g = vec![1.0; 20_001];
            g[at] = bad;
            assert!(!sum_of_squares(g).is_finite(), "{bad} at {at}");
        }
    }
    // The square of a large f32 overflows f32, not f64.
    assert!(sum_of_squares(vec![1e30; 3]).is_finite());
}
