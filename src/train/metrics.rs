//! The pinned records of `metrics.jsonl` and `eval.jsonl`: one line each, every digit; what is not finite or not known
//! reads `null`. Owns how they are read back after a kill and cut at a resume.

use crate::error::{Fault, Kind, Result};
use crate::fs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Four million steps; beyond that a file of records is not one.
const MAX_BYTES: u64 = 1 << 30;

/// Why a file of records could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line before the last is not a record.
    #[error("{}:{line}: not a record: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record that cannot be written as JSON.
    #[error("a record cannot be written: {0}")]
    Unwritable(serde_json::Error),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Line { .. } => Kind::Model,
            Self::Unwritable(_) => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Line { .. } => {
                Some("the file was changed by something else: move it away and resume".into())
            }
            Self::Unwritable(_) => None,
        }
    }
}

/// One optimizer step: a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps taken, this one included; from 1.
    pub step: u64,
    /// Epochs completed after this step, with the fraction.
    #[serde(with = "finite")]
    pub epoch: f64,
    /// Σ token losses / Σ counted tokens of the step.
    #[serde(with = "finite")]
    pub loss: f64,
    /// Norm of the gradient before clipping.
    #[serde(with = "finite")]
    pub grad_norm: f64,
    /// What regularisers add to the loss, which does not hold it; left out without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty: Option<f64>,
    /// The rate this update used.
    #[serde(with = "finite")]
    pub learning_rate: f64,
    /// Real input tokens.
    pub tokens: u64,
    /// Pad positions only.
    pub padded_tokens: u64,
    /// Targets after the shift.
    pub loss_tokens: u64,
    /// Wall clock of the step, s.
    #[serde(with = "finite")]
    pub step_s: f64,
    /// Resident memory of the process at the meter's last look; `None` = not measured.
    pub rss_bytes: Option<u64>,
    /// Device memory in use at the meter's last look; `None` = not measured.
    pub device_bytes: Option<u64>,
}

/// One evaluation: a line of `eval.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps taken before it; 0 = the base model.
    pub step: u64,
    /// Epochs completed, with the fraction.
    #[serde(with = "finite")]
    pub epoch: f64,
    /// Σ token losses / Σ counted tokens of the evaluation set.
    #[serde(with = "finite")]
    pub loss: f64,
    /// Targets after the shift.
    pub loss_tokens: u64,
    /// Wall clock of the evaluation, s.
    #[serde(with = "finite")]
    pub wall_s: f64,
}

/// A line that belongs to a step.
pub trait Record: Serialize + DeserializeOwned {
    /// The step it belongs to.
    fn step(&self) -> u64;
}

impl Record for StepRecord {
    fn step(&self) -> u64 {
        self.step
    }
}

