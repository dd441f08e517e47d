//! TensorBoard event files: records of a length, its checksum, a protocol buffer and its checksum, as
//! `tensorflow/core/lib/io/record_writer` and `event.proto` lay them down.

use super::{Error, Run, Tracker};
use crate::error::Result;
use crate::fs;
use crate::train::metrics::StepRecord;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// One event file, written anew by each process.
#[derive(Debug, Default)]
pub(super) struct Tensorboard {
    out: Option<(File, PathBuf)>,
    steps: usize,
    evals: usize,
    seen_s: f64,
}

impl Tracker for Tensorboard {
    fn name(&self) -> &'static str {
        "tensorboard"
    }

    fn take(&mut self, run: &mut Run, _is_over: bool) -> Result<()> {
        if self.out.is_none() {
            self.out = Some(begin(run)?);
        }
        let times = run.times_ms();
        let mut bytes = Vec::new();
        for (record, at_ms) in run.steps().iter().zip(&times).skip(self.steps) {
            record_into(&mut bytes, &event(*at_ms, record.step, &scalars(record)));
        }
        for record in run.evals().iter().skip(self.evals) {
            let at_ms = run.time_of(record.step, &times);
            record_into(&mut bytes, &event(at_ms, record.step, &[("eval_loss", record.loss)]));
        }
        let samples = run.samples(self.seen_s);
        for sample in &samples {
            let seen: Vec<(&str, f64)> = [
                ("system/cost_usd", sample.cost_usd),
                ("system/process_memory_megabytes", sample.rss_bytes.map(|b| b as f64 / 1e6)),
                ("system/energy_joules", sample.energy_j),
            ]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
            record_into(&mut bytes, &event(sample.at_ms, sample.step, &seen));
        }
        if let Some((file, path)) = &mut self.out {
            let written = file.write_all(&bytes).and_then(|()| file.flush());
            written.map_err(|cause| Error::File { path: path.clone(), cause })?;
        }
        (self.steps, self.evals) = (run.steps().len(), run.evals().len());
        self.seen_s = samples.last().map_or(self.seen_s, |sample| sample.wall_s);
        Ok(())
    }
}

/// A new file in `tensorboard/`; those of earlier processes, of which it says everything again, go.
fn begin(run: &Run) -> Result<(File, PathBuf)> {
    let folder = run.folder.join("tensorboard");
    fs::create_folders(&folder)?;
    for path in fs::entries(&folder)? {
        let is_ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("events.out.tfevents.");
        if path.file_name().is_some_and(is_ours) {
            fs::remove_file(&path)?;
        }
    }
    let now = jiff::Timestamp::now();
    let path = folder.join(format!("events.out.tfevents.{:010}.fttrain.{}", now.as_second(), run.run_id));
    let failed = |cause| Error::File { path: path.clone(), cause };
    let mut file = File::create_new(&path).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut first = Vec::new();
    double(&mut first, 1, now.as_millisecond() as f64 / 1000.0);
    text(&mut first, 3, b"brain.Event:2");
    record_into(&mut bytes, &first);
    file.write_all(&bytes).map_err(failed)?;
    Ok((file, path))
}

fn scalars(r: &StepRecord) -> [(&'static str, f64); 6] {
    [
        ("loss", r.loss),
        ("learning_rate", r.learning_rate),
        ("grad_norm", r.grad_norm),
        ("epoch", r.epoch),
        ("step_s", r.step_s),
        ("tokens_per_s", r.tokens as f64 / r.step_s),
    ]
}

/// An `Event` with a `Summary` of scalars.
fn event(at_ms: i64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, value) in values {
        let mut one = Vec::new();
        text(&mut one, 1, name.as_bytes());
        one.push(2 << 3 | 5);
        #[allow(clippy::cast_possible_truncation, reason = "`simple_value` is a float")]
        one.extend((*value as f32).to_le_bytes());
        text(&mut summary, 1, &one);
    }
    let mut event = Vec::new();
    double(&mut event, 1, at_ms as f64 / 1000.0);
    event.push(2 << 3);
    varint(&mut event, step);
    text(&mut event, 5, &summary);
    event
}

fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

/// A field of bytes behind their length: strings and messages.
fn text(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// One record of the file.
fn record_into(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
}

/// A checksum as it stands in a file that is itself checked.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), reflected, bit by bit: a few bytes a step.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn numbers_are_written_seven_bits_at_a_time() {
        let written = |value| {
            let mut out = Vec::new();
            varint(&mut out, value);
            out
        };
        assert_eq!(written(0), [0]);
        assert_eq!(written(300), [0xac, 0x02]);
        assert_eq!(written(u64::MAX).len(), 10);
    }
}
