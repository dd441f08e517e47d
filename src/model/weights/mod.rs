//! A base model's tensors, one by one, by their Hugging Face names: from safetensors, from GGUF (dequantised, rows of
//! q and k put back into halves), or fresh. Everything that can be wrong with names, shapes and types is said before
//! the first byte of a weight is read; files are read by ordinary reads, never mapped.

mod check;
mod fault;
mod gguf_names;
mod init;
mod read;

pub use fault::{Error, Mismatch};
pub use gguf_names::{gguf_name, interleaved_heads};
pub use init::drawn;
pub use read::interleave;

use crate::arch::safetensors::{self, Dtype};
use crate::arch::source::WeightFiles;
use crate::arch::{Arch, gguf};
use crate::error::Result;
use crate::ops::device::Gpu;
use crate::ops::gpu::blocks::Blocks;
use crate::ops::{Matrix, host};
use candle_core::{DType, Device, Tensor};
use fttrain_kernels::cpu::{Nf4, Quantised};
use read::OpenFile;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a matrix is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// As f32 or bf16.
    Dense(DType),
    /// In NF4, made of the file's values piece by piece.
    Nf4 {
        /// The scales in 8 bits.
        double_quant: bool,
    },
    /// As the file has it: a GGUF file's blocks, halves of either kind, f32.
    AsStored,
}

/// Gives out the tensors of a checked model.
#[derive(Debug)]
pub struct Loader {
    files: Vec<OpenFile>,
    tensors: BTreeMap<String, Slot>,
    fresh: Option<Fresh>,
    notes: Vec<String>,
    /// Where tensors are put.
    device: Device,
}

/// Where and how a tensor lies.
#[derive(Debug, Clone)]
struct Slot {
    /// Index into [`Loader::files`]; unused for fresh weights.
    file: usize,
    /// First byte in the file.
    offset: u64,
    len: u64,
    /// Outermost first.
    shape: Vec<usize>,
    stored: Stored,
    /// Rows are interleaved by this many heads (GGUF's llama).
    interleaved: Option<usize>,
}

/// Tensors by their Hugging Face names, as the files hold them.
type Found = Vec<(String, Slot)>;

impl Slot {
    /// Rows, and values of a row; a vector is one row.
    fn rows(&self) -> (usize, usize) {
        match self.shape.split_last() {
            Some((width, outer)) => (outer.iter().product(), *width),
            None => (0, 0),
        }
    }
}

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Plain(Dtype),
    Ggml(gguf::Type),
}

impl Stored {
    fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Ggml(kind) => kind.name(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Fresh {
    seed: u64,
    std: f64,
}

impl Loader {
    /// Compares what the files hold with what the model needs, and opens them. `name` is what messages call the
    /// model; `seed` is used by fresh weights only.
    ///
    /// # Errors
    /// Tensors missing, left over, of another shape or of a type that holds no weights: the first ten, with expected
    /// and found shapes. A file that changed since its header was read.
    pub fn open(files: &WeightFiles, arch: &Arch, seed: u64, name: &str) -> Result<Self> {
        let (opened, found) = match files {
            WeightFiles::Reinit => return Ok(Self::fresh(arch, seed)),
            WeightFiles::Safetensors(shards) => safetensors_slots(shards)?,
            WeightFiles::Gguf(header) => {
                (vec![OpenFile::open(&header.path, header.stamp)?], gguf_names::slots(header, arch))
            }
        };
        let (tensors, notes) = check::check(found, arch, name)?;
        Ok(Self { files: opened, tensors, fresh: None, notes, device: Device::Cpu })
    }

    fn fresh(arch: &Arch, seed: u64) -> Self {
        let slot = |shape: Vec<usize>| Slot {
            file: 0,
            offset: 0,
            len: 0,
            shape,
            stored: Stored::Plain(Dtype::F32),
            interleaved: None,
        };
        let all = arch.parameters().into_iter();
        Self {
            files: Vec::new(),
            tensors: all.map(|p| (p.name, slot(p.shape))).collect(),
            fresh: Some(Fresh { seed, std: arch.init_std }),
            notes: vec!["weights are fresh: config.json alone was read".into()],
            device: Device::Cpu,
        }
    }

    /// The same, with tensors put on this device, one after the other.
    #[must_use]
    pub fn on(mut self, device: &Device) -> Self {
        self.device = device.clone();
        self
    }

    /// Where tensors are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What a person should know before training, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A tensor, in Hugging Face's layout, rounded to nearest even where `dtype` is narrower than the
    /// file.
    ///
    /// # Errors
    /// Values that are not finite, with their count; a file that changed or cannot be read.
    pub fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        Ok(self.load_here(name, dtype)?.to_device(&self.device)?)
    }

    /// The same on the CPU.
    fn load_here(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let slot = self.slot(name)?;
        if let Some(fresh) = self.fresh {
            let values = drawn(name, &slot.shape, fresh.seed, fresh.std);
            return Ok(Tensor::from_vec(values, &*slot.shape, &Device::Cpu)?.to_dtype(dtype)?);
        }
        let bytes = self.bytes(slot)?;
        let refuse = |count| not_finite(name, slot, count);
        if dtype == DType::BF16 {
            let values = read::bf16(bytes, slot)?;
            read::all_finite(&values, half::bf16::is_finite).map_err(refuse)?;
            return Ok(Tensor::from_vec(values, &*slot.shape, &Device::Cpu)?);
        }
        let values = read::f32(bytes, slot)?;
        read::all_finite(&values, f32::is_finite).map_err(refuse)?;
        Ok(Tensor::from_vec(values, &*slot.shape, &Device::Cpu)?.to_dtype(dtype)?)
    }

    /// A matrix, in Hugging Face's layout, that is not to be trained.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn matrix(&self, name: &str, kept: Kept) -> Result<Matrix> {
        let slot = self.slot(name)?;
        match (kept, slot.stored) {
            (Kept::Dense(dtype), _) => Ok(self.load(name, dtype)?.into()),
            (Kept::Nf4 { double_quant }, _) => self.nf4(name, slot, double_quant),
            (Kept::AsStored, Stored::Plain(Dtype::BF16) | Stored::Ggml(gguf::Type::BF16)) => {
                Ok(self.load(name, DType::BF16)?.into())
            }
            (Kept::AsStored, stored) => match read::ggml_kind(stored) {
                Some(kind) => {
                    let blocks = read::blocks(self.bytes(slot)?, slot, kind)?;
                    read::all_finite_in(&blocks).map_err(|count| not_finite(name, slot, count))?;
                    self.placed(blocks, Blocks::of_ggml)
                }
                None => Ok(self.load(name, DType::F32)?.into()),
            },
        }
    }

