//! The optimizer over all tensors at once: tables of tensors and of pieces, which kernels read as they lie here.

use super::launch::{Address, Launch, THREADS};
use crate::cpu::optimizer::AdamW;

/// Values of a piece, as in `adamw.cu`.
const CHUNK: u64 = 4096;

/// A trained tensor, as `adamw.cu` lays it out; all are f32 of one length.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Tensor {
    /// The values.
    pub param: u64,
    /// First moment.
    pub m: u64,
    /// Second moment.
    pub v: u64,
    /// The gradient.
    pub grad: u64,
    /// Number of values.
    pub count: u64,
    /// Learning rate of this step.
    pub lr: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

/// A block's work, as `adamw.cu` lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Its first value.
    pub first: u64,
    /// Which tensor.
    pub tensor: u32,
    unused: u32,
}

/// 64 bits as they lie in a GPU's memory.
fn halves(value: u64) -> [u32; 2] {
    let (low, high) = (value & u64::from(u32::MAX), value >> 32);
    [low, high].map(|half| u32::try_from(half).unwrap_or_default())
}

impl Tensor {
    /// As it lies in memory.
    pub fn words(&self) -> Vec<u32> {
        let addresses = [self.param, self.m, self.v, self.grad, self.count].into_iter().flat_map(halves);
        addresses.chain([self.lr.to_bits(), self.weight_decay.to_bits()]).collect()
    }
}

impl Piece {
    /// As it lies in memory.
    pub fn words(self) -> [u32; 4] {
        let [low, high] = halves(self.first);
        [low, high, self.tensor, self.unused]
    }
}

/// All tensors of these lengths in pieces.
pub fn pieces(lengths: impl IntoIterator<Item = u64>) -> Vec<Piece> {
    let of = |(tensor, length): (u32, u64)| {
        (0..length.div_ceil(CHUNK)).map(move |i| Piece { first: i * CHUNK, tensor, unused: 0 })
    };
    (0..).zip(lengths).flat_map(of).collect()
}

/// The sum of each of `tensors` tensors' parts, which lie piece by piece.
pub fn sums(pieces: &[Piece], parts: &[f64], tensors: usize) -> Vec<f64> {
    let mut sums = vec![0.0; tensors];
    for (piece, part) in pieces.iter().zip(parts) {
        sums[piece.tensor as usize] += part;
    }
    sums
}

/// `parts[piece] = Σ g²`, in f64.
pub fn norm_parts(tensors: Address, pieces: Address, count: usize, parts: Address) -> Launch {
    Launch::rows(("adamw", "norm_parts"), count, 256, &[tensors.into(), pieces.into(), parts.into()])
}

/// One update of every tensor; rate and decay are each one's own, the rest is `step`'s.
pub fn update(tensors: Address, pieces: Address, count: usize, step: &AdamW) -> Launch {
    #[allow(clippy::cast_possible_truncation)] // The update runs in f32, as on the CPU.
    let (new_m, old_v, new_v) = ((1.0 - step.beta1) as f32, step.beta2 as f32, (1.0 - step.beta2) as f32);
    let arguments = [
        tensors.into(),
        pieces.into(),
        new_m.into(),
        old_v.into(),
        new_v.into(),
        step.eps.into(),
        step.correction1.into(),
        step.correction2_sqrt.into(),
        step.grad_scale.into(),
    ];
    Launch::rows(("adamw", "adamw"), count, THREADS, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tensor_has_its_own_parts() {
        let pieces = pieces([1, 2 * CHUNK + 1, CHUNK]);
        let sums = sums(&pieces, &[1.0, 2.0, f64::NAN, 4.0, 8.0], 3);
        assert!(sums[1].is_nan());
        assert_eq!([sums[0], sums[2]].map(f64::to_bits), [1.0f64, 8.0].map(f64::to_bits));
    }
}
