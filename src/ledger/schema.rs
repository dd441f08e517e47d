//! The ledger's tables. A change of them is one more entry at the end of [`MIGRATIONS`]; entries never change.

use super::Error;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Marks the file as ours: "fttl".
const APPLICATION_ID: i32 = 0x6674_746c;

/// Entry n leads from schema n to n + 1.
pub(super) const MIGRATIONS: &[&str] = &[FIRST, SAMPLES_OF_THE_METER, MEMORY_BY_PART];

/// Samples come every second and not every step, and say what the meter saw; runs belong to projects.
const SAMPLES_OF_THE_METER: &str = "
    ALTER TABLE runs ADD COLUMN project TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN energy_j REAL;

    CREATE TABLE samples_by_second (
        run_id    TEXT NOT NULL REFERENCES runs (run_id),
        wall_s    REAL NOT NULL,
        at_ms     INTEGER NOT NULL,
        step      INTEGER NOT NULL,
        phase     TEXT NOT NULL,
        cost_usd  REAL,
        loss      REAL,
        rss_bytes INTEGER,
        cpu_s     REAL,
        energy_j  REAL,
        PRIMARY KEY (run_id, wall_s)
    ) STRICT, WITHOUT ROWID;
    INSERT OR REPLACE INTO samples_by_second (run_id, wall_s, at_ms, step, phase, cost_usd, loss)
        SELECT run_id, wall_s, coalesce(CAST(unixepoch(at, 'subsec') * 1000 AS INTEGER), 0), step, '', cost_usd, loss
        FROM samples;
    DROP TABLE samples;
    ALTER TABLE samples_by_second RENAME TO samples;
";

/// Samples say what the memory was held for.
const MEMORY_BY_PART: &str = "ALTER TABLE samples ADD COLUMN parts TEXT;";

