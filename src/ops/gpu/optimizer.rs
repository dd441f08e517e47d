//! The update of a tensor on a GPU, and the norm of a gradient.

use crate::error::Result;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::optimizer::AdamW;
use fttrain_kernels::cuda::adamw as kernel;

/// Σ g²; waits for the GPU.
pub fn sum_of_squares(gpu: &Gpu, grad: &Tensor) -> Result<f64> {
    let count = grad.elem_count() as u64;
    let of = kernel::Tensor {
        param: 0,
        m: 0,
        v: 0,
        grad: gpu.address(grad)?.0,
        count,
        lr: 0.0,
        weight_decay: 0.0,
    };
    let pieces = kernel::pieces([count]);
    let parts = gpu.unwritten(pieces.len(), DType::F64)?;
    let tables = (gpu.upload(&of.words())?, gpu.upload(&words_of(&pieces))?);
    let (tensors, on_gpu) = (gpu.address(&tables.0)?, gpu.address(&tables.1)?);
    gpu.run(&kernel::norm_parts(tensors, on_gpu, pieces.len(), gpu.address(&parts)?))?;
    Ok(parts.to_vec1::<f64>()?.into_iter().sum())
}

/// One AdamW update of `param` and its moments, in place.
pub fn adamw(gpu: &Gpu, param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor, how: &AdamW) -> Result<()> {
    let of = kernel::Tensor {
        param: gpu.address(param)?.0,
        m: gpu.address(m)?.0,
        v: gpu.address(v)?.0,
        grad: gpu.address(grad)?.0,
        count: param.elem_count() as u64,
        lr: how.lr,
        weight_decay: how.weight_decay,
    };
    let pieces = kernel::pieces([of.count]);
    let tables = (gpu.upload(&of.words())?, gpu.upload(&words_of(&pieces))?);
    let step = kernel::Step {
        beta1: how.beta1,
        beta2: how.beta2,
        eps: how.eps,
        correction1: how.correction1,
        correction2_sqrt: how.correction2_sqrt,
        grad_scale: how.grad_scale,
    };
    gpu.run(&kernel::update(gpu.address(&tables.0)?, gpu.address(&tables.1)?, pieces.len(), &step))
}

fn words_of(pieces: &[kernel::Piece]) -> Vec<u32> {
    pieces.iter().flat_map(|piece| piece.words()).collect()
}
