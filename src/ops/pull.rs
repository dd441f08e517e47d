//! Regularisers against forgetting: the gradient of `½·Σ (a + b·F)·(w − w₀)²`, which holds a weight where it started,
//! evenly (L2-SP, Li et al. 2018) or by how much older data depend on it (EWC, Kirkpatrick et al. 2017).

use super::host;
use crate::error::Result;
use candle_core::{DType, Tensor, WithDType};
use rayon::prelude::*;

/// Values that one task takes: sums are split by the shape alone.
const CHUNK: usize = 16_384;

/// How strongly a weight is held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strength {
    /// Of every weight alike.
    pub even: f32,
    /// Times its Fisher information.
    pub by_fisher: f32,
}

/// Adds the pull on `value` towards `start`, both f32 or bf16, to its gradient, all of one shape; the penalty.
///
/// # Errors
/// A tensor of another kind: a fault of the program.
pub fn pull(
    grad: &Tensor,
    value: &Tensor,
    start: &Tensor,
    fisher: Option<&Tensor>,
    strength: Strength,
) -> Result<f64> {
    if value.dtype() == DType::BF16 {
        pull_as::<half::bf16>(grad, value, start, fisher, strength)
    } else {
        pull_as::<f32>(grad, value, start, fisher, strength)
    }
}

fn pull_as<T: WithDType + Into<f32>>(
    grad: &Tensor,
    value: &Tensor,
    start: &Tensor,
    fisher: Option<&Tensor>,
    strength: Strength,
) -> Result<f64> {
    let (value, start) = (host::read_as::<T>(value)?, host::read_as::<T>(start)?);
    let fisher = fisher.map(host::read).transpose()?;
    host::edit(grad, |grad| {
        let parts = grad.par_chunks_mut(CHUNK).zip(value.par_chunks(CHUNK)).zip(start.par_chunks(CHUNK));
        let penalties: Vec<f64> = parts
            .enumerate()
            .map(|(i, ((grad, value), start))| {
                let fisher = fisher.as_ref().map(|fisher| &fisher[i * CHUNK..i * CHUNK + grad.len()]);
                part(grad, value, start, fisher, strength)
            })
            .collect();
        penalties.into_iter().sum()
    })
}

fn part<T: Copy + Into<f32>>(
    grad: &mut [f32],
    value: &[T],
    start: &[T],
    fisher: Option<&[f32]>,
    strength: Strength,
) -> f64 {
    let mut penalty = 0.0;
    for (i, ((grad, value), start)) in grad.iter_mut().zip(value).zip(start).enumerate() {
        let held = strength.even + fisher.map_or(0.0, |fisher| strength.by_fisher * fisher[i]);
        let off = Into::<f32>::into(*value) - Into::<f32>::into(*start);
        *grad += held * off;
        penalty += 0.5 * f64::from(held) * f64::from(off) * f64::from(off);
    }
    penalty
}

/// Adds `scale·g²` to `sum`, both f32 and of one shape.
///
/// # Errors
/// A tensor of another kind: a fault of the program.
pub fn add_squares(sum: &Tensor, grad: &Tensor, scale: f32) -> Result<()> {
    let grad = host::read(grad)?;
    host::edit(sum, |sum| {
        sum.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).for_each(|(sum, grad)| {
            for (sum, g) in sum.iter_mut().zip(grad) {
                *sum += scale * g * g;
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient of the penalty by central differences, in f64.
    #[test]
    fn the_pull_is_the_slope_of_the_penalty() {
        let n = CHUNK + 3;
        let wave = |f: f32| (0u16..20_000).take(n).map(|i| (f32::from(i) * f).sin()).collect::<Vec<f32>>();
        let (value, start, fisher) = (wave(0.3), wave(0.7), wave(0.11).iter().map(|x| x * x).collect());
        let tensor = |values: &Vec<f32>| host::tensor(values.clone(), n).unwrap();
        let (strength, fisher): (_, Vec<f32>) = (Strength { even: 0.5, by_fisher: 3.0 }, fisher);
        let penalty = |values: &Vec<f32>| {
            let grad = host::zeros(n).unwrap();
            let sum =
                pull(&grad, &tensor(values), &tensor(&start), Some(&tensor(&fisher)), strength).unwrap();
            (sum, host::read(&grad).unwrap().to_vec())
        };
        let (_, slopes) = penalty(&value);
        for at in [0, 17, CHUNK - 1, CHUNK, n - 1] {
            let moved = |by: f32| {
                let mut values = value.clone();
                values[at] += by;
                penalty(&values).0
            };
            let slope = (moved(0.25) - moved(-0.25)) / 0.5;
            assert!((slope - f64::from(slopes[at])).abs() < 1e-4, "{at}: {slope}, {}", slopes[at]);
        }
        assert!(penalty(&start).0.abs() < f64::EPSILON, "nothing pulls where it started");
    }

    /// ½·(0.5 + 3·F)·(w − w₀)² and its slope, by hand; all values are exact in bf16.
    #[test]
    fn narrow_weights_are_pulled_as_wide_ones_are() {
        let (value, start, fisher) = ([1.5f32, -2.0, 0.25], [1.0f32, 2.0, 0.25], [0.0f32, 2.0, 9.0]);
        let strength = Strength { even: 0.5, by_fisher: 3.0 };
        let tensor = |values: [f32; 3]| host::tensor(values.to_vec(), 3).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let [value, start] = [value, start].map(|values| tensor(values).to_dtype(dtype).unwrap());
            let grad = tensor([1.0; 3]);
            let penalty = pull(&grad, &value, &start, Some(&tensor(fisher)), strength).unwrap();
            assert_eq!(grad.to_vec1::<f32>().unwrap(), [1.25, 1.0 - 6.5 * 4.0, 1.0]);
            assert!((penalty - (0.0625 + 0.5 * 6.5 * 16.0)).abs() < 1e-12, "{penalty}");
        }
    }

    #[test]
    fn squares_are_added_to_what_is_there() {
        let tensor = |values: [f32; 2]| host::tensor(values.to_vec(), 2).unwrap();
        let sum = tensor([1.0, 2.0]);
        add_squares(&sum, &tensor([3.0, -2.0]), 0.5).unwrap();
        assert_eq!(sum.to_vec1::<f32>().unwrap(), [5.5, 4.0]);
    }
}
