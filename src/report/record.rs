//! The report as `report.json` holds it. A `None` was not measured or is not known; it is never a 0.

use super::causes::Cause;
use crate::estimate::energy::EnergyLine;
use crate::estimate::parts::PartBytes;
use crate::estimate::time::ClassTime;
use crate::estimate::{Carbon, CostLine, Quantities};
use crate::meter::Measured;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run: predicted, measured, and the error between them. The first eleven fields are pinned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Of the ledger.
    pub run_id: String,
    /// How it ended.
    pub status: Status,
    /// Before the run.
    pub predicted: Quantities,
    /// During the run.
    pub measured: Quantities,
    /// (predicted − measured) / measured · 100.
    pub error_pct: ErrorPct,
    /// What could not be measured and was computed from a model instead.
    pub modelled: Quantities,
    /// The range of a prediction, by the quantity's key.
    pub interval: BTreeMap<String, Interval>,
    /// Sum to the measured wall time and cost.
    pub phases: Vec<Phase>,
    /// Sum to the peak, predicted and measured.
    pub memory_parts: Vec<MemoryPart>,
    /// What an hour costs.
    pub price: Price,
    /// What made the numbers.
    pub provenance: Provenance,
    /// Where each error came from; the shares of a quantity sum to its error.
    #[serde(default)]
    pub causes: Vec<Cause>,
    /// `lora`, `qlora` or `full`.
    #[serde(default)]
    pub method: Option<String>,
    /// When it began, RFC 3339.
    #[serde(default)]
    pub started_at: Option<String>,
    /// Why it ended where it did, unless it is done.
    #[serde(default)]
    pub reason: Option<String>,
    /// Counts of the model.
    #[serde(default)]
    pub parameters: Parameters,
    /// What was learned.
    #[serde(default)]
    pub training: Training,
    /// What was lost of what was not to be forgotten; `None` = no such set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// What was computed.
    #[serde(default)]
    pub work: Work,
    /// What it learned from.
    #[serde(default)]
    pub data: DataSummary,
    /// What the model said before and after.
    #[serde(default)]
    pub samples: Vec<SamplePair>,
    /// The command line of a program that was metered, without secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// All that the meter saw, but for its single looks.
    #[serde(default)]
    pub meter: Option<Measured>,
    /// Energy part by part, each with how it is known.
    #[serde(default)]
    pub energy: Vec<EnergyLine>,
    /// Carbon of the energy, where the grid is known.
    #[serde(default)]
    pub carbon: Option<Carbon>,
    /// The bill as the ledger has it; the lines sum to the cost.
    #[serde(default)]
    pub costs: Vec<CostLine>,
    /// What the reader must know before trusting a number.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// How the run stood over its time, about [`super::timeline::MOST`] moments.
    #[serde(default)]
    pub timeline: Vec<Moment>,
    /// The run that this one comes from or is nearest to.
    #[serde(default)]
    pub parent: Option<Parent>,
}

/// The loss on the half of the retention set that was only ever evaluated.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Retention {
    /// Targets of one evaluation.
    pub loss_tokens: u64,
    /// Of the base, nats a token.
    pub loss_before: Option<f64>,
    /// Of the result; `None` = not measured.
    pub loss_after: Option<f64>,
    /// After less before: what was forgotten where it is above 0.
    pub lost: Option<f64>,
}

/// How the run stood at a moment, and what it took since the one before.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds of the run, earlier processes included.
    pub at_s: f64,
    /// What it was doing.
    pub phase: String,
    /// Resident memory of the process: the most since the moment before; `None` = not measured.
    pub rss_bytes: Option<u64>,
    /// Memory on the accelerator.
    pub device_bytes: Option<u64>,
    /// Cores that the process kept busy.
    pub cores_busy: Option<f64>,
    /// W.
    pub power_w: Option<f64>,
    /// What the memory was held for, where it is tagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<PartBytes>,
}

/// An earlier run to compare with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Parent {
    /// Of the ledger.
    pub run_id: String,
    /// It began with that run's adapter; else it is the nearest one.
    pub is_origin: bool,
    /// When that run began, RFC 3339.
    pub started_at: String,
    /// What it cost.
    pub cost_usd: Option<f64>,
    /// Its last training loss.
    pub loss: Option<f64>,
    /// Settings that differ.
    pub differences: Vec<Difference>,
}

/// A setting with another value than in the parent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// Full name.
    pub key: String,
    /// TOML, or "not set".
    pub then: String,
    /// TOML, or "not set".
    pub now: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every step was taken.
    Done,
    /// By a signal or a budget, after a commit.
    Stopped,
    /// By an error.
    #[default]
    Failed,
    /// Loss or gradient stopped being finite.
    Diverged,
    /// By a kill: no report of its own says so.
    Killed,
    /// Not yet: no report of its own says so.
    Running,
}

impl Status {
    /// As in the JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Diverged => "diverged",
            Self::Killed => "killed",
            Self::Running => "running",
        }
    }
}

/// The error of each prediction, % of the measured value, with its sign.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ErrorPct {
    /// Of the whole run's time.
    pub wall_s: Option<f64>,
    /// Of the step time.
    pub step_s: Option<f64>,
    /// Of the throughput.
    pub tokens_per_s: Option<f64>,
    /// Of the peak memory.
    pub peak_memory_bytes: Option<f64>,
    /// Of the energy.
    pub energy_j: Option<f64>,
    /// Of the bill.
    pub cost_usd: Option<f64>,
}

