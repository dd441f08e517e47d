//! A GGUF file: matrices in one type, vectors in f32, as llama.cpp's converter writes them; or a base's own file again,
//! with the tensors that the adapter changed rounded into the types that they had.

use super::{Refused, Through};
use crate::arch::gguf::{self, Header, NewTensor, Type, Value};
use crate::arch::{Arch, Parameter};
use crate::error::Result;
use crate::fs::FileEntry;
use crate::model::merge::Merged;
use crate::model::weights::{gguf_name, interleave, interleaved_heads};
use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QTensor};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Writes the whole model; `beside` are the keys of its tokenizer. Rows that are no whole number of blocks are kept in
/// f16.
///
/// # Errors
/// Something stands there (2), the base cannot be read or the format cannot say what it is (4), the disk fails (5).
pub fn gguf(
    merged: &Merged,
    name: &str,
    kind: Type,
    beside: Vec<(String, Value)>,
    out: &Path,
) -> Result<FileEntry> {
    refuse_taken(out)?;
    let arch = merged.arch();
    let mut metadata = arch.gguf_metadata(name)?;
    metadata.push(("general.file_type".into(), Value::Unsigned(file_type(kind))));
    metadata.push(("general.quantization_version".into(), Value::Unsigned(2)));
    metadata.extend(beside);
    let parameters = merged.parameters();
    let mut tensors = Vec::new();
    for parameter in &parameters {
        tensors.push(new_tensor(parameter, kind)?);
    }
    let freqs = arch.gguf_rope_freqs();
    if let Some(freqs) = &freqs {
        tensors.push(NewTensor {
            name: "rope_freqs.weight".into(),
            dims: vec![freqs.len()],
            kind: Type::F32,
        });
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let mut through = Through::default();
    let written =
        gguf::write(out, &metadata, &tensors, &mut |i, out| match (parameters.get(i), tensors.get(i)) {
            (Some(parameter), Some(tensor)) => {
                let bytes = merged.load(&parameter.name).and_then(|value| encode(&value, tensor, arch));
                out.write_all(&through.pass(bytes)?)
            }
            _ => freqs.iter().flatten().try_for_each(|f| out.write_all(&f.to_le_bytes())),
        });
    through.out(written)
}

/// Writes `base` again with the adapter's changes: metadata and unchanged tensors as they are, changed ones rounded into
/// their own types, which loses some of what was learned.
///
/// # Errors
/// As [`gguf()`].
pub fn gguf_like(merged: &Merged, base: &Header, out: &Path) -> Result<FileEntry> {
    refuse_taken(out)?;
    let mut changed = vec![None; base.tensors.len()];
    let mut tensors: Vec<NewTensor> = base
        .tensors
        .iter()
        .map(|t| NewTensor { name: t.name.clone(), dims: t.dims.clone(), kind: t.kind })
        .collect();
    for parameter in merged.parameters() {
        let name = name_of(&parameter)?;
        match base.tensors.iter().position(|tensor| tensor.name == name) {
            Some(at) if merged.changes(&parameter.name) => {
                if let Some(slot) = changed.get_mut(at) {
                    *slot = Some(parameter.name);
                }
            }
            Some(_) => {}
            // A head that is no longer tied.
            None => {
                let kind = base.tensor("token_embd.weight").map_or(Type::F16, |tensor| tensor.kind);
                tensors.push(new_tensor(&parameter, kind)?);
                changed.push(Some(parameter.name));
            }
        }
    }
    // The file is laid out anew, and whole.
    let is_of_layout = |key: &str| key == "general.alignment" || key.starts_with("split.");
    let kept = base.metadata.iter().filter(|(key, _)| !is_of_layout(key));
    let metadata: Vec<_> = kept.map(|(key, value)| (key.as_str(), value.clone())).collect();
    let mut through = Through::default();
    let written = gguf::write(out, &metadata, &tensors, &mut |i, out| match (
        changed.get(i).and_then(Option::as_ref),
        tensors.get(i),
        base.tensors.get(i),
    ) {
        (Some(name), Some(tensor), _) => {
            let bytes = merged.load(name).and_then(|value| encode(&value, tensor, merged.arch()));
            out.write_all(&through.pass(bytes)?)
        }
        (None, _, Some(entry)) => copy(&base.path, entry, out),
        _ => Ok(()),
    });
    through.out(written)
}

fn refuse_taken(out: &Path) -> Result<()> {
    match out.symlink_metadata() {
        Ok(_) => Err(Refused::Taken(out.to_owned()).into()),
        Err(_) => Ok(()),
    }
}

fn name_of(parameter: &Parameter) -> Result<String, Refused> {
    gguf_name(&parameter.name).ok_or_else(|| Refused::NoName(parameter.name.clone()))
}

fn new_tensor(parameter: &Parameter, kind: Type) -> Result<NewTensor> {
    let dims: Vec<usize> = parameter.shape.iter().rev().copied().collect();
    let is_whole = dims.first().is_some_and(|&row| (row as u64).is_multiple_of(kind.block()));
    let kind = match (dims.len(), is_whole) {
        (1, _) => Type::F32,
        (_, true) => kind,
        (_, false) => Type::F16,
    };
    Ok(NewTensor { name: name_of(parameter)?, dims, kind })
}

/// The bytes of a tensor as the file keeps them.
fn encode(value: &Tensor, tensor: &NewTensor, arch: &Arch) -> Result<Vec<u8>> {
    let blocks = QTensor::quantize(value, ggml_type(tensor.kind))?;
    let bytes = blocks.data()?;
    Ok(match interleaved_heads(&tensor.name, arch) {
        Some(heads) => interleave(&bytes, value.dim(0)?, heads),
        None => bytes.into_owned(),
    })
}

/// candle's name for a type.
fn ggml_type(kind: Type) -> GgmlDType {
    match kind {
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
    }
}

/// llama.cpp's `llama_ftype` of a file whose matrices are of this type.
fn file_type(kind: Type) -> u64 {
    match kind {
        Type::F32 => 0,
        Type::Q8_0 => 7,
        Type::BF16 => 32,
        _ => 1,
    }
}

fn copy(path: &Path, entry: &gguf::TensorEntry, out: &mut dyn Write) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(entry.offset))?;
    io::copy(&mut file.take(entry.len), out).map(drop)
}
