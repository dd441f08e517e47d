//! Attention on a GPU.

use super::Placed;
use crate::error::Result;
use crate::ops::attention::{InputGrads, Saved, Shape};
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

/// On tensor cores where the inputs are kept in bf16.
fn attention<'a>(shape: &'a Shape, q: &Tensor) -> Result<Attention<'a>> {
    Ok(Attention { shape, rows: q.dim(0)?, bf16: q.dtype() == DType::BF16 })
}

/// q `[N, H·d]`, k and v `[N, K·d]`, all f32 or all bf16 → `[N, H·d]` of the same type.
pub fn forward(at: &Placed, shape: &Shape, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
    let (gpu, rows) = (&at.gpu, q.dim(0)?);
    let attention = attention(shape, q)?;
    let (out, lse) = (gpu.unwritten(q.shape(), q.dtype())?, gpu.unwritten((rows, shape.heads), DType::F32)?);
    let of = inputs(at, [q, k, v])?;
    gpu.run(&attention.forward(of, gpu.address(&out)?, gpu.address(&lse)?))?;
    Ok((out.clone(), Saved { q: q.clone(), k: k.clone(), v: v.clone(), out, lse }))
}

/// `d_out` `[N, H·d]` → gradients of q, k and v, in f32.
pub fn backward(at: &Placed, shape: &Shape, saved: &Saved, d_out: &Tensor) -> Result<InputGrads> {
    let gpu = &at.gpu;
    let attention = attention(shape, &saved.q)?;
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
