//! A Hugging Face folder: safetensors in the base's own shards, the index over them, `config.json` and whatever small
//! files go along. The folder stands whole or not at all.

use super::{Refused, Through};
use crate::arch::source::WeightFiles;
use crate::arch::{Arch, Parameter, safetensors};
use crate::error::Result;
use crate::fs::{FileEntry, Staging};
use crate::model::merge::Merged;
use crate::ops::host;
use candle_core::Tensor;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// How the values of the written model are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 16 bits, the range of f32.
    Bf16,
    /// 16 bits, to 65,504.
    F16,
    /// As they were computed.
    F32,
}

/// Names and contents of the small files beside the weights.
pub type Files = [(String, Vec<u8>)];

impl Kind {
    /// The kind in which a base's weights lie; bf16 where they are none of the three.
    pub fn of(files: &WeightFiles) -> Self {
        let WeightFiles::Safetensors(shards) = files else { return Self::Bf16 };
        match shards.iter().flat_map(|s| &s.tensors).map(|t| t.dtype).next() {
            Some(safetensors::Dtype::F32 | safetensors::Dtype::F64) => Self::F32,
            Some(safetensors::Dtype::F16) => Self::F16,
            _ => Self::Bf16,
        }
    }

    /// As `config.json` calls it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Rounds to nearest even and writes.
    fn put(self, values: &Tensor, out: &mut dyn Write) -> io::Result<()> {
        let values = host::read(values).map_err(|e| io::Error::other(e.to_string()))?;
        let mut buffer = Vec::with_capacity(1 << 16);
        for part in values.chunks(1 << 14) {
            buffer.clear();
            match self {
                Self::Bf16 => buffer.extend(part.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
                Self::F16 => buffer.extend(part.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
                Self::F32 => buffer.extend(part.iter().flat_map(|x| x.to_le_bytes())),
            }
            out.write_all(&buffer)?;
        }
        Ok(())
    }
}

/// Writes the folder `out`, which must not exist; returns the bytes of its weights.
///
/// # Errors
/// Something stands there (2), the base cannot be read (4), the disk fails (5).
pub fn folder(merged: &Merged, like: &WeightFiles, kind: Kind, small: &Files, out: &Path) -> Result<u64> {
    if out.symlink_metadata().is_ok() {
        return Err(Refused::Taken(out.to_owned()).into());
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let mut staging = Staging::begin(parent, &name)?;
    let shards = shards(merged, like);
    let mut bytes = 0;
    for (name, tensors) in &shards {
        bytes += shard(merged, tensors, kind, name, &mut staging)?.size;
    }
    // A reader looks for this name, or for an index that says another.
    if shards.len() > 1 || !shards.contains_key("model.safetensors") {
        let text = index(&shards, kind);
        staging.write("model.safetensors.index.json", &mut |out| out.write_all(text.as_bytes()))?;
    }
    for (name, contents) in small {
        staging.write(name, &mut |out| out.write_all(contents))?;
    }
    staging.commit()?;
    Ok(bytes)
}

/// The base's own `config.json` with what has changed; one made from the shapes where the base has none.
///
/// # Errors
/// It is not JSON any more.
pub fn config_json(own: Option<(PathBuf, Vec<u8>)>, arch: &Arch, kind: Kind) -> Result<String> {
    let Some((path, bytes)) = own else {
        return Ok(crate::arch::config_json::render(arch, kind.torch_name()));
    };
    let mut config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|cause| crate::arch::Error::Json {
            file: path.display().to_string(),
            line: cause.line(),
            column: cause.column(),
            cause: cause.to_string(),
        })?;
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), kind.torch_name().into());
    config.insert("tie_word_embeddings".into(), arch.tie_word_embeddings.into());
    Ok(format!("{:#}\n", Value::Object(config)))
}

type Shards = BTreeMap<String, Vec<Parameter>>;

/// The base's files with the tensors that the result has of each, in the base's order; what is new goes into the last.
fn shards(merged: &Merged, like: &WeightFiles) -> Shards {
    let mut wanted: BTreeMap<String, Parameter> =
        merged.parameters().into_iter().map(|p| (p.name.clone(), p)).collect();
    let mut shards = Shards::new();
    if let WeightFiles::Safetensors(files) = like {
        for file in files {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let held = file.tensors.iter().filter_map(|t| wanted.remove(&t.name));
            shards.insert(name, held.collect());
        }
    }
    if shards.is_empty() {
        return [("model.safetensors".to_owned(), merged.parameters())].into();
    }
    if let Some(mut last) = shards.last_entry() {
        last.get_mut().extend(wanted.into_values());
    }
    shards
}

fn values(parameter: &Parameter) -> u64 {
    parameter.shape.iter().map(|&n| n as u64).product()
}

fn shard(
    merged: &Merged,
    tensors: &[Parameter],
    kind: Kind,
    name: &str,
    staging: &mut Staging,
) -> Result<FileEntry> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for tensor in tensors {
        let end = at + values(tensor) * kind.bytes();
        let entry = json!({"dtype": kind.name(), "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut head = Value::Object(header).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut through = Through::default();
    let written = staging.write(name, &mut |out| {
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(&head)?;
        tensors.iter().try_for_each(|tensor| kind.put(&through.pass(merged.load(&tensor.name))?, out))
    });
    through.out(written)
}

fn index(shards: &Shards, kind: Kind) -> String {
    let all = || shards.iter().flat_map(|(file, tensors)| tensors.iter().map(move |t| (file, t)));
    let size: u64 = all().map(|(_, tensor)| values(tensor) * kind.bytes()).sum();
    let map: BTreeMap<&str, &str> = all().map(|(file, t)| (t.name.as_str(), file.as_str())).collect();
    format!("{:#}\n", json!({"metadata": {"total_size": size}, "weight_map": map}))
}
