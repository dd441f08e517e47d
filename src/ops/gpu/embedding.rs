//! Rows of a table gathered and added back on a GPU.

use super::product::dense;
use crate::error::Result;
use crate::ops::Operand;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda::embedding::{self as kernel, Sorted};

/// Rows `ids` of a table `[V, D]` → `[N, D]` in f32.
pub fn gather<'a>(gpu: &Gpu, table: impl Into<Operand<'a>>, ids: &[u32]) -> Result<Tensor> {
    let table = dense(table)?;
    let shape = (ids.len(), table.dim(1)?);
    let (y, on_gpu) = (gpu.unwritten(shape, DType::F32)?, gpu.upload(ids)?);
    let is_bf16 = table.dtype() == DType::BF16;
    gpu.run(&kernel::gather(gpu.address(table)?, is_bf16, gpu.address(&on_gpu)?, shape, gpu.address(&y)?))?;
    Ok(y)
}

/// Adds row i of dy `[N, D]` to row `ids[i]` of the sum `[V, D]`.
pub fn scatter(gpu: &Gpu, ids: &[u32], dy: &Tensor, sum: &Tensor) -> Result<()> {
    let sorted = Sorted::new(ids);
    let [tokens, starts, order] = [&sorted.ids, &sorted.starts, &sorted.order].map(|v| gpu.upload(v));
    let (tokens, starts, order) = (tokens?, starts?, order?);
    let tables = (gpu.address(&tokens)?, gpu.address(&starts)?, gpu.address(&order)?);
    let shape = (sorted.ids.len(), dy.dim(1)?);
    gpu.run(&kernel::scatter(gpu.address(dy)?, tables, shape, gpu.address(sum)?))
}
