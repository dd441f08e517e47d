//! A frozen matrix in blocks on a GPU, taken apart whole for each product that reads it.

use super::product;
use crate::error::{Error, Kind, Result};
use crate::ops::device::Gpu;
use crate::ops::matmul::Precision;
use candle_core::{DType, Tensor};
use fttrain_kernels::cpu::{self, Ggml, GgmlKind, Nf4, Nf4Scales, Quantised};
use fttrain_kernels::cuda::ggml::{self, Rows};
use fttrain_kernels::cuda::{Address, Launch, nf4};

/// A matrix `[out, in]` in blocks.
#[derive(Debug)]
pub struct Blocks {
    gpu: Gpu,
    shape: (usize, usize),
    bytes: u64,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Nf4 {
        /// Two values a byte.
        codes: Tensor,
        /// The sixteen that a code stands for.
        values: Tensor,
        scales: Scales,
    },
    Ggml {
        kind: GgmlKind,
        blocks: Tensor,
    },
}

#[derive(Debug)]
enum Scales {
    Plain(Tensor),
    Double { codes: Tensor, map: Tensor, largest: Tensor, mean: f32 },
}

impl Blocks {
    /// The same matrix on a GPU.
    ///
    /// # Errors
    /// Its memory does not suffice.
    pub fn of_nf4(gpu: &Gpu, matrix: &Nf4) -> Result<Self> {
        let device = gpu.device();
        let floats = |values: &[f32]| Tensor::from_slice(values, values.len(), &device);
        let bytes = |values: &[u8]| Tensor::from_slice(values, values.len(), &device);
        let parts = matrix.parts();
        let scales = match parts.scales {
            Nf4Scales::Plain(scales) => Scales::Plain(floats(scales)?),
            Nf4Scales::Double { code, mean } => Scales::Double {
                codes: bytes(&code.codes)?,
                map: floats(&cpu::dynamic_map(true))?,
                largest: floats(&code.absmax)?,
                mean,
            },
        };
        let format = Format::Nf4 { codes: bytes(parts.codes)?, values: floats(&cpu::NF4_VALUES)?, scales };
        Ok(Self { gpu: gpu.clone(), shape: matrix.shape(), bytes: matrix.bytes(), format })
    }

    /// The same matrix on a GPU.
    ///
    /// # Errors
    /// Its memory does not suffice.
    pub fn of_ggml(gpu: &Gpu, matrix: &Ggml) -> Result<Self> {
        let (kind, blocks) = matrix.parts();
        let blocks = Tensor::from_slice(blocks, blocks.len(), &gpu.device())?;
        let format = Format::Ggml { kind, blocks };
        Ok(Self { gpu: gpu.clone(), shape: matrix.shape(), bytes: matrix.bytes(), format })
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes of its codes and scales.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of its values.
    ///
    /// # Errors
    /// The GPU's memory does not suffice.
    pub fn dense(&self, precision: Precision) -> Result<Tensor> {
        let (gpu, dtype) = (&self.gpu, product::dtype(precision));
        let (rows, width) = self.shape;
        let y = gpu.unwritten(self.shape, dtype)?;
        let to = (gpu.address(&y)?, dtype == DType::BF16);
        gpu.run(&match &self.format {
            Format::Nf4 { codes, values, scales } => {
                let (codes, values) = (gpu.address(codes)?, gpu.address(values)?);
                nf4::dequantise(codes, values, scales.on(gpu)?, rows * width, to)
            }
            Format::Ggml { kind, blocks } => self.ggml(*kind, blocks, Rows::All(rows), to)?,
        })?;
        Ok(y)
    }

    /// The rows `ids` as `[N, in]` in f32.
    ///
    /// # Errors
    /// The GPU's memory does not suffice. A matrix in NF4: tables are kept dense beside it, so this is a fault of the program.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let Format::Ggml { kind, blocks } = &self.format else {
            return Err(Error::new(Kind::Bug, "rows of a table in NF4 on a GPU"));
        };
        let (y, on_gpu) = (self.gpu.unwritten((ids.len(), self.shape.1), DType::F32)?, self.gpu.upload(ids)?);
        let (rows, to) = (Rows::Some(self.gpu.address(&on_gpu)?, ids.len()), self.gpu.address(&y)?);
        self.gpu.run(&self.ggml(*kind, blocks, rows, (to, false))?)?;
        Ok(y)
    }

    fn ggml(&self, kind: GgmlKind, blocks: &Tensor, rows: Rows, to: (Address, bool)) -> Result<Launch> {
        Ok(ggml::dequantise(kind, self.gpu.address(blocks)?, rows, self.shape.1, to))
    }
}

impl Scales {
    fn on(&self, gpu: &Gpu) -> Result<nf4::Scales> {
        Ok(match self {
            Self::Plain(scales) => nf4::Scales::Plain(gpu.address(scales)?),
            Self::Double { codes, map, largest, mean } => nf4::Scales::Double {
                codes: gpu.address(codes)?,
                map: gpu.address(map)?,
                largest: gpu.address(largest)?,
                mean: *mean,
            },
        })
    }
}
