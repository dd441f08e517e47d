//! Where probes lie and run: the CPU, or a GPU, which works behind the host that queues its runs.

use super::probe::Bounds;
use crate::error::Result;
use crate::ops::Matrix;
use crate::ops::device::Gpu;
use crate::ops::gpu::blocks::Blocks;
use candle_core::{Device, Tensor};
use fttrain_kernels::cpu::Nf4;
use std::sync::Arc;

/// A device that probes run on.
#[derive(Debug, Clone)]
pub struct Rig {
    device: Device,
    /// A run is not over when its call returns: several are timed at once, between two waits.
    queues: bool,
    bounds: Bounds,
}

/// Values of the weights that a probe goes round in: a step finds no weight in a cache that it left a layer ago.
const COLD_VALUES: usize = 16 << 20;
const MOST_COPIES: usize = 24;
/// The same beyond the caches of any GPU, 128 MiB in bf16.
const COLD_VALUES_QUEUED: usize = 64 << 20;
const MOST_COPIES_QUEUED: usize = 96;

impl Rig {
    /// This machine's cores.
    pub const CPU: Self = Self { device: Device::Cpu, queues: false, bounds: Bounds::CPU };

    /// A device with so many bytes of memory of its own; the CPU by itself.
    pub fn on(device: &Device, bytes: u64) -> Self {
        if device.is_cpu() { Self::CPU } else { Self::queue(device, bytes) }
    }

    /// One that runs are queued on. A CPU can play it: it is over with each when its call returns.
    pub(super) fn queue(device: &Device, bytes: u64) -> Self {
        Self { device: device.clone(), queues: true, bounds: Bounds::of_card(bytes) }
    }

    /// Where tensors lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether runs are timed several at once.
    pub fn queues(&self) -> bool {
        self.queues
    }

    /// How large its probes may be.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Waits until all that was queued is over.
    ///
    /// # Errors
    /// A fault of what was queued.
    pub fn wait(&self) -> Result<()> {
        Ok(self.device.synchronize()?)
    }

    /// Values of ordinary size: denormals and zeros may run at another speed. Those of a queue are drawn where they lie:
    /// a GPU is the faster and draws the less power, the more regular they are.
    pub fn filled(&self, rows: usize, columns: usize) -> Result<Tensor> {
        let shape = (rows, columns);
        if self.queues {
            return Ok(Tensor::rand(-0.45f32, 0.55, shape, &self.device)?);
        }
        Ok(Tensor::from_vec(ordinary(rows * columns), shape, &self.device)?)
    }

    /// The same in NF4.
    pub fn blocks(&self, rows: usize, columns: usize) -> Result<Matrix> {
        let values = ordinary(rows * columns);
        let blocks = Nf4::encode((rows, columns), true, |range, out| out.copy_from_slice(&values[range]));
        Ok(match Gpu::new(&self.device) {
            Some(gpu) => Matrix::OnGpu(Arc::new(Blocks::of_nf4(&gpu, &blocks)?)),
            None => Matrix::Quantised(Arc::new(blocks)),
        })
    }

    /// Weights of so many values that a probe goes round in; no more of them on a GPU than the model has `layers`, for its
    /// memory is small and a small model's weights do stay in its caches.
    pub(super) fn copies(&self, values: usize, layers: usize) -> usize {
        let (cold, most) = if self.queues {
            (COLD_VALUES_QUEUED, MOST_COPIES_QUEUED.min(layers))
        } else {
            (COLD_VALUES, MOST_COPIES)
        };
        (cold / values.max(1)).clamp(1, most.max(1))
    }

    /// Tensors of so many values that an optimizer updates at once.
    pub(super) fn tensors(values: usize) -> usize {
        (COLD_VALUES / values.max(1)).clamp(1, 400)
    }

    /// A tensor of its own beside `x` on a queue; on the CPU the same.
    pub(super) fn beside(&self, x: &Tensor) -> Result<Tensor> {
        Ok(if self.queues { x.copy()? } else { x.clone() })
    }
}

fn ordinary(count: usize) -> Vec<f32> {
    (0u16..1000).cycle().take(count).map(|i| f32::from(i) * 1e-3 - 0.45).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::host;

    #[test]
    fn a_queue_goes_round_in_more_and_never_in_more_than_the_model_has() {
        let gpu = Rig::queue(&Device::Cpu, 80 << 30);
        assert_eq!((Rig::CPU.copies(1 << 20, 4), gpu.copies(1 << 20, 4)), (16, 4));
        assert_eq!((Rig::CPU.copies(1 << 23, 99), gpu.copies(1 << 23, 99)), (2, 8));
        assert_eq!(gpu.copies(usize::MAX, 0), 1);
    }

    #[test]
    fn values_are_of_ordinary_size_wherever_they_are_made() {
        for rig in [Rig::CPU, Rig::queue(&Device::Cpu, 1 << 30)] {
            let filled = rig.filled(30, 50).unwrap();
            assert_eq!(filled.dims(), [30, 50]);
            let values = host::read(&filled).unwrap().to_vec();
            let mean = values.iter().map(|v| v.abs()).sum::<f32>() / 1500.0;
            assert!((0.2..0.3).contains(&mean) && values.iter().all(|v| v.abs() <= 0.55), "{mean}");
            assert_eq!(rig.blocks(64, 128).unwrap().shape().unwrap(), (64, 128));
        }
    }
}
