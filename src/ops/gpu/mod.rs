//! The ops on a GPU: the same pairs by the kernels of `kernels/cuda` and cuBLAS. Nothing here waits for the device but
//! the sum of the losses and the norm of the gradients.

pub mod attention;
pub mod blocks;
pub mod embedding;
pub mod head;
pub mod linear;
pub mod norm;
pub mod optimizer;
pub mod product;
pub mod values;

use super::attention::Span;
use super::device::Gpu;
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use fttrain_kernels::cuda;

/// A micro-batch's rows on the GPU, once for all blocks.
#[derive(Debug)]
pub struct Placed {
    pub(super) gpu: Gpu,
    /// `[N]`
    pub(super) positions: Tensor,
    /// First row of each row's segment, `[N]`.
    pub(super) starts: Tensor,
}

impl Placed {
    /// `None` on the CPU.
    pub fn new(device: &Device, positions: &[u32], spans: &[Span]) -> Result<Option<Self>> {
        let Some(gpu) = Gpu::new(device) else { return Ok(None) };
        let starts = cuda::attention::starts(spans, positions.len());
        let put = |values: &[u32]| Tensor::from_slice(values, values.len(), device);
        Ok(Some(Self { positions: put(positions)?, starts: put(&starts)?, gpu }))
    }
}

impl Gpu {
    /// Room in f32 for as much as `x` holds.
    fn like(&self, x: &Tensor) -> Result<Tensor> {
        self.unwritten(x.shape(), DType::F32)
    }

    fn upload(&self, values: &[u32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, values.len(), &self.device())?)
    }
}
