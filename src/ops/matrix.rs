//! A weight matrix as it lies in memory: dense, or in blocks of fewer bits that products take apart, piece by piece on the
//! CPU and whole on a GPU.

use super::device::Gpu;
use super::gpu::blocks::Blocks;
use super::matmul::Precision;
use super::{gpu, host};
use crate::error::{Error, Kind, Result};
use candle_core::{DType, Device, Tensor};
use fttrain_kernels::cpu::Quantised;
use std::sync::Arc;

/// A matrix `[out, in]`; clones share its values.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// f32 or bf16.
    Dense(Tensor),
    /// Frozen, in blocks.
    Quantised(Arc<dyn Quantised>),
    /// Frozen, in blocks on a GPU.
    OnGpu(Arc<Blocks>),
}

/// A matrix that a product reads.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// f32 or bf16.
    Dense(&'a Tensor),
    /// In blocks.
    Quantised(&'a dyn Quantised),
    /// In blocks on a GPU.
    OnGpu(&'a Blocks),
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl<'a> From<&'a Matrix> for Operand<'a> {
    fn from(matrix: &'a Matrix) -> Self {
        match matrix {
            Matrix::Dense(tensor) => Self::Dense(tensor),
            Matrix::Quantised(blocks) => Self::Quantised(&**blocks),
            Matrix::OnGpu(blocks) => Self::OnGpu(blocks),
        }
    }
}

impl Operand<'_> {
    /// `(out, in)`.
    ///
    /// # Errors
    /// A tensor that is no matrix: a fault of the program.
    pub fn shape(self) -> Result<(usize, usize)> {
        Ok(match self {
            Self::Dense(tensor) => tensor.dims2()?,
            Self::Quantised(blocks) => blocks.shape(),
            Self::OnGpu(blocks) => blocks.shape(),
        })
    }
}

impl Matrix {
    /// `(out, in)`.
    ///
    /// # Errors
    /// A tensor that is no matrix: a fault of the program.
    pub fn shape(&self) -> Result<(usize, usize)> {
        Operand::from(self).shape()
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Quantised(blocks) => blocks.bytes(),
            Self::OnGpu(blocks) => blocks.bytes(),
        }
    }

    /// Whether both are one matrix in memory, as a tied head and its embedding are.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dense(a), Self::Dense(b)) => a.id() == b.id(),
            (Self::Quantised(a), Self::Quantised(b)) => Arc::ptr_eq(a, b),
            (Self::OnGpu(a), Self::OnGpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The rows `ids` as `[N, in]` in f32.
    ///
    /// # Errors
    /// An id that is no row: a fault of the program.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => {
                if let Some(gpu) = Gpu::of(tensor) {
                    return gpu::embedding::gather(&gpu, tensor, ids);
                }
                let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?;
                Ok(tensor.index_select(&ids, 0)?.to_dtype(DType::F32)?)
            }
            Self::Quantised(blocks) => {
                let width = blocks.shape().1;
                let mut values = vec![0f32; ids.len() * width];
                for (&id, row) in ids.iter().zip(values.chunks_exact_mut(width.max(1))) {
                    blocks.dequantise(id as usize, 0..width, row);
                }
                host::tensor(values, (ids.len(), width))
            }
            Self::OnGpu(blocks) => blocks.rows(ids),
        }
    }

    /// Σ of the squares of each row, in f64.
    ///
    /// # Errors
    /// A tensor that is no matrix: a fault of the program.
    pub fn row_squares(&self) -> Result<Vec<f64>> {
        let (rows, width) = self.shape()?;
        let mut buffer = vec![0f32; width];
        let of = |row| match self {
            Self::Dense(tensor) => {
                let row = tensor.narrow(0, row, 1)?.to_dtype(DType::F32)?;
                Ok(fttrain_kernels::cpu::sum_of_squares(&host::read(&row)?))
            }
            Self::Quantised(blocks) => {
                blocks.dequantise(row, 0..width, &mut buffer);
                Ok(fttrain_kernels::cpu::sum_of_squares(&buffer))
            }
            Self::OnGpu(_) => Err(Error::new(Kind::Bug, "lengths of rows on a GPU")),
        };
        (0..rows).map(of).collect()
    }

    /// All values in f32, dequantised where they are in blocks: as large as the matrix, so for copies that are to be
    /// trained or written.
    ///
    /// # Errors
    /// A matrix too large for this machine's memory.
    pub fn to_f32(&self) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor.to_dtype(DType::F32)?.copy()?),
            Self::Quantised(blocks) => {
                let (rows, width) = blocks.shape();
                let mut values = vec![0f32; rows * width];
                for (row, out) in values.chunks_exact_mut(width.max(1)).enumerate() {
                    blocks.dequantise(row, 0..width, out);
                }
                host::tensor(values, (rows, width))
            }
            Self::OnGpu(blocks) => blocks.dense(Precision::F32),
        }
    }
}
