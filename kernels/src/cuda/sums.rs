//! Sums over the GPUs of several processes, by NCCL on a stream of their own: the device's stream waits for them only
//! where their values are read.

use super::device::address;
use crate::sys::nccl::{Communicator, Error, Id, Nccl};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Result, Tensor, bail};
use std::sync::Arc;

/// The processes of a run, by their GPUs.
pub struct Sums {
    all: Communicator,
    /// Where the sums are made.
    stream: Arc<CudaStream>,
    device: CudaDevice,
}

/// Tensors that become their sums, held for as long as NCCL writes them.
pub struct Begun {
    tensors: Vec<Tensor>,
    done: CudaEvent,
    /// Where the tensors are read afterwards, and given back.
    reader: Arc<CudaStream>,
}

impl Sums {
    /// Waits for all `size` processes, of which this one is `rank`.
    ///
    /// # Errors
    /// They do not find each other; the driver refuses a stream.
    pub fn join(device: &CudaDevice, nccl: Nccl, id: Id, rank: usize, size: usize) -> Result<Self> {
        let reader = device.cuda_stream();
        reader.context().bind_to_thread().w()?;
        // Of two streams the driver's wrapper would record an event with every tensor; here the order is kept by hand.
        // SAFETY: `begin` lets the second stream wait for the first, and `Begun` the first for the second, before and
        // after each use of a tensor on the second.
        unsafe { device.disable_event_tracking() };
        let stream = reader.context().new_stream().w()?;
        Ok(Self { all: nccl.join(id, rank, size).map_err(said)?, stream, device: device.clone() })
    }

    /// Begins to sum contiguous f32 tensors over all processes, each in its place; all do so with as many, in the same
    /// order.
    ///
    /// # Errors
    /// A tensor of another kind; the driver or NCCL refuses.
    pub fn begin(&self, tensors: Vec<Tensor>) -> Result<Begun> {
        let place = |tensor: &Tensor| {
            if tensor.dtype() != DType::F32 {
                bail!("gradients are summed in f32, and this one is of {:?}", tensor.dtype());
            }
            Ok((address(tensor)?.0, tensor.elem_count()))
        };
        let places = tensors.iter().map(place).collect::<Result<Vec<_>>>()?;
        let reader = self.device.cuda_stream();
        self.stream.join(&reader).w()?;
        // SAFETY: the stream is the device's; the tensors are held by what this gives until the reading stream waits.
        unsafe { self.all.sum(&places, self.stream.cu_stream().cast()) }.map_err(said)?;
        Ok(Begun { tensors, done: self.stream.record_event(None).w()?, reader })
    }
}

impl Begun {
    /// The sums, for what is put on the device's stream from now on.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn wait(mut self) -> Result<Vec<Tensor>> {
        self.reader.wait(&self.done).w()?;
        Ok(std::mem::take(&mut self.tensors))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.tensors.is_empty() {
            // Their memory goes back on the reading stream. Where the driver refuses, there is nothing left to save.
            let _ = self.reader.wait(&self.done);
        }
    }
}

fn said(error: Error) -> candle_core::Error {
    candle_core::Error::Msg(match error {
        Error::Refused { call, why } => format!("NCCL refuses {call}: {why}"),
        other => format!("NCCL: {other:?}"),
    })
}
