//! What a run was predicted to cost and what it cost, side by side: on the terminal, as JSON and as one HTML file.
//! Reads values and a run's own files, never the model; shows no number that is not in them.

pub mod build;
pub mod estimate_table;
pub mod html;
pub mod json;
pub mod machines_table;
pub mod metered;
pub mod prices;
pub mod profile;
pub mod profile_table;
pub mod record;
pub mod runs;
pub mod table;
pub mod terminal;
pub mod words;

pub use build::{Inputs, PartInput, PhaseInput, build};
pub use estimate_table::{Plan, estimate_table};
pub use html::html;
pub use record::{
    DataSummary, ErrorPct, Interval, MemoryPart, Parameters, Phase, Price, Provenance, Report, SamplePair,
    Status, Training, Work,
};
pub use terminal::terminal;

use crate::error::{Fault, Kind};
use std::io;
use std::path::PathBuf;

/// Why a report could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a report.
    #[error("{}:{}:{}: not a report: {source}", path.display(), source.line(), source.column())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// Larger than any report is.
    #[error("{}: {bytes} bytes are more than a report takes ({})", path.display(), json::MAX_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A value that JSON cannot hold.
    #[error("the report cannot be written: {0}")]
    Unwritable(serde_json::Error),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Unreadable { .. } => Kind::Resource,
            Self::NotAReport { .. } | Self::TooLarge { .. } => Kind::Model,
            Self::Unwritable(_) => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => Some("give a run id or the folder of a finished run".into()),
            Self::NotAReport { .. } | Self::TooLarge { .. } => {
                Some("`fttrain report RUN` writes it again from the ledger".into())
            }
            Self::Unwritable(_) => None,
        }
    }
}
