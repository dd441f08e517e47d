//! Bytes of a tensor and what they mean: ordinary reads of a file that must not change, rows put back into halves,
//! conversion to f32 or bf16.

use super::{Error, Slot, Stored};
use crate::arch::Stamp;
use crate::arch::gguf::Type;
use crate::arch::safetensors::Dtype;
use crate::error::{Kind, Result};
use fttrain_kernels::cpu::{Ggml, GgmlKind, Quantised};
use half::{bf16, f16};
use rayon::prelude::*;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Values that a thread widens at a time.
const PIECE: usize = 1 << 16;

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
    let (rows, width) = slot.rows();
    let mut out = vec![0f32; rows * width];
    if let Some(kind) = ggml_kind(slot.stored) {
        let blocks = blocks(bytes, slot, kind)?;
        let rows = out.par_chunks_mut(width.max(1)).enumerate();
        rows.for_each(|(row, out)| blocks.dequantise(row, 0..width, out));
    } else {
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(i, out)| widen(&bytes, slot.stored, i * PIECE..i * PIECE + out.len(), out));
    }
    Ok(out)
}

/// The values of a range in f32, of a type that has no blocks.
pub(super) fn widen(bytes: &[u8], stored: Stored, range: Range<usize>, out: &mut [f32]) {
    match stored {
        Stored::Plain(Dtype::F32) | Stored::Ggml(Type::F32) => each(bytes, range, out, f32::from_le_bytes),
        Stored::Plain(Dtype::F16) | Stored::Ggml(Type::F16) => {
            each(bytes, range, out, |b| f16::from_le_bytes(b).to_f32());
        }
        Stored::Plain(Dtype::F64) => {
            #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
            let narrow = |b| f64::from_le_bytes(b) as f32;
            each(bytes, range, out, narrow);
        }
        // BF16; other types were refused when the names were checked.
        Stored::Plain(_) | Stored::Ggml(_) => {
            each(bytes, range, out, |b| bf16::from_le_bytes(b).to_f32());
        }
    }
}

fn each<const N: usize>(bytes: &[u8], range: Range<usize>, out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    for (out, bytes) in out.iter_mut().zip(values.get(range).unwrap_or_default()) {
        *out = value(*bytes);
    }
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

/// The kernels' name of a type of blocks; f32 and bf16 have none.
pub(super) fn ggml_kind(stored: Stored) -> Option<GgmlKind> {
    let Stored::Ggml(kind) = stored else { return None };
    Some(match kind {
        Type::F32 | Type::BF16 => return None,
        Type::F16 => GgmlKind::F16,
        Type::Q4_0 => GgmlKind::Q4_0,
        Type::Q4_1 => GgmlKind::Q4_1,
        Type::Q5_0 => GgmlKind::Q5_0,
        Type::Q5_1 => GgmlKind::Q5_1,
        Type::Q8_0 => GgmlKind::Q8_0,
        Type::Q2_K => GgmlKind::Q2_K,
        Type::Q3_K => GgmlKind::Q3_K,
        Type::Q4_K => GgmlKind::Q4_K,
        Type::Q5_K => GgmlKind::Q5_K,
        Type::Q6_K => GgmlKind::Q6_K,
    })
}

/// The blocks as they are, of the slot's shape.
///
/// # Errors
/// Another number of bytes than the header, which was checked, promised: a fault of the program.
pub(super) fn blocks(bytes: Vec<u8>, slot: &Slot, kind: GgmlKind) -> Result<Ggml> {
    let fault = || {
        let fact = format!("{} bytes are no {kind:?} matrix of shape {:?}", slot.len, slot.shape);
        crate::error::Error::new(Kind::Bug, fact)
    };
    Ggml::new(kind, slot.rows(), bytes).ok_or_else(fault)
}

/// How many values of blocks are not finite, as an error.
pub(super) fn all_finite_in(blocks: &Ggml) -> Result<(), usize> {
    let (rows, width) = blocks.shape();
    let of_row = |row_values: &mut Vec<f32>, row| {
        row_values.resize(width, 0.0);
        blocks.dequantise(row, 0..width, row_values);
        row_values.iter().filter(|x| !x.is_finite()).count()
    };
    match (0..rows).into_par_iter().map_init(Vec::new, of_row).sum() {
        0 => Ok(()),
        count => Err(count),
    }
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
