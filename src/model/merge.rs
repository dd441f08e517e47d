//! A base with an adapter's changes in its weights: one tensor at a time, computed in f32.

use super::adapter::Adapter;
use super::build;
use super::weights::Loader;
use crate::arch::{Arch, Linear, Parameter};
use crate::error::Result;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// The model that base and adapter make together; without an adapter, the base.
pub struct Merged<'a> {
    loader: &'a Loader,
    adapter: Option<&'a Adapter>,
    base: &'a Arch,
    arch: Arch,
    adapted: BTreeMap<String, Linear>,
}

impl<'a> Merged<'a> {
    /// Reads nothing yet.
    pub fn new(loader: &'a Loader, base: &'a Arch, adapter: Option<&'a Adapter>) -> Self {
        let adapts = |linear: &Linear| adapter.is_some_and(|a| a.adapts(&linear.name));
        let trains = |module: &str| adapter.is_some_and(|a| a.trains_whole(module));
        let mut arch = base.clone();
        // Trained alone, embedding and head are no longer one tensor.
        arch.tie_word_embeddings &= !trains("lm_head") && !trains("model.embed_tokens");
        Self {
            adapted: base.linears().filter(adapts).map(|l| (format!("{}.weight", l.name), l)).collect(),
            loader,
            adapter,
            base,
            arch,
        }
    }

    /// The shapes of the result: those of the base, but for a tied head that was trained.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// The result's tensors, in the order of the model.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.arch.parameters()
    }

    /// Whether the adapter changes this tensor.
    pub fn changes(&self, name: &str) -> bool {
        let (module, _) = name.rsplit_once('.').unwrap_or((name, ""));
        self.adapted.contains_key(name) || self.adapter.is_some_and(|a| a.trains_whole(module))
    }

    /// A tensor of the result, in f32.
    ///
    /// # Errors
    /// The base cannot be read, or holds values that are not finite.
    pub fn load(&self, name: &str) -> Result<Tensor> {
        if let (Some(adapter), Some(linear)) = (self.adapter, self.adapted.get(name)) {
            return build::linear(self.base, adapter, linear, self.loader)?.merged();
        }
        let trained = self.adapter.filter(|_| self.changes(name));
        if let Some(value) = trained.and_then(|a| a.start(&format!("base_model.model.{name}")).transpose()) {
            return value;
        }
        // A head that was tied keeps the base's embedding when that is trained alone.
        let is_untied = self.base.tie_word_embeddings && name == "lm_head.weight";
        self.loader.load(if is_untied { "model.embed_tokens.weight" } else { name }, DType::F32)
    }
}
