//! The gated activation `silu(gate)·up`; the backward pass makes it again instead of keeping it.

use super::device::Gpu;
use super::profile::{self, Site};
use super::{gpu, host};
use crate::error::Result;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::{gate_backward, gate_backward_bf16, gate_forward, gate_forward_bf16};

/// gate, up `[N, F]`, both f32 or both bf16 → `[N, F]` of the same type.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _span = profile::op(Site::Gate);
    if let Some(gpu) = Gpu::of(gate) {
        return gpu::values::gate_forward(&gpu, gate, up);
    }
    if gate.dtype() == DType::BF16 {
        let act = gate_forward_bf16(&host::read_as(gate)?, &host::read_as(up)?);
        return host::tensor_as(act, gate.shape());
    }
    host::tensor(gate_forward(&host::read(gate)?, &host::read(up)?), gate.shape())
}

/// `d_act` `[N, F]`, which is used up, → gradients of gate and up in f32, on a GPU in their type.
pub fn backward(gate: &Tensor, up: &Tensor, d_act: Tensor) -> Result<(Tensor, Tensor)> {
    let _span = profile::op(Site::Gate);
    if let Some(gpu) = Gpu::of(gate) {
        return gpu::values::gate_backward(&gpu, gate, up, &d_act);
    }
    let d_up = if gate.dtype() == DType::BF16 {
        let (gate, up) = (host::read_as(gate)?, host::read_as(up)?);
        host::edit(&d_act, |d| gate_backward_bf16(&gate, &up, d))?
    } else {
        let (gate, up) = (host::read(gate)?, host::read(up)?);
        host::edit(&d_act, |d| gate_backward(&gate, &up, d))?
    };
    let d_up = host::tensor(d_up, gate.shape())?;
    Ok((d_act, d_up))
}
