//! The residual connection: a sum in place.

use super::device::Gpu;
use super::profile::{self, Site};
use super::{gpu, host};
use crate::error::Result;
use candle_core::Tensor;
use fttrain_kernels::cpu;

/// `to += x`, of one shape.
pub fn add(to: &Tensor, x: &Tensor) -> Result<()> {
    let _span = profile::op(Site::Residual);
    if let Some(gpu) = Gpu::of(to) {
        return gpu::values::add(&gpu, to, x);
    }
    let x = host::read(x)?;
    host::edit(to, |to| cpu::add(to, &x))
}
