//! A model's safetensors files: `model.safetensors`, or the shards that `model.safetensors.index.json` names, each
//! checked against it in both directions.

use super::{Error, Malformed, Shard, file};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The file of a model that is one file.
pub(in crate::arch) const SINGLE: &str = "model.safetensors";
/// The index of a model that is several.
pub(in crate::arch) const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 1_000;

/// Which tensor lies in which file.
#[derive(serde::Deserialize)]
pub(in crate::arch) struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index; its file names are plain names.
    pub(in crate::arch) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = file::read_small(path, MAX_INDEX_BYTES)?;
        let index: Self = serde_json::from_slice(&bytes).map_err(|cause| Error::Json {
            file: path.display().to_string(),
            line: cause.line(),
            column: cause.column(),
            cause: cause.to_string(),
        })?;
        index.check().map_err(|fault| Error::Safetensors { file: path.into(), fault })?;
        Ok(index)
    }

    fn check(&self) -> Result<(), Malformed> {
        let files = self.files();
        if files.is_empty() {
            return Err(Malformed::EmptyIndex);
        }
        if files.len() > MAX_SHARDS {
            return Err(Malformed::Shards { found: files.len(), limit: MAX_SHARDS });
        }
        match files.into_iter().find(|name| !is_plain(name)) {
            None => Ok(()),
            Some(name) => Err(Malformed::ShardName { name: name.chars().take(80).collect() }),
        }
    }

    /// The shards' names, in order.
    pub(in crate::arch) fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// Each tensor of the shard is in the index, and each of the index in the shard.
    fn compare(&self, name: &str, shard: &Shard) -> Result<(), Malformed> {
        let held: BTreeSet<&str> = shard.tensors.iter().map(|t| t.name.as_str()).collect();
        for tensor in &held {
            if self.weight_map.get(*tensor).map(String::as_str) != Some(name) {
                return Err(Malformed::NotInIndex { name: (*tensor).into(), shard: name.into() });
            }
        }
        for (tensor, file) in &self.weight_map {
            if file == name && !held.contains(tensor.as_str()) {
                return Err(Malformed::NotInShard {
                    name: tensor.chars().take(80).collect(),
                    shard: name.into(),
                });
            }
        }
        Ok(())
    }
}

fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.len() <= 255 && !name.starts_with('.') && name.ends_with(".safetensors") && name.chars().all(allowed)
}

/// Reads the headers of a folder's safetensors files.
///
/// # Errors
/// As [`Shard::read`], and where index and shards disagree or neither is there.
pub fn open(folder: &Path) -> crate::error::Result<Vec<Shard>> {
    Ok(open_checked(folder)?)
}

fn open_checked(folder: &Path) -> Result<Vec<Shard>, Error> {
    let index_path = folder.join(INDEX);
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok(vec![Shard::read_checked(&single)?]);
    }
    if !index_path.exists() {
        return Err(Error::NoModelFile {
            folder: folder.into(),
            looked_for: "model.safetensors, model.safetensors.index.json",
        });
    }
    let index = Index::read(&index_path)?;
    index
        .files()
        .into_iter()
        .map(|name| {
            let path: PathBuf = folder.join(name);
            let shard = Shard::read_checked(&path)?;
            index
                .compare(name, &shard)
                .map_err(|fault| Error::Safetensors { file: index_path.clone(), fault })?;
            Ok(shard)
        })
        .collect()
}
