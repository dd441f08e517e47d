//! Bytes of a tensor and what they mean: ordinary reads of a file that must not change, rows put back into halves,
//! conversion to f32 or bf16.

use super::{Error, Slot, Stored};
use crate::arch::Stamp;
use crate::arch::gguf::Type;
use crate::arch::safetensors::Dtype;
use crate::error::Result;
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A file that must stay as it was when its header was read.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl OpenFile {
    pub(super) fn open(path: &Path, stamp: Stamp) -> Result<Self, Error> {
        let file = File::open(path).map_err(|cause| Error::Io { path: path.into(), cause })?;
        let opened = Self { path: path.into(), file, stamp };
        opened.check()?;
        Ok(opened)
    }

    fn check(&self) -> Result<(), Error> {
        let metadata = self.file.metadata().map_err(|cause| self.io(cause))?;
        if Stamp::of(&metadata) == self.stamp {
            return Ok(());
        }
        Err(Error::Changed { path: self.path.clone() })
    }

    /// The bytes, read between two looks at the file's size and time.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        self.check()?;
        // The header was checked against the file's size, so this is at most as much as the file holds.
        let len = usize::try_from(len).map_err(|_| self.io(io::ErrorKind::OutOfMemory.into()))?;
        let mut bytes = vec![0; len];
        read_exact_at(&self.file, &mut bytes, offset).map_err(|cause| {
            if cause.kind() == io::ErrorKind::UnexpectedEof {
                Error::Changed { path: self.path.clone() }
            } else {
                self.io(cause)
            }
        })?;
        self.check()?;
        Ok(bytes)
    }

    fn io(&self, cause: io::Error) -> Error {
        Error::Io { path: self.path.clone(), cause }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match std::os::windows::fs::FileExt::seek_read(file, rest, offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

/// Rows in pairs (0, 1), (2, 3), … of each head back into its two halves, as Hugging Face keeps them. Blocks run along
/// rows, so whole rows of bytes move, whatever they hold.
pub(super) fn halves(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    reorder(bytes, rows, heads, |pairs, at| 2 * (at % pairs) + at / pairs)
}

/// The two halves of each head as pairs of rows (0, 1), (2, 3), …, as GGUF's llama keeps them: undone by reading.
pub fn interleave(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    reorder(bytes, rows, heads, |pairs, at| at % 2 * pairs + at / 2)
}

/// Row `at` of each head is taken from its row `from(pairs of rows in a head, at)`.
fn reorder(bytes: &[u8], rows: usize, heads: usize, from: impl Fn(usize, usize) -> usize) -> Vec<u8> {
    let size = rows / heads.max(1);
    let row_bytes = bytes.len() / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for at in 0..size {
            let row = head * size + from((size / 2).max(1), at);
            out.extend_from_slice(bytes.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default());
        }
    }
    out
}

/// How many values fail the test, as an error.
pub(super) fn all_finite<T: Copy>(values: &[T], is_finite: fn(T) -> bool) -> Result<(), usize> {
    match values.iter().filter(|&&x| !is_finite(x)).count() {
        0 => Ok(()),
        count => Err(count),
    }
}

/// The values in f32.
pub(super) fn f32(bytes: Vec<u8>, slot: &Slot) -> Result<Vec<f32>> {
    Ok(match slot.stored {
        Stored::Plain(Dtype::F32) | Stored::Ggml(Type::F32) => map(&bytes, f32::from_le_bytes),
        Stored::Plain(Dtype::F16) | Stored::Ggml(Type::F16) => {
            map(&bytes, |b| f16::from_le_bytes(b).to_f32())
        }
        Stored::Plain(Dtype::F64) => {
            #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
            let narrow = |b| f64::from_le_bytes(b) as f32;
            map(&bytes, narrow)
        }
        // BF16; other types were refused when the names were checked.
        Stored::Plain(_) | Stored::Ggml(Type::BF16) => map(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Stored::Ggml(kind) => {
            blocks(bytes, slot, kind)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?
        }
    })
}

/// The values in bf16, nearest even.
pub(super) fn bf16(bytes: Vec<u8>, slot: &Slot) -> Result<Vec<bf16>> {
    if matches!(slot.stored, Stored::Plain(Dtype::BF16) | Stored::Ggml(Type::BF16)) {
        return Ok(map(&bytes, bf16::from_le_bytes));
    }
    if slot.stored == Stored::Plain(Dtype::F64) {
        // Directly: through f32 some values would be rounded twice.
        return Ok(map(&bytes, |b| bf16::from_f64(f64::from_le_bytes(b))));
    }
    Ok(f32(bytes, slot)?.into_iter().map(bf16::from_f32).collect())
}

/// The blocks as they are, of the slot's shape.
pub(super) fn blocks(bytes: Vec<u8>, slot: &Slot, kind: Type) -> Result<QTensor> {
    let dtype = match kind {
        Type::F32 => GgmlDType::F32,
        Type::F16 => GgmlDType::F16,
        Type::BF16 => GgmlDType::BF16,
        Type::Q4_0 => GgmlDType::Q4_0,
        Type::Q4_1 => GgmlDType::Q4_1,
        Type::Q5_0 => GgmlDType::Q5_0,
        Type::Q5_1 => GgmlDType::Q5_1,
        Type::Q8_0 => GgmlDType::Q8_0,
        Type::Q2_K => GgmlDType::Q2K,
        Type::Q3_K => GgmlDType::Q3K,
        Type::Q4_K => GgmlDType::Q4K,
        Type::Q5_K => GgmlDType::Q5K,
        Type::Q6_K => GgmlDType::Q6K,
    };
    let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, dtype)?;
    Ok(QTensor::new(storage, slot.shape.as_slice())?)
}

fn map<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| value(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_of_each_head_become_halves_and_back() {
        // Two heads of four rows of two bytes; rows are numbered as Hugging Face keeps them.
        let gguf = [0, 0, 2, 2, 1, 1, 3, 3, 4, 4, 6, 6, 5, 5, 7, 7];
        let hf = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7];
        assert_eq!(halves(&gguf, 8, 2), hf);
        assert_eq!(interleave(&hf, 8, 2), gguf);
    }
}
