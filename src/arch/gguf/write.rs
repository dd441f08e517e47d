//! Writes GGUF files (version 3, little endian). The header is held against the reader's own rules before a byte
//! reaches the disk, tensors follow one by one, and the file stands whole or not at all.

use super::parse::{extent, parse};
use super::{Type, Value};
use crate::arch::Error;
use crate::error::Result;
use crate::fs::{self, FileEntry};
use std::io::{self, Write};
use std::path::Path;

const VERSION: u32 = 3;
/// The format's default, which needs no key of its own.
const ALIGNMENT: u64 = 32;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// `blk.3.attn_q.weight`
    pub name: String,
    /// Innermost first, the reverse of Hugging Face's.
    pub dims: Vec<usize>,
    /// How its values are stored.
    pub kind: Type,
}

/// Writes the bytes of tensor `i`, exactly as many as its shape and type make. Where space runs out it may be called
/// again from the first, to count what was needed.
pub type Data<'a> = dyn FnMut(usize, &mut dyn Write) -> io::Result<()> + 'a;

/// Writes a file durably: metadata in the order given, then the tensors in theirs, each asked of `data` when its turn
/// comes. Whole numbers are written as u32 or i32 where they fit, floats as f32, as llama.cpp reads them.
///
/// # Errors
/// The header breaks a rule of the format (4); `data` fails or writes another number of bytes, or the disk fails (5).
pub fn write(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: &[NewTensor],
    data: &mut Data<'_>,
) -> Result<FileEntry> {
    let lengths: Vec<u64> = tensors.iter().map(bytes_of).collect();
    let (head, size) = header(metadata, tensors, &lengths);
    parse(&head, size).map_err(|fault| Error::Gguf { file: path.into(), fault })?;
    fs::write_durable_with(path, &mut |out| {
        out.write_all(&head)?;
        for (i, &len) in lengths.iter().enumerate() {
            let mut counted = Counted { out: &mut *out, left: len };
            data(i, &mut counted)?;
            if counted.left > 0 {
                return Err(io::Error::other(format!("tensor {i} lacks {} of {len} bytes", counted.left)));
            }
            out.write_all(padding(len))?;
        }
        Ok(())
    })
}

/// What the tensor takes; 0 where its shape is refused.
fn bytes_of(tensor: &NewTensor) -> u64 {
    let dims: Vec<u64> = tensor.dims.iter().map(|&n| n as u64).collect();
    extent(&dims, tensor.kind).map_or(0, |(_, len)| len)
}

fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; 32] = [0; 32];
    let short = len.next_multiple_of(ALIGNMENT) - len;
    usize::try_from(short).ok().and_then(|n| ZEROS.get(..n)).unwrap_or_default()
}

/// The header with the padding behind it, and the size of the whole file.
fn header(metadata: &[(&str, Value)], tensors: &[NewTensor], lengths: &[u64]) -> (Vec<u8>, u64) {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        put(&mut out, value);
    }
    let mut offset = 0_u64;
    for (tensor, len) in tensors.iter().zip(lengths) {
        text(&mut out, &tensor.name);
        out.extend(u32::try_from(tensor.dims.len()).unwrap_or(u32::MAX).to_le_bytes());
        for &n in &tensor.dims {
            out.extend((n as u64).to_le_bytes());
        }
        out.extend(tensor.kind.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = offset.saturating_add(len.next_multiple_of(ALIGNMENT));
    }
    out.extend(padding(out.len() as u64));
    let size = (out.len() as u64).saturating_add(offset);
    (out, size)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The type's number and the value.
fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(n) => {
            let kind = unsigned_kind(&[*n]);
            out.extend(kind.to_le_bytes());
            unsigned(out, kind, *n);
        }
        Value::Signed(n) => {
            let kind = signed_kind(&[*n]);
            out.extend(kind.to_le_bytes());
            signed(out, kind, *n);
        }
        Value::Float(x) => {
            out.extend(6_u32.to_le_bytes());
            float(out, *x);
        }
        Value::Flag(flag) => {
            out.extend(7_u32.to_le_bytes());
            out.push((*flag).into());
        }
        Value::Text(words) => {
            out.extend(8_u32.to_le_bytes());
            text(out, words);
        }
        Value::Texts(all) => list(out, 8, all, |out, one| text(out, one)),
        Value::UnsignedList(all) => {
            let kind = unsigned_kind(all);
            list(out, kind, all, |out, &n| unsigned(out, kind, n));
        }
        Value::SignedList(all) => {
            let kind = signed_kind(all);
            list(out, kind, all, |out, &n| signed(out, kind, n));
        }
        Value::FloatList(all) => list(out, 6, all, |out, &x| float(out, x)),
        Value::FlagList(all) => list(out, 7, all, |out, &flag| out.push(flag.into())),
    }
}

