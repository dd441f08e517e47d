//! A linear layer whose adapted weight has a trained length for each row (`DoRA`, Liu et al., 2024), as PEFT computes
//! it: `y = x·Wᵀ + bias + (c − 1) ⊙ x̃·Wᵀ + c ⊙ s·x̃·Aᵀ·Bᵀ`, `x̃ = drop(x)`, `c = m / n`, `n = ‖W + s·B·A‖` by rows.
//!
//! The norm n is a constant in the backward pass (section 4.3 there). With `u = x̃·Wᵀ + s·x̃·Aᵀ·Bᵀ`, which is made again:
//! `dm = Σ dy ⊙ u / n`, and A, B and x̃ get what a plain adapter would of `c ⊙ dy`.

use super::dropout::Noise;
use super::linear::{Linear, Lora, Saved, add_to_rows};
use super::matmul::Precision;
use super::{Grads, Matrix, Weight, host, matmul, residual};
use crate::error::Result;
use candle_core::Tensor;
use std::sync::Arc;

/// The lengths of the rows of a layer.
#[derive(Debug, Clone)]
pub struct Dora {
    /// m `[out]`.
    pub magnitude: Weight,
    /// ‖W‖² of each row of the frozen weight, as [`Matrix::row_squares`] gives it.
    pub squares: Arc<Vec<f64>>,
}

/// n `[out]`: ‖W + s·B·A‖ of each row, by `‖W‖² + 2s·B·(A·Wᵀ) + s²·B·(A·Aᵀ)·Bᵀ`, so that no sum is ever whole.
pub fn norms(
    weight: &Weight<Matrix>,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
    squares: &[f64],
) -> Result<Vec<f32>> {
    let wa = matmul::nt_in(a, &weight.value, Precision::F32)?; // [R, out]
    let baa = matmul::nn(b, &matmul::nt(a, a)?)?; // [out, R]
    let (wa, baa, b) = (host::read(&wa)?, host::read(&baa)?, host::read(b)?);
    let (outputs, s) = (squares.len(), f64::from(scale));
    let rank = b.len() / outputs.max(1);
    let row = |(o, square): (usize, &f64)| {
        let mut sum = *square;
        for r in 0..rank {
            let at = o * rank + r;
            let cross = 2.0 * s * f64::from(wa[r * outputs + o]) + s * s * f64::from(baa[at]);
            sum += f64::from(b[at]) * cross;
        }
        #[allow(clippy::cast_possible_truncation)] // A length in f32, like the weights'.
        let norm = sum.max(0.0).sqrt() as f32;
        norm
    };
    Ok(squares.iter().enumerate().map(row).collect())
}

impl Dora {
    /// x `[N, in]` → `[N, out]`.
    pub(super) fn forward(
        &self,
        layer: &Linear,
        lora: &Lora,
        x: &Tensor,
        noise: Option<Noise>,
    ) -> Result<(Tensor, Saved)> {
        let norms = norms(&layer.weight, &lora.a.value, &lora.b.value, lora.scale, &self.squares)?;
        let dropped = lora.dropped(x, noise)?;
        let u = matmul::nt_in(&dropped, &layer.weight.value, layer.precision)?;
        let y = if lora.drops(noise) {
            Some((matmul::nt_in(x, &layer.weight.value, layer.precision)? - &u)?)
        } else {
            None
        };
        let xa = matmul::nt(&dropped, &lora.a.value)?;
        matmul::nt_add(&u, &xa, &lora.b.value, lora.scale)?;
        scale_columns(&u, &self.ratios(&norms)?)?;
        let y = match y {
            Some(y) => (y + u)?,
            None => u,
        };
        if let Some(bias) = &layer.bias {
            add_to_rows(&y, &bias.value)?;
        }
        Ok((y, Saved { xa: Some(xa), norms }))
    }

