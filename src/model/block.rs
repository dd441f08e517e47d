//! One block of the decoder, its ops chained forward and backward by hand:
//! `m = x + O(attention(rope(Q h), rope(K h), V h))`, `h = norm(x)`; `y = m + Down(silu(Gate g)·Up g)`, `g = norm(m)`.

use super::cache::Cache;
use crate::error::Result;
use crate::ops::attention::{self, Shape, Span};
use crate::ops::dropout::Noise;
use crate::ops::gpu::{self, Placed};
use crate::ops::linear::{self, Linear};
use crate::ops::matmul::Precision;
use crate::ops::norm::{self, Norm};
use crate::ops::profile::{self, Site};
use crate::ops::rope::Table;
use crate::ops::{Grads, ParamId, Weight, gate, narrow, residual};
use candle_core::Tensor;
use std::sync::Arc;

/// The weights of a block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Before attention.
    pub attn_norm: Norm,
    /// `[H·d, D]`
    pub q: Linear,
    /// `[K·d, D]`
    pub k: Linear,
    /// `[K·d, D]`
    pub v: Linear,
    /// `[D, H·d]`
    pub o: Linear,
    /// On each head of q, before the rope.
    pub q_norm: Option<Norm>,
    /// On each head of k, before the rope.
    pub k_norm: Option<Norm>,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// `[F, D]`
    pub gate: Linear,
    /// `[F, D]`
    pub up: Linear,
    /// `[D, F]`
    pub down: Linear,
    /// Heads, scale, window.
    pub attention: Shape,
    /// Angles by position.
    pub rope: Arc<Table>,
}

/// What all blocks share in one pass over a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Position of each row.
    pub positions: &'a [u32],
    /// Who sees whom.
    pub spans: &'a [Span],
    /// `None` outside training.
    pub noise: Option<Noise>,
    /// Positions and segments on the GPU that the model lies on.
    pub placed: Option<&'a Placed>,
}

/// What the backward pass needs; inputs of the norms are kept, their outputs and the activation are made again. What
/// products of bf16 read is kept in bf16.
pub struct Saved {
    attn_norm: norm::Saved,
    projections: [linear::Saved; 3],
    head_norms: [Option<norm::Saved>; 2],
    /// `None` of a pass with a cache, which has no backward.
    attention: Option<attention::Saved>,
    attended: Tensor,
    o: linear::Saved,
    mlp: SavedMlp,
}

/// The MLP's part of it.
struct SavedMlp {
    norm: norm::Saved,
    gated: [linear::Saved; 2],
    gate_out: Tensor,
    up_out: Tensor,
    down: linear::Saved,
}

impl Block {
    /// x `[N, D]` → `[N, D]`. With a cache, k and v are appended to it, queries see all that it keeps of
    /// their text, and there is no backward.
    pub fn forward(&self, x: &Tensor, pass: Pass, cache: Option<&mut Cache>) -> Result<(Tensor, Saved)> {
        let (h, attn_norm) = self.attn_norm.forward(x)?;
        let span = profile::op(Site::Qkv);
        // [N, H·d], [N, K·d], [N, K·d], in f32 for the norms of heads and the rope.
        let [(q, saved_q), (k, saved_k), (v, saved_v)] =
            linear::forward([&self.q, &self.k, &self.v], &h, pass.noise, Precision::F32)?;
        drop(span);
        let (q, saved_q_norm) = norm_heads(self.q_norm.as_ref(), q)?;
        let (k, saved_k_norm) = norm_heads(self.k_norm.as_ref(), k)?;
        self.rope.turn_both((&q, &k), pass.positions, pass.placed, false)?;
        let (attended, saved_attention) = if let Some(cache) = cache {
            (cache.attend(&self.attention, pass.spans, &q, &k, &v)?, None)
        } else {
            let kept = |x| narrow::kept(Site::Attention, x, self.o.precision);
            let (q, k, v) = (kept(q)?, kept(k)?, kept(v)?);
            let (out, saved) = match pass.placed {
                Some(placed) => gpu::attention::forward(placed, &self.attention, &q, &k, &v)?,
                None => attention::forward(&self.attention, pass.spans, &q, &k, &v)?,
            };
            (out, Some(saved))
        };
        let span = profile::op(Site::Output);
        let (middle, saved_o) = self.o.forward(&attended, pass.noise)?;
        drop(span);
        residual::add(&middle, x)?;
        let (g, mlp_norm) = self.mlp_norm.forward(&middle)?;
        let span = profile::op(Site::GateUp);
        // [N, F], [N, F]
        let [(gate_out, saved_gate), (up_out, saved_up)] =
            linear::forward([&self.gate, &self.up], &g, pass.noise, self.down.precision)?;
        drop(span);
        let kept = |x| narrow::kept(Site::Gate, x, self.down.precision);
        let (gate_out, up_out) = (kept(gate_out)?, kept(up_out)?);
        let act = gate::forward(&gate_out, &up_out)?;
        let span = profile::op(Site::Down);
        let (y, down) = self.down.forward(&act, pass.noise)?;
        drop(span);
        residual::add(&y, &middle)?;
        let saved = Saved {
            attn_norm,
            projections: [saved_q, saved_k, saved_v],
            head_norms: [saved_q_norm, saved_k_norm],
            attention: saved_attention,
            attended,
            o: saved_o,
            mlp: SavedMlp { norm: mlp_norm, gated: [saved_gate, saved_up], gate_out, up_out, down },
        };
        Ok((y, saved))
    }

