//! SHA-256, in lower-case hexadecimal.

use super::{durable::open_regular, error::Error};
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes that are read or written at once.
pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// The digest of a regular file's contents, read in blocks. Symbolic links are refused.
pub fn sha256_file(path: &Path) -> Result<String> {
    Ok(Hashing::open(path).and_then(Hashing::finish).map_err(Error::io("read", path))?)
}

/// A regular file that is hashed while it is read.
pub struct Hashing {
    file: File,
    hasher: Sha256,
}

impl Hashing {
    /// Opens a file at its beginning. Symbolic links are refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: open_regular(path)?, hasher: Sha256::new() })
    }

    /// Reads what is left, and gives the digest of all that the file held.
    pub fn finish(mut self) -> io::Result<String> {
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            match self.read(&mut block) {
                Ok(0) => return Ok(hex(&self.hasher.finalize())),
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
    }
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hasher.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// The digest of what is written to it.
#[derive(Default)]
pub struct Digesting(Sha256);

impl Digesting {
    /// Of all that was written.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

impl io::Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The digest of bytes in memory.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(digest: &[u8]) -> String {
    let mut text = String::with_capacity(digest.len() * 2);
    for byte in digest {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-4, the examples for "" and "abc".
        assert_eq!(sha256_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(
            sha256_file(&path).unwrap(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn a_file_larger_than_a_block_hashes_as_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let bytes: Vec<u8> = (0..251).cycle().take(BLOCK_BYTES + 77).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(sha256_file(&path).unwrap(), sha256_bytes(&bytes));
    }

    #[test]
    fn links_and_folders_are_not_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, b"x").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(sha256_file(&link).is_err());
        assert!(sha256_file(folder.path()).is_err());
    }
}
