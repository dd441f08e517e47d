//! Attention on a GPU.

use super::Placed;
use crate::error::Result;
use crate::ops::attention::{InputGrads, Saved, Shape};
use crate::ops::matmul::Precision;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda::attention::{self as kernel, Attention, Backward, Inputs};

/// Largest head that the kernels take.
pub use kernel::LARGEST_HEAD;

fn inputs(at: &Placed, [q, k, v]: [&Tensor; 3]) -> Result<Inputs> {
    let gpu = &at.gpu;
    Ok(Inputs {
        q: gpu.address(q)?,
        k: gpu.address(k)?,
        v: gpu.address(v)?,
        starts: gpu.address(&at.starts)?,
    })
}

/// On tensor cores where products are of bf16; they take values by twos.
fn attention(shape: &Shape, rows: usize, precision: Precision) -> Attention<'_> {
    Attention { shape, rows, bf16: precision == Precision::Bf16 && shape.head_dim.is_multiple_of(2) }
}

/// q `[N, H·d]`, k and v `[N, K·d]` → `[N, H·d]`.
pub fn forward(
    at: &Placed,
    shape: &Shape,
    precision: Precision,
    [q, k, v]: [&Tensor; 3],
) -> Result<(Tensor, Saved)> {
    let (gpu, rows) = (&at.gpu, q.dim(0)?);
    let attention = attention(shape, rows, precision);
    let (out, lse) = (gpu.like(q)?, gpu.unwritten((rows, shape.heads), DType::F32)?);
    let of = inputs(at, [q, k, v])?;
    gpu.run(&attention.forward(of, gpu.address(&out)?, gpu.address(&lse)?))?;
    Ok((out.clone(), Saved { q: q.clone(), k: k.clone(), v: v.clone(), out, lse }))
}

/// `d_out` `[N, H·d]` → gradients of q, k and v.
pub fn backward(
    at: &Placed,
    shape: &Shape,
    precision: Precision,
    saved: &Saved,
    d_out: &Tensor,
) -> Result<InputGrads> {
    let (gpu, rows) = (&at.gpu, saved.q.dim(0)?);
    let attention = attention(shape, rows, precision);
    let grads = InputGrads { q: gpu.like(&saved.q)?, k: gpu.like(&saved.k)?, v: gpu.like(&saved.v)? };
    let along = gpu.like(&saved.lse)?;
    let of = Backward {
        out: gpu.address(&saved.out)?,
        lse: gpu.address(&saved.lse)?,
        d_out: gpu.address(d_out)?,
        along: gpu.address(&along)?,
    };
    let to = (gpu.address(&grads.q)?, gpu.address(&grads.k)?, gpu.address(&grads.v)?);
    for launch in attention.backward(inputs(at, [&saved.q, &saved.k, &saved.v])?, of, to) {
        gpu.run(&launch)?;
    }
    Ok(grads)
}