    /// The bytes as the file has them are all that stands beside the result.
    fn nf4(&self, name: &str, slot: &Slot, double_quant: bool) -> Result<Matrix> {
        let shape = slot.rows();
        if self.fresh.is_some() || matches!(slot.stored, Stored::Ggml(_)) {
            let whole = self.load_here(name, DType::F32)?;
            let values = host::read(&whole)?;
            let matrix = Nf4::encode(shape, double_quant, |range, out| out.copy_from_slice(&values[range]));
            return self.placed(matrix, Blocks::of_nf4);
        }
        let bytes = self.bytes(slot)?;
        let bad = AtomicUsize::new(0);
        let matrix = Nf4::encode(shape, double_quant, |range, out| {
            read::widen(&bytes, slot.stored, range, out);
            bad.fetch_add(out.iter().filter(|x| !x.is_finite()).count(), Ordering::Relaxed);
        });
        match bad.into_inner() {
            0 => self.placed(matrix, Blocks::of_nf4),
            count => Err(not_finite(name, slot, count).into()),
        }
    }

    /// On this loader's device.
    fn placed<Q: Quantised + 'static>(
        &self,
        matrix: Q,
        on_gpu: impl FnOnce(&Gpu, &Q) -> Result<Blocks>,
    ) -> Result<Matrix> {
        Ok(match Gpu::new(&self.device) {
            Some(gpu) => Matrix::OnGpu(Arc::new(on_gpu(&gpu, &matrix)?)),
            None => Matrix::Quantised(Arc::new(matrix)),
        })
    }

    fn slot(&self, name: &str) -> Result<&Slot, Error> {
        self.tensors.get(name).ok_or_else(|| Error::NoSuchTensor { tensor: name.to_owned() })
    }

    fn bytes(&self, slot: &Slot) -> Result<Vec<u8>, Error> {
        let file = self.files.get(slot.file).ok_or(Error::NoSuchTensor { tensor: String::new() })?;
        let bytes = file.read(slot.offset, slot.len)?;
        Ok(match slot.interleaved {
            Some(heads) => read::halves(&bytes, slot.shape.first().copied().unwrap_or(0), heads),
            None => bytes,
        })
    }
}

fn not_finite(name: &str, slot: &Slot, count: usize) -> Error {
    Error::NotFinite { tensor: name.to_owned(), count, of: slot.shape.iter().product() }
}

fn safetensors_slots(shards: &[safetensors::Shard]) -> Result<(Vec<OpenFile>, Found), Error> {
    let mut files = Vec::new();
    let mut found = Vec::new();
    for (file, shard) in shards.iter().enumerate() {
        files.push(OpenFile::open(&shard.path, shard.stamp)?);
        found.extend(shard.tensors.iter().map(|tensor| {
            let slot = Slot {
                file,
                offset: tensor.offset,
                len: tensor.len,
                shape: tensor.shape.clone(),
                stored: Stored::Plain(tensor.dtype),
                interleaved: None,
            };
            (tensor.name.clone(), slot)
        }));
    }
    Ok((files, found))
}
