//! The gated activation `silu(gate)·up`; the backward pass makes it again instead of keeping it.

use super::host;
use super::profile::{self, Site};
use crate::error::Result;
use candle_core::Tensor;
use fttrain_kernels::cpu::{gate_backward, gate_forward};

/// gate, up `[N, F]` → `[N, F]`.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _span = profile::op(Site::Gate);
    let mut act = vec![0f32; gate.elem_count()];
    gate_forward(&host::read(gate)?, &host::read(up)?, &mut act);
    host::tensor(act, gate.shape())
}

/// `d_act` `[N, F]` → gradients of gate and up.
pub fn backward(gate: &Tensor, up: &Tensor, d_act: &Tensor) -> Result<(Tensor, Tensor)> {
    let _span = profile::op(Site::Gate);
    let (mut d_gate, mut d_up) = (vec![0f32; gate.elem_count()], vec![0f32; gate.elem_count()]);
    gate_backward(&host::read(gate)?, &host::read(up)?, &host::read(d_act)?, &mut d_gate, &mut d_up);
    Ok((host::tensor(d_gate, gate.shape())?, host::tensor(d_up, gate.shape())?))
}
