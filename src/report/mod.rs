//! What a run was predicted to cost and what it cost, side by side: on the terminal, as JSON and as one HTML file.
//! Reads values and a run's own files, never the model; shows no number that is not in them.

mod base64;
pub mod build;
pub mod causes;
pub mod estimate_table;
pub mod html;
pub mod json;
pub mod machines_table;
pub mod metered;
pub mod pilot_table;
pub mod prices;
pub mod profile;
pub mod profile_table;
pub mod record;
mod recover;
pub mod runs;
pub mod study_table;
pub mod table;
pub mod terminal;
pub mod timeline;
pub mod track;
pub mod words;

pub use build::{Inputs, PartInput, PhaseInput, build};
pub use causes::{Cause, Forecast};
pub use estimate_table::{Plan, estimate_table};
pub use html::html;
pub use record::{
    DataSummary, Difference, ErrorPct, Interval, MemoryPart, Moment, Parameters, Parent, Phase, Price,
    Provenance, Report, SamplePair, Status, Training, Work,
};
pub use recover::recover;
pub use terminal::terminal;

use crate::error::{Fault, Kind};
use std::path::PathBuf;

/// Why a report could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a report.
    #[error("{}:{}:{}: not a report: {source}", path.display(), source.line(), source.column())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A value that JSON cannot hold.
    #[error("the report cannot be written: {0}")]
    Unwritable(serde_json::Error),
    /// A word on the command line that means nothing here.
    #[error("`{word}` is no {what}")]
    Unheard {
        /// What was expected.
        what: &'static str,
        /// As given.
        word: String,
        /// Words that are known.
        known: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotAReport { .. } => Kind::Model,
            Self::Unwritable(_) => Kind::Bug,
            Self::Unheard { .. } => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotAReport { .. } => {
                Some("`fttrain runs show RUN` says what the ledger knows of it".into())
            }
            Self::Unwritable(_) => None,
            Self::Unheard { known, .. } => Some(format!("known are {known}")),
        }
    }
}
