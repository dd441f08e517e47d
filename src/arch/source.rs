//! Where a base model lies: a folder, a GGUF file or the hub. Shapes, tokenizer and weights are looked up only when
//! they are asked for.

use super::hub::{self, Hub, Snapshot};
use super::safetensors::{self, Shard};
use super::{Arch, Error, config_json, gguf};
use crate::config::Base;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A base model that was found.
#[derive(Debug, Clone)]
pub struct Source {
    place: Place,
    name: String,
    reinit: bool,
}

#[derive(Debug, Clone)]
enum Place {
    Folder(PathBuf),
    Gguf(Box<gguf::Header>),
    Hub(Snapshot),
}

/// Where the tokenizer is read from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// Files of a Hugging Face folder.
    Files {
        /// Vocabulary, merges, pre-tokenizer; always there.
        tokenizer_json: PathBuf,
        /// Special tokens' roles, often the chat template.
        tokenizer_config: Option<PathBuf>,
        /// `chat_template.jinja`
        chat_template: Option<PathBuf>,
        /// Ids that end a text.
        generation_config: Option<PathBuf>,
        /// Special tokens' roles, older spelling.
        special_tokens_map: Option<PathBuf>,
    },
    /// `tokenizer.*` keys of a GGUF file.
    Gguf(gguf::Header),
}

/// Where the weights are read from.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightFiles {
    /// One file, or shards.
    Safetensors(Vec<Shard>),
    /// One file.
    Gguf(gguf::Header),
    /// None: fresh random weights.
    Reinit,
}

impl Source {
    /// Finds the base model: an existing path first, else a name on the hub that the environment describes, of which
    /// only `config.json` is fetched.
    ///
    /// # Errors
    /// Nothing is there (4), or the name can be neither path nor hub name (2).
    pub fn locate(base: &Base) -> crate::error::Result<Self> {
        Self::locate_with(base, Hub::from_env)
    }

    /// As [`Source::locate`], with a hub by its parts.
    pub fn locate_with(
        base: &Base,
        hub: impl FnOnce() -> crate::error::Result<Hub>,
    ) -> crate::error::Result<Self> {
        if let Some(revision) = &base.revision {
            hub::check_revision(revision).map_err(Error::from)?;
        }
        let path = Path::new(&base.model);
        let found = if path.is_dir() {
            let path = path.to_path_buf();
            require_config(&path)?;
            let name = folder_name(&path);
            (Place::Folder(path), name)
        } else if path.exists() {
            if !is_gguf(path) {
                return Err(Error::NotAModelFile { path: path.into() }.into());
            }
            let header = gguf::Header::read_checked(path)?;
            (Place::Gguf(Box::new(header)), last_component(path))
        } else {
            let name = hub_name(&base.model)?;
            let snapshot = Snapshot::new(hub()?, name, base.revision.as_deref()).map_err(Error::from)?;
            snapshot.file("config.json").map_err(Error::from)?;
            (Place::Hub(snapshot), name.to_owned())
        };
        let (place, name) = found;
        if base.revision.is_some() && !matches!(place, Place::Hub(_)) {
            return Err(Error::Config {
                key: "revision",
                why: "belongs to models on the hub; `base_model` is a path here",
            }
            .into());
        }
        Ok(Self { place, name, reinit: base.reinit_weights })
    }

    /// What an adapter's `base_model_name_or_path` says: the hub's name, or the last component of a local path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shapes.
    pub fn arch(&self) -> crate::error::Result<Arch> {
        match &self.place {
            Place::Folder(folder) => config_json::read(&folder.join("config.json")),
            Place::Hub(snapshot) => config_json::read(&snapshot.file("config.json").map_err(Error::from)?),
            Place::Gguf(header) => header.arch(),
        }
    }

    /// Whether it is a GGUF file, whose weights may be in blocks.
    pub fn is_gguf(&self) -> bool {
        matches!(self.place, Place::Gguf(_))
    }

