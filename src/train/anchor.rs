//! Where what is trained started, which regularisers against forgetting pull it back to, and how much the retention set
//! depends on each value of it. A resume makes both again from the base.

use crate::config::Train;
use crate::data::Batch;
use crate::error::Result;
use crate::model::decoder::Training;
use crate::model::{Decoder, Params};
use crate::ops::pull::{self, Strength};
use crate::ops::{ParamId, host};
use candle_core::Tensor;

/// The start, by the tensors' numbers.
pub struct Anchor {
    strength: Strength,
    held: Vec<Held>,
}

struct Held {
    start: Tensor,
    fisher: Option<Tensor>,
}

impl Anchor {
    /// Keeps the weights as they are now; `None` where nothing pulls. With EWC, the diagonal of the Fisher information:
    /// the mean over `kept`, a sample each, of the squared gradient of its mean token loss.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn new(decoder: &Decoder, params: &Params, train: &Train, kept: &[Batch]) -> Result<Option<Self>> {
        #[allow(clippy::cast_possible_truncation)] // Pulls are added in f32.
        let strength = Strength { even: train.l2_sp as f32, by_fisher: train.ewc as f32 };
        if train.l2_sp == 0.0 && train.ewc == 0.0 {
            return Ok(None);
        }
        let mut held = Vec::with_capacity(params.numbered().len());
        for (_, param) in params.numbered() {
            let fisher = (train.ewc > 0.0).then(|| host::zeros(param.value.shape())).transpose()?;
            held.push(Held { start: param.value.copy()?, fisher });
        }
        let anchor = Self { strength, held };
        if train.ewc > 0.0 {
            anchor.inform(decoder, params, kept)?;
        }
        Ok(Some(anchor))
    }

    fn inform(&self, decoder: &Decoder, params: &Params, kept: &[Batch]) -> Result<()> {
        let kept: Vec<&Batch> = kept.iter().filter(|batch| !batch.targets.is_empty()).collect();
        #[allow(clippy::cast_possible_truncation)] // Information is summed in f32.
        let share = (1.0 / kept.len().max(1) as f64) as f32;
        for batch in &kept {
            #[allow(clippy::cast_possible_truncation)] // The scale is applied in f32.
            let scale = (1.0 / batch.targets.len() as f64) as f32;
            let mut grads = params.no_grads();
            let how = Training { scale, recompute: true, noise: None };
            decoder.loss_and_descent(batch, how, &mut grads, &mut |_, grads, open| {
                for (id, grad) in grads.take_but(open) {
                    if let Some(Held { fisher: Some(fisher), .. }) = self.held.get(id.0) {
                        pull::add_squares(fisher, &grad, share)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Adds the pull on a tensor to its gradient; the penalty.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn pull(&self, id: ParamId, value: &Tensor, grad: &Tensor) -> Result<f64> {
        let Some(held) = self.held.get(id.0) else { return Ok(0.0) };
        pull::pull(grad, value, &held.start, held.fisher.as_ref(), self.strength)
    }

    /// How much the retention set depends on each value of a tensor; `None` without EWC.
    pub fn fisher(&self, id: ParamId) -> Option<&Tensor> {
        self.held.get(id.0)?.fisher.as_ref()
    }

    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        self.held.iter().map(|held| bytes(&held.start) + held.fisher.as_ref().map_or(0, bytes)).sum()
    }
}