    /// dy `[N, D]` → the gradient of x, or `None` when nothing before this block is trained. Both inputs are used up:
    /// what was saved is freed as soon as it was read.
    pub fn backward(
        &self,
        saved: Saved,
        dy: Tensor,
        pass: Pass,
        wanted: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let d_middle = self.mlp_backward(saved.mlp, dy, pass, grads)?;
        let span = profile::op(Site::Output);
        let d_attended = self.o.backward(&saved.attended, &saved.o, &d_middle, true, pass.noise, grads)?;
        drop((span, saved.attended, saved.o));
        let (Some(d_attended), Some(saved_attention)) = (d_attended, saved.attention) else {
            return Ok(None);
        };
        let d = match pass.placed {
            Some(placed) => gpu::attention::backward(placed, &self.attention, &saved_attention, &d_attended)?,
            None => attention::backward(&self.attention, pass.spans, &saved_attention, &d_attended)?,
        };
        drop((d_attended, saved_attention));
        self.rope.turn_both((&d.q, &d.k), pass.positions, pass.placed, true)?;
        let dq = unnorm_heads(self.q_norm.as_ref(), saved.head_norms[0].as_ref(), d.q, grads)?;
        let dk = unnorm_heads(self.k_norm.as_ref(), saved.head_norms[1].as_ref(), d.k, grads)?;
        let h = self.attn_norm.again(&saved.attn_norm)?;
        let [q, k, v] = &saved.projections;
        let span = profile::op(Site::Qkv);
        let shared = [(&self.q, q, &dq), (&self.k, k, &dk), (&self.v, v, &d.v)];
        let dh = linear::backward(&shared, &h, wanted, pass.noise, grads)?;
        drop(span);
        match dh {
            Some(dh) => Ok(Some(self.attn_norm.backward(&saved.attn_norm, &dh, Some(d_middle), grads)?)),
            None => Ok(None),
        }
    }

    fn mlp_backward(&self, saved: SavedMlp, dy: Tensor, pass: Pass, grads: &mut Grads) -> Result<Tensor> {
        let SavedMlp { norm, gated, gate_out, up_out, down } = saved;
        let act = gate::forward(&gate_out, &up_out)?;
        let span = profile::op(Site::Down);
        let d_act = self.down.backward(&act, &down, &dy, true, pass.noise, grads)?;
        drop((span, act));
        let Some(d_act) = d_act else { return Ok(dy) };
        let (d_gate, d_up) = gate::backward(&gate_out, &up_out, d_act)?;
        drop((gate_out, up_out));
        let g = self.mlp_norm.again(&norm)?;
        let [gate, up] = &gated;
        let span = profile::op(Site::GateUp);
        let shared = [(&self.gate, gate, &d_gate), (&self.up, up, &d_up)];
        let dg = linear::backward(&shared, &g, true, pass.noise, grads)?;
        drop(span);
        match dg {
            Some(dg) => self.mlp_norm.backward(&norm, &dg, Some(dy), grads),
            None => Ok(dy),
        }
    }

    /// Whether anything in it is trained.
    pub fn is_trained(&self) -> bool {
        self.trained().next().is_some()
    }

    /// Its trained parameters.
    pub fn trained(&self) -> impl Iterator<Item = ParamId> {
        let linears = self.linears().into_iter().flat_map(Linear::trained);
        linears.chain(self.norms().filter_map(|weight| weight.param))
    }

    /// Its biases and the weights of its norms.
    pub fn vectors(&self) -> Vec<&Weight> {
        let biases = self.linears().into_iter().filter_map(|l| l.bias.as_ref());
        biases.chain(self.norms()).collect()
    }

    fn norms(&self) -> impl Iterator<Item = &Weight> {
        let norms = [Some(&self.attn_norm), Some(&self.mlp_norm), self.q_norm.as_ref(), self.k_norm.as_ref()];
        norms.into_iter().flatten().map(|norm| &norm.weight)
    }

    /// Its linears, in the order of `Proj::ALL`.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
}

impl Saved {
    /// Bytes of all tensors in it, each once.
    pub fn bytes(&self) -> u64 {
        let low_rank = self.projections.iter().chain(&self.mlp.gated).chain([&self.o, &self.mlp.down]);
        let head_norms = self.head_norms.iter().flatten().map(norm::Saved::bytes);
        low_rank.map(linear::Saved::bytes).chain(head_norms).sum::<u64>()
            + self.attn_norm.bytes()
            + self.mlp.norm.bytes()
            + self.attention.as_ref().map_or(0, attention::Saved::bytes)
            + narrow::bytes(&self.mlp.gate_out)
            + narrow::bytes(&self.mlp.up_out)
    }
}

fn norm_heads(norm: Option<&Norm>, x: Tensor) -> Result<(Tensor, Option<norm::Saved>)> {
    match norm {
        None => Ok((x, None)),
        Some(norm) => norm.forward(&x).map(|(y, saved)| (y, Some(saved))),
    }
}

fn unnorm_heads(
    norm: Option<&Norm>,
    saved: Option<&norm::Saved>,
    dy: Tensor,
    grads: &mut Grads,
) -> Result<Tensor> {
    match (norm, saved) {
        (Some(norm), Some(saved)) => norm.backward(saved, &dy, None, grads),
        _ => Ok(dy),
    }
}
