//! Reading the ledger.

use super::record::{Phase, Sample, Status, full_path};
use super::{Error, Ledger};
use crate::error::Result;
use crate::estimate::amount::Kind;
use crate::estimate::{Amount, CostLine};
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
    /// What it belongs to; empty = nothing that was named.
    #[serde(skip)]
    pub project: String,
    /// `experiment`, `final`, …
    #[serde(skip)]
    pub purpose: String,
    /// `full`, `lora` or `qlora`.
    #[serde(skip)]
    pub method: String,
    /// The base model's name.
    #[serde(skip)]
    pub base: String,
    /// Joules in all, or at the last heartbeat.
    #[serde(skip)]
    pub energy_j: Option<f64>,
    /// SHA-256 of the settings that decide the result.
    #[serde(skip)]
    pub config_hash: String,
    /// SHA-256 of the data.
    #[serde(skip)]
    pub data_hash: String,
    /// Fingerprint of the base model.
    #[serde(skip)]
    pub base_hash: String,
}

impl RunRow {
    /// Config, data and base: two runs that share it are the same run, paid for twice.
    pub fn content(&self) -> [&str; 3] {
        [&self.config_hash, &self.data_hash, &self.base_hash]
    }

    /// Whether the run, found in `folder`, is known under another place where it is no more: moved, not copied.
    pub fn is_elsewhere(&self, folder: &Path) -> bool {
        full_path(folder) != self.output_dir && !Path::new(&self.output_dir).exists()
    }
}

/// What is known of one run beside its row.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Details {
    /// Phases by name.
    pub phases: Vec<Phase>,
    /// Costs by category.
    pub costs: Vec<CostLine>,
    /// Checkpoints, the oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// What an hour costs; `None` = unknown.
    pub usd_per_hour: Option<f64>,
    /// When it ended, RFC 3339.
    pub finished_at: Option<String>,
    /// The resolved config that it was started with.
    #[serde(skip)]
    pub config_toml: String,
    /// estimate.json.
    #[serde(skip)]
    pub prediction_json: Option<String>,
    /// report.json.
    #[serde(skip)]
    pub report_json: Option<String>,
}

/// A checkpoint that was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Its folder.
    pub path: String,
    /// Optimizer steps done.
    pub step: u64,
    /// When, RFC 3339.
    pub at: String,
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
                       config_hash, owner_json, project, energy_j, data_hash, base_hash";

impl Ledger {
    /// Every run, the newest first, by the order in which they were entered.
    pub fn runs(&self) -> Result<Vec<RunRow>> {
        self.rows("ORDER BY seq DESC", &[])
    }

    /// Runs of the same base, the newest first.
    pub fn runs_of_base(&self, base_hash: &str, limit: u32) -> Result<Vec<RunRow>> {
        self.rows("WHERE base_hash = ?1 ORDER BY seq DESC LIMIT ?2", &[&base_hash, &limit])
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
        // A start that failed at once never had the folder, unless nothing else did.
        let last = "WHERE output_dir = ?1 ORDER BY status = 'failed' AND step = 0, seq DESC LIMIT 1";
        let in_folder = self.rows(last, &[&folder])?;
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
        // One that runs, or was killed, ended for now when it was last heard of.
        let query =
            "SELECT finished_at, started_at, (SELECT max(at_ms) FROM samples WHERE run_id = runs.run_id)
                     FROM runs WHERE json_extract(owner_json, '$.boot_id') = ?1";
        let rows = self.all(query, &[&boot_id], |row| {
            Ok((row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<i64>>(2)?))
        })?;
        let end = |(finished, started, heard_ms): (Option<String>, String, Option<i64>)| match finished {
            Some(finished) => finished.parse().ok(),
            None => {
                heard_ms.map_or_else(|| started.parse().ok(), |ms| jiff::Timestamp::from_millisecond(ms).ok())
            }
        };
        Ok(rows.into_iter().filter_map(end).collect())
    }

    /// The resolved config that a run was started with.
    pub fn config_of(&self, run_id: &str) -> Result<Option<String>> {
        let query = "SELECT config_toml FROM runs WHERE run_id = ?1";
        Ok(self.all(query, &[&run_id], |row| row.get(0))?.pop())
    }

    /// What is known of a run beside its row.
    pub fn details(&self, run_id: &str) -> Result<Details> {
        let run = "SELECT usd_per_hour, finished_at, config_toml, prediction_json, report_json
                   FROM runs LEFT JOIN predictions USING (run_id) WHERE run_id = ?1";
        let whole = |row: &Row<'_>| {
            Ok(Details {
                usd_per_hour: row.get(0)?,
                finished_at: row.get(1)?,
                config_toml: row.get(2)?,
                prediction_json: row.get(3)?,
                report_json: row.get(4)?,
                ..Details::default()
            })
        };
        let mut details = self.all(run, &[&run_id], whole)?.pop().unwrap_or_default();
        let phases = "SELECT name, wall_s, cpu_s, peak_rss_bytes, cost_usd FROM phases WHERE run_id = ?1
                      ORDER BY wall_s DESC";
        details.phases = self.all(phases, &[&run_id], |row| {
            Ok(Phase {
                name: row.get(0)?,
                wall_s: row.get(1)?,
                cpu_s: row.get(2)?,
                peak_rss_bytes: count(row, 3)?,
                cost_usd: row.get(4)?,
            })
        })?;
        let costs =
            "SELECT category, kind, amount_usd, period FROM cost_lines WHERE run_id = ?1 ORDER BY category";
        details.costs = self.all(costs, &[&run_id], |row| {
            let kind: String = row.get(1)?;
            Ok(CostLine {
                category: row.get(0)?,
                amount: Amount::new(Kind::of(&kind), row.get(2)?),
                period: row.get(3)?,
            })
        })?;
        let checkpoints = "SELECT path, step, at FROM checkpoints WHERE run_id = ?1 ORDER BY step";
        details.checkpoints = self.all(checkpoints, &[&run_id], |row| {
            Ok(Checkpoint { path: row.get(0)?, step: count(row, 1)?.unwrap_or(0), at: row.get(2)? })
        })?;
        Ok(details)
    }

    /// The samples of a run later than `after_s` of its time, the oldest first.
    pub fn samples(&self, run_id: &str, after_s: f64) -> Result<Vec<Sample>> {
        let query =
            "SELECT wall_s, at_ms, step, phase, cost_usd, loss, rss_bytes, cpu_s, energy_j, parts FROM samples
                     WHERE run_id = ?1 AND wall_s > ?2 ORDER BY wall_s";
        self.all(query, &[&run_id, &after_s], |row| {
            Ok(Sample {
                wall_s: row.get(0)?,
                at_ms: row.get(1)?,
                step: count(row, 2)?.unwrap_or(0),
                phase: row.get(3)?,
                cost_usd: row.get(4)?,
                loss: row.get(5)?,
                rss_bytes: count(row, 6)?,
                cpu_s: row.get(7)?,
                energy_j: row.get(8)?,
                parts: row.get::<_, Option<String>>(9)?.and_then(|text| text.parse().ok()),
            })
        })
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

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    let found: Option<i64> = row.get(column)?;
    Ok(found.and_then(|n| u64::try_from(n).ok()))
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
        project: row.get(13)?,
        energy_j: row.get(14)?,
        data_hash: row.get(15)?,
        base_hash: row.get(16)?,
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
