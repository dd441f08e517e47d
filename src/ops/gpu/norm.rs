//! `RMSNorm` on a GPU.

use crate::error::Result;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda::{self, Address};

/// x `[N, m·D]`, w `[D]` → the same shape in f32 or bf16, and the scale of each of the N·m rows.
pub fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, eps: f32, dtype: DType) -> Result<(Tensor, Tensor)> {
    let shape = (x.elem_count() / w.elem_count().max(1), w.elem_count());
    let (y, rstd) = (gpu.unwritten(x.shape(), dtype)?, gpu.unwritten(shape.0, DType::F32)?);
    let (from, to) = (gpu.address(x)?, (gpu.address(&y)?, dtype == DType::BF16));
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
        column_sums(gpu, dy, Some((saved.0, saved.2)), shape, dw)?;
    }
    Ok(())
}

/// Adds the sum of the rows of dy `[N, D]` to a bias's gradient.
pub fn add_column_sums(gpu: &Gpu, to: &mut Option<Tensor>, dy: &Tensor) -> Result<()> {
    column_sums(gpu, dy, None, dy.dims2()?, to)
}

/// Added to the gradient so far, or to zeros.
fn column_sums(
    gpu: &Gpu,
    dy: &Tensor,
    of: Option<(Address, Address)>,
    (n, d): (usize, usize),
    so_far: &mut Option<Tensor>,
) -> Result<()> {
    let sum = match so_far {
        Some(sum) => sum,
        None => so_far.insert(Tensor::zeros(d, DType::F32, &gpu.device())?),
    };
    let parts = cuda::norm::parts(n);
    let room = if parts > 1 { Some(gpu.unwritten((parts, d), DType::F32)?) } else { None };
    let at = room.as_ref().map(|room| gpu.address(room)).transpose()?;
    for launch in cuda::norm::column_sums(gpu.address(dy)?, of, (n, d), gpu.address(sum)?, at) {
        gpu.run(&launch)?;
    }
    Ok(())
}
