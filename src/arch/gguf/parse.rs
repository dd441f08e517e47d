//! From bytes to metadata and tensor table. The cursor never leaves its slice, and nothing is reserved for a count
//! before the rest of the file is known to be long enough for it.

use super::{Malformed, TensorEntry, Type, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The largest header that is read; a vocabulary of 260,000 tokens with its merges takes about 15 MB.
pub(super) const MAX_HEADER_BYTES: u64 = 64 << 20;
const MAX_KEY_BYTES: u64 = 65_535;
/// ggml's own bound.
const MAX_TENSOR_NAME_BYTES: u64 = 64;
const DEFAULT_ALIGNMENT: u64 = 32;
/// A key of one letter, its type and one byte.
const MIN_KEY_BYTES: u64 = 14;
/// A name of one letter, number of dimensions, one of them, type and offset.
const MIN_TENSOR_BYTES: u64 = 33;

/// Parses a header from the start of a file of `size` bytes.
pub fn parse(start: &[u8], size: u64) -> Result<(BTreeMap<String, Value>, Vec<TensorEntry>), Malformed> {
    let mut cursor = Cursor { bytes: start, at: 0, size };
    let magic = cursor.take(4, "the magic")?;
    if magic != b"GGUF" {
        return Err(Malformed::Magic { found: magic.to_vec() });
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        found if matches!(found.swap_bytes(), 1..=3) => return Err(Malformed::BigEndian),
        found => return Err(Malformed::Version { found }),
    }
    let at = cursor.position();
    let tensors = cursor.u64("the number of tensors")?;
    let keys = cursor.u64("the number of keys")?;
    cursor.room_for(at, tensors, MIN_TENSOR_BYTES, "tensors")?;
    cursor.room_for(at + 8, keys, MIN_KEY_BYTES, "keys")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let at = cursor.position();
        let key = cursor.name("key", MAX_KEY_BYTES)?;
        let value = cursor.value(&key)?;
        if metadata.contains_key(&key) {
            return Err(Malformed::DuplicateKey { at, key });
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(metadata.get("general.alignment"))?;
    let mut table = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..tensors {
        let entry = cursor.tensor(alignment)?;
        if !names.insert(entry.name.clone()) {
            return Err(Malformed::DuplicateTensor { name: entry.name });
        }
        table.push(entry);
    }
    place(&mut table, cursor.position().next_multiple_of(alignment), size)?;
    Ok((metadata, table))
}

fn alignment(value: Option<&Value>) -> Result<u64, Malformed> {
    match value {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=65_536).contains(n) => Ok(*n),
        Some(Value::Unsigned(n)) => Err(Malformed::Alignment { found: n.to_string() }),
        Some(_) => Err(Malformed::Alignment { found: "a value of another type".into() }),
    }
}

/// Turns offsets into the data into offsets into the file; all must lie inside it and apart.
fn place(table: &mut [TensorEntry], data: u64, size: u64) -> Result<(), Malformed> {
    for tensor in table.iter_mut() {
        let begin = tensor.offset.saturating_add(data);
        let end = begin.saturating_add(tensor.len);
        if end > size {
            return Err(Malformed::BeyondTheFile { name: tensor.name.clone(), begin, end, size });
        }
        tensor.offset = begin;
    }
    let mut order: Vec<&TensorEntry> = table.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if let [first, second] = pair
            && first.offset + first.len > second.offset
        {
            return Err(Malformed::Overlap {
                first: first.name.clone(),
                second: second.name.clone(),
                at: second.offset,
            });
        }
    }
    Ok(())
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of the file, of which `bytes` is the start.
    size: u64,
}

impl<'a> Cursor<'a> {
    fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes of the file behind the cursor.
    fn left(&self) -> u64 {
        self.size.saturating_sub(self.position())
    }

    fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], Malformed> {
        let at = self.position();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let piece = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let Some(piece) = piece else {
            return Err(if len <= self.left() {
                Malformed::HeaderTooLarge { at, limit: MAX_HEADER_BYTES }
            } else {
                Malformed::Cut { at, what }
            });
        };
        self.at += piece.len();
        Ok(piece)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn room_for(&self, at: u64, count: u64, each: u64, what: &'static str) -> Result<(), Malformed> {
        let left = self.left();
        if count > left / each {
            return Err(Malformed::Count { at, count, what, left });
        }
        Ok(())
    }

    fn string(&mut self, what: &'static str) -> Result<String, Malformed> {
        let at = self.position();
        let len = self.u64(what)?;
        self.room_for(at, len, 1, "bytes of text")?;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Malformed::Utf8 { at: at + 8, what }),
        }
    }

    fn name(&mut self, what: &'static str, limit: u64) -> Result<String, Malformed> {
        let at = self.position();
        let length = self.u64(what)?;
        if length == 0 || length > limit {
            return Err(Malformed::NameLength { at, what, length, limit });
        }
        self.at -= 8;
        self.string(what)
    }

    fn value(&mut self, key: &str) -> Result<Value, Malformed> {
        let at = self.position();
        let kind = self.u32("a value's type")?;
        if kind == 9 {
            return self.list(key);
        }
        self.scalar(key, kind, at)
    }

    fn scalar(&mut self, key: &str, kind: u32, at: u64) -> Result<Value, Malformed> {
        const WHAT: &str = "a value";
        Ok(match kind {
            0 => Value::Unsigned(self.array(WHAT).map(u8::from_le_bytes)?.into()),
            1 => Value::Signed(self.array(WHAT).map(i8::from_le_bytes)?.into()),
            2 => Value::Unsigned(self.array(WHAT).map(u16::from_le_bytes)?.into()),
            3 => Value::Signed(self.array(WHAT).map(i16::from_le_bytes)?.into()),
            4 => Value::Unsigned(self.u32(WHAT)?.into()),
            5 => Value::Signed(self.array(WHAT).map(i32::from_le_bytes)?.into()),
            6 => Value::Float(self.array(WHAT).map(f32::from_le_bytes)?.into()),
            7 => Value::Flag(self.boolean(key)?),
            8 => Value::Text(self.string("a value")?),
            10 => Value::Unsigned(self.u64(WHAT)?),
            11 => Value::Signed(self.array(WHAT).map(i64::from_le_bytes)?),
            12 => Value::Float(self.array(WHAT).map(f64::from_le_bytes)?),
            found => {
                return Err(Malformed::ValueType { at, key: key.into(), found });
            }
        })
    }

    fn boolean(&mut self, key: &str) -> Result<bool, Malformed> {
        let at = self.position();
        match self.array("a bool")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(Malformed::Flag { at, key: key.into(), found }),
        }
    }

    fn list(&mut self, key: &str) -> Result<Value, Malformed> {
        let at = self.position();
        let kind = self.u32("an array's type")?;
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => {
                return Err(Malformed::NestedArray { at, key: key.into() });
            }
            found => {
                return Err(Malformed::ValueType { at, key: key.into(), found });
            }
        };
        let count_at = self.position();
        let count = self.u64("an array's length")?;
        self.room_for(count_at, count, each, "array items")?;
        let mut list = match kind {
            0 | 2 | 4 | 10 => Value::UnsignedList(Vec::new()),
            1 | 3 | 5 | 11 => Value::SignedList(Vec::new()),
            6 | 12 => Value::FloatList(Vec::new()),
            7 => Value::FlagList(Vec::new()),
            _ => Value::Texts(Vec::new()),
        };
        for _ in 0..count {
            match (&mut list, self.scalar(key, kind, at)?) {
                (Value::UnsignedList(all), Value::Unsigned(one)) => all.push(one),
                (Value::SignedList(all), Value::Signed(one)) => all.push(one),
                (Value::FloatList(all), Value::Float(one)) => all.push(one),
                (Value::FlagList(all), Value::Flag(one)) => all.push(one),
                (Value::Texts(all), Value::Text(one)) => all.push(one),
                // The list was chosen by the same type number.
                _ => {}
            }
        }
        Ok(list)
    }

    fn tensor(&mut self, alignment: u64) -> Result<TensorEntry, Malformed> {
        let name = self.name("tensor name", MAX_TENSOR_NAME_BYTES)?;
        let found = self.u32("the number of dimensions")?;
        if !(1..=4).contains(&found) {
            return Err(Malformed::Dimensions { name, found });
        }
        let mut dims = Vec::with_capacity(4);
        for _ in 0..found {
            dims.push(self.u64("a dimension")?);
        }
        let kind = self.kind(&name)?;
        let offset = self.u64("a tensor's offset")?;
        if !offset.is_multiple_of(alignment) {
            return Err(Malformed::Misaligned { name, offset, alignment });
        }
        let row = dims.first().copied().unwrap_or_default();
        if !row.is_multiple_of(kind.block()) {
            return Err(Malformed::Block { name, row, kind: kind.name(), block: kind.block() });
        }
        match extent(&dims, kind) {
            Some((dims, len)) => Ok(TensorEntry { name, dims, kind, offset, len }),
            None => Err(Malformed::Size { name, dims }),
        }
    }

    fn kind(&mut self, name: &str) -> Result<Type, Malformed> {
        let found = self.u32("a tensor's type")?;
        Type::of(found).map_err(|known| match known {
            Some(known) => {
                Malformed::UnsupportedType { name: name.into(), found: known, supported: Type::supported() }
            }
            None => Malformed::Type { name: name.into(), found },
        })
    }
}

/// The dimensions as sizes, and the bytes; `None` where a dimension is 0 or the bytes do not fit.
pub(super) fn extent(dims: &[u64], kind: Type) -> Option<(Vec<usize>, u64)> {
    let sizes =
        dims.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect::<Option<Vec<_>>>()?;
    let values = dims.iter().try_fold(1_u64, |all, &n| all.checked_mul(n))?;
    let len = (values / kind.block()).checked_mul(kind.block_bytes())?;
    i64::try_from(len).ok()?;
    Some((sizes, len))
}
