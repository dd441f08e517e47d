//! AdamW and the norms of gradients on a GPU: one launch each over all tensors that are updated together.

use crate::error::{Error, Kind, Result};
use crate::ops::device::Gpu;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::optimizer::AdamW;
use fttrain_kernels::cuda::Address;
use fttrain_kernels::cuda::adamw as kernel;

/// Where one tensor's update reads and writes, and at which rates.
pub use kernel::Tensor as Entry;

/// Σ g² of each gradient; waits for the GPU, once.
pub fn sums_of_squares(gpu: &Gpu, grads: &[&Tensor]) -> Result<Vec<f64>> {
    let entry = |grad: &&Tensor| {
        let count = grad.elem_count();
        let grad = address(gpu, grad, count)?;
        Ok(Entry { param: 0, m: 0, v: 0, grad, count: count as u64, lr: 0.0, weight_decay: 0.0 })
    };
    let tables = Tables::new(gpu, &grads.iter().map(entry).collect::<Result<Vec<_>>>()?)?;
    let (tensors, pieces) = tables.addresses(gpu)?;
    let parts = gpu.unwritten(tables.pieces.len(), DType::F64)?;
    gpu.run(&kernel::norm_parts(tensors, pieces, tables.pieces.len(), gpu.address(&parts)?))?;
    Ok(kernel::sums(&tables.pieces, &parts.to_vec1::<f64>()?, grads.len()))
}

/// What AdamW does to `value` and its moments by `grad`, all f32 of one shape.
pub fn entry(gpu: &Gpu, [value, m, v, grad]: [&Tensor; 4], (lr, weight_decay): (f32, f32)) -> Result<Entry> {
    let count = value.elem_count();
    let at = |tensor: &Tensor| address(gpu, tensor, count);
    let (param, m, v, grad) = (at(value)?, at(m)?, at(v)?, at(grad)?);
    Ok(Entry { param, m, v, grad, count: count as u64, lr, weight_decay })
}

/// Where so many f32 lie.
fn address(gpu: &Gpu, tensor: &Tensor, count: usize) -> Result<u64> {
    if tensor.dtype() != DType::F32 || tensor.elem_count() != count {
        return Err(Error::new(Kind::Bug, format!("an update of {count} values by {tensor:?} on a GPU")));
    }
    Ok(gpu.address(tensor)?.0)
}

/// One update of all tensors, in place; rate and decay are each entry's own, the rest is `how`'s.
pub fn adamw(gpu: &Gpu, entries: &[Entry], how: &AdamW) -> Result<()> {
    let tables = Tables::new(gpu, entries)?;
    let (tensors, pieces) = tables.addresses(gpu)?;
    gpu.run(&kernel::update(tensors, pieces, tables.pieces.len(), how))
}

/// The tensors of a launch and their pieces, on the GPU.
struct Tables {
    tensors: Tensor,
    on_gpu: Tensor,
    pieces: Vec<kernel::Piece>,
}

impl Tables {
    fn new(gpu: &Gpu, entries: &[Entry]) -> Result<Self> {
        let pieces = kernel::pieces(entries.iter().map(|entry| entry.count));
        let tensors: Vec<u32> = entries.iter().flat_map(Entry::words).collect();
        let words: Vec<u32> = pieces.iter().flat_map(|piece| piece.words()).collect();
        Ok(Self { tensors: gpu.upload(&tensors)?, on_gpu: gpu.upload(&words)?, pieces })
    }

    fn addresses(&self, gpu: &Gpu) -> Result<(Address, Address)> {
        Ok((gpu.address(&self.tensors)?, gpu.address(&self.on_gpu)?))
    }
}
