//! A run as trackers see it: its folder's records as they grow, its settings, and what the ledger knows of it.

use super::super::record::Report;
use crate::config::settings_of;
use crate::error::Result;
use crate::fs;
use crate::ledger::{Ledger, RunRow, Sample};
use crate::train::folder;
use crate::train::metrics::{EvalRecord, Record, StepRecord};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A run that is followed or was.
#[derive(Debug)]
pub struct Run {
    /// Its folder.
    pub folder: PathBuf,
    /// Its id in the ledger.
    pub run_id: String,
    /// When it began, milliseconds since 1970.
    pub started_ms: i64,
    /// Every setting of its config, as TOML.
    pub settings: BTreeMap<String, String>,
    /// What the ledger knows of it.
    pub row: Option<RunRow>,
    /// Its report, once there is one.
    pub report: Option<Report>,
    steps: Tail<StepRecord>,
    evals: Tail<EvalRecord>,
    ledger: Option<Ledger>,
}

impl Run {
    /// The run in a folder; `home` is where the ledger lies.
    ///
    /// # Errors
    /// The folder holds no run.
    pub fn open(folder: &Path, home: &Path) -> Result<Self> {
        let nothing = || crate::train::Error::NoRun(folder.to_owned());
        let run_id = folder::run_id(folder).ok_or_else(nothing)?;
        let text = fs::read_at_most(&folder.join(folder::CONFIG), 16 << 20)?;
        let ledger = Ledger::open(home).ok();
        let row = ledger.as_ref().and_then(|ledger| ledger.find(&run_id).ok());
        let started = row.as_ref().and_then(|row| row.started_at.parse::<jiff::Timestamp>().ok());
        Ok(Self {
            settings: settings_of(&String::from_utf8_lossy(&text)),
            started_ms: started.unwrap_or_else(jiff::Timestamp::now).as_millisecond(),
            steps: Tail::new(folder.join("metrics.jsonl")),
            evals: Tail::new(folder.join("eval.jsonl")),
            folder: folder.to_owned(),
            report: None,
            run_id,
            row,
            ledger,
        })
    }

    /// Reads what has come since the last time.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn refresh(&mut self) -> Result<()> {
        self.steps.read()?;
        self.evals.read()?;
        self.report = super::super::json::read(&self.folder.join(folder::REPORT)).ok();
        Ok(())
    }

    /// Optimizer steps so far.
    pub fn steps(&self) -> &[StepRecord] {
        &self.steps.records
    }

    /// Evaluations so far.
    pub fn evals(&self) -> &[EvalRecord] {
        &self.evals.records
    }

    /// What the meter saw later than `after_s` of the run's time.
    pub fn samples(&self, after_s: f64) -> Vec<Sample> {
        let found = self.ledger.as_ref().and_then(|ledger| ledger.samples(&self.run_id, after_s).ok());
        found.unwrap_or_default()
    }

    /// When each step ended, milliseconds since 1970, by the run's start and the steps' own times: the same however
    /// often it is asked, so that nothing is sent twice under two names.
    pub fn times_ms(&self) -> Vec<i64> {
        let mut at_s = 0.0;
        let time = |record: &StepRecord| {
            at_s += Some(record.step_s).filter(|s| s.is_finite()).unwrap_or(0.0);
            self.started_ms.saturating_add(whole_ms(at_s))
        };
        self.steps().iter().map(time).collect()
    }

    /// When step `step` ended; the run's start for none.
    pub fn time_of(&self, step: u64, times_ms: &[i64]) -> i64 {
        let at = self.steps().partition_point(|record| record.step <= step);
        at.checked_sub(1).and_then(|at| times_ms.get(at)).copied().unwrap_or(self.started_ms)
    }
}

fn whole_ms(seconds: f64) -> i64 {
    i64::try_from(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default().as_millis())
        .unwrap_or(i64::MAX)
}

/// A file of records that grows: each whole line is read once.
#[derive(Debug)]
struct Tail<R> {
    path: PathBuf,
    offset: u64,
    records: Vec<R>,
}

impl<R: Record> Tail<R> {
    fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, records: Vec::new() }
    }

    fn read(&mut self) -> Result<()> {
        let failed = |cause| super::Error::File { path: self.path.clone(), cause };
        let file = match fs::open_regular(&self.path) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        let mut reader = BufReader::new(file);
        reader.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(failed)?;
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            self.offset = self.offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            self.records.extend(serde_json::from_slice::<R>(&line).ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_line_is_read_once_and_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.jsonl");
        let mut tail = Tail::<EvalRecord>::new(path.clone());
        tail.read().unwrap();
        let line = |step| {
            format!("{{\"step\":{step},\"epoch\":0.5,\"loss\":1.5,\"loss_tokens\":9,\"wall_s\":0.1}}\n")
        };
        let mut file = std::fs::File::create(&path).unwrap();
        let (first, second) = (line(0), line(5));
        let (head, rest) = second.split_at(20);
        write!(file, "{first}{head}").unwrap();
        tail.read().unwrap();
        assert_eq!(tail.records.len(), 1);
        write!(file, "{rest}").unwrap();
        tail.read().unwrap();
        tail.read().unwrap();
        assert_eq!(tail.records.iter().map(|r| r.step).collect::<Vec<_>>(), [0, 5]);
    }
}
