//! Writing the ledger: one entry, one transaction.

use super::record::{Entry, Final, NewRun, Prepared, Record, Sample, Status, full_path};
use super::{Error, schema};
use crate::error::Result;
use crate::estimate::parts::PartBytes;
use crate::fs::fault::{self, Op};
use crate::fs::{self, Owner};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a person waits for another process's write.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });
/// How long a run does: what the ledger cannot take it keeps in its own folder for a while.
const HASTE: Duration = Duration::from_millis(150);

/// Samples of a run that goes on; beyond it they are thinned, when they are next counted.
const MOST_SAMPLES: i64 = 900;
/// Between two counts of them, s.
const COUNTED_EVERY_S: f64 = 64.0;
/// Samples that are left of a run that ended.
const KEPT_SAMPLES: i64 = 250;

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

impl Ledger {
    /// Opens `home/ledger.db`, makes it where there is none, and brings it to this version's schema. An error says
    /// why the run has to do without; the file is left as it was.
    pub fn open(home: &Path) -> Result<Self> {
        Self::open_within(home, PATIENCE)
    }

    /// As [`Self::open`], for a run that does not wait for a ledger that another process holds.
    pub fn open_in_haste(home: &Path) -> Result<Self> {
        Self::open_within(home, HASTE)
    }

    fn open_within(home: &Path, patience: Duration) -> Result<Self> {
        fs::create_folders(home)?;
        let path = home.join("ledger.db");
        let sqlite = |cause| Error::Sqlite { path: path.clone(), cause };
        // Without SQLite's URI names: a path is a path.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(sqlite)?;
        connection.busy_timeout(patience).map_err(sqlite)?;
        schema::migrate(&mut connection, &path, schema::MIGRATIONS)?;
        // Some disks cannot do WAL; SQLite then stays with its journal, and that works too.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(sqlite)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(sqlite)?;
        Ok(Self { connection, path })
    }

    /// Enters the records of a file that a [`super::Journal`] kept, all or none, and deletes the file. They are of
    /// one run, which the first line starts, or resumes in the folder of the file: a folder from elsewhere cannot
    /// change other runs. How many there were.
    pub fn absorb(&mut self, pending: &Path) -> Result<usize> {
        let entries = super::journal::read(pending)?;
        let path = self.path.clone();
        let refused = |at: usize, why: &str| Error::Pending {
            path: pending.to_owned(),
            line: at + 1,
            why: why.to_owned(),
        };
        let whose = entries.first().map_or("", Entry::run_id);
        match entries.first() {
            None | Some(Entry::Start { .. }) => {}
            Some(Entry::Resume { .. }) if self.folder_of(whose)? == folder_of(pending) => {}
            Some(_) => {
                return Err(refused(0, "it neither starts a run nor resumes one of this folder").into());
            }
        }
        self.in_transaction(true, |transaction| {
            for (at, entry) in entries.iter().enumerate() {
                if entry.run_id() != whose {
                    return Err(refused(at, &format!("it is not of run `{whose}`")));
                }
                enter(transaction, &path, entry).map_err(|error| match error {
                    error @ Error::Sqlite { .. } => error,
                    other => refused(at, &other.to_string()),
                })?;
            }
            Ok(())
        })?;
        fs::remove_file(pending)?;
        Ok(entries.len())
    }

    fn folder_of(&self, run_id: &str) -> Result<Option<String>> {
        let query = "SELECT output_dir FROM runs WHERE run_id = ?1";
        Ok(self.all(query, &[&run_id], |row| row.get(0))?.pop())
    }

