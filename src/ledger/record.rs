//! What is recorded of a run. An [`Entry`] is the unit: the ledger, the journal and the book all take the same ones,
//! and entering one twice changes nothing.

use crate::error::Result;
use crate::estimate::CostLine;
use crate::estimate::parts::PartBytes;
use crate::fs::Owner;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its process lives.
    Running,
    /// It reached its last step.
    Done,
    /// A signal ended it, after a commit.
    Stopped,
    /// An error ended it.
    Failed,
    /// Loss or gradients stopped being finite.
    Diverged,
    /// Its process died without a word; never written, only seen.
    Killed,
}

impl Status {
    /// The word in the ledger and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Diverged => "diverged",
            Self::Killed => "killed",
        }
    }

    /// All, in the order of a run's life.
    pub const ALL: [Self; 6] =
        [Self::Running, Self::Done, Self::Stopped, Self::Failed, Self::Diverged, Self::Killed];
}

/// A run at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewRun {
    /// From [`super::new_run_id`].
    pub run_id: String,
    /// From [`super::now`].
    pub started_at: String,
    /// The run's folder.
    pub output_dir: String,
    /// The resolved config; whoever gives it sees to it that no secret is in it.
    pub config_toml: String,
    /// SHA-256 of what decides the result in it.
    pub config_hash: String,
    /// SHA-256 of the data.
    pub data_hash: String,
    /// Fingerprint of the base model.
    pub base_hash: String,
    /// What the run belongs to; empty = nothing that was named.
    #[serde(default)]
    pub project: String,
    /// `experiment`, `final`, `pilot`, …
    pub purpose: String,
    /// `full`, `lora` or `qlora`.
    pub method: String,
    /// The base model's name.
    pub base: String,
    /// The prediction, as in estimate.json.
    pub prediction_json: Option<String>,
    /// Price of an hour; `None` = unknown.
    pub usd_per_hour: Option<f64>,
}

/// How a run stands at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds of the run so far, earlier processes included.
    pub wall_s: f64,
    /// Milliseconds since 1970, UTC: a label only.
    pub at_ms: i64,
    /// Optimizer steps done.
    pub step: u64,
    /// What the run is doing: `load`, `train`, …
    pub phase: String,
    /// The bill so far; `None` without a price.
    pub cost_usd: Option<f64>,
    /// The last loss.
    pub loss: Option<f64>,
    /// Resident memory of the process.
    pub rss_bytes: Option<u64>,
    /// Processor seconds of the process.
    pub cpu_s: Option<f64>,
    /// Joules of the run so far.
    pub energy_j: Option<f64>,
    /// Tagged memory of the process by part.
    #[serde(default)]
    pub parts: Option<PartBytes>,
}

/// What is known of a run once its data are read and its folder is its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prepared {
    /// The run's folder, where it is another than the one that is known, or is there only now.
    pub output_dir: Option<String>,
    /// The base model's name.
    pub base: String,
    /// Fingerprint of the base model.
    pub base_hash: String,
    /// SHA-256 of the data.
    pub data_hash: String,
    /// The prediction, as in estimate.json, where it is not the one that is known.
    pub prediction_json: Option<String>,
}

/// One phase of a run, in all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Phase {
    /// `load`, `tokenise`, `train`, …
    pub name: String,
    /// Seconds of the monotonic clock.
    pub wall_s: f64,
    /// Processor seconds, where measured.
    pub cpu_s: Option<f64>,
    /// Peak memory of the process in it, where measured.
    pub peak_rss_bytes: Option<u64>,
    /// Its share of the bill.
    pub cost_usd: Option<f64>,
}

/// A run at its end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Final {
    /// From [`super::now`].
    pub finished_at: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Seconds in all.
    pub wall_s: f64,
    /// USD in all; `None` without a price.
    pub cost_usd: Option<f64>,
    /// Joules in all; `None` = not measured.
    #[serde(default)]
    pub energy_j: Option<f64>,
    /// The last loss; `None` before the first step.
    pub loss: Option<f64>,
    /// report.json, where one was made.
    pub report_json: Option<String>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are those of the methods of `Record`")]
