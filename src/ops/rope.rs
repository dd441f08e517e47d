//! Rotary position embedding: tables once a model, rotation in place, the inverse rotation as backward.

use super::device::Gpu;
use super::gpu::{self, Placed};
use super::host;
use super::profile::{self, Site};
use crate::arch::{Rope, RopeScaling};
use crate::error::Result;
use candle_core::{Device, Tensor};
use std::f64::consts::PI;

/// cos and sin of `[positions, head_dim/2]`.
#[derive(Debug, Clone)]
pub struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    head_dim: usize,
    /// The same two on the GPU that the model lies on.
    on_gpu: Option<(Tensor, Tensor)>,
}

impl Table {
    /// For positions below `positions`. Frequencies and angles are rounded to f32 where transformers does so, so that
    /// long positions turn by the same angle there and here.
    #[allow(clippy::cast_possible_truncation)] // The rounding is wanted.
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        let frequencies: Vec<f32> = (0..head_dim / 2)
            .map(|i| scaled(&rope.scaling, 1.0 / rope.theta.powf((2 * i) as f64 / head_dim as f64)) as f32)
            .collect();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(|a| f64::from(a).sin_cos()).map(|(s, c)| (s as f32, c as f32)).unzip();
        Self { cos, sin, head_dim, on_gpu: None }
    }

    /// The same, where the model lies.
    pub fn on(mut self, device: &Device) -> Result<Self> {
        if Gpu::new(device).is_some() {
            let shape = (self.cos.len() / (self.head_dim / 2).max(1), self.head_dim / 2);
            let put = |values: &[f32]| Tensor::from_slice(values, shape, device);
            self.on_gpu = Some((put(&self.cos)?, put(&self.sin)?));
        }
        Ok(self)
    }

    /// Turns q and k, or their gradients back, where they lie.
    pub fn turn_both(
        &self,
        (q, k): (&Tensor, &Tensor),
        positions: &[u32],
        placed: Option<&Placed>,
        inverse: bool,
    ) -> Result<()> {
        if let (Some(placed), Some((cos, sin))) = (placed, &self.on_gpu) {
            let _span = profile::op(Site::Rope);
            return gpu::values::rope(placed, (q, k), (cos, sin), inverse);
        }
        self.turn(q, positions, inverse)?;
        self.turn(k, positions, inverse)
    }

    /// Turns each head of x `[N, heads·head_dim]` in place by its row's position.
    pub fn forward(&self, x: &Tensor, positions: &[u32]) -> Result<()> {
        self.turn(x, positions, false)
    }

    /// Turns the gradient back, in place.
    pub fn backward(&self, dx: &Tensor, positions: &[u32]) -> Result<()> {
        self.turn(dx, positions, true)
    }

    fn turn(&self, x: &Tensor, positions: &[u32], inverse: bool) -> Result<()> {
        let _span = profile::op(Site::Rope);
        let width = x.dim(1)?;
        host::edit(x, |x| {
            fttrain_kernels::cpu::rope(x, width, self.head_dim, positions, &self.cos, &self.sin, inverse);
        })
    }
}

/// A frequency after the model's scaling (Llama 3: transformers' `_compute_llama3_parameters`).
fn scaled(scaling: &RopeScaling, frequency: f64) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let wavelength = 2.0 * PI / frequency;
            if wavelength > original_context / low_freq_factor {
                frequency / factor
            } else if wavelength < original_context / high_freq_factor {
                frequency
            } else {
                let smooth =
                    (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}
