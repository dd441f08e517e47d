//! The places where people already look at runs: MLflow, TensorBoard, one CSV table. All of them read the run's own
//! folder and the ledger, on a thread of their own, so that a tracker that is down neither stops nor slows a run: what
//! could not be sent is tried again, said at the end, and sent later by `fttrain report RUN --to …`.

mod csv;
mod desk;
mod mlflow;
mod rest;
mod run;
mod tensorboard;

pub use desk::Desk;
pub use run::Run;

use crate::config::{Output, Tracker as Kind};
use crate::error::{self, Fault, Result};
use std::path::PathBuf;

/// Why a tracker did not take a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server does not answer.
    #[error("mlflow: the server does not answer: {0}")]
    Unreachable(String),
    /// The server answers something else than what was asked for.
    #[error("mlflow: the server refuses ({status}): {said}")]
    Refused {
        /// The status code of its answer.
        status: u16,
        /// In its words.
        said: String,
    },
    /// No server was named.
    #[error("`report_to` names mlflow, and there is no address of a server")]
    NoServer,
    /// Artefacts go somewhere that is not reached through the server.
    #[error(
        "mlflow: the files of this experiment are kept outside the server; the report was not sent there"
    )]
    Artefacts,
    /// A file in the run's folder cannot be written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// In the system's words.
        cause: std::io::Error,
    },
}

impl Fault for Error {
    fn kind(&self) -> error::Kind {
        match self {
            Self::NoServer => error::Kind::Usage,
            _ => error::Kind::Resource,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoServer => Some("set `mlflow_tracking_uri`, or MLFLOW_TRACKING_URI".into()),
            Self::Refused { status: 401 | 403, .. } => Some(
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN".into(),
            ),
            Self::Unreachable(_) => Some("start the server, or give another `mlflow_tracking_uri`".into()),
            _ => None,
        }
    }
}

/// Takes what is new of a run. What it could not take it is offered again.
pub(super) trait Tracker: Send {
    /// Its name in `report_to`.
    fn name(&self) -> &'static str;

    /// Takes everything up to now; `is_over` where nothing follows.
    ///
    /// # Errors
    /// It is down or refuses; the next call begins where this one failed.
    fn take(&mut self, run: &mut Run, is_over: bool) -> Result<()>;
}

/// The trackers of these names for a run.
///
/// # Errors
/// MLflow without the address of a server.
fn open(kinds: &[Kind], output: &Output) -> Result<Vec<Box<dyn Tracker>>> {
    let one = |kind: &Kind| -> Result<Box<dyn Tracker>> {
        Ok(match kind {
            Kind::Mlflow => Box::new(mlflow::Mlflow::new(mlflow::Server::named(output)?)),
            Kind::Tensorboard => Box::new(tensorboard::Tensorboard::default()),
            Kind::Csv => Box::new(csv::Csv::default()),
        })
    };
    kinds.iter().map(one).collect()
}

/// Refuses a run whose trackers lack something, before it starts.
///
/// # Errors
/// MLflow without the address of a server.
pub fn check(output: &Output) -> Result<()> {
    open(&output.report_to, output).map(|_| ())
}

/// Sends a run that is over, or is not followed, to these trackers.
///
/// # Errors
/// A tracker is down or refuses; the others have it all the same.
pub fn send(kinds: &[Kind], output: &Output, run: &mut Run) -> Result<()> {
    let mut outcome = Ok(());
    run.refresh()?;
    for mut tracker in open(kinds, output)? {
        if let Err(error) = tracker.take(run, true) {
            match &mut outcome {
                Err(all @ error::Error { .. }) => all.problems.extend(error.problems),
                Ok(()) => outcome = Err(error),
            }
        }
    }
    outcome
}