const FIRST: &str = "
    CREATE TABLE runs (
        seq          INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id       TEXT NOT NULL UNIQUE,
        status       TEXT NOT NULL,
        started_at   TEXT NOT NULL,
        finished_at  TEXT,
        output_dir   TEXT NOT NULL,
        purpose      TEXT NOT NULL,
        method       TEXT NOT NULL,
        base         TEXT NOT NULL,
        config_toml  TEXT NOT NULL,
        config_hash  TEXT NOT NULL,
        data_hash    TEXT NOT NULL,
        base_hash    TEXT NOT NULL,
        usd_per_hour REAL,
        owner_json   TEXT NOT NULL,
        step         INTEGER NOT NULL DEFAULT 0,
        wall_s       REAL,
        cost_usd     REAL,
        loss         REAL,
        report_json  TEXT
    ) STRICT;
    CREATE INDEX runs_by_content ON runs (config_hash, data_hash, base_hash);
    CREATE INDEX runs_by_folder ON runs (output_dir);

    CREATE TABLE predictions (
        run_id          TEXT PRIMARY KEY REFERENCES runs (run_id),
        prediction_json TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE phases (
        run_id         TEXT NOT NULL REFERENCES runs (run_id),
        name           TEXT NOT NULL,
        wall_s         REAL NOT NULL,
        cpu_s          REAL,
        peak_rss_bytes INTEGER,
        cost_usd       REAL,
        PRIMARY KEY (run_id, name)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE samples (
        run_id   TEXT NOT NULL REFERENCES runs (run_id),
        step     INTEGER NOT NULL,
        at       TEXT NOT NULL,
        wall_s   REAL NOT NULL,
        cost_usd REAL,
        loss     REAL,
        PRIMARY KEY (run_id, step)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE checkpoints (
        run_id TEXT NOT NULL REFERENCES runs (run_id),
        path   TEXT NOT NULL,
        step   INTEGER NOT NULL,
        at     TEXT NOT NULL,
        PRIMARY KEY (run_id, path)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE cost_lines (
        run_id     TEXT NOT NULL REFERENCES runs (run_id),
        category   TEXT NOT NULL,
        kind       TEXT NOT NULL CHECK (kind IN ('measured', 'predicted', 'modelled', 'stated', 'unknown')),
        period     TEXT NOT NULL,
        amount_usd REAL,
        PRIMARY KEY (run_id, category, kind, period)
    ) STRICT, WITHOUT ROWID;
";

/// Brings a database to the newest schema; a foreign or a newer one is left as it is.
pub(super) fn migrate(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), Error> {
    let sqlite = |cause| Error::Sqlite { path: path.to_owned(), cause };
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    if version(connection).map_err(sqlite)? != known {
        // Two processes may come at once: the lock first, then another look.
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        let found = version(&transaction).map_err(sqlite)?;
        let is_foreign = is_foreign(&transaction, found).map_err(sqlite)?;
        if is_foreign {
            return Err(Error::Foreign { path: path.to_owned() });
        }
        if found > known {
            return Err(Error::Newer { path: path.to_owned(), found, known });
        }
        let done = usize::try_from(found).unwrap_or(usize::MAX);
        for migration in migrations.iter().skip(done) {
            transaction.execute_batch(migration).map_err(sqlite)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sqlite)?;
        transaction.pragma_update(None, "user_version", known).map_err(sqlite)?;
        transaction.commit().map_err(sqlite)?;
    } else if is_foreign(connection, known).map_err(sqlite)? {
        return Err(Error::Foreign { path: path.to_owned() });
    }
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Ours carries our mark; an empty database is anyone's.
fn is_foreign(connection: &Connection, version: u32) -> rusqlite::Result<bool> {
    let mark: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let is_empty = version == 0 && mark == 0 && tables == 0;
    Ok(mark != APPLICATION_ID && !is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "ledger.db";

    fn migrate_to(connection: &mut Connection, migrations: &[&str]) -> Result<(), Error> {
        migrate(connection, Path::new(PATH), migrations)
    }

    #[test]
    fn an_empty_database_reaches_the_newest_schema_and_stays_there() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert_eq!(version(&connection).unwrap(), 0);
        for _ in 0..2 {
            migrate_to(&mut connection, MIGRATIONS).unwrap();
            assert_eq!(usize::try_from(version(&connection).unwrap()).unwrap(), MIGRATIONS.len());
        }
        for table in ["runs", "phases", "samples", "predictions", "checkpoints", "cost_lines"] {
            let rows: i64 =
                connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0)).unwrap();
            assert_eq!(rows, 0);
        }
    }

    const RUN: &str = "INSERT INTO runs (run_id, status, started_at, output_dir, purpose, method, base, config_toml,
        config_hash, data_hash, base_hash, owner_json) VALUES ('a','done','t','o','p','m','b','','','','','{}')";

    #[test]
    fn what_the_first_schema_held_is_there_in_every_later_one() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_to(&mut connection, &MIGRATIONS[..1]).unwrap();
        connection.execute(RUN, []).unwrap();
        let samples = "INSERT INTO samples VALUES ('a', 3, '2025-11-02T10:11:12.250Z', 4.5, 0.01, 2.5),
            ('a', 9, '2025-11-02T10:11:20Z', 12.5, NULL, NULL)";
        connection.execute(samples, []).unwrap();
        migrate_to(&mut connection, MIGRATIONS).unwrap();
        let read =
            "SELECT wall_s, at_ms, step, cost_usd, loss, rss_bytes FROM samples ORDER BY wall_s LIMIT 1";
        let first: (f64, i64, i64, Option<f64>, Option<f64>, Option<i64>) = connection
            .query_row(read, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?)))
            .unwrap();
        assert_eq!(first, (4.5, 1_762_078_272_250, 3, Some(0.01), Some(2.5), None));
        let project: String =
            connection.query_row("SELECT project FROM runs WHERE run_id = 'a'", [], |r| r.get(0)).unwrap();
        assert_eq!(project, "");
        assert_eq!(
            connection.query_row("SELECT count(*) FROM samples", [], |r| r.get::<_, i64>(0)).unwrap(),
            2
        );
    }

    #[test]
    fn a_later_migration_keeps_the_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_to(&mut connection, MIGRATIONS).unwrap();
        connection.execute(RUN, []).unwrap();
        let next = [MIGRATIONS, &["ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT 'none'"]].concat();
        migrate_to(&mut connection, &next).unwrap();
        let note: String =
            connection.query_row("SELECT note FROM runs WHERE run_id = 'a'", [], |r| r.get(0)).unwrap();
        assert_eq!(note, "none");
        // The older program meets the file of the newer one.
        let error = migrate_to(&mut connection, MIGRATIONS).unwrap_err();
        let (found, known) = (next.len(), MIGRATIONS.len());
        assert!(
            error
                .to_string()
                .contains(&format!("schema {found}, this version of fttrain knows up to {known}")),
            "{error}"
        );
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert!(migrate_to(&mut connection, &["CREATE TABLE a (x)", "not SQL"]).is_err());
        assert_eq!(version(&connection).unwrap(), 0);
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
        assert_eq!(tables, 0);
    }

    #[test]
    fn another_programs_database_is_refused_and_left_alone() {
        for made in ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 5"] {
            let mut connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(made).unwrap();
            let error = migrate_to(&mut connection, MIGRATIONS).unwrap_err();
            assert!(matches!(error, Error::Foreign { .. }), "{made}: {error}");
        }
    }
}
