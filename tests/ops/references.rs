//! How an op is held against its references: outputs, every gradient by autograd, some gradients by differences.

use candle_core::{DType, Device, Tensor, Var};
use fttrain::data::rng::Rng;
use fttrain::ops::host;

/// Largest |difference| over largest |value|. Sums here have a few hundred terms at most, which f32 rounds to about
/// 1e-6 in any order; a wrong formula is off by much more than 2e-5.
const TOLERANCE: f64 = 2e-5;
/// Of the largest `dy`: what rounding leaves where a gradient is zero because its terms cancel (one key, one class).
const CANCELLED: f64 = 1e-6;
/// The two references differ by rounding in f64 only.
const REFERENCES: f64 = 1e-9;
/// Of a central difference: its error is O(h²), and rounding adds 1e-16 / h.
const H: f64 = 1e-6;
/// Coordinates of an input that are differenced; autograd covers the others.
const DIFFERENCED: usize = 24;

/// A differentiable input of an op, f32 values that f64 holds exactly.
pub(crate) struct Input {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// What our op gave: its output, and the gradient of Σ `dy`·output for each input (`None` = it gives none).
pub(crate) struct Ours {
    pub(crate) y: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    pub(crate) grads: Vec<Option<Vec<f32>>>,
}

impl Input {
    /// Uniform in ±1, another stream for each name.
    pub(crate) fn random(name: &str, shape: &[usize]) -> Self {
        Self { values: random(name, shape.iter().product(), 1.0), shape: shape.to_vec() }
    }

    /// The same, with values that bf16 holds.
    pub(crate) fn random_bf16(name: &str, shape: &[usize]) -> Self {
        let mut input = Self::random(name, shape);
        for x in &mut input.values {
            *x = half::bf16::from_f32(*x).to_f32();
        }
        input
    }

    /// As a tensor for our op.
    pub(crate) fn tensor(&self) -> Tensor {
        host::tensor(self.values.clone(), self.shape.clone()).unwrap()
    }
}

/// `count` values, uniform in ±`largest`.
pub(crate) fn random(name: &str, count: usize, largest: f64) -> Vec<f32> {
    let mut rng = Rng::new(7, name, count as u64, 0);
    (0..count).map(|_| ((2.0 * rng.uniform_f64() - 1.0) * largest) as f32).collect()
}

/// The values of one of our tensors.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    host::read(tensor).unwrap().to_vec()
}

/// Values in f64.
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// A constant of a candle reference.
pub(crate) fn constant(values: &[f32], shape: &[usize]) -> candle_core::Result<Tensor> {
    Tensor::from_vec(wide(values), shape, &Device::Cpu)
}

/// Fails unless `ours` is what both references give. `plain` takes the inputs' values, `candle` the inputs as f64
/// variables.
pub(crate) fn agree(
    what: &str,
    inputs: &[Input],
    ours: &Ours,
    candle: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
    plain: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let mut at: Vec<Vec<f64>> = inputs.iter().map(|input| wide(&input.values)).collect();
    let dy = wide(&ours.dy);
    let y = plain(&at);
    close(&format!("{what}: output"), &wide(&ours.y), &y, TOLERANCE);
    let (y_candle, grads_candle) = autograd(inputs, &dy, candle).unwrap();
    within(&format!("{what}: candle's output"), &y_candle, &y, REFERENCES * largest(&y).max(1.0));
    assert_eq!(ours.grads.len(), inputs.len(), "{what}");
    for (i, (ours, theirs)) in ours.grads.iter().zip(&grads_candle).enumerate() {
        let Some(ours) = ours else { continue };
        let ours = wide(ours);
        let allowed = TOLERANCE * largest(theirs) + CANCELLED * largest(&dy);
        within(&format!("{what}: gradient {i}"), &ours, theirs, allowed);
        for j in (0..ours.len()).step_by(ours.len().div_ceil(DIFFERENCED).max(1)) {
            let x = at[i][j];
            let mut moved = |to: f64| {
                at[i][j] = to;
                plain(&at).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
            };
            let slope = (moved(x + H) - moved(x - H)) / (2.0 * H);
            at[i][j] = x;
            assert!(
                (ours[j] - slope).abs() <= allowed + 1e-8,
                "{what}: gradient {i}[{j}]: {}, slope {slope}",
                ours[j]
            );
        }
    }
}

/// Fails where a value is off by more than `tolerance` of the largest one.
pub(crate) fn close(what: &str, ours: &[f64], theirs: &[f64], tolerance: f64) {
    within(what, ours, theirs, tolerance * largest(theirs));
}

fn within(what: &str, ours: &[f64], theirs: &[f64], allowed: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= allowed, "{what}: [{i}] is {a}, reference {b}, allowed {allowed:e}");
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0f64, |m, x| m.max(x.abs()))
}

fn autograd(
    inputs: &[Input],
    dy: &[f64],
    f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> candle_core::Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let variable = |input: &Input| Var::from_tensor(&constant(&input.values, &input.shape)?);
    let variables = inputs.iter().map(variable).collect::<candle_core::Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let weights = Tensor::from_slice(dy, y.shape(), &Device::Cpu)?;
    let store = (&y * weights)?.sum_all()?.backward()?;
    let gradient = |v: &Var| match store.get(v) {
        Some(gradient) => gradient.flatten_all()?.to_vec1::<f64>(),
        None => Tensor::zeros(v.elem_count(), DType::F64, &Device::Cpu)?.to_vec1(),
    };
    Ok((y.flatten_all()?.to_vec1()?, variables.iter().map(gradient).collect::<candle_core::Result<_>>()?))
}

mod itself {
    use super::*;

    /// y = x², gradient 2x, once right and once wrong.
    fn squares(slope: f32) {
        let x = Input::random("x", &[5]);
        let ours = Ours {
            y: x.values.iter().map(|x| x * x).collect(),
            dy: vec![1.0; 5],
            grads: vec![Some(x.values.iter().map(|x| slope * x).collect())],
        };
        agree("squares", &[x], &ours, |x| x[0].sqr(), |x| x[0].iter().map(|x| x * x).collect());
    }

    #[test]
    fn the_check_accepts_a_right_gradient() {
        squares(2.0);
    }

    #[test]
    #[should_panic(expected = "gradient 0")]
    fn the_check_refuses_a_gradient_that_is_off_by_a_tenth_of_a_thousandth() {
        squares(2.0002);
    }
}