    fn in_transaction(
        &mut self,
        is_durable: bool,
        act: impl FnOnce(&Transaction<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let path = &self.path;
        let sqlite = |cause| Error::Sqlite { path: path.clone(), cause };
        // In WAL mode "normal" survives the process, "full" a power cut as well, at the price of an fsync.
        let level = if is_durable { "FULL" } else { "NORMAL" };
        self.connection.pragma_update(None, "synchronous", level).map_err(sqlite)?;
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        act(&transaction)?;
        let passed = || -> rusqlite::Result<()> {
            fault::point(Op::Ledger).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
        };
        passed().and_then(|()| transaction.commit()).map_err(sqlite)
    }
}

impl Record for Ledger {
    fn record(&mut self, entry: Entry) -> Result<()> {
        let path = self.path.clone();
        // A heartbeat comes every second, and the next one says the same and more.
        let is_durable = !matches!(entry, Entry::Heartbeat { .. });
        Ok(self.in_transaction(is_durable, |transaction| enter(transaction, &path, &entry))?)
    }
}

fn enter(transaction: &Transaction<'_>, path: &Path, entry: &Entry) -> Result<(), Error> {
    let id = entry.run_id();
    let known = started(transaction, id);
    let entered = known.and_then(|known| match (entry, known) {
        (Entry::Start { run, owner }, None) => start(transaction, run, owner).map(Ok),
        (Entry::Start { run, .. }, Some(known))
            if known != (run.started_at.clone(), run.config_hash.clone()) =>
        {
            Ok(Err(Error::OtherRun { run: id.to_owned(), started_at: known.0 }))
        }
        (Entry::Start { .. }, Some(_)) => Ok(Ok(())),
        (_, None) => Ok(Err(Error::UnknownRun { run: id.to_owned() })),
        (_, Some(_)) => follow(transaction, id, entry).map(Ok),
    });
    entered.map_err(|cause| Error::Sqlite { path: path.to_owned(), cause })?
}

/// When the run of this id started, and its config's hash, where it is known.
fn started(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<(String, String)>> {
    transaction
        .query_row("SELECT started_at, config_hash FROM runs WHERE run_id = ?1", [id], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()
}

fn start(transaction: &Transaction<'_>, run: &NewRun, owner: &Owner) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO runs (run_id, status, started_at, output_dir, purpose, method, base, config_toml, config_hash,
             data_hash, base_hash, usd_per_hour, owner_json, project)
         VALUES (?1, 'running', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            run.run_id,
            run.started_at,
            run.output_dir,
            run.purpose,
            run.method,
            run.base,
            run.config_toml,
            run.config_hash,
            run.data_hash,
            run.base_hash,
            run.usd_per_hour,
            to_json(owner)?,
            run.project,
        ],
    )?;
    match &run.prediction_json {
        Some(prediction) => predict(transaction, &run.run_id, prediction),
        None => Ok(()),
    }
}

/// Enters a record of a run that is there.
fn follow(transaction: &Transaction<'_>, id: &str, entry: &Entry) -> rusqlite::Result<()> {
    match entry {
        Entry::Start { .. } => {}
        Entry::Resume { owner, prediction_json, .. } => {
            transaction.execute(
                "UPDATE runs SET status = 'running', finished_at = NULL, owner_json = ?2 WHERE run_id = ?1",
                params![id, to_json(owner)?],
            )?;
            if let Some(prediction) = prediction_json {
                predict(transaction, id, prediction)?;
            }
        }
        Entry::Prepared { prepared, .. } => prepare(transaction, id, prepared)?,
        Entry::Withdrawn { .. } => withdraw(transaction, id)?,
        Entry::Moved { output_dir, .. } => {
            transaction
                .execute("UPDATE runs SET output_dir = ?2 WHERE run_id = ?1", params![id, output_dir])?;
        }
        Entry::Heartbeat { sample, .. } => heartbeat(transaction, id, sample)?,
        Entry::Checkpoint { at, step, path, .. } => {
            transaction.execute(
                "INSERT OR REPLACE INTO checkpoints (run_id, path, step, at) VALUES (?1, ?2, ?3, ?4)",
                params![id, path, integer(*step), at],
            )?;
        }
        Entry::Anew { .. } => {
            transaction.execute("DELETE FROM phases WHERE run_id = ?1", params![id])?;
            transaction.execute("DELETE FROM cost_lines WHERE run_id = ?1", params![id])?;
        }
        Entry::Phase { phase, .. } => {
            transaction.execute(
                "INSERT OR REPLACE INTO phases (run_id, name, wall_s, cpu_s, peak_rss_bytes, cost_usd)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    id,
                    phase.name,
                    phase.wall_s,
                    phase.cpu_s,
                    phase.peak_rss_bytes.map(integer),
                    phase.cost_usd
                ],
            )?;
        }
        Entry::Cost { line, .. } => {
            transaction.execute(
                "INSERT OR REPLACE INTO cost_lines (run_id, category, kind, period, amount_usd)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![id, line.category, line.amount.kind().as_str(), line.period, line.amount.usd()],
            )?;
        }
        Entry::Finish { status, end, .. } => finish(transaction, id, *status, end)?,
    }
    Ok(())
}

