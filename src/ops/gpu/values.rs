//! Ops on single values: gate, residual, dropout, conversions; and the rope.

use super::Placed;
use crate::error::Result;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda;

/// gate, up `[N, F]`, both f32 or both bf16 → `[N, F]` of the same type.
pub fn gate_forward(gpu: &Gpu, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let act = gpu.unwritten(gate.shape(), gate.dtype())?;
    let (count, bf16) = (gate.elem_count(), gate.dtype() == DType::BF16);
    gpu.run(&cuda::gate::forward(gpu.address(gate)?, gpu.address(up)?, count, gpu.address(&act)?, bf16))?;
    Ok(act)
}

/// `d_act` `[N, F]` in f32 → gradients of gate and up, in their type.
pub fn gate_backward(gpu: &Gpu, gate: &Tensor, up: &Tensor, d_act: &Tensor) -> Result<(Tensor, Tensor)> {
    let room = || gpu.unwritten(gate.shape(), gate.dtype());
    let (d_gate, d_up) = (room()?, room()?);
    let inputs = (gpu.address(gate)?, gpu.address(up)?);
    let grads = (gpu.address(&d_gate)?, gpu.address(&d_up)?);
    let bf16 = gate.dtype() == DType::BF16;
    gpu.run(&cuda::gate::backward(inputs, gpu.address(d_act)?, gate.elem_count(), grads, bf16))?;
    Ok((d_gate, d_up))
}

/// `to += x`.
pub fn add(gpu: &Gpu, to: &Tensor, x: &Tensor) -> Result<()> {
    gpu.run(&cuda::values::add(gpu.address(to)?, gpu.address(x)?, x.elem_count()))
}

/// x `[N, D]`, f32 or bf16, → the same with what lies below `threshold` of 2³² dropped and the rest times `keep`.
pub fn dropout(
    gpu: &Gpu,
    x: &Tensor,
    (stream, first_row): (u64, u64),
    (threshold, keep): (u64, f32),
) -> Result<Tensor> {
    let (y, bf16) = (gpu.unwritten(x.shape(), x.dtype())?, x.dtype() == DType::BF16);
    let (from, to) = (gpu.address(x)?, gpu.address(&y)?);
    gpu.run(&cuda::dropout::apply(from, x.dims2()?, (stream, first_row), (threshold, keep), to, bf16))?;
    Ok(y)
}

/// The tensor itself, or its values in the other of f32 and bf16.
pub fn as_dtype(gpu: &Gpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let y = gpu.unwritten(x.shape(), dtype)?;
    let (from, to, count) = (gpu.address(x)?, gpu.address(&y)?, x.elem_count());
    gpu.run(&if dtype == DType::BF16 {
        cuda::values::narrow_bf16(from, count, to)
    } else {
        cuda::values::widen_bf16(from, count, to)
    })?;
    Ok(y)
}

/// Turns the heads of q `[N, H·d]` and k `[N, K·d]` in place by tables `[positions, d/2]`.
pub fn rope(
    at: &Placed,
    (q, k): (&Tensor, &Tensor),
    (cos, sin): (&Tensor, &Tensor),
    inverse: bool,
) -> Result<()> {
    let gpu = &at.gpu;
    let d = 2 * cos.dim(1)?;
    let heads = (q.dim(1)? / d, k.dim(1)? / d, d);
    let both = (gpu.address(q)?, gpu.address(k)?);
    let tables = (gpu.address(cos)?, gpu.address(sin)?);
    gpu.run(&cuda::rope::turn(both, gpu.address(&at.positions)?, tables, q.dim(0)?, heads, inverse))
}
