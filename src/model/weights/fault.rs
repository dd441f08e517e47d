//! What can be wrong with weights.

use crate::error::{Fault, Kind};
use std::fmt::{self, Write};
use std::io;
use std::path::PathBuf;

/// Differences that a message lists.
const LISTED: usize = 10;

/// A difference between what the model needs and what its files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// A tensor is not there.
    Missing {
        /// Hugging Face name.
        tensor: String,
        /// What it should be.
        expected: Vec<usize>,
    },
    /// A tensor that the model has no use for.
    Extra {
        /// The file's name for it.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor of another shape.
    Shape {
        /// Hugging Face name.
        tensor: String,
        /// What it should be.
        expected: Vec<usize>,
        /// What it is.
        found: Vec<usize>,
    },
    /// A tensor of a type that holds no weights.
    Dtype {
        /// Hugging Face name.
        tensor: String,
        /// The type.
        found: &'static str,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Missing { tensor, expected } => {
                write!(f, "{tensor}: missing, expected {expected:?}")
            }
            Self::Extra { tensor, found } => write!(f, "{tensor}: not expected, found {found:?}"),
            Self::Shape { tensor, expected, found } => {
                write!(f, "{tensor}: expected {expected:?}, found {found:?}")?;
                if expected.len() == 2 && found.iter().rev().eq(expected) {
                    f.write_str(" (transposed)")?;
                }
                Ok(())
            }
            Self::Dtype { tensor, found } => {
                write!(f, "{tensor}: expected F32, F16, BF16 or F64, found {found}")
            }
        }
    }
}

/// A fault of the weights.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files are not those of this model.
    #[error("{model}: {} do not fit the model's shapes:{}", tensors(.mismatches), list(.mismatches))]
    Mismatch {
        /// The model.
        model: String,
        /// All differences.
        mismatches: Vec<Mismatch>,
    },
    /// NaN or infinity.
    #[error("{tensor}: {count} of {of} values are NaN or infinite")]
    NotFinite {
        /// Hugging Face name.
        tensor: String,
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
    /// Size or time differ from when the header was read.
    #[error("{}: changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The system refused to read.
    #[error("{}: cannot read: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// The program asked for a tensor that the model does not have.
    #[error("no tensor `{tensor}` in this model")]
    NoSuchTensor {
        /// The name.
        tensor: String,
    },
}

fn tensors(mismatches: &[Mismatch]) -> String {
    match mismatches.len() {
        1 => "1 tensor".into(),
        n => format!("{n} tensors"),
    }
}

fn list(mismatches: &[Mismatch]) -> String {
    let mut text = String::new();
    for mismatch in mismatches.iter().take(LISTED) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n    {mismatch}");
    }
    if mismatches.len() > LISTED {
        let _ = write!(text, "\n    and {} more", mismatches.len() - LISTED);
    }
    text
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSuchTensor { .. } => Kind::Bug,
            _ => Kind::Model,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Mismatch { .. } => {
                    "config.json and the weights must be of the same model; a head that is missing because it is tied \
                     needs `tie_word_embeddings: true` in config.json"
                }
                Self::NotFinite { .. } => {
                    "the base model is damaged or overflowed in training; fetch it again or choose another"
                }
                Self::Changed { .. } => "wait until whatever writes it is done, then start again",
                Self::Io { .. } => "check that the file exists and may be read",
                Self::NoSuchTensor { .. } => "please report this with the config that led to it",
            }
            .into(),
        )
    }
}