    /// Bytes of a GGUF file's tensors; `None` for another base, whose weights may not be here yet.
    pub fn gguf_bytes(&self) -> Option<u64> {
        let Place::Gguf(header) = &self.place else { return None };
        Some(header.tensors.iter().map(|tensor| tensor.len).sum())
    }

    /// The model's own `config.json`; `None` for a GGUF file (see [`config_json::render`]).
    pub fn config_json(&self) -> crate::error::Result<Option<PathBuf>> {
        Ok(self.find("config.json", true)?)
    }

    /// The tokenizer's files.
    pub fn tokenizer(&self) -> crate::error::Result<TokenizerSource> {
        if let Place::Gguf(header) = &self.place {
            return Ok(TokenizerSource::Gguf((**header).clone()));
        }
        let missing = || Error::NoModelFile { folder: self.folder(), looked_for: "tokenizer.json" };
        Ok(TokenizerSource::Files {
            tokenizer_json: self.find("tokenizer.json", true)?.ok_or_else(missing)?,
            tokenizer_config: self.find("tokenizer_config.json", false)?,
            chat_template: self.find("chat_template.jinja", false)?,
            generation_config: self.find("generation_config.json", false)?,
            special_tokens_map: self.find("special_tokens_map.json", false)?,
        })
    }

    /// The weights' files with their checked headers; on the hub, they are fetched now.
    pub fn weights(&self) -> crate::error::Result<WeightFiles> {
        if self.reinit {
            return Ok(WeightFiles::Reinit);
        }
        match &self.place {
            Place::Gguf(header) => Ok(WeightFiles::Gguf((**header).clone())),
            Place::Folder(folder) => Ok(WeightFiles::Safetensors(safetensors::open(folder)?)),
            Place::Hub(snapshot) => {
                let config = fetch_weights(snapshot)?;
                let folder = config.parent().unwrap_or(&config);
                Ok(WeightFiles::Safetensors(safetensors::open(folder)?))
            }
        }
    }

    /// SHA-256 over the shapes and over sizes and contents of the weights' files, in hexadecimal. It reads them whole.
    pub fn fingerprint(&self) -> crate::error::Result<String> {
        let mut hash = Sha256::new();
        let shapes = serde_json::to_vec(&self.arch()?).unwrap_or_default();
        hash.update(shapes);
        match self.weights()? {
            WeightFiles::Reinit => hash.update(b"fresh weights"),
            WeightFiles::Gguf(header) => hash_file(&header.path, &mut hash)?,
            WeightFiles::Safetensors(shards) => {
                for shard in shards {
                    hash_file(&shard.path, &mut hash)?;
                }
            }
        }
        Ok(super::file::hex(&hash.finalize()))
    }

    fn folder(&self) -> PathBuf {
        match &self.place {
            Place::Folder(folder) => folder.clone(),
            Place::Gguf(header) => header.path.clone(),
            Place::Hub(snapshot) => PathBuf::from(snapshot.repo()),
        }
    }

    fn find(&self, name: &str, required: bool) -> Result<Option<PathBuf>, Error> {
        match &self.place {
            Place::Gguf(_) => Ok(None),
            Place::Folder(folder) => Ok(Some(folder.join(name)).filter(|path| path.exists())),
            Place::Hub(snapshot) if required => Ok(Some(snapshot.file(name)?)),
            Place::Hub(snapshot) => Ok(snapshot.optional_file(name)?),
        }
    }
}

/// Brings the weights' files into the cache; returns a file of the snapshot's folder.
fn fetch_weights(snapshot: &Snapshot) -> Result<PathBuf, Error> {
    if let Some(single) = snapshot.optional_file(safetensors::SINGLE)? {
        return Ok(single);
    }
    let Some(path) = snapshot.optional_file(safetensors::INDEX)? else {
        // Says why neither is there: offline, or not on the hub.
        return Ok(snapshot.file(safetensors::SINGLE)?);
    };
    for shard in safetensors::Index::read(&path)?.files() {
        snapshot.file(shard)?;
    }
    Ok(path)
}

