//! Reads a small text file that a person wrote: never blocks, never reads without bound, names what it found in
//! place of UTF-8.

use super::Error;
use super::place::{Lines, Place};
use crate::units::Bytes;
use std::fs::{File, FileType, Metadata};
use std::io::Read;
use std::path::Path;

/// The text of a regular file of at most `limit` bytes, without a byte-order mark; else the place in it and the fact.
pub(super) fn text(path: &Path, limit: u64) -> Result<String, (Place, Error)> {
    let bytes = bytes(path, limit).map_err(|error| (Place::File, error))?;
    if let Some(encoding) = foreign_encoding(&bytes) {
        return Err((Place::File, Error::Encoding { encoding }));
    }
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match std::str::from_utf8(body) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let good = body.get(..error.valid_up_to()).unwrap_or_default();
            let good = String::from_utf8_lossy(good);
            let byte = body.get(error.valid_up_to()).copied().unwrap_or_default();
            Err((Lines::of(&good).place(good.len()), Error::NotUtf8 { byte }))
        }
    }
}

fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let unreadable = |error: std::io::Error| Error::Unreadable { cause: error.to_string() };
    // Looked at before it is opened: opening a pipe waits for its other end.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if let Some(what) = not_a_file(&metadata) {
        return Err(Error::NotAFile { what });
    }
    let too_long = Error::TooLong { limit: Bytes(limit) };
    if metadata.len() > limit {
        return Err(too_long);
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    match bytes.len() {
        0 => Err(Error::Empty),
        n if u64::try_from(n).is_ok_and(|n| n <= limit) => Ok(bytes),
        _ => Err(too_long),
    }
}

fn not_a_file(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a folder")
    } else {
        Some(special(kind))
    }
}

#[cfg(unix)]
fn special(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if kind.is_fifo() {
        "a pipe (FIFO)"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> &'static str {
    "something special"
}

/// The encodings that editors write by accident; ordinary text has no zero byte.
fn foreign_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [_, 0, 0, 0, ..] => Some("UTF-32 (little endian)"),
        [0, 0, 0xfe, 0xff, ..] | [0, 0, 0, _, ..] => Some("UTF-32 (big endian)"),
        [0xff, 0xfe, ..] | [_, 0, ..] => Some("UTF-16 (little endian)"),
        [0xfe, 0xff, ..] | [0, _, ..] => Some("UTF-16 (big endian)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_named() {
        let utf16: Vec<u8> = "ab".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(foreign_encoding(&utf16), Some("UTF-16 (little endian)"));
        let utf16: Vec<u8> = "\u{feff}ab".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(foreign_encoding(&utf16), Some("UTF-16 (big endian)"));
        assert_eq!(foreign_encoding(b"base_model"), None);
        assert_eq!(foreign_encoding("\u{feff}base".as_bytes()), None);
    }
}
