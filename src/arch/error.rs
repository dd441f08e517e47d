//! What can be wrong with a model's name, files or shapes: each variant is one rule, with its place in the message.

use super::{gguf, hub, safetensors};
use crate::error::{Fault, Kind};
use std::io;
use std::path::PathBuf;

/// A fault of the arch room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field is there, with a value that breaks its rule.
    #[error("{file}: `{field}` {rule}, got {got}")]
    Field {
        /// File in which it stands.
        file: String,
        /// The field's full name.
        field: String,
        /// The rule: "must be …".
        rule: String,
        /// The value found.
        got: String,
    },
    /// A field that has no default is absent or null.
    #[error("{file}: `{field}` is missing")]
    Missing {
        /// File in which it should stand.
        file: String,
        /// The field's full name.
        field: String,
    },
    /// A value that other programs know and this one does not.
    #[error("{file}: `{field}` is {got}, which is not supported; supported: {supported}")]
    Unsupported {
        /// File in which it stands.
        file: String,
        /// The field's full name.
        field: String,
        /// The value found.
        got: String,
        /// What would be accepted.
        supported: String,
    },
    /// Not JSON, or not the JSON that was expected.
    #[error("{file}:{line}:{column}: {cause}")]
    Json {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's words.
        cause: String,
    },
    /// A GGUF file breaks a rule of its format.
    #[error("{}: {fault}", file.display())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// The rule.
        fault: gguf::Malformed,
    },
    /// A safetensors file, or the index of several, breaks a rule of its format.
    #[error("{}: {fault}", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// The rule.
        fault: safetensors::Malformed,
    },
    /// The system refused to read.
    #[error("{}: cannot {doing}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's words.
        cause: io::Error,
    },
    /// A folder, device or pipe stands where a file is needed.
    #[error("{}: is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file is larger than anything of its kind.
    #[error("{}: {bytes} bytes, at most {limit} are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// Nothing stands at a path.
    #[error("`base_model`: `{model}` does not exist")]
    NoSuchModel {
        /// As written in the config.
        model: String,
    },
    /// A folder lacks what makes it a model.
    #[error("{}: none of {looked_for} is there", folder.display())]
    NoModelFile {
        /// The folder.
        folder: PathBuf,
        /// The names that would do.
        looked_for: &'static str,
    },
    /// A file that is not a GGUF file was named as the base model.
    #[error("`base_model`: {} is a file, but not a GGUF file", path.display())]
    NotAModelFile {
        /// The file.
        path: PathBuf,
    },
    /// A key of the config does not apply to this kind of base model.
    #[error("`{key}` {why}")]
    Config {
        /// The key.
        key: &'static str,
        /// Why it does not apply.
        why: &'static str,
    },
    /// A model that a GGUF file cannot describe.
    #[error("{what} of this {family} model {why}: a GGUF file cannot say so")]
    NotGguf {
        /// The model's family.
        family: String,
        /// Which part.
        what: &'static str,
        /// What it does.
        why: &'static str,
    },
    /// The hub, its cache, or a name meant for it.
    #[error(transparent)]
    Hub(#[from] hub::Error),
    /// Names in the config match no module of the model.
    #[error("`{key}`: {} no module of the model", unmatched(.names))]
    NoModule {
        /// The config key.
        key: &'static str,
        /// What was written.
        names: Vec<String>,
        /// Names that exist.
        exist: Vec<String>,
    },
    /// A regular expression that does not compile.
    #[error("`lora_target_modules`: `{pattern}` is not a regular expression: {cause}")]
    Pattern {
        /// As written.
        pattern: String,
        /// The compiler's words, in one line.
        cause: String,
    },
}

fn unmatched(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    let verb = if names.len() == 1 { "matches" } else { "match" };
    format!("{} {verb}", quoted.join(", "))
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoModule { .. } | Self::Pattern { .. } | Self::Config { .. } => Kind::Usage,
            Self::Hub(fault) => fault.kind(),
            _ => Kind::Model,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Field { .. } | Self::Missing { .. } | Self::Json { .. } => {
                "the file is damaged or not a model's; fetch it again".into()
            }
            Self::Unsupported { .. } => "choose a base model of a supported kind".into(),
            Self::Gguf { fault, .. } => fault.hint(),
            Self::Safetensors { .. } | Self::TooLarge { .. } | Self::NotAFile { .. } => {
                "the file is damaged or not what its name says; fetch it again".into()
            }
            Self::Io { .. } => "check that the path exists and may be read".into(),
            Self::NoSuchModel { .. } => {
                "give a folder with config.json, a .gguf file, or a hub name `org/name`; relative \
                 paths start at the current folder"
                    .into()
            }
            Self::NoModelFile { .. } => {
                "a model's folder holds config.json and model.safetensors (or its shards and \
                 model.safetensors.index.json); a GGUF file is named itself, not its folder"
                    .into()
            }
            Self::NotAModelFile { .. } => {
                "name the model's folder instead, or a file that ends in .gguf".into()
            }
            Self::Config { .. } => "remove the key".into(),
            Self::NotGguf { .. } => "merge into a Hugging Face folder instead: `fttrain merge`".into(),
            Self::Hub(fault) => return fault.hint(),
            Self::NoModule { exist, .. } => format!("names that exist: {}", exist.join(", ")),
            Self::Pattern { .. } => {
                "look-around and back-references are not supported; the whole name must match, \
                 for example `.*\\.(q|v)_proj`"
                    .into()
            }
        })
    }
}
