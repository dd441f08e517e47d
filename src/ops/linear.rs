//! A linear layer with an optional low-rank adapter (Hu et al., 2021): `y = x·Wᵀ + bias + s·drop(x)·Aᵀ·Bᵀ`.
//!
//! Backward, small side first: `dx = dy·W + drop(s·(dy·B)·A)`, `dA = s·(dy·B)ᵀ·drop(x)`, `dB = s·dyᵀ·(drop(x)·Aᵀ)`;
//! a frozen W gets no gradient, a trained one `dW = dyᵀ·x`.

use super::dropout::{self, Noise};
use super::{Grads, Matrix, Weight, host, matmul};
use crate::error::Result;
use candle_core::Tensor;

/// The layer's weights.
#[derive(Debug, Clone)]
pub struct Linear {
    /// W `[out, in]`.
    pub weight: Weight<Matrix>,
    /// `[out]`.
    pub bias: Option<Weight>,
    /// The adapter.
    pub lora: Option<Lora>,
}

/// A low-rank adapter.
#[derive(Debug, Clone)]
pub struct Lora {
    /// A `[R, in]`.
    pub a: Weight,
    /// B `[out, R]`.
    pub b: Weight,
    /// s = α/R, or α/√R with rsLoRA.
    pub scale: f32,
    /// Drop probability on the input of A.
    pub dropout: f32,
    /// The layer's own stream of noise.
    pub site: u64,
}

/// What the backward pass needs beside the input, which its maker keeps or makes again.
pub struct Saved {
    /// drop(x)·Aᵀ `[N, R]`.
    xa: Option<Tensor>,
}

impl Linear {
    /// x `[N, in]` → `[N, out]`; `noise` is `None` outside training.
    pub fn forward(&self, x: &Tensor, noise: Option<Noise>) -> Result<(Tensor, Saved)> {
        let y = matmul::nt(x, &self.weight.value)?;
        if let Some(bias) = &self.bias {
            add_to_rows(&y, &bias.value)?;
        }
        let xa = match &self.lora {
            None => None,
            Some(lora) => {
                let xa = matmul::nt(&lora.dropped(x, noise)?, &lora.a.value)?;
                matmul::nt_add(&y, &xa, &lora.b.value, lora.scale)?;
                Some(xa)
            }
        };
        Ok((y, Saved { xa }))
    }

    /// dy `[N, out]` → the gradient of x `[N, in]`, added to `dx` where there is one; `None` when not `wanted`.
    pub fn backward(
        &self,
        x: &Tensor,
        saved: &Saved,
        dy: &Tensor,
        dx: Option<Tensor>,
        wanted: bool,
        noise: Option<Noise>,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        if let Some(id) = self.weight.param {
            matmul::tn(grads.slot(id), dy, x, 1.0)?;
        }
        if let Some(id) = self.bias.as_ref().and_then(|bias| bias.param) {
            add_column_sums(grads.slot(id), dy)?;
        }
        let dx = match (wanted, dx) {
            (false, _) => None,
            (true, None) => Some(matmul::nn(dy, &self.weight.value)?),
            (true, Some(dx)) => {
                matmul::nn_add(&dx, dy, &self.weight.value, 1.0)?;
                Some(dx)
            }
        };
        if let (Some(lora), Some(xa)) = (&self.lora, &saved.xa) {
            lora.backward(x, xa, dy, dx.as_ref(), noise, grads)?;
        }
        Ok(dx)
    }

    /// Whether anything in it is trained.
    pub fn is_trained(&self) -> bool {
        let trained = |w: &Weight| w.param.is_some();
        self.weight.param.is_some()
            || self.bias.as_ref().is_some_and(trained)
            || self.lora.as_ref().is_some_and(|l| trained(&l.a) || trained(&l.b))
    }
}

impl Saved {
    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.xa.as_ref().map_or(0, |xa| 4 * xa.elem_count() as u64)
    }
}

impl Lora {
    fn dropped(&self, x: &Tensor, noise: Option<Noise>) -> Result<Tensor> {
        match noise {
            Some(noise) if self.dropout > 0.0 => dropout::apply(x, self.dropout, self.site, noise),
            _ => Ok(x.clone()),
        }
    }

    /// Adds to the gradients of A and B, and to `dx` where it is wanted.
    fn backward(
        &self,
        x: &Tensor,
        xa: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
        noise: Option<Noise>,
        grads: &mut Grads,
    ) -> Result<()> {
        if let Some(id) = self.b.param {
            matmul::tn(grads.slot(id), dy, xa, self.scale)?;
        }
        let dy_b = matmul::nn(dy, &self.b.value)?; // [N, R]
        if let Some(id) = self.a.param {
            matmul::tn(grads.slot(id), &dy_b, &self.dropped(x, noise)?, self.scale)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        if noise.is_none() || self.dropout == 0.0 {
            return matmul::nn_add(dx, &dy_b, &self.a.value, self.scale);
        }
        let through = self.dropped(&matmul::nn(&dy_b, &self.a.value)?, noise)?;
        let through = host::read(&through)?;
        host::edit(dx, |dx| {
            for (sum, x) in dx.iter_mut().zip(through.iter()) {
                *sum += self.scale * x;
            }
        })
    }
}

/// Adds `bias` `[out]` to each row of `y` `[N, out]`.
fn add_to_rows(y: &Tensor, bias: &Tensor) -> Result<()> {
    let wide = bias.to_dtype(candle_core::DType::F32)?;
    let bias = host::read(&wide)?;
    host::edit(y, |y| {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias.iter()) {
                *y += b;
            }
        }
    })
}

/// Adds the sum of the rows of `dy` `[N, out]`, in their order.
fn add_column_sums(sum: &mut Option<Tensor>, dy: &Tensor) -> Result<()> {
    let width = dy.dim(1)?;
    let sum = match sum {
        Some(sum) => sum,
        None => sum.insert(host::zeros(width)?),
    };
    let dy = host::read(dy)?;
    host::edit(sum, |sum| {
        for row in dy.chunks_exact(width) {
            for (s, x) in sum.iter_mut().zip(row) {
                *s += x;
            }
        }
    })
}
