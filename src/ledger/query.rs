//! Reading the ledger.

use super::record::{Status, full_path};
use super::{Error, Ledger};
use crate::error::Result;
use crate::fs::{Owner, RunLock};
use rusqlite::{Row, ToSql};
use serde::{Serialize, Serializer};
use std::path::Path;

/// One run in a list; as JSON, the pinned keys of `fttrain runs --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRow {
    /// Short id.
    pub run_id: String,
    /// How it stands; a run whose process is gone is `killed`.
    #[serde(serialize_with = "word")]
    pub status: Status,
    /// Seconds in all, or at the last heartbeat.
    pub wall_s: Option<f64>,
    /// USD in all, or at the last heartbeat.
    pub cost_usd: Option<f64>,
    /// The last loss.
    pub loss: Option<f64>,
    /// The run's folder.
    pub output_dir: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Optimizer steps done.
    #[serde(skip)]
    pub step: u64,
    /// `experiment`, `final`, …
    #[serde(skip)]
    pub purpose: String,
    /// `full`, `lora` or `qlora`.
    #[serde(skip)]
    pub method: String,
    /// The base model's name.
    #[serde(skip)]
    pub base: String,
    /// SHA-256 of the config.
    #[serde(skip)]
    pub config_hash: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn word<S: Serializer>(status: &Status, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(status.as_str())
}

/// A finished run as the next prediction learns from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Short id.
    pub run_id: String,
    /// What was predicted, as in estimate.json.
    pub prediction_json: String,
    /// What was measured, as in report.json.
    pub report_json: String,
}

const COLUMNS: &str = "run_id, status, wall_s, cost_usd, loss, output_dir, started_at, step, purpose, method, base, \
                       config_hash, owner_json";

impl Ledger {
    /// Every run, the newest first, by the order in which they were entered.
    pub fn runs(&self) -> Result<Vec<RunRow>> {
        self.rows("ORDER BY seq DESC", &[])
    }

    /// Runs of the same config on the same data and base, the newest first: whoever is about to start one pays for
    /// it twice.
    pub fn repeats_of(&self, config_hash: &str, data_hash: &str, base_hash: &str) -> Result<Vec<RunRow>> {
        self.rows(
            "WHERE config_hash = ?1 AND data_hash = ?2 AND base_hash = ?3 ORDER BY seq DESC",
            &[&config_hash, &data_hash, &base_hash],
        )
    }

    /// The run of this id, of this beginning of an id, or the last one in this folder.
    ///
    /// # Errors
    /// Kind `Usage` where there is none, or more than one begins so.
    pub fn find(&self, run: &str) -> Result<RunRow> {
        let folder = full_path(Path::new(run));
        let in_folder = self.rows("WHERE output_dir = ?1 ORDER BY seq DESC LIMIT 1", &[&folder])?;
        if let Some(row) = in_folder.into_iter().next() {
            return Ok(row);
        }
        let mut rows = self.rows(
            "WHERE substr(run_id, 1, length(?1)) = ?1 AND ?1 <> '' ORDER BY seq DESC LIMIT 6",
            &[&run],
        )?;
        if let Some(exact) = rows.iter().position(|row| row.run_id == run) {
            return Ok(rows.swap_remove(exact));
        }
        match (rows.pop(), rows.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(Error::UnknownRun { run: run.to_owned() }.into()),
            (Some(last), false) => {
                rows.push(last);
                Err(Error::Ambiguous {
                    run: run.to_owned(),
                    ids: rows.into_iter().map(|row| row.run_id).collect(),
                }
                .into())
            }
        }
    }

    /// The last `limit` runs that were done and have both a prediction and a report, the newest first.
    pub fn history(&self, limit: u32) -> Result<Vec<Outcome>> {
        let query = "SELECT run_id, prediction_json, report_json FROM runs JOIN predictions USING (run_id)
                     WHERE status = 'done' AND report_json IS NOT NULL ORDER BY seq DESC LIMIT ?1";
        self.all(query, &[&limit], |row| {
            Ok(Outcome { run_id: row.get(0)?, prediction_json: row.get(1)?, report_json: row.get(2)? })
        })
    }

    /// When the runs on one boot of a machine ended, as far as they were heard of.
    pub fn ends_on_boot(&self, boot_id: &str) -> Result<Vec<jiff::Timestamp>> {
        let query = "SELECT started_at, finished_at, wall_s FROM runs WHERE json_extract(owner_json, '$.boot_id') = ?1";
        let rows = self.all(query, &[&boot_id], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<f64>>(2)?))
        })?;
        let end = |(started, finished, wall_s): (String, Option<String>, Option<f64>)| {
            if let Some(finished) = finished {
                return finished.parse().ok();
            }
            // It runs, or was killed: it was last heard of when its wall time was.
            let ran = jiff::SignedDuration::try_from_secs_f64(wall_s.unwrap_or(0.0)).ok()?;
            started.parse::<jiff::Timestamp>().ok()?.checked_add(ran).ok()
        };
        Ok(rows.into_iter().filter_map(end).collect())
    }

    /// The resolved config that a run was started with.
    pub fn config_of(&self, run_id: &str) -> Result<Option<String>> {
        let query = "SELECT config_toml FROM runs WHERE run_id = ?1";
        Ok(self.all(query, &[&run_id], |row| row.get(0))?.pop())
    }

    fn rows(&self, rest: &str, values: &[&dyn ToSql]) -> Result<Vec<RunRow>> {
        self.all(&format!("SELECT {COLUMNS} FROM runs {rest}"), values, run_row)
    }

    pub(super) fn all<T>(
        &self,
        query: &str,
        values: &[&dyn ToSql],
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let run = || -> rusqlite::Result<Vec<T>> {
            let mut statement = self.connection.prepare(query)?;
            statement.query_map(values, read)?.collect()
        };
        Ok(run().map_err(|cause| Error::Sqlite { path: self.path.clone(), cause })?)
    }
}

fn run_row(row: &Row<'_>) -> rusqlite::Result<RunRow> {
    let output_dir: String = row.get(5)?;
    let owner: String = row.get(12)?;
    let written: String = row.get(1)?;
    let status = match written.as_str() {
        "done" => Status::Done,
        "stopped" => Status::Stopped,
        "diverged" => Status::Diverged,
        "running" if is_alive(&owner, &output_dir) => Status::Running,
        "running" => Status::Killed,
        _ => Status::Failed,
    };
    Ok(RunRow {
        run_id: row.get(0)?,
        status,
        wall_s: row.get(2)?,
        cost_usd: row.get(3)?,
        loss: row.get(4)?,
        output_dir,
        started_at: row.get(6)?,
        step: u64::try_from(row.get::<_, i64>(7)?).unwrap_or(0),
        purpose: row.get(8)?,
        method: row.get(9)?,
        base: row.get(10)?,
        config_hash: row.get(11)?,
    })
}

/// The process lives, or holds the folder: in another container a living process looks dead, its lock does not.
fn is_alive(owner: &str, output_dir: &str) -> bool {
    let Ok(owner) = serde_json::from_str::<Owner>(owner) else {
        return false;
    };
    owner.is_alive() == Some(true)
        || RunLock::holder(Path::new(output_dir)).is_some_and(|holder| holder.is_same_process(&owner))
}
