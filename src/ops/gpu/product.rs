//! Products by cuBLAS: both sides in bf16 or both in f32, summed in f32.

use super::values::as_dtype;
use crate::error::{Error, Kind, Result};
use crate::ops::device::Gpu;
use crate::ops::matmul::Precision;
use crate::ops::{Matrix, Operand};
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda::Product;

/// A matrix, and whether the product takes its transpose.
pub type Side<'a> = (&'a Tensor, bool);

/// What both sides of a product are rounded to.
pub fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::Bf16 => DType::BF16,
        Precision::F32 => DType::F32,
    }
}

/// The values of a dense weight.
///
/// # Errors
/// It is in blocks: what is trained, and what is gathered from, never is, so this is a fault of the program.
pub fn dense<'a>(weight: impl Into<Operand<'a>>) -> Result<&'a Tensor> {
    match weight.into() {
        Operand::Dense(tensor) => Ok(tensor),
        Operand::Quantised(_) | Operand::OnGpu(_) => {
            Err(Error::new(Kind::Bug, "a matrix in blocks where a dense one is read on a GPU"))
        }
    }
}

/// A weight as a side of products of this precision; one in blocks is taken apart for it.
pub fn weight(gpu: &Gpu, weight: &Matrix, precision: Precision) -> Result<Tensor> {
    match weight {
        Matrix::OnGpu(blocks) => blocks.dense(precision),
        _ => as_dtype(gpu, dense(weight)?, dtype(precision)),
    }
}

/// `out = scale·left·right`, or added to `out`; both sides of one type, out in f32 or in theirs.
pub fn multiply(gpu: &Gpu, left: Side, right: Side, out: &Tensor, scale: f32, adds: bool) -> Result<()> {
    let of = |(tensor, turned): Side| {
        let (rows, width) = tensor.dims2()?;
        Ok::<_, Error>(if turned { (width, rows) } else { (rows, width) })
    };
    let ((m, k), (k_right, n)) = (of(left)?, of(right)?);
    let kind = left.0.dtype();
    if k != k_right
        || out.dims() != [m, n]
        || right.0.dtype() != kind
        || ![kind, DType::F32].contains(&out.dtype())
    {
        let fact = format!("a product of {:?} and {:?} into {:?}", left.0, right.0, out);
        return Err(Error::new(Kind::Bug, fact));
    }
    gpu.multiply(&Product {
        left: (gpu.address(left.0)?, left.1),
        right: (gpu.address(right.0)?, right.1),
        out: gpu.address(out)?,
        shape: (m, n, k),
        is_bf16: kind == DType::BF16,
        out_is_bf16: out.dtype() == DType::BF16,
        scale,
        adds,
    })
}

/// `scale·left·right` in f32.
pub fn fresh(gpu: &Gpu, left: Side, right: Side, scale: f32) -> Result<Tensor> {
    fresh_as(DType::F32, gpu, left, right, scale)
}

/// The same in f32 or in the type of both sides.
pub fn fresh_as(dtype: DType, gpu: &Gpu, left: Side, right: Side, scale: f32) -> Result<Tensor> {
    let rows = left.0.dim(usize::from(left.1))?;
    let columns = right.0.dim(usize::from(!right.1))?;
    let out = gpu.unwritten((rows, columns), dtype)?;
    multiply(gpu, left, right, &out, scale, false)?;
    Ok(out)
}

/// `scale·aᵀ·b`, stored in `sum` or added to what is there.
pub fn gradient(gpu: &Gpu, sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor, scale: f32) -> Result<()> {
    if let Some(sum) = sum {
        return multiply(gpu, (a, true), (b, false), sum, scale, true);
    }
    *sum = Some(fresh(gpu, (a, true), (b, false), scale)?);
    Ok(())
}
