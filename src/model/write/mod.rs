//! A whole model as files: a Hugging Face folder sharded like its base, or one GGUF file. Tensors pass one at a time.

mod gguf;
mod safetensors;

pub use gguf::{gguf, gguf_like};
pub use safetensors::{Files, Kind, config_json, folder};

use crate::error::{Error, Fault, Result};
use std::io;
use std::path::PathBuf;

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Something stands there already.
    #[error("{}: exists already", .0.display())]
    Taken(PathBuf),
    /// A tensor of the result has no name in GGUF.
    #[error("`{0}` has no name in GGUF")]
    NoName(String),
}

impl Fault for Refused {
    fn kind(&self) -> crate::error::Kind {
        match self {
            Self::Taken(_) => crate::error::Kind::Usage,
            Self::NoName(_) => crate::error::Kind::Model,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Taken(_) => {
                Some("name another place with `--out`, or move it away: nothing is replaced".into())
            }
            Self::NoName(_) => None,
        }
    }
}

/// Carries an error of the program through a function that may only fail as the disk does.
#[derive(Default)]
struct Through(Option<Error>);

impl Through {
    fn pass<T>(&mut self, outcome: Result<T>) -> io::Result<T> {
        outcome.map_err(|error| {
            let shown = io::Error::other(error.to_string());
            self.0 = Some(error);
            shown
        })
    }

    /// What the function did, or the error that went through it.
    fn out<T>(self, outcome: Result<T>) -> Result<T> {
        match self.0 {
            Some(error) => Err(error),
            None => outcome,
        }
    }
}
