//! Tokenised rows on disk, under a key that covers everything they follow from. A file that is broken, or that
//! somebody else's build wrote, is as good as none.

use super::source::{Loaded, Stats};
use super::{IGNORE, Sample};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"fttrain tokens 3\n";
const HASH_BYTES: usize = 32;

/// Where a key's rows lie.
fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.tokens"))
}

/// The rows under a key, if they are there and whole.
pub(super) fn read(folder: &Path, key: &str) -> Option<Loaded> {
    let bytes = std::fs::read(path(folder, key)).ok()?;
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
    if Sha256::digest(body).as_slice() != hash {
        return None;
    }
    decode(body)
}

/// Keeps rows under a key; a file appears whole or not at all.
pub(super) fn write(folder: &Path, key: &str, loaded: &Loaded) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut bytes = encode(loaded)?;
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    let temporary = folder.join(format!(".{key}.{}", std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| std::fs::rename(&temporary, path(folder, key)));
    if written.is_err() {
        // What could not be finished is of no use; the first error is the one that counts.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Magic, header, and for each sample its row, its length, whether labels repeat the ids, ids, labels.
fn encode(loaded: &Loaded) -> std::io::Result<Vec<u8>> {
    let header = serde_json::to_vec(&loaded.stats)?;
    let mut out = MAGIC.to_vec();
    put(&mut out, header.len());
    out.extend_from_slice(&header);
    put(&mut out, loaded.samples.len());
    for (sample, &row) in loaded.samples.iter().zip(&loaded.rows) {
        out.extend_from_slice(&row.to_le_bytes());
        put(&mut out, sample.ids.len());
        out.extend(sample.ids.iter().flat_map(|id| id.to_le_bytes()));
        let repeats = sample.labels.iter().zip(&sample.ids);
        let plain = repeats.clone().all(|(&l, &id)| l == IGNORE || u32::try_from(l) == Ok(id));
        out.push(u8::from(plain));
        if plain {
            let counted: Vec<bool> = repeats.map(|(&l, _)| l != IGNORE).collect();
            let byte = |eight: &[bool]| eight.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
            out.extend(counted.chunks(8).map(byte));
        } else {
            out.extend(sample.labels.iter().flat_map(|l| l.to_le_bytes()));
        }
    }
    Ok(out)
}

fn put(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&(n as u64).to_le_bytes());
}

fn decode(body: &[u8]) -> Option<Loaded> {
    let mut rest = Rest(body.strip_prefix(MAGIC)?);
    let header = rest.length()?;
    let stats: Stats = serde_json::from_slice(rest.take(header)?).ok()?;
    let count = rest.length()?;
    let mut loaded = Loaded { samples: Vec::new(), rows: Vec::new(), stats };
    for _ in 0..count {
        loaded.rows.push(u32::from_le_bytes(*rest.array()?));
        let tokens = rest.length()?;
        let ids: Vec<u32> = rest.words(tokens)?.map(u32::from_le_bytes).collect();
        let labels = match rest.array::<1>()? {
            [1] => {
                let bits = rest.take(tokens.div_ceil(8))?;
                let counted = |i: usize| bits.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1);
                let label = |(i, &id): (usize, &u32)| {
                    if counted(i) { i32::try_from(id).unwrap_or(IGNORE) } else { IGNORE }
                };
                ids.iter().enumerate().map(label).collect()
            }
            _ => rest.words(tokens)?.map(i32::from_le_bytes).collect(),
        };
        loaded.samples.push(Sample { ids, labels });
    }
    rest.0.is_empty().then_some(loaded)
}

/// Bytes not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(*self.array()?)).ok()
    }

    fn words(&mut self, n: usize) -> Option<impl Iterator<Item = [u8; 4]> + use<'a>> {
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded() -> Loaded {
        let sample = |ids: &[u32], labels: &[i32]| Sample { ids: ids.to_vec(), labels: labels.to_vec() };
        Loaded {
            samples: vec![
                sample(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[-100, 2, -100, 4, 5, 6, 7, 8, -100, 10]),
                sample(&[7, 8], &[-100, 9]),
                sample(&[], &[]),
            ],
            rows: vec![0, 2, 2],
            stats: Stats { rows: 3, ..Stats::default() },
        }
    }

    #[test]
    fn what_was_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("deep/er");
        assert_eq!(read(&at, "k"), None);
        write(&at, "k", &loaded()).unwrap();
        assert_eq!(read(&at, "k"), Some(loaded()));
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "k", &loaded()).unwrap();
        let whole = std::fs::read(path(folder.path(), "k")).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(path(folder.path(), "k"), &flipped).unwrap();
            assert_eq!(read(folder.path(), "k"), None, "bit {at}");
            std::fs::write(path(folder.path(), "k"), &whole[..at]).unwrap();
            assert_eq!(read(folder.path(), "k"), None, "cut {at}");
        }
    }

    #[test]
    fn lengths_that_lie_are_refused_without_reading_on() {
        let mut body = MAGIC.to_vec();
        put(&mut body, usize::MAX);
        assert_eq!(decode(&body), None);
        let mut body = MAGIC.to_vec();
        put(&mut body, 2);
        body.extend_from_slice(b"{}");
        put(&mut body, usize::MAX);
        assert_eq!(decode(&body), None);
    }
}
