//! What learns: the model with its trained tensors, their optimizer, and what holds them near their start.

use super::anchor::Anchor;
use super::ground::Ground;
use super::material::RetentionBatches;
use super::optimizer::Optimizer;
use super::session::{frozen, longest};
use super::step::{self, Descended, Descent};
use crate::data::Summary;
use crate::data::packing::Step;
use crate::error::Result;
use crate::fs::Digesting;
use crate::meter::Phase;
use crate::model::adapter::peft;
use crate::model::build::{self, Trained};
use crate::model::weights::Loader;
use crate::model::{Decoder, Params};
use crate::ops::host;
use crate::ranks::Ranks;
use candle_core::Device;

/// The model and its optimizer.
pub struct Learner {
    /// The model.
    pub decoder: Decoder,
    /// Its trained tensors.
    pub params: Params,
    /// Their optimizer.
    pub optimizer: Optimizer,
    /// What holds the weights near their start.
    pub(super) anchor: Option<Anchor>,
}

impl Learner {
    /// Loads the model onto `device`, its base kept as on a machine that prefers bf16 or does not; `enter` hears which
    /// phase begins.
    ///
    /// # Errors
    /// Weights are broken (4).
    pub(super) fn load(
        ground: &Ground,
        (retention, data): (&RetentionBatches, &Summary),
        device: &Device,
        prefers_bf16: bool,
        enter: &dyn Fn(Phase),
        warnings: &mut Vec<String>,
    ) -> Result<Self> {
        let config = &ground.resolved.config;
        let (source, arch) = (&ground.source, &ground.arch);
        let loader = Loader::open(&source.weights()?, arch, config.train.seed, source.name())?.on(device);
        warnings.extend(loader.notes().iter().cloned());
        let trained = ground.adapter.as_ref().map_or(Trained::Whole, Trained::Adapter);
        let frozen = frozen(config, source, prefers_bf16);
        let (decoder, params) = build::decoder(arch, trained, frozen, longest(ground, data), &loader)?;
        enter(Phase::Evaluate);
        let anchor = Anchor::new(&decoder, &params, &config.train, &retention.kept)?;
        enter(Phase::Load);
        let optimizer = Optimizer::new(&params, &config.train)?;
        Ok(Self { decoder, params, optimizer, anchor })
    }

    /// Takes a step of all processes: gradients, clipping, update.
    ///
    /// # Errors
    /// Loss or gradient is not finite (7), in every process alike.
    pub fn take(&mut self, step: &Step, how: Descent, in_backward: bool, ranks: &Ranks) -> Result<Descended> {
        let Self { decoder, params, optimizer, anchor } = self;
        let anchor = anchor.as_ref();
        if in_backward {
            return step::descend(decoder, params, optimizer, anchor, step, how, ranks);
        }
        let Descent { k, seed, recompute, lr } = how;
        step::accumulate(decoder, params, step, k, seed, recompute, ranks)?
            .apply(params, optimizer, anchor, lr)
    }

    /// The first trained tensor in name order that holds a value that is not finite.
    pub fn not_finite(&self) -> Result<Option<String>> {
        for (_, param) in self.params.sorted() {
            if !host::is_finite(&param.value)? {
                return Ok(Some(param.name.clone()));
            }
        }
        Ok(None)
    }

    /// SHA-256 of the trained tensors.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn digest(&self) -> Result<String> {
        let mut digest = Digesting::default();
        peft::write_tensors(&self.params, &mut digest).map_err(|e| super::Error::State(e.to_string()))?;
        Ok(digest.finish())
    }
}
