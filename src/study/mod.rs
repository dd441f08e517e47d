//! Runs that exist to judge the estimate: a grid of small ones that it must foretell, and a pilot of a large one. Every
//! run is a process of its own, for peak memory belongs to a process.

pub mod bench;
pub mod child;
pub mod curve;
mod forecast;
pub mod grid;
pub mod pilot;
pub mod reference;
pub mod sample;
pub mod score;
pub mod validate;

use crate::error::{Fault, Kind, Result};
use std::path::{Path, PathBuf};

/// Why a study could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started again.
    #[error("the program could not be started again: {0}")]
    Start(std::io::Error),
    /// A run of the study failed.
    #[error("`fttrain {arguments}` ended with {code}: {said}")]
    Run {
        /// Its arguments.
        arguments: String,
        /// Its exit code.
        code: i32,
        /// The end of what it said.
        said: String,
    },
    /// What a run printed is not what it should.
    #[error("`fttrain {arguments}` printed no report: {fact}")]
    Output {
        /// Its arguments.
        arguments: String,
        /// What is wrong.
        fact: String,
    },
    /// The folder holds a study of another program, or of another grid.
    #[error("{}: the study in it was begun {begun}", folder.display())]
    OtherStudy {
        /// The study's.
        folder: PathBuf,
        /// By which program, or how.
        begun: String,
    },
    /// A file of the study cannot be written.
    #[error("{}: {fact}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fact: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Start(_) | Self::Write { .. } => Kind::Resource,
            Self::Run { code, .. } => match code {
                2 => Kind::Usage,
                3 => Kind::Data,
                4 => Kind::Model,
                5 => Kind::Resource,
                6 => Kind::Device,
                7 => Kind::Diverged,
                8 => Kind::Busy,
                _ => Kind::Bug,
            },
            Self::Output { .. } => Kind::Bug,
            Self::OtherStudy { .. } => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Write { .. } | Self::OtherStudy { .. } | Self::Run { code: 8, .. } => {
                Some("choose another folder with --out".into())
            }
            _ => None,
        }
    }
}

/// A path as TOML writes it.
fn quoted(path: &Path) -> Result<String> {
    serde_json::to_string(&path.to_string_lossy())
        .map_err(|e| Error::Write { path: path.to_owned(), fact: e.to_string() }.into())
}
