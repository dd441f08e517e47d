//! What is kept for the backward pass, in half the bytes where products round it to bf16 anyway. Forward and backward
//! both compute with what is kept, so a block that is run again gives the same gradients.

use super::device::Gpu;
use super::matmul::Precision;
use super::profile::{self, Site};
use super::{gpu, host};
use crate::error::Result;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::{narrowed, widened};
use half::bf16;

/// x as products of this precision read it: rounded to bf16, or as it is.
pub fn kept(site: Site, x: Tensor, precision: Precision) -> Result<Tensor> {
    match precision {
        Precision::F32 => Ok(x),
        Precision::Bf16 => {
            let _span = profile::op(site);
            to(x, DType::BF16)
        }
    }
}

/// x in one of the two types, on the kernels of conversion.
pub(super) fn to(x: Tensor, dtype: DType) -> Result<Tensor> {
    if let Some(gpu) = Gpu::of(&x) {
        return gpu::values::as_dtype(&gpu, &x, dtype);
    }
    match (x.dtype(), dtype) {
        (DType::F32, DType::BF16) => host::tensor_as(narrowed(&host::read(&x)?), x.shape()),
        (DType::BF16, DType::F32) => host::tensor(widened(&host::read_as::<bf16>(&x)?), x.shape()),
        _ => Ok(x),
    }
}

/// x in f32, exactly.
pub fn wide(x: &Tensor) -> Result<Tensor> {
    to(x.clone(), DType::F32)
}

/// Bytes of its values.
pub fn bytes(x: &Tensor) -> u64 {
    (x.elem_count() * x.dtype().size_in_bytes()) as u64
}
