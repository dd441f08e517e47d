//! A strict reader of safetensors headers and of the index over several files: where each tensor lies, with every
//! byte of the data accounted for. It reads no weights.

mod fault;
mod header;
mod index;

pub use fault::Malformed;
pub use header::{parse, read};
pub use index::open;
pub(super) use index::{INDEX, Index, SINGLE};

use super::Error;
use super::file::{self, Stamp};
use std::path::{Path, PathBuf};

/// One safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The file.
    pub path: PathBuf,
    /// Its size and time when the header was read.
    pub stamp: Stamp,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorEntry>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// `model.layers.3.self_attn.q_proj.weight`
    pub name: String,
    /// How its values are stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Types of values; the loader says which of them can be weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, missing_docs, reason = "the names are the format's")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8_E4M3,
    F8_E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    BOOL,
}

const DTYPES: [(Dtype, &str, u64); 15] = [
    (Dtype::F64, "F64", 8),
    (Dtype::F32, "F32", 4),
    (Dtype::F16, "F16", 2),
    (Dtype::BF16, "BF16", 2),
    (Dtype::F8_E4M3, "F8_E4M3", 1),
    (Dtype::F8_E5M2, "F8_E5M2", 1),
    (Dtype::I64, "I64", 8),
    (Dtype::I32, "I32", 4),
    (Dtype::I16, "I16", 2),
    (Dtype::I8, "I8", 1),
    (Dtype::U64, "U64", 8),
    (Dtype::U32, "U32", 4),
    (Dtype::U16, "U16", 2),
    (Dtype::U8, "U8", 1),
    (Dtype::BOOL, "BOOL", 1),
];

impl Dtype {
    fn of(name: &str) -> Option<Self> {
        DTYPES.into_iter().find(|row| row.1 == name).map(|row| row.0)
    }

    fn row(self) -> (&'static str, u64) {
        DTYPES.into_iter().find(|row| row.0 == self).map_or(("?", 1), |row| (row.1, row.2))
    }

    /// As the format writes it.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Bytes a value.
    pub fn bytes(self) -> u64 {
        self.row().1
    }
}

impl Shard {
    /// Reads a file's header.
    ///
    /// # Errors
    /// File, rule and tensor where the header breaks a rule of the format.
    pub fn read(path: &Path) -> crate::error::Result<Self> {
        Ok(Self::read_checked(path)?)
    }

    fn read_checked(path: &Path) -> Result<Self, Error> {
        let (file, stamp) = file::open(path)?;
        let start = file::read_start(path, &file, 8 + header::MAX_HEADER_BYTES)?;
        let tensors =
            parse(&start, stamp.size).map_err(|fault| Error::Safetensors { file: path.into(), fault })?;
        Ok(Self { path: path.into(), stamp, tensors })
    }
}
