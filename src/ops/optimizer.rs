//! The update of one tensor, in place, and the norm of a gradient.

use super::device::Gpu;
use super::{gpu, host};
use crate::error::Result;
use candle_core::Tensor;
use fttrain_kernels::cpu;
pub use fttrain_kernels::cpu::AdamW;

/// Σ g².
pub fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    if let Some(gpu) = Gpu::of(grad) {
        return gpu::optimizer::sum_of_squares(&gpu, grad);
    }
    Ok(cpu::sum_of_squares(&host::read(grad)?))
}

/// One AdamW update of `param` and its moments `m`, `v`, in place; all of one shape, all distinct tensors.
pub fn adamw(param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor, how: &AdamW) -> Result<()> {
    if let Some(gpu) = Gpu::of(param) {
        return gpu::optimizer::adamw(&gpu, param, m, v, grad, how);
    }
    let grad = host::read(grad)?;
    host::edit(param, |param| host::edit(m, |m| host::edit(v, |v| cpu::adamw(param, m, v, &grad, how))))??
}