/// The range in which a quantity is expected.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end, in the quantity's unit.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A part of the wall time and of the bill.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Phase {
    /// `load`, `train`, …; `rounding` = billed beyond the clock; `unattributed` closes to the whole.
    pub name: String,
    /// s.
    pub wall_s: f64,
    /// `None` without a price.
    pub cost_usd: Option<f64>,
    /// Paid for, and not a part of the run's time: the machine before it and behind it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
}

/// A part of the peak memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryPart {
    /// `base_weights`, …; `unattributed` closes to the peak and is below 0 where parts did not peak together.
    pub name: String,
    /// `None` = not predicted on its own.
    pub predicted_bytes: Option<i64>,
    /// From tagged allocations; `None` = not measured on its own.
    pub measured_bytes: Option<i64>,
}

/// The price behind every dollar; all `None` = unknown.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Price {
    /// On demand, for the whole machine.
    pub usd_per_hour: Option<f64>,
    /// Row of the table or "config".
    pub source: Option<String>,
    /// The day it was read.
    pub as_of: Option<String>,
}

/// What made the numbers; `None` = not there or not found out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Of the program.
    pub version: Option<String>,
    /// Commit and profile of the build.
    pub build: Option<String>,
    /// Operating system and kernel.
    pub os: Option<String>,
    /// Processor.
    pub cpu: Option<String>,
    /// Accelerator with its driver.
    pub gpu: Option<String>,
    /// `cpu` or `cuda`.
    pub device: Option<String>,
    /// Worker threads.
    pub threads: Option<u64>,
    /// `amx`, `avx512`, `avx2`, `portable`, or the CUDA architecture.
    pub kernel: Option<String>,
    /// Base model by name.
    pub base: Option<String>,
    /// SHA-256 of the base's weights.
    pub base_hash: Option<String>,
    /// SHA-256 of the prepared data.
    pub data_hash: Option<String>,
    /// SHA-256 of the resolved config.
    pub config_hash: Option<String>,
    /// Seed of everything random.
    pub seed: Option<u64>,
}

/// Counts of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// All.
    pub total: Option<u64>,
    /// Those that are trained.
    pub trainable: Option<u64>,
}

/// What the steps and evaluations say.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Training {
    /// Steps taken.
    pub steps: u64,
    /// Steps planned.
    pub planned_steps: Option<u64>,
    /// Epochs completed, with the fraction.
    pub epochs: Option<f64>,
    /// Real inputs, Σ over the steps.
    pub tokens: u64,
    /// Pad positions, Σ over the steps.
    pub padded_tokens: u64,
    /// Counted targets, Σ over the steps.
    pub loss_tokens: u64,
    /// Training loss of the first step.
    pub loss_first: Option<f64>,
    /// Training loss of the last step.
    pub loss_last: Option<f64>,
    /// Steps whose loss was not finite.
    pub non_finite_steps: u64,
    /// Evaluation loss at step 0.
    pub eval_before: Option<f64>,
    /// Evaluation loss at the end.
    pub eval_after: Option<f64>,
    /// Lowest evaluation loss after step 0.
    pub eval_best: Option<f64>,
    /// Where it was reached.
    pub eval_best_step: Option<u64>,
}

/// Floating-point work, counted from shapes, over time that was measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    /// Counted, mean of a step.
    pub flops_per_step: Option<f64>,
    /// Of all steps taken.
    pub flops: Option<f64>,
    /// Over Σ step seconds.
    pub flops_per_s: Option<f64>,
    /// What the machine reaches at best.
    pub peak_flops_per_s: Option<f64>,
    /// Where the peak comes from.
    pub peak_source: Option<String>,
    /// Achieved over peak, 0 … 1.
    pub utilisation: Option<f64>,
    /// Time by op class, where the run was profiled.
    pub classes: Vec<ClassTime>,
}

/// What was learned from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSummary {
    /// Rows read.
    pub rows: Option<u64>,
    /// Rows left out, for whatever reason.
    pub dropped_rows: Option<u64>,
    /// Rows cut to `sequence_len`.
    pub truncated_rows: Option<u64>,
    /// Samples trained on.
    pub train_samples: Option<u64>,
    /// Samples evaluated on.
    pub eval_samples: Option<u64>,
    /// Tokens of the training samples.
    pub tokens: Option<u64>,
    /// Those that count in the loss.
    pub loss_tokens: Option<u64>,
    /// Longest sample in tokens.
    pub longest_tokens: Option<u64>,
    /// `sequence_len`.
    pub sequence_len: Option<u64>,
    /// Packs of an epoch.
    pub packs: Option<u64>,
}

/// One prompt and what the model made of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SamplePair {
    /// What was asked.
    pub prompt: String,
    /// What the data has as the answer.
    #[serde(default)]
    pub reference: Option<String>,
    /// By the base model.
    pub before: Option<String>,
    /// By the trained model.
    pub after: Option<String>,
}

impl Report {
    /// Nothing was measured at all: no quantity, no phase, no step.
    pub fn is_unmeasured(&self) -> bool {
        self.measured == Quantities::default() && self.phases.is_empty() && self.training.steps == 0
    }
}

impl DataSummary {
    /// Share of the tokens that count in the loss, 0 … 1.
    pub fn counted_share(&self) -> Option<f64> {
        let tokens = self.tokens.filter(|t| *t > 0)?;
        Some(self.loss_tokens? as f64 / tokens as f64)
    }
}

impl Parameters {
    /// Share that is trained, 0 … 1.
    pub fn trainable_share(&self) -> Option<f64> {
        let total = self.total.filter(|t| *t > 0)?;
        Some(self.trainable? as f64 / total as f64)
    }
}