fn list<T>(out: &mut Vec<u8>, kind: u32, all: &[T], one: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((all.len() as u64).to_le_bytes());
    for value in all {
        one(out, value);
    }
}

/// u32 where all fit, else u64.
fn unsigned_kind(all: &[u64]) -> u32 {
    if all.iter().all(|&n| u32::try_from(n).is_ok()) { 4 } else { 10 }
}

fn unsigned(out: &mut Vec<u8>, kind: u32, n: u64) {
    match u32::try_from(n) {
        Ok(n) if kind == 4 => out.extend(n.to_le_bytes()),
        _ => out.extend(n.to_le_bytes()),
    }
}

/// i32 where all fit, else i64.
fn signed_kind(all: &[i64]) -> u32 {
    if all.iter().all(|&n| i32::try_from(n).is_ok()) { 5 } else { 11 }
}

fn signed(out: &mut Vec<u8>, kind: u32, n: i64) {
    match i32::try_from(n) {
        Ok(n) if kind == 5 => out.extend(n.to_le_bytes()),
        _ => out.extend(n.to_le_bytes()),
    }
}

fn float(out: &mut Vec<u8>, x: f64) {
    #[expect(clippy::cast_possible_truncation, reason = "llama.cpp reads floats as f32")]
    let x = x as f32;
    out.extend(x.to_le_bytes());
}

/// Takes the bytes of one tensor and no more.
struct Counted<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("a tensor has more bytes than its shape makes"));
        }
        let taken = self.out.write(bytes)?;
        self.left -= taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Header;
    use super::*;

    fn tensor(name: &str, dims: &[usize], kind: Type) -> NewTensor {
        NewTensor { name: name.into(), dims: dims.into(), kind }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let metadata = [
            ("general.architecture", Value::Text("llama".into())),
            ("llama.block_count", Value::Unsigned(3)),
            ("big", Value::Unsigned(1 << 40)),
            ("small", Value::Signed(-7)),
            ("eps", Value::Float(0.5)),
            ("flag", Value::Flag(true)),
            ("tokens", Value::Texts(vec!["a".into(), "ü".into(), String::new()])),
            ("counts", Value::UnsignedList(vec![1, 1 << 40])),
            ("types", Value::SignedList(vec![3, -1])),
            ("scores", Value::FloatList(vec![0.25])),
            ("flags", Value::FlagList(vec![false, true])),
        ];
        let tensors = [
            tensor("a.weight", &[3, 2], Type::F32),
            tensor("b.weight", &[32], Type::Q8_0),
            tensor("c.weight", &[5], Type::BF16),
        ];
        let bytes: [Vec<u8>; 3] = [(0..24).collect(), (100..134).collect(), (200..210).collect()];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let entry = write(&path, &metadata, &tensors, &mut |i, out| out.write_all(&bytes[i])).unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(entry.size, file.len() as u64);
        let header = Header::read(&path).unwrap();
        assert_eq!(header.metadata.len(), metadata.len());
        for (key, value) in &metadata {
            assert_eq!(header.metadata.get(*key), Some(value), "{key}");
        }
        for ((found, written), bytes) in header.tensors.iter().zip(&tensors).zip(&bytes) {
            assert_eq!((&found.name, &found.dims, found.kind), (&written.name, &written.dims, written.kind));
            assert_eq!(found.offset % ALIGNMENT, 0);
            let at = usize::try_from(found.offset).unwrap();
            assert_eq!(&file[at..at + bytes.len()], bytes);
        }
    }

    #[test]
    fn what_the_reader_would_refuse_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let long = "x".repeat(65);
        for (tensors, fact) in [
            (vec![tensor("a", &[33], Type::Q8_0)], "no whole number of Q8_0 blocks"),
            (vec![tensor("a", &[1], Type::F32), tensor("a", &[1], Type::F32)], "stands twice"),
            (vec![tensor("a", &[1; 5], Type::F32)], "5 dimensions"),
            (vec![tensor(&long, &[1], Type::F32)], "65 bytes"),
            (vec![tensor("a", &[0], Type::F32)], "number of bytes is 0"),
        ] {
            let error = write(&path, &[], &tensors, &mut |_, _| Ok(())).unwrap_err();
            assert!(error.to_string().contains(fact), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tensor_of_another_length_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let tensors = [tensor("a", &[4], Type::F32)];
        for (len, fact) in [(15, "lacks 1 of 16 bytes"), (17, "more bytes than its shape makes")] {
            let error = write(&path, &[], &tensors, &mut |_, out| out.write_all(&vec![0; len])).unwrap_err();
            assert!(error.to_string().contains(fact), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
