//! From bytes to entries: JSON without duplicate names, names that cannot be paths, and offsets that tile the data
//! with no overlap, hole or rest.

use super::{Dtype, Malformed, TensorEntry};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};

/// The largest header that is read: a shard of 1,000 tensors needs about 100 KB.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;
const MAX_DIMS: usize = 8;
const MAX_NAME_BYTES: usize = 512;

/// Reads the header of a file of `size` bytes; `from` then stands at the first byte of the first tensor.
///
/// # Errors
/// `from` cannot be read, or the header breaks a rule of the format.
pub fn read(mut from: &mut dyn Read, size: u64) -> io::Result<Vec<TensorEntry>> {
    let mut start = Vec::new();
    Read::by_ref(&mut from).take(8).read_to_end(&mut start)?;
    let declared = start.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
    from.take(declared.min(MAX_HEADER_BYTES)).read_to_end(&mut start)?;
    parse(&start, size).map_err(io::Error::other)
}

/// Parses the header from the start of a file of `size` bytes.
pub fn parse(start: &[u8], size: u64) -> Result<Vec<TensorEntry>, Malformed> {
    let (length, rest) = start.split_first_chunk::<8>().ok_or(Malformed::TooShort { size })?;
    let declared = u64::from_le_bytes(*length);
    let left = size.saturating_sub(8);
    if !(2..=MAX_HEADER_BYTES).contains(&declared) {
        return Err(Malformed::HeaderLength { declared, limit: MAX_HEADER_BYTES });
    }
    let json = usize::try_from(declared)
        .ok()
        .and_then(|declared| rest.get(..declared))
        .ok_or(Malformed::HeaderBeyondTheFile { declared, left })?;
    let entries: Entries = serde_json::from_slice(json)
        .map_err(|cause| Malformed::Json { at: cause.column(), cause: cause.to_string() })?;
    tile(entries.0, left - declared.min(left), 8 + declared)
}

/// Checks each entry by itself, then all together over `data` bytes; offsets come out from the file's start.
fn tile(entries: Vec<(String, Entry)>, data: u64, start: u64) -> Result<Vec<TensorEntry>, Malformed> {
    let mut tensors =
        entries.into_iter().map(|(name, entry)| check(name, entry, data)).collect::<Result<Vec<_>, _>>()?;
    // Empty tensors come before the one that begins at the same byte.
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    let mut end = 0;
    let mut before: Option<&str> = None;
    for tensor in &tensors {
        if tensor.offset < end {
            return Err(Malformed::Overlap {
                name: tensor.name.clone(),
                begin: tensor.offset,
                before: before.unwrap_or_default().to_owned(),
                end,
            });
        }
        if tensor.offset > end {
            return Err(Malformed::Hole {
                name: tensor.name.clone(),
                begin: tensor.offset,
                hole: tensor.offset - end,
            });
        }
        end = tensor.offset + tensor.len;
        before = Some(&tensor.name);
    }
    if end < data {
        return Err(Malformed::Trailing { bytes: data - end, after: before.map(str::to_owned) });
    }
    for tensor in &mut tensors {
        tensor.offset += start;
    }
    Ok(tensors)
}

fn check(name: String, entry: Entry, data: u64) -> Result<TensorEntry, Malformed> {
    if let Some(rule) = broken_name_rule(&name) {
        let name = name.chars().take(80).collect();
        return Err(Malformed::Name { name, rule });
    }
    let Some(dtype) = Dtype::of(&entry.dtype) else {
        let found = entry.dtype.chars().take(80).collect();
        return Err(Malformed::Dtype { name, found });
    };
    if entry.shape.len() > MAX_DIMS {
        return Err(Malformed::Dimensions { name, found: entry.shape.len(), limit: MAX_DIMS });
    }
    let Some((shape, needed)) = extent(&entry.shape, dtype) else {
        return Err(Malformed::Size { name, shape: entry.shape });
    };
    let [begin, end] = entry.data_offsets;
    if end > data {
        return Err(Malformed::BeyondTheFile { name, end, data });
    }
    if end.checked_sub(begin) != Some(needed) {
        return Err(Malformed::Extent { name, shape: entry.shape, dtype: dtype.name(), needed, begin, end });
    }
    Ok(TensorEntry { name, dtype, shape, offset: begin, len: needed })
}

fn broken_name_rule(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        Some("must have 1 to 512 bytes")
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        Some("must have no slashes and no control characters")
    } else {
        None
    }
}

/// The shape as sizes, and the bytes. A 0 does not excuse dimensions that overflow without it.
fn extent(shape: &[u64], dtype: Dtype) -> Option<(Vec<usize>, u64)> {
    let sizes = shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>()?;
    let nonzero = shape.iter().filter(|&&n| n > 0).try_fold(dtype.bytes(), |all, &n| all.checked_mul(n))?;
    i64::try_from(nonzero).ok()?;
    let len = if shape.contains(&0) { 0 } else { nonzero };
    Some((sizes, len))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's object, `__metadata__` left out; a name that stands twice is an error, not the last of the two.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut names = BTreeSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        let shown: String = name.chars().take(80).collect();
                        return Err(A::Error::custom(format!("{shown:?} stands twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Object)
    }
}
