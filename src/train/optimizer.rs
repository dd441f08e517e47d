//! AdamW in f32 with its state in name order, and the check that nothing that is not finite ever reaches a weight.

use super::Error;
use crate::config::Train;
use crate::error::Result;
use crate::model::Params;
use crate::model::adapter::peft::write_safetensors;
use crate::ops::{Grads, ParamId, host, optimizer};
use candle_core::Tensor;
use std::io::{self, Write};

/// The optimizer of a run.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    /// Updates done.
    steps: u64,
    moments: Vec<Moments>,
}

struct Moments {
    id: ParamId,
    name: String,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// Moments of zero for every trained tensor.
    pub fn new(params: &Params, train: &Train) -> Result<Self> {
        let moments = params.sorted().into_iter().map(|(id, param)| {
            Ok(Moments {
                id,
                name: param.name.clone(),
                m: param.value.zeros_like()?,
                v: param.value.zeros_like()?,
            })
        });
        Ok(Self {
            beta1: train.adam_beta1,
            beta2: train.adam_beta2,
            eps: train.adam_epsilon,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            steps: 0,
            moments: moments.collect::<Result<_>>()?,
        })
    }

    /// The norm of all gradients together.
    ///
    /// # Errors
    /// It is not finite (7): the first tensor in name order whose gradient is not.
    pub fn norm(&self, grads: &Grads) -> Result<f64, crate::error::Error> {
        let mut sum = 0.0;
        for moments in &self.moments {
            let Some(grad) = grads.get(moments.id) else { continue };
            let squares = optimizer::sum_of_squares(grad)?;
            if !squares.is_finite() {
                return Err(Error::Gradient(moments.name.clone()).into());
            }
            sum += squares;
        }
        Ok(sum.sqrt())
    }

    /// One update at the rate `lr`, with gradients scaled down to `max_grad_norm` where `norm` is above it.
    pub fn apply(&mut self, params: &Params, grads: &Grads, norm: f64, lr: f64) -> Result<()> {
        self.steps += 1;
        // torch's clip_grad_norm_ divides by the norm plus 1e-6.
        let clip = if self.max_grad_norm > 0.0 { (self.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        for (moments, (id, param)) in self.moments.iter().zip(params.sorted()) {
            let Some(grad) = grads.get(id) else { continue };
            let decay = if param.decay { self.weight_decay } else { 0.0 };
            #[allow(clippy::cast_possible_truncation)] // The update runs in f32.
            let how = optimizer::AdamW {
                lr: (lr * param.lr_ratio) as f32,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps as f32,
                weight_decay: decay as f32,
                correction1: (1.0 - self.beta1.powi(t)) as f32,
                correction2_sqrt: (1.0 - self.beta2.powi(t)).sqrt() as f32,
                grad_scale: clip as f32,
            };
            optimizer::adamw(&param.value, &moments.m, &moments.v, grad, &how)?;
        }
        Ok(())
    }

    /// Bytes of the moments.
    pub fn bytes(&self) -> u64 {
        self.moments.iter().map(|m| 8 * m.m.elem_count() as u64).sum()
    }

    /// Writes the moments as safetensors, `m.NAME` and `v.NAME` in name order.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let names: Vec<(String, &Tensor)> = [("m", false), ("v", true)]
            .into_iter()
            .flat_map(|(kind, second)| {
                let moments = self.moments.iter();
                moments.map(move |p| (format!("{kind}.{}", p.name), if second { &p.v } else { &p.m }))
            })
            .collect();
        write_safetensors(names.iter().map(|(name, t)| (name.as_str(), *t)), out)
    }

    /// Takes over the state that [`Self::write`] wrote after `steps` updates.
    ///
    /// # Errors
    /// A tensor is missing or of another shape (4).
    pub fn restore(&mut self, bytes: &[u8], steps: u64) -> Result<()> {
        let file = safetensors::SafeTensors::deserialize(bytes).map_err(|e| Error::State(e.to_string()))?;
        for moments in &self.moments {
            for (kind, to) in [("m", &moments.m), ("v", &moments.v)] {
                fill(to, &file, &format!("{kind}.{}", moments.name))?;
            }
        }
        self.steps = steps;
        Ok(())
    }
}

/// Copies the f32 tensor `name` of a file into `to`.
///
/// # Errors
/// It is missing, or of another shape or type (4).
fn fill(to: &Tensor, file: &safetensors::SafeTensors<'_>, name: &str) -> Result<()> {
    let view = file.tensor(name).map_err(|_| Error::State(format!("`{name}` is missing")))?;
    if view.shape() != to.dims() || view.dtype() != safetensors::Dtype::F32 {
        let found =
            format!("`{name}` is {:?} {:?}, expected F32 {:?}", view.dtype(), view.shape(), to.dims());
        return Err(Error::State(found).into());
    }
    host::edit(to, |to| {
        for (x, bytes) in to.iter_mut().zip(view.data().chunks_exact(4)) {
            *x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    })
}
