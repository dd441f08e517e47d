//! Builds a decoder from shapes, weights and a method: what is trained goes into [`Params`], the rest stays frozen.

use super::adapter::Adapter;
use super::block::Block;
use super::weights::{Kept, Loader};
use super::{Decoder, Frozen, Params};
use crate::arch::{self, Arch, Proj};
use crate::error::Result;
use crate::ops::dora::{self, Dora};
use crate::ops::head::Head;
use crate::ops::linear::{Linear, Lora};
use crate::ops::matmul::Precision;
use crate::ops::norm::Norm;
use crate::ops::rope::Table;
use crate::ops::{Matrix, Weight, attention, host};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// What of the model is trained.
#[derive(Debug, Clone, Copy)]
pub enum Trained<'a> {
    /// Everything, under the base's own names.
    Whole,
    /// An adapter on a frozen base.
    Adapter(&'a Adapter),
    /// Nothing: for generation.
    Nothing,
}

/// Builds the decoder; an adapter is kept in f32, all else as `frozen` says, trained or not. `longest` bounds the
/// positions.
///
/// # Errors
/// A weight cannot be loaded.
pub fn decoder(
    arch: &Arch,
    trained: Trained<'_>,
    frozen: Frozen,
    longest: usize,
    loader: &Loader,
) -> Result<(Decoder, Params)> {
    let mut builder = Builder { arch, trained, frozen, loader, params: Params::default() };
    let table = |rope| Table::new(rope, arch.head_dim, longest).on(loader.device()).map(Arc::new);
    let tables = arch.ropes.iter().map(table).collect::<Result<Vec<_>>>()?;
    let embedding = builder.matrix("model.embed_tokens", frozen.tables())?;
    let blocks =
        (0..arch.layers.len()).map(|layer| builder.block(layer, &tables)).collect::<Result<Vec<_>>>()?;
    let norm = builder.norm("model.norm", Precision::F32)?;
    let weight = match (arch.tie_word_embeddings, trained) {
        (false, _) => builder.matrix("lm_head", frozen.tables())?,
        // PEFT copies a tied head that is to be trained, which unties it.
        (true, Trained::Adapter(adapter)) if adapter.trains_whole("lm_head") => {
            builder.saved_module("lm_head", "weight", &embedding.value.to_f32()?)?.into()
        }
        (true, Trained::Adapter(adapter)) if adapter.trains_whole("model.embed_tokens") => {
            Weight::frozen(loader.matrix("model.embed_tokens.weight", frozen.tables())?)
        }
        (true, _) => embedding.clone(),
    };
    let head = Head { weight, precision: frozen.precision() };
    let decoder = Decoder { embedding, blocks, norm, head };
    Ok((decoder, builder.params))
}

/// One linear with its adapter, in f32.
///
/// # Errors
/// A weight cannot be loaded.
pub fn linear(
    arch: &Arch,
    adapter: &Adapter,
    shape: &crate::arch::Linear,
    loader: &Loader,
) -> Result<Linear> {
    let (trained, frozen) = (Trained::Adapter(adapter), Frozen::Dense(DType::F32));
    let mut builder = Builder { arch, trained, frozen, loader, params: Params::default() };
    builder.linear(shape.layer, shape.proj)
}

struct Builder<'a> {
    arch: &'a Arch,
    trained: Trained<'a>,
    frozen: Frozen,
    loader: &'a Loader,
    params: Params,
}