pub enum Entry {
    /// The run began.
    Start { run: Box<NewRun>, owner: Owner },
    /// The run goes on in another process.
    Resume {
        run_id: String,
        owner: Owner,
        #[serde(default)]
        prediction_json: Option<String>,
    },
    /// It is known what the run is made of.
    Prepared { run_id: String, prepared: Prepared },
    /// The run was refused before it was one.
    Withdrawn { run_id: String },
    /// The run's folder has another place now.
    Moved { run_id: String, output_dir: String },
    /// The run lives.
    Heartbeat { run_id: String, sample: Sample },
    /// A checkpoint was committed.
    Checkpoint { run_id: String, at: String, step: u64, path: String },
    /// Its phases and costs follow, and those of processes before are among them.
    Anew { run_id: String },
    /// A phase, in all.
    Phase { run_id: String, phase: Phase },
    /// A cost.
    Cost { run_id: String, line: CostLine },
    /// The run ended.
    Finish { run_id: String, status: Status, end: Final },
}

impl Entry {
    /// The run that the record is of.
    pub fn run_id(&self) -> &str {
        match self {
            Self::Start { run, .. } => &run.run_id,
            Self::Resume { run_id, .. }
            | Self::Prepared { run_id, .. }
            | Self::Withdrawn { run_id }
            | Self::Anew { run_id }
            | Self::Moved { run_id, .. }
            | Self::Heartbeat { run_id, .. }
            | Self::Checkpoint { run_id, .. }
            | Self::Phase { run_id, .. }
            | Self::Cost { run_id, .. }
            | Self::Finish { run_id, .. } => run_id,
        }
    }
}

/// Something that takes records.
pub trait Record {
    /// Takes one.
    fn record(&mut self, entry: Entry) -> Result<()>;

    /// A run begins in this process.
    fn start_run(&mut self, run: &NewRun) -> Result<()> {
        let mut run = Box::new(run.clone());
        run.output_dir = full_path(Path::new(&run.output_dir));
        self.record(Entry::Start { run, owner: Owner::here() })
    }

    /// A run goes on in this process, with another prediction where it is to take other steps.
    fn resume_run(&mut self, run_id: &str, prediction_json: Option<&str>) -> Result<()> {
        self.record(Entry::Resume {
            run_id: run_id.to_owned(),
            owner: Owner::here(),
            prediction_json: prediction_json.map(str::to_owned),
        })
    }

    /// It is known what the run is made of.
    fn prepared(&mut self, run_id: &str, prepared: &Prepared) -> Result<()> {
        let mut prepared = prepared.clone();
        prepared.output_dir = prepared.output_dir.map(|folder| full_path(Path::new(&folder)));
        self.record(Entry::Prepared { run_id: run_id.to_owned(), prepared })
    }

    /// The run was refused before its first step, and took no more than a moment.
    fn withdraw(&mut self, run_id: &str) -> Result<()> {
        self.record(Entry::Withdrawn { run_id: run_id.to_owned() })
    }

    /// The run's folder is found at another place than the one that is known.
    fn moved(&mut self, run_id: &str, folder: &Path) -> Result<()> {
        self.record(Entry::Moved { run_id: run_id.to_owned(), output_dir: full_path(folder) })
    }

    /// The run lives, and stands so.
    fn heartbeat(&mut self, run_id: &str, sample: &Sample) -> Result<()> {
        self.record(Entry::Heartbeat { run_id: run_id.to_owned(), sample: sample.clone() })
    }

    /// A checkpoint was committed.
    fn checkpoint(&mut self, run_id: &str, step: u64, path: &Path) -> Result<()> {
        self.record(Entry::Checkpoint {
            run_id: run_id.to_owned(),
            at: super::now(),
            step,
            path: full_path(path),
        })
    }

    /// Its phases and costs follow, all of them.
    fn anew(&mut self, run_id: &str) -> Result<()> {
        self.record(Entry::Anew { run_id: run_id.to_owned() })
    }

    /// A phase is over.
    fn phase(&mut self, run_id: &str, phase: &Phase) -> Result<()> {
        self.record(Entry::Phase { run_id: run_id.to_owned(), phase: phase.clone() })
    }

    /// A cost is known, predicted, or known to be unknown.
    fn cost_line(&mut self, run_id: &str, line: &CostLine) -> Result<()> {
        self.record(Entry::Cost { run_id: run_id.to_owned(), line: line.clone() })
    }

    /// The run ended.
    fn finish_run(&mut self, run_id: &str, status: Status, end: &Final) -> Result<()> {
        self.record(Entry::Finish { run_id: run_id.to_owned(), status, end: end.clone() })
    }
}

/// A folder as the ledger names it: from the root, and without links where it exists.
pub(super) fn full_path(path: &Path) -> String {
    path.canonicalize()
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.to_owned())
        .to_string_lossy()
        .into_owned()
}