fn require_config(folder: &Path) -> Result<(), Error> {
    if folder.join("config.json").exists() {
        return Ok(());
    }
    Err(Error::NoModelFile { folder: folder.into(), looked_for: "config.json" })
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// A name that is not a path here: refused as a missing path where it can only have meant one, else by the hub's rule.
fn hub_name(model: &str) -> Result<&str, Error> {
    let path = Path::new(model);
    let meant_a_path = path.is_absolute()
        || model.starts_with("./")
        || model.starts_with('~')
        || is_gguf(path)
        || !model.contains(['/', '\\']);
    if meant_a_path && !model.contains('\0') {
        return Err(Error::NoSuchModel { model: model.into() });
    }
    hub::check_repo(model)?;
    Ok(model)
}

/// The last component, or the hub's name where the folder is a snapshot in its cache.
fn folder_name(folder: &Path) -> String {
    let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    let mut up = whole.components().rev().skip(1);
    if let (Some(snapshots), Some(repo)) = (up.next(), up.next())
        && snapshots.as_os_str() == "snapshots"
        && let Some(repo) = repo.as_os_str().to_str()
        && let Some(name) = repo.strip_prefix("models--")
    {
        return name.replacen("--", "/", 1);
    }
    last_component(&whole)
}

fn last_component(path: &Path) -> String {
    path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

fn hash_file(path: &Path, hash: &mut Sha256) -> Result<(), Error> {
    let (mut file, stamp) = super::file::open(path)?;
    hash.update(stamp.size.to_le_bytes());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read =
            file.read(&mut buffer).map_err(|cause| Error::Io { path: path.into(), doing: "read", cause })?;
        if read == 0 {
            return Ok(());
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(model: &str, revision: Option<&str>) -> crate::error::Result<Source> {
        let base = Base {
            model: model.into(),
            revision: revision.map(str::to_owned),
            reinit_weights: false,
            bf16: None,
        };
        Source::locate_with(&base, || panic!("the hub must not be asked"))
    }

    #[test]
    fn what_is_neither_path_nor_hub_name_is_refused_before_the_hub_is_asked() {
        for (model, code) in [
            ("/no/such/folder", 4),
            ("./no-such", 4),
            ("no-such-model", 4),
            ("models/no-such.gguf", 4),
            ("~/models/x", 4),
            ("", 4),
            ("../../x", 2),
            ("a/b/c", 2),
            ("a\\b", 2),
            ("a/b\0", 2),
        ] {
            let error = locate(model, None).unwrap_err();
            assert_eq!(error.kind as i32, code, "{model}: {error}");
            assert!(error.problems[0].hint.is_some());
        }
        assert_eq!(locate("org/name", Some("../..")).unwrap_err().kind as i32, 2);
    }

    #[test]
    fn a_folder_is_named_by_its_last_component_or_by_the_hub() {
        let home = tempfile::tempdir().unwrap();
        let plain = home.path().join("my-model");
        let cached = home.path().join("models--org--na--me/snapshots/0123");
        for folder in [&plain, &cached] {
            std::fs::create_dir_all(folder).unwrap();
            let error = locate(folder.to_str().unwrap(), None).unwrap_err();
            assert!(error.to_string().contains("config.json"), "{error}");
            std::fs::write(folder.join("config.json"), "{}").unwrap();
        }
        let name = |path: &Path| locate(path.to_str().unwrap(), None).unwrap().name;
        assert_eq!(name(&plain), "my-model");
        assert_eq!(name(&plain.join(".")), "my-model");
        assert_eq!(name(&cached), "org/na--me");
        let error = locate(plain.to_str().unwrap(), Some("main")).unwrap_err();
        assert_eq!(error.kind as i32, 2);
    }
}