impl Builder<'_> {
    /// The tensor `module.kind`, if it is trained.
    fn trained(&mut self, module: &str, kind: &str) -> Result<Option<Weight>> {
        let name = format!("{module}.{kind}");
        Ok(match self.trained {
            Trained::Whole => {
                let value = self.loader.load(&name, self.frozen.vectors())?;
                Some(self.params.add(name, value, 1.0))
            }
            Trained::Adapter(adapter) if adapter.trains_whole(module) => {
                let value = self.loader.load(&name, DType::F32)?;
                Some(self.saved_module(module, kind, &value)?)
            }
            _ => None,
        })
    }

    /// The norm or bias `module.kind`.
    fn vector(&mut self, module: &str, kind: &str) -> Result<Weight> {
        if let Some(weight) = self.trained(module, kind)? {
            return Ok(weight);
        }
        // A GPU's kernels read them in f32, and they are small.
        let dtype = if self.loader.device().is_cpu() { self.frozen.vectors() } else { DType::F32 };
        Ok(Weight::frozen(self.loader.load(&format!("{module}.{kind}"), dtype)?))
    }

    /// The matrix `module.weight`; `kept` if it is not trained.
    fn matrix(&mut self, module: &str, kept: Kept) -> Result<Weight<Matrix>> {
        if let Some(weight) = self.trained(module, "weight")? {
            return Ok(weight.into());
        }
        Ok(Weight::frozen(self.loader.matrix(&format!("{module}.weight"), kept)?))
    }

    /// A module trained whole beside the adapter: from the adapter that the run starts from, or a copy of the base's.
    fn saved_module(&mut self, module: &str, kind: &str, base: &Tensor) -> Result<Weight> {
        let name = format!("base_model.model.{module}.{kind}");
        let value = match self.trained {
            Trained::Adapter(adapter) => adapter.start(&name)?,
            _ => None,
        };
        let value = match value {
            Some(value) => value.to_device(self.loader.device())?,
            None => base.to_dtype(DType::F32)?.copy()?,
        };
        // PEFT's LoRA+ counts every vector with B.
        let ratio = match self.trained {
            Trained::Adapter(adapter) if value.rank() == 1 => adapter.spec.lr_ratio,
            _ => 1.0,
        };
        Ok(self.params.add(name, value, ratio))
    }

    fn norm(&mut self, module: &str, reader: Precision) -> Result<Norm> {
        #[allow(clippy::cast_possible_truncation)] // ε of 1e-6 and the like.
        let eps = self.arch.norm_eps as f32;
        Ok(Norm { weight: self.vector(module, "weight")?, eps, reader })
    }

    fn linear(&mut self, layer: usize, proj: Proj) -> Result<Linear> {
        let shape = self.arch.linear(layer, proj);
        let weight = self.matrix(&shape.name, self.frozen.linears())?;
        let bias = if shape.bias { Some(self.vector(&shape.name, "bias")?) } else { None };
        match self.trained {
            Trained::Adapter(adapter) if adapter.adapts(&shape.name) => {
                self.adapted(adapter, &shape, weight, bias)
            }
            _ => Ok(Linear { weight, bias, lora: None, precision: self.frozen.precision() }),
        }
    }

    fn adapted(
        &mut self,
        adapter: &Adapter,
        shape: &arch::Linear,
        weight: Weight<Matrix>,
        bias: Option<Weight>,
    ) -> Result<Linear> {
        let name = |side: &str| format!("base_model.model.{}.lora_{side}", shape.name);
        let (at_a, at_b) = (name("A.weight"), name("B.weight"));
        let device = self.loader.device();
        let put = |tensor: &Tensor| tensor.to_device(device);
        let (spec, params, precision) = (&adapter.spec, &mut self.params, self.frozen.precision());
        let (a, b, weight) = if let Some((a, b, rest)) = adapter.taken_from(&weight.value, shape)? {
            let (a, b, rest) = (put(&a)?, put(&b)?, put(&rest)?);
            let a = params.add_lent(at_a, a, 1.0)?;
            (a, params.add_lent(at_b, b, spec.lr_ratio)?, Weight::frozen(rest))
        } else {
            let a = adapter.start(&at_a)?.map_or_else(|| adapter.fresh_a(shape), Ok)?;
            let zeros = || host::zeros((shape.outputs, spec.rank(&shape.name)));
            let b = adapter.start(&at_b)?.map_or_else(zeros, Ok)?;
            (params.add(at_a, put(&a)?, 1.0), params.add(at_b, put(&b)?, spec.lr_ratio), weight)
        };
        let scale = spec.scale(&shape.name);
        let dora = if spec.dora {
            let squares = weight.value.row_squares()?;
            let fresh = || {
                let lengths = dora::norms(&weight, &a.value, &b.value, scale, &squares)?;
                host::tensor(lengths, shape.outputs)
            };
            let at = name("magnitude_vector");
            let magnitude = adapter.start(&at)?.map_or_else(fresh, Ok)?;
            // PEFT's LoRA+ counts every vector with B.
            let magnitude = params.add(at, put(&magnitude)?, spec.lr_ratio);
            Some(Dora { magnitude, squares: Arc::new(squares) })
        } else {
            None
        };
        let site = (shape.layer * Proj::ALL.len() + shape.proj as usize) as u64;
        #[allow(clippy::cast_possible_truncation)] // A share; the mask compares 32 bits.
        let dropout = spec.dropout as f32;
        let lora = Some(Lora { a, b, scale, dropout, site, dora });
        Ok(Linear { weight, bias, lora, precision })
    }

    fn block(&mut self, layer: usize, tables: &[Arc<Table>]) -> Result<Block> {
        let at = format!("model.layers.{layer}");
        let head_norm = |builder: &mut Self, name: &str| {
            let module = format!("{at}.self_attn.{name}");
            builder.arch.qk_norm.then(|| builder.norm(&module, Precision::F32)).transpose()
        };
        let (arch, products) = (self.arch, self.frozen.precision());
        #[allow(clippy::cast_possible_truncation)]
        let scale = 1.0 / (arch.head_dim as f64).sqrt() as f32;
        Ok(Block {
            attn_norm: self.norm(&format!("{at}.input_layernorm"), products)?,
            q: self.linear(layer, Proj::Q)?,
            k: self.linear(layer, Proj::K)?,
            v: self.linear(layer, Proj::V)?,
            o: self.linear(layer, Proj::O)?,
            q_norm: head_norm(self, "q_norm")?,
            k_norm: head_norm(self, "k_norm")?,
            mlp_norm: self.norm(&format!("{at}.post_attention_layernorm"), products)?,
            gate: self.linear(layer, Proj::Gate)?,
            up: self.linear(layer, Proj::Up)?,
            down: self.linear(layer, Proj::Down)?,
            attention: attention::Shape {
                heads: arch.heads,
                kv_heads: arch.kv_heads,
                head_dim: arch.head_dim,
                scale,
                softcap: None,
                window: arch.layers[layer].window,
            },
            rope: tables[arch.layers[layer].rope].clone(),
        })
    }
}
