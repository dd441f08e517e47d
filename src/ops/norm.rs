//! `RMSNorm`, of whole rows or of each head of a row.

use super::profile::{self, Site};
use super::{Grads, Weight, host};
use crate::error::Result;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::{norm_backward, norm_forward};

/// The layer's weight `[D]` and ε.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[D]`; D divides the width of what is normed (one head of q and k in Qwen 3).
    pub weight: Weight,
    /// Added to the mean square.
    pub eps: f32,
}

/// What the backward pass needs.
pub struct Saved {
    x: Tensor,
    rstd: Vec<f32>,
}

impl Norm {
    /// x `[N, m·D]` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        let _span = profile::op(Site::Norm);
        let w = self.weight.value.to_dtype(DType::F32)?;
        let (w, values) = (host::read(&w)?, host::read(x)?);
        let mut y = vec![0f32; values.len()];
        let mut rstd = vec![0f32; values.len() / w.len()];
        norm_forward(&values, &w, self.eps, &mut y, &mut rstd);
        drop(values);
        Ok((host::tensor(y, x.shape())?, Saved { x: x.clone(), rstd }))
    }

    /// The output of [`Self::forward`] once more, from its input and its saved scale.
    pub fn again(&self, saved: &Saved) -> Result<Tensor> {
        Ok(self.forward(&saved.x)?.0)
    }

    /// Adds to `dx` where there is one: the residual's gradient runs through the same sum.
    pub fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        dx: Option<Tensor>,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let _span = profile::op(Site::Norm);
        let accumulate = dx.is_some();
        let dx = dx.map_or_else(|| host::zeros(saved.x.shape()), Ok)?;
        let w = self.weight.value.to_dtype(DType::F32)?;
        let (w, x, dy) = (host::read(&w)?, host::read(&saved.x)?, host::read(dy)?);
        let mut dw = self.weight.param.map(|_| vec![0f32; w.len()]);
        host::edit(&dx, |dx| {
            norm_backward(&x, &w, &saved.rstd, &dy, accumulate, dx, dw.as_deref_mut());
        })?;
        if let (Some(id), Some(dw)) = (self.weight.param, dw) {
            match grads.slot(id) {
                Some(sum) => host::edit(sum, |sum| {
                    sum.iter_mut().zip(&dw).for_each(|(s, x)| *s += x);
                })?,
                empty => *empty = Some(host::tensor(dw, self.weight.value.shape())?),
            }
        }
        Ok(dx)
    }
}

impl Saved {
    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        4 * (self.x.elem_count() + self.rstd.len()) as u64
    }
}