impl Record for EvalRecord {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The record as one line of JSON, without the line break: the shortest digits that read back the same.
pub fn line<R: Record>(record: &R) -> Result<String> {
    Ok(serde_json::to_string(record).map_err(Error::Unwritable)?)
}

/// All records of a file; a missing file has none, and a last line torn by a kill is not a record.
///
/// # Errors
/// A line before the last that is not a record, a file that cannot be read or is larger than 1 GiB.
pub fn read<R: Record>(path: &Path) -> Result<Vec<R>> {
    if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    let bytes = fs::read_at_most(path, MAX_BYTES)?;
    let records = parse(path, &bytes)?;
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

/// The pinned `step_s`: the median without the first step, which pays for warm-up. `None` below two steps.
pub fn median_step_s(steps: &[StepRecord]) -> Option<f64> {
    let mut all: Vec<f64> = steps.iter().skip(1).map(|s| s.step_s).filter(|s| s.is_finite()).collect();
    all.sort_by(f64::total_cmp);
    let middle = *all.get(all.len() / 2)?;
    if all.len().is_multiple_of(2) {
        Some(f64::midpoint(*all.get(all.len() / 2 - 1)?, middle))
    } else {
        Some(middle)
    }
}

/// The pinned `tokens_per_s`: Σ tokens / Σ step seconds. `None` where no time was measured.
pub fn tokens_per_s(steps: &[StepRecord]) -> Option<f64> {
    let timed = || steps.iter().filter(|s| s.step_s.is_finite());
    let seconds: f64 = timed().map(|s| s.step_s).sum();
    let tokens: u64 = timed().map(|s| s.tokens).sum();
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// Each record with its bytes. A file system may leave zeros where a torn tail was never written.
fn parse<'a, R: Record>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(&'a [u8], R)>, Error> {
    let end = bytes.iter().rposition(|b| !matches!(b, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    let (text, _) = bytes.split_at(end);
    let mut records = Vec::new();
    let mut lines = text.split(|b| *b == b'\n').enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(record) => records.push((line, record)),
            Err(_) if lines.peek().is_none() => break,
            Err(source) => {
                return Err(Error::Line { path: path.to_owned(), line: at + 1, source });
            }
        }
    }
    Ok(records)
}

/// JSON has no NaN and no infinity: both are written `null` and read back as NaN.
mod finite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, step_s: f64) -> StepRecord {
        StepRecord {
            step,
            epoch: 0.1 + 0.2,
            loss: 1.0 / 3.0,
            grad_norm: f64::INFINITY,
            learning_rate: 2e-4,
            tokens: 100,
            penalty: None,
            padded_tokens: 0,
            loss_tokens: 40,
            step_s,
            rss_bytes: Some(1 << 30),
            device_bytes: None,
        }
    }

    #[test]
    fn a_line_has_every_digit_and_null_for_what_is_not_finite_or_not_measured() {
        assert_eq!(
            line(&record(7, 0.25)).unwrap(),
            "{\"step\":7,\"epoch\":0.30000000000000004,\"loss\":0.3333333333333333,\"grad_norm\":null,\
             \"learning_rate\":0.0002,\"tokens\":100,\"padded_tokens\":0,\"loss_tokens\":40,\"step_s\":0.25,\
             \"rss_bytes\":1073741824,\"device_bytes\":null}"
        );
    }

    #[test]
    fn what_is_written_reads_back_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut wrote = record(1, 0.1);
        wrote.grad_norm = std::f64::consts::PI;
        std::fs::write(&path, line(&wrote).unwrap() + "\n").unwrap();
        assert_eq!(read::<StepRecord>(&path).unwrap(), [wrote]);
        std::fs::write(&path, line(&record(1, 0.1)).unwrap()).unwrap();
        assert!(read::<StepRecord>(&path).unwrap()[0].grad_norm.is_nan());
    }

    #[test]
    fn a_torn_last_line_is_not_a_record_and_a_torn_line_before_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let good = line(&record(1, 0.1)).unwrap();
        for tail in ["{\"step\":2,\"ep", "\0\0\0", "{\"step\":2\0\0\n", ""] {
            std::fs::write(&path, format!("{good}\n{tail}")).unwrap();
            assert_eq!(read::<StepRecord>(&path).unwrap().len(), 1, "{tail:?}");
        }
        std::fs::write(&path, format!("{{\"step\":\n{good}\n")).unwrap();
        let error = read::<StepRecord>(&path).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:1: not a record") && error.contains("hint"), "{error}");
    }

    #[test]
    fn a_missing_file_has_no_records() {
        let none = read::<EvalRecord>(Path::new("/nowhere/eval.jsonl")).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn the_step_time_is_the_median_without_the_first() {
        let of = |all: &[f64]| {
            let steps: Vec<_> = all.iter().map(|s| record(1, *s)).collect();
            median_step_s(&steps)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[9.0]), None);
        assert_eq!(of(&[9.0, 1.0]), Some(1.0));
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some(1.5));
        assert_eq!(of(&[9.0, 3.0, f64::NAN, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn tokens_a_second_is_a_ratio_of_sums_and_none_without_time() {
        assert_eq!(tokens_per_s(&[]), None);
        assert_eq!(tokens_per_s(&[record(1, 0.0)]), None);
        assert_eq!(tokens_per_s(&[record(1, 1.0), record(2, 3.0)]), Some(50.0));
    }
}
