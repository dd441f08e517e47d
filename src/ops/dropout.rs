//! Dropout whose mask is a function of (seed, step, site, row, column): never of a micro-batch or a thread, and made
//! again in the backward pass instead of being kept.

use super::device::Gpu;
use super::{gpu, host};
use crate::error::Result;
use candle_core::Tensor;
use fttrain_kernels::cpu::mix;
use rayon::prelude::*;

/// Where in the run the rows of a micro-batch stand.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// The micro-batch's first row, counted through the step.
    pub first_token: u64,
}

/// x `[N, D]` in f32, on a GPU in bf16, too, with each element zeroed with probability `p`, the others divided by 1 − p; linear in x, so that it is
/// its own backward.
pub fn apply(x: &Tensor, p: f32, site: u64, noise: Noise) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // p lies in [0, 1).
    let threshold = (f64::from(p) * 4_294_967_296.0) as u64;
    let keep = 1.0 / (1.0 - p);
    let stream = mix(mix(mix(noise.seed ^ 0x6472_6f70) ^ noise.step) ^ site);
    if let Some(gpu) = Gpu::of(x) {
        return gpu::values::dropout(&gpu, x, (stream, noise.first_token), (threshold, keep));
    }
    let mut y = host::read(x)?.to_vec();
    y.par_chunks_mut(width).enumerate().for_each(|(i, row)| {
        let key = mix(stream ^ (noise.first_token + i as u64));
        for (pair, values) in row.chunks_mut(2).enumerate() {
            let bits = mix(key ^ pair as u64);
            for (half, value) in values.iter_mut().enumerate() {
                let dropped = (bits >> (32 * half)) & 0xffff_ffff < threshold;
                *value = if dropped { 0.0 } else { *value * keep };
            }
        }
    });
    host::tensor(y, x.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(rows: usize, noise: Noise) -> Vec<f32> {
        let ones = host::tensor(vec![1.0; rows * 64], (rows, 64)).unwrap();
        let y = apply(&ones, 0.25, 3, noise).unwrap();
        host::read(&y).unwrap().to_vec()
    }

    #[test]
    fn a_mask_does_not_depend_on_the_micro_batch() {
        let at = |first_token| Noise { seed: 1, step: 2, first_token };
        let whole = masked(8, at(0));
        assert_eq!(whole[4 * 64..], masked(4, at(4))[..]);
        assert_ne!(whole, masked(8, Noise { step: 3, ..at(0) }));
        assert_ne!(whole, masked(8, Noise { seed: 2, ..at(0) }));
    }

    #[test]
    fn the_dropped_share_is_p_and_the_mean_is_kept() {
        let values = masked(4096, Noise { seed: 7, step: 0, first_token: 0 });
        let share = values.iter().filter(|&&x| x == 0.0).count() as f64 / values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        assert!((share - 0.25).abs() < 0.005, "{share}");
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }
}
