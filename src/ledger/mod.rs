//! The ledger of every run: what it was, what it took, what was predicted; SQLite under the program's home. A broken
//! ledger never stops a run: [`Book`] then keeps the records in the run's own folder until they can be entered.
//! Stores what the caller gives and nothing of the environment.

mod book;
mod journal;
mod pulse;
mod query;
mod record;
mod schema;
mod store;

pub use book::Book;
pub use journal::{Journal, PENDING};
pub use pulse::{Pulse, SharedBook};
pub use query::{Checkpoint, Details, Outcome, RunRow};
pub use record::{Entry, Final, NewRun, Phase, Prepared, Record, Sample, Status};
pub use store::Ledger;

use crate::error::{Fault, Kind};
use crate::fs;
use rusqlite::ErrorCode;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// What can be wrong with the ledger, or with what is asked of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused.
    #[error("{}: {cause}", path.display())]
    Sqlite {
        /// The ledger's file.
        path: PathBuf,
        /// In SQLite's words.
        cause: rusqlite::Error,
    },
    /// A later version made the file.
    #[error(
        "{}: this ledger has schema {found}, this version of fttrain knows up to {known}",
        path.display()
    )]
    Newer {
        /// The ledger's file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// Another program's database.
    #[error("{}: not a ledger of fttrain", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// No run of that name.
    #[error("no run `{run}` in the ledger")]
    UnknownRun {
        /// As asked.
        run: String,
    },
    /// The id belongs to another run.
    #[error("the ledger has another run `{run}`, started at {started_at}")]
    OtherRun {
        /// The id.
        run: String,
        /// Of the run that is there.
        started_at: String,
    },
    /// More than one run of that name.
    #[error("`{run}` could be any of {}", ids.join(", "))]
    Ambiguous {
        /// As asked.
        run: String,
        /// Those that match.
        ids: Vec<String>,
    },
    /// A line of pending records that cannot be entered.
    #[error("{}:{line}: {why}", path.display())]
    Pending {
        /// The file of pending records.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The cause.
        why: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Sqlite { .. } => Kind::Resource,
            Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::UnknownRun { .. }
            | Self::OtherRun { .. }
            | Self::Ambiguous { .. } => Kind::Usage,
            Self::Pending { .. } => Kind::Model,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Sqlite { cause, .. } => hint_for(cause.sqlite_error_code()?)?.to_owned(),
            Self::Newer { .. } => "use the newer fttrain, or set FTTRAIN_HOME to another folder".to_owned(),
            Self::Foreign { .. } => "set FTTRAIN_HOME to another folder".to_owned(),
            Self::OtherRun { .. } => return None,
            Self::UnknownRun { .. } => "`fttrain runs` lists them; a run's folder works too".to_owned(),
            Self::Ambiguous { .. } => "give more letters".to_owned(),
            Self::Pending { .. } => {
                "nothing of this file was entered; correct or remove the line, or delete the file".to_owned()
            }
        })
    }
}

fn hint_for(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            "another process holds the ledger: try again when it is done"
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            "the ledger is damaged and was left as it is: restore a copy, or move it away to begin a new one"
        }
        ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
            "make the folder writable, or set FTTRAIN_HOME to one that is"
        }
        ErrorCode::DiskFull => "free some space on the disk of FTTRAIN_HOME",
        _ => return None,
    })
}

/// A new run's short id: eight letters and digits without those that look alike.
pub fn new_run_id() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    const ALPHABET: &str = "0123456789abcdefghjkmnpqrstvwxyz";
    let owner = fs::Owner::here();
    let nth = MADE.fetch_add(1, Ordering::Relaxed);
    let now = jiff::Timestamp::now().as_nanosecond();
    let seed = format!("{now} {nth} {owner:?}");
    // 40 of the hash's bits, five at a time.
    let bits =
        u64::from_str_radix(fs::sha256_bytes(seed.as_bytes()).get(..10).unwrap_or("0"), 16).unwrap_or(0);
    (0..8)
        .filter_map(|i| {
            let five = usize::try_from((bits >> (5 * i)) & 31).ok()?;
            ALPHABET.chars().nth(five)
        })
        .collect()
}

/// The present time as the ledger writes it: RFC 3339, UTC, milliseconds. A label only: durations come from the
/// monotonic clock, and the order of runs from their sequence number.
pub fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests;
