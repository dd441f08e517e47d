//! A strict reader of GGUF headers (versions 2 and 3, little endian): metadata, tensor table, where each tensor lies.
//! It reads no weights and believes no count that the file is too short for. The writer keeps the same rules.

mod describe;
mod fault;
mod kinds;
mod parse;
mod shapes;
mod write;

pub use fault::Malformed;
pub use kinds::Type;
pub use parse::parse;
pub use write::{Data, NewTensor, write};

use super::file::{self, Stamp};
use super::{Arch, Error};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The header of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The file.
    pub path: PathBuf,
    /// Its size and time when the header was read.
    pub stamp: Stamp,
    /// Keys and values, such as `tokenizer.ggml.tokens`.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorEntry>,
}

/// A metadata value; widths are dropped, signs are kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// u8, u16, u32, u64.
    Unsigned(u64),
    /// i8, i16, i32, i64.
    Signed(i64),
    /// f32, f64.
    Float(f64),
    /// bool.
    Flag(bool),
    /// string.
    Text(String),
    /// An array of strings.
    Texts(Vec<String>),
    /// An array of unsigned integers.
    UnsignedList(Vec<u64>),
    /// An array of signed integers.
    SignedList(Vec<i64>),
    /// An array of floats.
    FloatList(Vec<f64>),
    /// An array of bools.
    FlagList(Vec<bool>),
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// `blk.3.attn_q.weight`
    pub name: String,
    /// Dimensions as in the file: innermost first, the reverse of Hugging Face's.
    pub dims: Vec<usize>,
    /// How its values are stored.
    pub kind: Type,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Header {
    /// Reads a file's header.
    ///
    /// # Errors
    /// File, rule and place where the header breaks a rule of the format.
    pub fn read(path: &Path) -> crate::error::Result<Self> {
        Ok(Self::read_checked(path)?)
    }

    pub(super) fn read_checked(path: &Path) -> Result<Self, Error> {
        let (file, stamp) = file::open(path)?;
        let start = file::read_start(path, &file, parse::MAX_HEADER_BYTES)?;
        let (metadata, tensors) =
            parse(&start, stamp.size).map_err(|fault| Error::Gguf { file: path.into(), fault })?;
        Ok(Self { path: path.into(), stamp, metadata, tensors })
    }

    /// The shapes of the model.
    pub fn arch(&self) -> crate::error::Result<Arch> {
        Ok(shapes::arch(self)?)
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A string of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An array of strings of the metadata.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// A whole number that is not negative, of any width.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key)? {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A bool of the metadata.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}
