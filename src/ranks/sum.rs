//! Gradients of several processes that become their sums: on GPUs where NCCL joins them, otherwise through the host.

use super::world::HostSum;
use crate::error::Result;
use crate::ops::{device, host};
use candle_core::Tensor;

/// Tensors that become their sums over all processes.
pub struct Sum<'w>(pub(super) How<'w>);

pub(super) enum How<'w> {
    /// The tensors, and all their values.
    Host(Vec<Tensor>, Box<dyn HostSum + 'w>),
    /// In their places.
    Gpus(device::Summed),
}

impl Sum<'_> {
    /// Lets it go on, where nothing else does.
    pub fn progress(&mut self) {
        if let How::Host(_, sum) = &mut self.0 {
            sum.progress();
        }
    }

    /// Whether it holds copies of the tensors' values until it is waited for.
    pub fn is_on_host(&self) -> bool {
        matches!(self.0, How::Host(..))
    }

    /// The sums, once all processes have begun theirs; on a GPU, for what is computed from now on.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn wait(self) -> Result<Vec<Tensor>> {
        let (tensors, sum) = match self.0 {
            How::Host(tensors, sum) => (tensors, sum),
            How::Gpus(summed) => return summed.wait(),
        };
        let sums = sum.wait();
        let mut rest = sums.as_slice();
        for tensor in &tensors {
            let (own, behind) = rest.split_at(tensor.elem_count());
            host::edit(tensor, |values| values.copy_from_slice(own))?;
            rest = behind;
        }
        Ok(tensors)
    }
}

/// The values of all tensors, one behind the other.
pub(super) fn values(tensors: &[Tensor]) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(tensors.iter().map(Tensor::elem_count).sum());
    for tensor in tensors {
        values.extend_from_slice(&host::read(tensor)?);
    }
    Ok(values)
}
