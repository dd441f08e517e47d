//! `RMSNorm` on a GPU.

use crate::error::Result;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda;

/// x `[N, m·D]`, w `[D]` → the same shape, and the scale of each of the N·m rows.
pub fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let shape = (x.elem_count() / w.elem_count().max(1), w.elem_count());
    let (y, rstd) = (gpu.like(x)?, gpu.unwritten(shape.0, DType::F32)?);
    let (from, to) = (gpu.address(x)?, gpu.address(&y)?);
    gpu.run(&cuda::norm::forward(from, gpu.address(w)?, eps, shape, to, gpu.address(&rstd)?))?;
    Ok((y, rstd))
}

/// Into `dx`, which is added to where `adds`, and into the weight's gradient where one is wanted.
pub fn backward(
    gpu: &Gpu,
    (x, w, rstd): (&Tensor, &Tensor, &Tensor),
    dy: &Tensor,
    adds: bool,
    dx: &Tensor,
    dw: Option<&mut Option<Tensor>>,
) -> Result<()> {
    let shape = (rstd.elem_count(), w.elem_count());
    let saved = (gpu.address(x)?, gpu.address(w)?, gpu.address(rstd)?);
    gpu.run(&cuda::norm::backward(saved, gpu.address(dy)?, shape, adds, gpu.address(dx)?))?;
    if let Some(dw) = dw {
        let dw = sum(gpu, dw, w.elem_count())?;
        gpu.run(&cuda::norm::weight_gradient(gpu.address(dy)?, saved.0, saved.2, shape, gpu.address(dw)?))?;
    }
    Ok(())
}

/// Adds the sum of the rows of dy `[N, D]` to a bias's gradient.
pub fn add_column_sums(gpu: &Gpu, to: &mut Option<Tensor>, dy: &Tensor) -> Result<()> {
    let shape = dy.dims2()?;
    let to = sum(gpu, to, shape.1)?;
    gpu.run(&cuda::norm::column_sums(gpu.address(dy)?, shape, gpu.address(to)?))
}

/// The gradient so far, or zeros.
fn sum<'a>(gpu: &Gpu, so_far: &'a mut Option<Tensor>, width: usize) -> Result<&'a Tensor> {
    Ok(match so_far {
        Some(sum) => sum,
        None => so_far.insert(Tensor::zeros(width, DType::F32, &gpu.device())?),
    })
}
