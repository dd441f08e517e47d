//! Where gradients of trainable parameters are gathered: stored the first time, added after.

use super::Matrix;
use candle_core::Tensor;

/// Number of a trainable parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub usize);

/// A weight, with its number where it is trained: a norm's or a bias's [`Tensor`], or a [`Matrix`].
#[derive(Debug, Clone)]
pub struct Weight<V = Tensor> {
    /// Trained: f32. Frozen: f32, bf16 or, of a matrix, quantised.
    pub value: V,
    /// `None` = frozen: never gets a gradient.
    pub param: Option<ParamId>,
}

impl<V> Weight<V> {
    /// A weight that is not trained.
    pub fn frozen(value: impl Into<V>) -> Self {
        Self { value: value.into(), param: None }
    }
}

impl From<Weight> for Weight<Matrix> {
    fn from(weight: Weight) -> Self {
        Self { value: weight.value.into(), param: weight.param }
    }
}

/// Gradients of one optimizer step, by parameter.
#[derive(Debug)]
pub struct Grads(Vec<Option<Tensor>>);

impl Grads {
    /// None yet, for `parameters` parameters.
    pub fn new(parameters: usize) -> Self {
        Self(vec![None; parameters])
    }

    /// The gradient so far: `None` until an op has stored one.
    pub fn slot(&mut self, id: ParamId) -> &mut Option<Tensor> {
        &mut self.0[id.0]
    }

    /// The gradient so far.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.0[id.0].as_ref()
    }

    /// Takes all gradients stored so far but that of `kept`, in the order of their numbers.
    pub fn take_but(&mut self, kept: Option<ParamId>) -> Vec<(ParamId, Tensor)> {
        let all = self.0.iter_mut().enumerate().filter(|(i, _)| Some(ParamId(*i)) != kept);
        all.filter_map(|(i, slot)| Some((ParamId(i), slot.take()?))).collect()
    }

    /// Bytes of all gradients stored.
    pub fn bytes(&self) -> u64 {
        self.0.iter().flatten().map(|g| 4 * g.elem_count() as u64).sum()
    }
}
