//! The gated activation `silu(gate)·up`; the backward pass makes it again instead of keeping it.

use super::host;
use super::profile::{self, Site};
use crate::error::Result;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::{Value, gate_backward, gate_forward};
use half::bf16;

/// gate, up `[N, F]`, both f32 or both bf16 → `[N, F]` of the same type.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _span = profile::op(Site::Gate);
    match gate.dtype() {
        DType::BF16 => forward_as::<bf16>(gate, up),
        _ => forward_as::<f32>(gate, up),
    }
}

fn forward_as<T: Value + candle_core::WithDType>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let act = gate_forward::<T>(&host::read_as(gate)?, &host::read_as(up)?);
    host::tensor_as(act, gate.shape())
}

/// `d_act` `[N, F]` → gradients of gate and up, in f32.
pub fn backward(gate: &Tensor, up: &Tensor, d_act: &Tensor) -> Result<(Tensor, Tensor)> {
    let _span = profile::op(Site::Gate);
    let d_act = host::read(d_act)?;
    let (d_gate, d_up) = match gate.dtype() {
        DType::BF16 => gate_backward::<bf16>(&host::read_as(gate)?, &host::read_as(up)?, &d_act),
        _ => gate_backward::<f32>(&host::read(gate)?, &host::read(up)?, &d_act),
    };
    Ok((host::tensor(d_gate, gate.shape())?, host::tensor(d_up, gate.shape())?))
}