/// Fingerprints that are known stay: they are those of the run's first start.
fn prepare(transaction: &Transaction<'_>, id: &str, prepared: &Prepared) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE runs SET output_dir = coalesce(?2, output_dir), base = ?3,
             base_hash = CASE base_hash WHEN '' THEN ?4 ELSE base_hash END,
             data_hash = CASE data_hash WHEN '' THEN ?5 ELSE data_hash END
         WHERE run_id = ?1",
        params![id, prepared.output_dir, prepared.base, prepared.base_hash, prepared.data_hash],
    )?;
    match &prepared.prediction_json {
        Some(prediction) => predict(transaction, id, prediction),
        None => Ok(()),
    }
}

fn predict(transaction: &Transaction<'_>, id: &str, prediction: &str) -> rusqlite::Result<()> {
    let entry = "INSERT OR REPLACE INTO predictions (run_id, prediction_json) VALUES (?1, ?2)";
    transaction.execute(entry, params![id, prediction]).map(|_| ())
}

/// Only what took no step and left no checkpoint can be taken back.
fn withdraw(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    let is_bare = "SELECT count(*) FROM runs WHERE run_id = ?1 AND status = 'running' AND step = 0
         AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE run_id = ?1)";
    if transaction.query_row(is_bare, [id], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(());
    }
    for table in ["samples", "phases", "predictions", "cost_lines", "runs"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE run_id = ?1"), [id])?;
    }
    Ok(())
}

pub(super) fn heartbeat(transaction: &Transaction<'_>, id: &str, sample: &Sample) -> rusqlite::Result<()> {
    let step = integer(sample.step);
    transaction.execute(
        "UPDATE runs SET step = ?2, wall_s = ?3, cost_usd = ?4, loss = coalesce(?5, loss),
             energy_j = coalesce(?6, energy_j)
         WHERE run_id = ?1",
        params![id, step, sample.wall_s, sample.cost_usd, sample.loss, sample.energy_j],
    )?;
    transaction.execute(
        "INSERT OR REPLACE INTO samples
             (run_id, wall_s, at_ms, step, phase, cost_usd, loss, rss_bytes, cpu_s, energy_j, parts)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            id,
            sample.wall_s,
            sample.at_ms,
            step,
            sample.phase,
            sample.cost_usd,
            sample.loss,
            sample.rss_bytes.map(integer),
            sample.cpu_s,
            sample.energy_j,
            sample.parts.as_ref().map(PartBytes::to_string),
        ],
    )?;
    if sample.wall_s.rem_euclid(COUNTED_EVERY_S) >= 1.0 {
        return Ok(());
    }
    let kept: i64 =
        transaction.query_row("SELECT count(*) FROM samples WHERE run_id = ?1", [id], |row| row.get(0))?;
    // A run that is killed is never finished: its samples are bounded while it lives.
    if kept > MOST_SAMPLES { thin(transaction, id, MOST_SAMPLES / 2) } else { Ok(()) }
}

/// Leaves at most `kept` samples of a run, evenly over its time, the last one among them.
fn thin(transaction: &Transaction<'_>, id: &str, kept: i64) -> rusqlite::Result<()> {
    transaction.execute(
        "WITH span AS (
             SELECT max(wall_s) AS last, max(max(wall_s) - min(wall_s), 1e-9) AS whole
             FROM samples WHERE run_id = ?1),
         ranked AS (
             SELECT wall_s, row_number() OVER (
                 PARTITION BY CAST((last - wall_s) / whole * (?2 - 1) AS INTEGER) ORDER BY wall_s DESC) AS nth
             FROM samples, span WHERE run_id = ?1)
         DELETE FROM samples WHERE run_id = ?1 AND wall_s IN (SELECT wall_s FROM ranked WHERE nth > 1)",
        params![id, kept],
    )?;
    Ok(())
}

fn finish(transaction: &Transaction<'_>, id: &str, status: Status, end: &Final) -> rusqlite::Result<()> {
    thin(transaction, id, KEPT_SAMPLES)?;
    transaction.execute(
        "UPDATE runs SET status = ?2, finished_at = ?3, step = ?4, wall_s = ?5, cost_usd = ?6, loss = ?7,
             report_json = coalesce(?8, report_json), energy_j = ?9
         WHERE run_id = ?1",
        params![
            id,
            status.as_str(),
            end.finished_at,
            integer(end.step),
            end.wall_s,
            end.cost_usd,
            end.loss,
            end.report_json,
            end.energy_j,
        ],
    )?;
    Ok(())
}

/// The folder of a file, as the ledger names it.
fn folder_of(file: &Path) -> Option<String> {
    file.canonicalize().ok()?.parent().map(full_path)
}

/// SQLite's integers have 63 bits; no count of this program needs more.
fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn to_json(owner: &Owner) -> rusqlite::Result<String> {
    serde_json::to_string(owner).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}
