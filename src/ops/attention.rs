//! Causal self-attention inside segments; scores are never whole and are made again in the backward pass.

use super::profile::{self, Site};
use super::{host, narrow};
use crate::error::Result;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::attention as kernel;
pub use fttrain_kernels::cpu::attention::{Kept, Shape, Span};

/// What the backward pass needs.
pub struct Saved {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) out: Tensor,
    /// `[N, H]`
    pub(super) lse: Tensor,
}

/// Gradients of the inputs.
pub struct InputGrads {
    /// `[N, H·d]`
    pub q: Tensor,
    /// `[N, K·d]`
    pub k: Tensor,
    /// `[N, K·d]`
    pub v: Tensor,
}

/// q `[N, H·d]`, k and v `[Nk, K·d]`, all f32 or all bf16 → `[N, H·d]` of the same type, which is kept with them.
pub fn forward(shape: &Shape, spans: &[Span], q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Saved)> {
    let _span = profile::op(Site::Attention);
    let n = q.dim(0)?;
    let mut out = vec![0f32; q.elem_count()];
    let mut lse = vec![0f32; n * shape.heads];
    if q.dtype() == DType::BF16 {
        let (q, k, v) = (host::read_as(q)?, host::read_as(k)?, host::read_as(v)?);
        kernel::forward_bf16(shape, spans, (&q, &k, &v), &mut out, &mut lse);
    } else {
        let (q, k, v) = (host::read(q)?, host::read(k)?, host::read(v)?);
        kernel::forward(shape, spans, &q, &k, &v, &mut out, &mut lse);
    }
    let out = narrow::to(host::tensor(out, q.shape())?, q.dtype())?;
    let lse = host::tensor(lse, (n, shape.heads))?;
    let saved = Saved { q: q.clone(), k: k.clone(), v: v.clone(), out: out.clone(), lse };
    Ok((out, saved))
}

/// One query a text, q `[texts, H·d]`, against what is kept of it → `[texts, H·d]`.
pub fn decode(shape: &Shape, q: &Tensor, kept: &[Kept]) -> Result<Tensor> {
    let mut out = vec![0f32; q.elem_count()];
    kernel::decode(shape, &host::read(q)?, kept, &mut out);
    Ok(host::tensor(out, q.shape())?.to_device(q.device())?)
}

/// `d_out` `[N, H·d]` → gradients of q, k and v.
pub fn backward(shape: &Shape, spans: &[Span], saved: &Saved, d_out: &Tensor) -> Result<InputGrads> {
    let _span = profile::op(Site::Attention);
    let (mut dq, mut dk, mut dv) = (
        vec![0f32; saved.q.elem_count()],
        vec![0f32; saved.k.elem_count()],
        vec![0f32; saved.v.elem_count()],
    );
    let (lse, d_out) = (host::read(&saved.lse)?, host::read(d_out)?);
    let grads = (&mut dq[..], &mut dk[..], &mut dv[..]);
    if saved.q.dtype() == DType::BF16 {
        let (q, k, v) = (host::read_as(&saved.q)?, host::read_as(&saved.k)?, host::read_as(&saved.v)?);
        let out = host::read_as(&saved.out)?;
        kernel::backward_bf16(shape, spans, (&q, &k, &v), &out, &d_out, &lse, grads);
    } else {
        let (q, k, v) = (host::read(&saved.q)?, host::read(&saved.k)?, host::read(&saved.v)?);
        kernel::backward(shape, spans, (&q, &k, &v), &host::read(&saved.out)?, &d_out, &lse, grads);
    }
    Ok(InputGrads {
        q: host::tensor(dq, saved.q.shape())?,
        k: host::tensor(dk, saved.k.shape())?,
        v: host::tensor(dv, saved.v.shape())?,
    })
}

impl Saved {
    /// Bytes kept; the output is shared with the projection behind it.
    pub fn bytes(&self) -> u64 {
        [&self.q, &self.k, &self.v, &self.out, &self.lse].into_iter().map(narrow::bytes).sum()
    }
}
