//! The ways in which a safetensors file, or the index over several, breaks its format.

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not even the header's length.
    #[error("{size} bytes are too few for a safetensors file")]
    TooShort {
        /// Size of the file.
        size: u64,
    },
    /// A header length that cannot be.
    #[error("the header declares {declared} bytes; 2 to {limit} are accepted")]
    HeaderLength {
        /// As declared.
        declared: u64,
        /// The bound.
        limit: u64,
    },
    /// The header reaches beyond the end of the file.
    #[error("the header declares {declared} bytes, the file has {left} behind its length")]
    HeaderBeyondTheFile {
        /// As declared.
        declared: u64,
        /// What there is.
        left: u64,
    },
    /// Not the JSON that is expected.
    #[error("header byte {at}: {cause}")]
    Json {
        /// Byte in the header, from 1.
        at: usize,
        /// The parser's words.
        cause: String,
    },
    /// A name that could be taken for a path, or is none.
    #[error("tensor name {name:?}: {rule}")]
    Name {
        /// The name.
        name: String,
        /// The rule.
        rule: &'static str,
    },
    /// A type that does not exist.
    #[error("tensor `{name}` has the unknown dtype {found:?}")]
    Dtype {
        /// The tensor.
        name: String,
        /// As written.
        found: String,
    },
    /// Too many dimensions.
    #[error("tensor `{name}` has {found} dimensions; at most {limit} are accepted")]
    Dimensions {
        /// The tensor.
        name: String,
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The dimensions multiplied do not fit.
    #[error("tensor `{name}` of shape {shape:?}: the number of bytes does not fit 63 bits")]
    Size {
        /// The tensor.
        name: String,
        /// The shape.
        shape: Vec<u64>,
    },
    /// The bytes given are not those that the shape needs.
    #[error(
        "tensor `{name}` of shape {shape:?} and dtype {dtype} needs {needed} bytes, its offsets are {begin} to {end}"
    )]
    Extent {
        /// The tensor.
        name: String,
        /// The shape.
        shape: Vec<u64>,
        /// The dtype.
        dtype: &'static str,
        /// Bytes by the shape.
        needed: u64,
        /// First offset.
        begin: u64,
        /// Second offset.
        end: u64,
    },
    /// A tensor reaches beyond the end of the file.
    #[error("tensor `{name}` ends at byte {end} of the data, which has {data}")]
    BeyondTheFile {
        /// The tensor.
        name: String,
        /// Its end.
        end: u64,
        /// Bytes of data in the file.
        data: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor `{name}` begins at byte {begin} of the data, inside `{before}`, which ends at {end}")]
    Overlap {
        /// The one that begins inside.
        name: String,
        /// Where.
        begin: u64,
        /// The one before it.
        before: String,
        /// Its end.
        end: u64,
    },
    /// Bytes between two tensors.
    #[error("tensor `{name}` begins at byte {begin} of the data, {hole} bytes behind the one before it")]
    Hole {
        /// The tensor behind the hole.
        name: String,
        /// Where it begins.
        begin: u64,
        /// Size of the hole.
        hole: u64,
    },
    /// Bytes behind the last tensor.
    #[error("{bytes} bytes lie behind the last tensor{}", after.as_ref().map_or(String::new(), |name| format!(" (`{name}`)")))]
    Trailing {
        /// How many.
        bytes: u64,
        /// The last tensor.
        after: Option<String>,
    },
    /// The index names no shard.
    #[error("`weight_map` is empty")]
    EmptyIndex,
    /// The index names too many shards.
    #[error("`weight_map` names {found} files; at most {limit} are accepted")]
    Shards {
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A shard's name is a path.
    #[error("`weight_map` names the file {name:?}, which is not a plain name that ends in .safetensors")]
    ShardName {
        /// As written.
        name: String,
    },
    /// The index promises a tensor that the shard does not hold.
    #[error("the index puts tensor `{name}` into {shard}, which does not hold it")]
    NotInShard {
        /// The tensor.
        name: String,
        /// The shard.
        shard: String,
    },
    /// A shard holds a tensor of which the index knows nothing, or which it puts elsewhere.
    #[error("{shard} holds tensor `{name}`, which the index does not put there")]
    NotInIndex {
        /// The tensor.
        name: String,
        /// The shard.
        shard: String,
    },
}
