//! `RMSNorm`, of whole rows or of each head of a row.

use super::device::Gpu;
use super::matmul::Precision;
use super::profile::{self, Site};
use super::{Grads, Weight, gpu, host};
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
    /// Of the products that read its output, where nothing else does: on a GPU it is written as they read it; on the CPU,
    /// where they pack it, in f32.
    pub reader: Precision,
}

/// What the backward pass needs.
pub struct Saved {
    x: Tensor,
    /// Of each row that was normed.
    rstd: Tensor,
}

impl Norm {
    /// x `[N, m·D]` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        let _span = profile::op(Site::Norm);
        let w = self.weight.value.to_dtype(DType::F32)?;
        if let Some(gpu) = Gpu::of(x) {
            let (y, rstd) = gpu::norm::forward(&gpu, x, &w, self.eps, gpu::product::dtype(self.reader))?;
            return Ok((y, Saved { x: x.clone(), rstd }));
        }
        let (w, values) = (host::read(&w)?, host::read(x)?);
        let mut y = vec![0f32; values.len()];
        let mut rstd = vec![0f32; values.len() / w.len()];
        norm_forward(&values, &w, self.eps, &mut y, &mut rstd);
        drop(values);
        let rows = rstd.len();
        let rstd = host::tensor(rstd, rows)?;
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
        let w = self.weight.value.to_dtype(DType::F32)?;
        if let Some(gpu) = Gpu::of(dy) {
            let dx = dx.map_or_else(|| gpu.unwritten(saved.x.shape(), DType::F32), Ok)?;
            let of = (&saved.x, &w, &saved.rstd);
            let dw = self.weight.param.map(|id| grads.slot(id));
            gpu::norm::backward(&gpu, of, dy, accumulate, &dx, dw)?;
            return Ok(dx);
        }
        let dx = dx.map_or_else(|| host::zeros(saved.x.shape()), Ok)?;
        let (w, x, dy) = (host::read(&w)?, host::read(&saved.x)?, host::read(dy)?);
        let rstd = host::read(&saved.rstd)?;
        let mut dw = self.weight.param.map(|_| vec![0f32; w.len()]);
        host::edit(&dx, |dx| {
            norm_backward(&x, &w, &rstd, &dy, accumulate, dx, dw.as_deref_mut());
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
        4 * (self.x.elem_count() + self.rstd.elem_count()) as u64
    }
}
