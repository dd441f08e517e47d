//! Cross-entropy over chunks of logits on a GPU.

use crate::error::Result;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda::head as kernel;

/// Token losses of a whole micro-batch, summed where they are made.
#[derive(Debug, Clone)]
pub struct Losses {
    gpu: Gpu,
    /// `[1]` in f64.
    sum: Tensor,
}

impl Losses {
    /// None yet.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { gpu: gpu.clone(), sum: Tensor::zeros(1, DType::F64, &gpu.device())? })
    }

    /// Adds the losses of a chunk of logits `[C, V]`, which become their gradient times each token's scale where there
    /// are scales `[C]`: one launch for each stretch of equal ones, which a mean over tokens has one of.
    pub fn add(&self, logits: &Tensor, targets: &[u32], scales: Option<&[f32]>) -> Result<()> {
        let Some(scales) = scales else { return self.add_rows(logits, targets, None) };
        let mut at = 0;
        for equal in scales.chunk_by(|a, b| a.to_bits() == b.to_bits()) {
            let (rows, count) = (logits.narrow(0, at, equal.len())?, equal.len());
            self.add_rows(&rows, &targets[at..at + count], equal.first().copied())?;
            at += count;
        }
        Ok(())
    }

    fn add_rows(&self, logits: &Tensor, targets: &[u32], scale: Option<f32>) -> Result<()> {
        let gpu = &self.gpu;
        let (losses, on_gpu) = (gpu.unwritten(targets.len(), DType::F32)?, gpu.upload(targets)?);
        let (at, to) = (gpu.address(logits)?, gpu.address(&losses)?);
        gpu.run(&kernel::cross_entropy(at, gpu.address(&on_gpu)?, logits.dims2()?, scale, to))?;
        gpu.run(&kernel::sum_losses(to, targets.len(), gpu.address(&self.sum)?))
    }

    /// Their sum; waits for the GPU.
    pub fn sum(&self) -> Result<f64> {
        Ok(self.sum.to_vec1::<f64>()?.first().copied().unwrap_or_default())
    }
}