    /// Adds to the gradients of m, A and B; the gradient of x where it is wanted.
    pub(super) fn backward(
        &self,
        layer: &Linear,
        lora: &Lora,
        x: &Tensor,
        saved: &Saved,
        dy: &Tensor,
        wanted: bool,
        noise: Option<Noise>,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let Some(xa) = &saved.xa else { return Ok(None) };
        if let Some(id) = self.magnitude.param {
            let u = matmul::nt_in(&lora.dropped(x, noise)?, &layer.weight.value, layer.precision)?;
            matmul::nt_add(&u, xa, &lora.b.value, lora.scale)?;
            add_products(grads.slot(id), dy, &u, &saved.norms)?;
        }
        let ratios = self.ratios(&saved.norms)?;
        let du = dy.copy()?;
        scale_columns(&du, &ratios)?;
        let drops = lora.drops(noise);
        let dx = match (wanted, drops) {
            (false, _) => None,
            (true, false) => Some(matmul::nn_in(&du, &layer.weight.value, layer.precision)?),
            (true, true) => {
                // W itself sees the whole x; what the ratio adds to it sees the dropped one.
                let less = (&du - dy)?;
                let through =
                    lora.dropped(&matmul::nn_in(&less, &layer.weight.value, layer.precision)?, noise)?;
                Some((matmul::nn_in(dy, &layer.weight.value, layer.precision)? + through)?)
            }
        };
        let precision = layer.precision;
        if let Some(id) = lora.b.param {
            matmul::tn(grads.slot(id), &du, xa, lora.scale, precision)?;
        }
        let du_b = matmul::nn(&du, &lora.b.value)?; // [N, R]
        if let Some(id) = lora.a.param {
            matmul::tn(grads.slot(id), &du_b, &lora.dropped(x, noise)?, lora.scale, precision)?;
        }
        if let Some(dx) = &dx {
            let through = (matmul::nn(&du_b, &lora.a.value)? * f64::from(lora.scale))?;
            residual::add(dx, &lora.dropped(&through, noise)?)?;
        }
        Ok(dx)
    }

    /// Gives the rows of `W + s·B·A` `[out, in]` their trained lengths.
    pub(super) fn set_lengths(&self, sum: &Tensor) -> Result<()> {
        let width = sum.dim(1)?;
        let lengths = host::read(&self.magnitude.value)?;
        host::edit(sum, |sum| {
            for (row, m) in sum.chunks_exact_mut(width).zip(lengths.iter()) {
                let square: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
                #[allow(clippy::cast_possible_truncation)] // A length in f32, like the weights'.
                let ratio = m / square.sqrt() as f32;
                for w in row {
                    *w *= ratio;
                }
            }
        })
    }

    fn ratios(&self, norms: &[f32]) -> Result<Vec<f32>> {
        let magnitude = host::read(&self.magnitude.value)?;
        Ok(magnitude.iter().zip(norms).map(|(m, n)| m / n).collect())
    }
}

/// `y[n, o] *= by[o]`
fn scale_columns(y: &Tensor, by: &[f32]) -> Result<()> {
    host::edit(y, |y| {
        for row in y.chunks_exact_mut(by.len()) {
            row.iter_mut().zip(by).for_each(|(y, by)| *y *= by);
        }
    })
}

/// `sum[o] += Σ dy[n, o]·u[n, o] / norms[o]`
fn add_products(sum: &mut Option<Tensor>, dy: &Tensor, u: &Tensor, norms: &[f32]) -> Result<()> {
    let sum = match sum {
        Some(sum) => sum,
        None => sum.insert(host::zeros(norms.len())?),
    };
    let (dy, u) = (host::read(dy)?, host::read(u)?);
    let mut sums = vec![0f32; norms.len()];
    for (dy, u) in dy.chunks_exact(norms.len()).zip(u.chunks_exact(norms.len())) {
        for ((s, dy), u) in sums.iter_mut().zip(dy).zip(u) {
            *s += dy * u;
        }
    }
    host::edit(sum, |sum| {
        for ((to, s), n) in sum.iter_mut().zip(sums).zip(norms) {
            *to += s / n;
        }
    })
}
