//! Cross-entropy over chunks of logits on a GPU.

use crate::error::Result;
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cuda::head::{self as kernel, Slopes};

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

    /// Adds the losses of a chunk of logits `[C, V]`.
    pub fn add(&self, logits: &Tensor, targets: &[u32]) -> Result<()> {
        self.add_rows(logits, targets, None)
    }

    /// The same, and gradients of logits times each token's scale `[C]`, in the type that products read them in; the logits
    /// are used up. One launch for each stretch of equal scales, which a mean over tokens has one of.
    pub fn add_with_slopes(
        &self,
        logits: &Tensor,
        targets: &[u32],
        scales: &[f32],
        dtype: DType,
    ) -> Result<Tensor> {
        let slopes = match dtype {
            DType::BF16 => self.gpu.unwritten(logits.shape(), dtype)?,
            _ => logits.clone(),
        };
        let mut at = 0;
        for equal in scales.chunk_by(|a, b| a.to_bits() == b.to_bits()) {
            let count = equal.len();
            let (rows, room) = (logits.narrow(0, at, count)?, slopes.narrow(0, at, count)?);
            let (to, is_bf16) = (self.gpu.address(&room)?, dtype == DType::BF16);
            let of_rows = equal.first().map(|&scale| Slopes { to, is_bf16, scale });
            self.add_rows(&rows, &targets[at..at + count], of_rows)?;
            at += count;
        }
        Ok(slopes)
    }

    fn add_rows(&self, logits: &Tensor, targets: &[u32], slopes: Option<Slopes>) -> Result<()> {
        let gpu = &self.gpu;
        let (losses, on_gpu) = (gpu.unwritten(targets.len(), DType::F32)?, gpu.upload(targets)?);
        let (at, to) = (gpu.address(logits)?, gpu.address(&losses)?);
        gpu.run(&kernel::cross_entropy(at, gpu.address(&on_gpu)?, logits.dims2()?, slopes, to))?;
        gpu.run(&kernel::sum_losses(to, targets.len(), gpu.address(&self.sum)?))
    }

    /// Their sum; waits for the GPU.
    pub fn sum(&self) -> Result<f64> {
        Ok(self.sum.to_vec1::<f64>()?.first().copied().unwrap_or_default())
    }
}
