//! The trained tensors of a run, in name order, which is the order of every sum over them.

use crate::error::Result;
use crate::ops::{Grads, ParamId, Weight};
use candle_core::Tensor;
use fttrain_kernels::sys::memory::LARGE;

/// How the name of `DoRA`'s vector ends.
pub const MAGNITUDE: &str = "lora_magnitude_vector";

/// A trained tensor: f32, or bf16 rounded at random, updated in place, shared with the layer that uses it.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in the file that the run leaves: PEFT's for an adapter, Hugging Face's for a whole model.
    pub name: String,
    /// The values.
    pub value: Tensor,
    /// Weight decay applies: to all but norms and biases, as transformers' Trainer does it.
    pub decay: bool,
    /// Learning rate over the schedule's (LoRA+).
    pub lr_ratio: f64,
    /// The value it had when the frozen weight lost as much (`PiSSA`): what a file must take away again.
    pub lent: Option<Tensor>,
}

/// All trained tensors.
#[derive(Debug, Clone, Default)]
pub struct Params {
    all: Vec<Param>,
}

impl Params {
    /// Takes a tensor in and gives its layer the weight to use.
    pub fn add(&mut self, name: String, value: Tensor, lr_ratio: f64) -> Weight {
        let param = Some(ParamId(self.all.len()));
        // A vector that is neither is DoRA's.
        let decay = value.rank() > 1 || name.ends_with(MAGNITUDE);
        self.all.push(Param { name, value: value.clone(), decay, lr_ratio, lent: None });
        Weight { value, param }
    }

    /// The same for a tensor whose start value was taken out of a frozen weight.
    pub fn add_lent(&mut self, name: String, value: Tensor, lr_ratio: f64) -> Result<Weight> {
        let lent = value.copy()?;
        let weight = self.add(name, value, lr_ratio);
        if let Some(param) = self.all.last_mut() {
            param.lent = Some(lent);
        }
        Ok(weight)
    }

    /// In the order of their numbers.
    pub fn numbered(&self) -> impl ExactSizeIterator<Item = (ParamId, &Param)> {
        self.all.iter().enumerate().map(|(i, param)| (ParamId(i), param))
    }

    /// In name order, with their numbers.
    pub fn sorted(&self) -> Vec<(ParamId, &Param)> {
        let mut all: Vec<_> = self.numbered().collect();
        all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        all
    }

    /// An empty set of gradients for these tensors.
    pub fn no_grads(&self) -> Grads {
        Grads::new(self.all.len())
    }

    /// A tensor by its number.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.all[id.0]
    }

    /// Bytes of all tensors, and of the starts that are kept of them.
    pub fn bytes(&self) -> u64 {
        let all = self.all.iter().flat_map(|p| std::iter::once(&p.value).chain(&p.lent));
        all.map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum()
    }

    /// Bytes of the gradients, f32, that have no pages of their own.
    pub fn small_gradients(&self) -> u64 {
        let gradients = self.all.iter().map(|p| 4 * p.value.elem_count());
        gradients.filter(|bytes| *bytes < LARGE).sum::<usize>() as u64
    }

    /// Number of trained values.
    pub fn count(&self) -> u64 {
        self.all.iter().map(|p| p.value.elem_count() as u64).sum()
    }
}
