//! The ways in which a GGUF file breaks its format, each with a message of its own.

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not `GGUF`.
    #[error("does not start with `GGUF` but with bytes {found:02x?}")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// Written for the other byte order.
    #[error("is big-endian; only little-endian GGUF files are read")]
    BigEndian,
    /// Not 2 or 3.
    #[error("GGUF version {found} is not supported; supported: 2, 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// The file ends inside the header.
    #[error("byte {at}: the file ends inside {what}")]
    Cut {
        /// Where the piece begins.
        at: u64,
        /// The piece.
        what: &'static str,
    },
    /// The header goes on beyond its bound.
    #[error("byte {at}: the header is larger than {limit} bytes")]
    HeaderTooLarge {
        /// Where the bound was met.
        at: u64,
        /// The bound.
        limit: u64,
    },
    /// More items than the rest of the file could hold.
    #[error("byte {at}: {count} {what} cannot fit in the {left} bytes that are left")]
    Count {
        /// Where the count stands.
        at: u64,
        /// The count.
        count: u64,
        /// Of what.
        what: &'static str,
        /// Bytes behind it.
        left: u64,
    },
    /// A name is empty or too long.
    #[error("byte {at}: a {what} of {length} bytes; 1 to {limit} are allowed")]
    NameLength {
        /// Where the length stands.
        at: u64,
        /// Key or tensor name.
        what: &'static str,
        /// The length.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("byte {at}: a {what} is not UTF-8")]
    Utf8 {
        /// Where the text begins.
        at: u64,
        /// Which text.
        what: &'static str,
    },
    /// Twice the same key.
    #[error("byte {at}: key `{key}` stands twice")]
    DuplicateKey {
        /// Where the second begins.
        at: u64,
        /// The key.
        key: String,
    },
    /// A value type that does not exist.
    #[error("byte {at}: key `{key}` has value type {found}; 0 to 12 exist")]
    ValueType {
        /// Where the type stands.
        at: u64,
        /// The key.
        key: String,
        /// The type.
        found: u32,
    },
    /// An array of arrays.
    #[error("byte {at}: key `{key}` is an array of arrays")]
    NestedArray {
        /// Where the inner type stands.
        at: u64,
        /// The key.
        key: String,
    },
    /// A bool that is neither.
    #[error("byte {at}: key `{key}` has a bool of value {found}")]
    Flag {
        /// Where it stands.
        at: u64,
        /// The key.
        key: String,
        /// Its byte.
        found: u8,
    },
    /// `general.alignment` out of bounds.
    #[error("`general.alignment` must be a power of two from 8 to 65536, got {found}")]
    Alignment {
        /// The value.
        found: String,
    },
    /// Twice the same tensor.
    #[error("tensor `{name}` stands twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// Too many or no dimensions.
    #[error("tensor `{name}` has {found} dimensions; 1 to 4 are allowed")]
    Dimensions {
        /// The tensor.
        name: String,
        /// How many.
        found: u32,
    },
    /// A type number that does not exist.
    #[error("tensor `{name}` has type {found}, which does not exist")]
    Type {
        /// The tensor.
        name: String,
        /// The number.
        found: u32,
    },
    /// A type that exists but cannot be computed with.
    #[error("tensor `{name}` is stored as {found}, which is not supported; supported: {supported}")]
    UnsupportedType {
        /// The tensor.
        name: String,
        /// The type's name.
        found: &'static str,
        /// All that would do.
        supported: String,
    },
    /// A dimension is 0, or all multiplied do not fit.
    #[error("tensor `{name}` of dimensions {dims:?}: the number of bytes is 0 or does not fit 63 bits")]
    Size {
        /// The tensor.
        name: String,
        /// The dimensions.
        dims: Vec<u64>,
    },
    /// A row that is no whole number of blocks.
    #[error("tensor `{name}`: rows of {row} values are no whole number of {kind} blocks of {block}")]
    Block {
        /// The tensor.
        name: String,
        /// Values in a row.
        row: u64,
        /// The type's name.
        kind: &'static str,
        /// Values in a block.
        block: u64,
    },
    /// An offset between the steps of the alignment.
    #[error("tensor `{name}` begins at offset {offset}, no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// From the start of the data.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// A tensor reaches beyond the end of the file.
    #[error("tensor `{name}` needs bytes {begin} to {end}, the file has {size}")]
    BeyondTheFile {
        /// The tensor.
        name: String,
        /// Its first byte.
        begin: u64,
        /// Behind its last.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` overlap at byte {at}")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
        /// Where.
        at: u64,
    },
}

impl Malformed {
    pub(in crate::arch) fn hint(&self) -> String {
        match self {
            Self::Version { found: 1 } => "convert it with a current llama.cpp".into(),
            Self::BigEndian | Self::UnsupportedType { .. } => {
                "convert the model to a supported type, for example Q8_0 or BF16".into()
            }
            Self::Magic { .. } => "this is not a GGUF file; fetch it again".into(),
            _ => "the file is damaged or was not fully fetched; fetch it again".into(),
        }
    }
}
