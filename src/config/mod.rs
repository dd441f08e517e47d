//! The config as it is meant: [`Config`] is valid by construction. `raw` holds it as written, `check` goes from one
//! to the other and reports every problem at once. Knows nothing of models or data: only what can be judged from
//! the text is judged here.

mod alias;
mod check;
mod cost;
mod error;
mod foreign;
pub mod import;
mod judge;
mod keys;
mod kinds;
mod load;
mod method;
mod paths;
mod place;
mod raw;
mod read;
mod reference;
mod resolved;
mod section;
mod sources;
mod table;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use keys::Table;
pub use load::{load, parse};
pub use method::MethodFlag;
pub use reference::reference;
pub use resolved::{Difference, Resolved, differences, differing, resume_conflicts, settings_of};

use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A checked run. Keys, meanings and defaults are those of the README's table; paths are relative to the current
/// folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// What is fine-tuned.
    pub base: Base,
    /// Full, LoRA or QLoRA.
    pub method: Method,
    /// What is learned from.
    pub data: Data,
    /// How it is learned.
    pub train: Train,
    /// When it is judged and saved.
    pub schedule: Schedule,
    /// Where the run lives.
    pub output: Output,
    /// What an hour costs.
    pub cost: Cost,
    /// What may be spent.
    pub budget: Budget,
    /// How it is metered.
    pub meter: Meter,
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Base {
    /// `base_model` as written: a folder, a `.gguf` file or a hub name `org/name`.
    pub model: String,
    /// Branch, tag or commit on the hub; `None` = `main`.
    pub revision: Option<String>,
    /// Start from the shapes of `config.json` alone, with fresh random weights.
    pub reinit_weights: bool,
    /// `false`: everything f32. `true`: the base is kept in bf16. `None` = auto: the device decides.
    pub bf16: Option<bool>,
}

/// The fine-tuning method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Method {
    /// Every weight is trained.
    Full,
    /// Low-rank adapters on a frozen base.
    Lora(Lora),
    /// Low-rank adapters on a quantised base.
    Qlora {
        /// The adapter.
        lora: Lora,
        /// NF4 scales are quantised once more.
        double_quant: bool,
    },
}

impl Method {
    /// Its flag, and with it its name.
    pub fn flag(&self) -> MethodFlag {
        match self {
            Self::Full => MethodFlag::Full,
            Self::Lora(_) => MethodFlag::Lora,
            Self::Qlora { .. } => MethodFlag::Qlora,
        }
    }
}

/// A low-rank adapter, in PEFT's terms.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lora {
    /// Rank R. `None` only with `model_dir` set: the adapter's own then holds (16 otherwise).
    pub r: Option<usize>,
    /// α as written; `None` only with `model_dir` set (32 otherwise).
    pub alpha: Option<f64>,
    /// Drop probability on the input of A, in [0, 1).
    pub dropout: f64,
    /// Which linears get an adapter; `None` only with `model_dir` set (`AllLinear` otherwise).
    pub targets: Option<Targets>,
    /// Scale α/√r in place of α/r. `None` only with `model_dir` set (`false` otherwise).
    pub rslora: Option<bool>,
    /// Each row of the adapted weight has a trained length of its own (DoRA). `None` only with `model_dir` set
    /// (`false` otherwise).
    pub dora: Option<bool>,
    /// Ranks of modules that differ from `r`, by PEFT's patterns; the first that matches holds.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules that differ from `alpha`, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// What A and B start from.
    pub init: LoraInit,
    /// Modules trained whole and saved beside the adapter (PEFT's `modules_to_save`), by the end of its name.
    pub modules_to_save: Vec<String>,
    /// Continue from this PEFT adapter folder.
    pub model_dir: Option<PathBuf>,
}

/// PEFT's `init_lora_weights`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum LoraInit {
    /// A uniform, B zero: the adapter changes nothing at first.
    #[default]
    Zero,
    /// The weight's principal singular values and vectors, which its frozen part loses (`PiSSA`).
    Pissa {
        /// Rounds of subspace iteration in place of a whole decomposition.
        rounds: Option<usize>,
    },
}

/// PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Targets {
    /// Every linear but the output head.
    AllLinear,
    /// Full names or `.`-suffixes of names.
    Names(Vec<String>),
    /// A regular expression that must match a module's whole name.
    Regex(String),
}

/// What is learned from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Data {
    /// Training sources, in order; never empty.
    pub datasets: Vec<Source>,
    /// Evaluation sources of their own.
    pub test_datasets: Vec<Source>,
    /// What the model is not to forget: half of its rows are evaluated before and after, the other half is there for
    /// replay and for EWC.
    pub retention_datasets: Vec<Source>,
    /// Share of the training rows that are replayed of the retention set.
    pub retention_share: f64,
    /// Rows held out of the training sources when there are no `test_datasets`.
    pub val_set: ValSet,
    /// Longest sequence, and the size of a pack, in tokens.
    pub sequence_len: usize,
    /// What happens to longer rows.
    pub excess_length: ExcessLength,
    /// Fill packs of `sequence_len` tokens with whole rows.
    pub sample_packing: bool,
    /// Count every token, prompts too.
    pub train_on_inputs: bool,
    /// Roles whose messages are counted.
    pub roles_to_train: Vec<String>,
    /// Whether the end-of-turn token behind a counted turn is counted: Axolotl's `train_on_eos`.
    pub train_on_eos: TrainOnEos,
    /// Overrides the model's own template: a Jinja template's text (a path ending in `.jinja` is read).
    pub chat_template: Option<String>,
    /// Shuffle rows, by `seed` and epoch.
    pub shuffle: bool,
    /// What a broken row does.
    pub on_bad_row: OnBadRow,
    /// A longer line is refused.
    pub max_line_bytes: u64,
}

impl Data {
    /// Whether any source holds text, not tokens.
    pub fn reads_text(&self) -> bool {
        let mut sources = self.datasets.iter().chain(&self.test_datasets).chain(&self.retention_datasets);
        sources.any(|source| source.format != Format::Tokenized)
    }
}

/// One file of rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// JSON Lines file.
    pub path: PathBuf,
    /// What a row is.
    pub format: Format,
    /// `train` by default; `train[:N]`, `train[N:]`, `train[N:M]`, with percent signs allowed, take a part.
    pub split: Option<String>,
    /// Field with the messages (`field_messages`; `messages`, with `sharegpt` `conversations`).
    pub field_messages: String,
    /// Field that becomes the user turn, with `chat_template`, the prompt, with `prompt_completion`, or the instruction, with
    /// `alpaca`.
    pub field_prompt: Option<String>,
    /// Field that becomes the assistant turn, the completion, or the output.
    pub field_completion: Option<String>,
    /// Field with the text of `completion` (`field`, default `text`).
    pub field_text: String,
    /// Field with a system message, optional.
    pub field_system: Option<String>,
}

/// What a row is; the names of `[[datasets]] type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A conversation, rendered with the chat template.
    ChatTemplate,
    /// Prompt and completion as they are, no template, EOS added.
    PromptCompletion,
    /// Plain text, split into windows, EOS added.
    Completion,
    /// Instruction, input, output.
    Alpaca,
    /// A conversation in `ShareGPT`'s field names.
    Sharegpt,
    /// `input_ids` and `labels`.
    Tokenized,
}

/// `val_set_size`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum ValSet {
    /// No rows are held out.
    None,
    /// A share of the rows, in (0, 1).
    Share(f64),
    /// A number of rows, ≥ 1.
    Count(usize),
}

/// `excess_length_strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExcessLength {
    /// Leave the row out, counted; more than 5 % is refused.
    Drop,
    /// Cut the row's end off, counted.
    Truncate,
    /// Refuse the dataset.
    Raise,
}

/// `train_on_eos`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOnEos {
    /// Behind counted turns only.
    Turn,
    /// Behind every turn.
    All,
    /// Behind the last turn only.
    Last,
    /// Never.
    None,
}

/// `on_bad_row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRow {
    /// Refuse the dataset.
    Fail,
    /// Leave the row out, counted and reported.
    Skip,
}

/// How it is learned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Train {
    /// Rows (packs, with packing) that go through the model at once.
    pub micro_batch_size: usize,
    /// Micro-batches an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data; may be fractional only through `max_steps`.
    pub num_epochs: usize,
    /// Optimizer steps; wins over `num_epochs` and repeats epochs.
    pub max_steps: Option<u64>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate over the steps.
    pub lr_scheduler: LrScheduler,
    /// Linear warm-up.
    pub warmup: Warmup,
    /// Floor of the cosine, as a share of the peak.
    pub cosine_min_lr_ratio: f64,
    /// The rule by which weights are updated.
    pub optimizer: Optimizer,
    /// Decoupled weight decay (with SGD, added to the gradient); never on norms and biases.
    pub weight_decay: f64,
    /// β₁ of `AdamW`.
    pub adam_beta1: f64,
    /// β₂ of `AdamW`.
    pub adam_beta2: f64,
    /// ε of `AdamW`.
    pub adam_epsilon: f64,
    /// μ of SGD; 0 = none.
    pub momentum: f64,
    /// In full fine-tuning weights are kept in bf16 alone, and each update is rounded at random.
    pub bf16_weights: bool,
    /// Each tensor is updated as soon as its gradient is whole: all gradients never stand at once.
    pub optimizer_in_backward: bool,
    /// λ of the pull of every weight towards its start, ½·λ·‖w − w₀‖²; 0 = none (L2-SP).
    pub l2_sp: f64,
    /// λ of the pull by how much the retention set depends on a weight, ½·λ·Σ F·(w − w₀)²; 0 = none (EWC).
    pub ewc: f64,
    /// Gradients are scaled down to this norm; 0 = never.
    pub max_grad_norm: f64,
    /// LoRA+: the learning rate of B over that of A; `None` = 1.
    pub loraplus_lr_ratio: Option<f64>,
    /// Recompute activations in the backward pass; `None` = auto: when memory needs it.
    pub gradient_checkpointing: Option<bool>,
    /// Where it runs.
    pub device: Device,
    /// Worker threads; `None` = the cores that this process may use.
    pub threads: Option<usize>,
    /// Everything random follows from it.
    pub seed: u64,
}

/// `optimizer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// `AdamW` with moments in f32.
    Adamw,
    /// `AdamW` with moments in 8 bits, block by block.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// Second moments as means of rows and columns.
    Adafactor,
    /// The sign of one moment.
    Lion,
    /// Gradient descent.
    Sgd,
}

impl Optimizer {
    /// Values of the smallest tensor whose moments are kept in 8 bits: bitsandbytes' `min_8bit_size`.
    pub const LEAST_IN_8_BITS: usize = 4096;
}

/// `lr_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScheduler {
    /// Half a cosine from the peak to the floor.
    Cosine,
    /// A line from the peak to 0.
    Linear,
    /// The peak throughout.
    Constant,
}

/// `warmup_steps` or `warmup_ratio`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Warmup {
    /// This many steps.
    Steps(u64),
    /// This share of all steps, rounded up.
    Ratio(f64),
}

/// `device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The best there is.
    Auto,
    /// This machine's cores.
    Cpu,
    /// This NVIDIA GPU, counted from 0.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    /// As a config writes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse::<u16>().ok().filter(|_| n.bytes().all(|b| b.is_ascii_digit()));
        let nth = text.strip_prefix("cuda:").map(number);
        match (text, nth) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Some(nth))) => Ok(Self::Cuda(nth.into())),
            _ => Err(format!("expected {}", kinds::Kind::Device.say())),
        }
    }
}

impl fmt::Display for Device {
    /// As a config writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(nth) => write!(f, "cuda:{nth}"),
        }
    }
}

/// When it is judged and saved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Schedule {
    /// Evaluate every so many steps, beside before the first and after the last; `None` = only those two.
    pub eval_steps: Option<u64>,
    /// Stop after this many evaluations without a better loss.
    pub early_stopping_patience: Option<u64>,
    /// End with the weights of the lowest evaluation loss.
    pub load_best_model_at_end: bool,
    /// Commit a checkpoint every so many steps; `None` = only at a stop and at the end.
    pub save_steps: Option<u64>,
    /// Checkpoints kept (the best one beside them); `None` = all.
    pub save_total_limit: Option<usize>,
    /// A plain progress line every so many steps where there is no terminal.
    pub logging_steps: u64,
}

/// Where the run lives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Output {
    /// The run's folder; `{run}` stands for the run's short id.
    pub dir: PathBuf,
    /// Go on from the folder's last checkpoint if there is one.
    pub auto_resume: bool,
    /// What the run belongs to, for the ledger; empty = nothing that was named.
    pub project: String,
    /// `experiment`, `final`, `pilot` or a word of one's own, for the ledger.
    pub purpose: String,
    /// Prompts decoded before and after training, with a fixed seed.
    pub samples: Vec<String>,
    /// Who follows the run.
    pub report_to: Vec<Tracker>,
    /// Address of the MLflow server; `None` = that of the environment.
    pub mlflow_tracking_uri: Option<String>,
    /// Its experiment; `None` = the project's name.
    pub mlflow_experiment_name: Option<String>,
}

/// A place where people already look at runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Tracker {
    /// A server, over REST.
    Mlflow,
    /// Event files in the run's folder.
    Tensorboard,
    /// One table in the run's folder.
    Csv,
}

impl Tracker {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mlflow, Self::Tensorboard, Self::Csv];

    /// Its name in `report_to`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mlflow => "mlflow",
            Self::Tensorboard => "tensorboard",
            Self::Csv => "csv",
        }
    }
}

/// More than an hour of any machine costs, USD; below it no bill is infinite.
pub const MOST_USD_PER_HOUR: u32 = 1_000_000;

/// `[cost]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cost {
    /// What an hour costs.
    pub price: Price,
    /// A price table of the user's own, whose rows win over the shipped ones.
    pub price_file: Option<PathBuf>,
    /// The row's spot price holds.
    pub is_spot: bool,
    /// Electricity beside the hour, USD per kWh; `None` = part of the price.
    pub usd_per_kwh: Option<f64>,
    /// Bills are rounded up to this many seconds; `None` = the price row's, or 1.
    pub billing_granularity_s: Option<u64>,
    /// Shortest bill, s; `None` = the price row's, or none.
    pub minimum_s: Option<u64>,
    /// The machine is paid for since it started, not only the run.
    pub from_boot: bool,
    /// Seconds that the machine is kept behind the run, as stated.
    pub release_after_s: Option<u64>,
    /// Where the electricity comes from, for carbon.
    pub grid: Grid,
}

/// The source of the price.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub enum Price {
    /// Not stated: cost reads "unknown".
    #[default]
    Unknown,
    /// A row of the price table, `provider/instance`.
    Machine(String),
    /// The user's own, USD per hour.
    PerHour(f64),
    /// A machine of the user's own: its price spread over the hours of its life.
    Owned {
        /// USD.
        hardware_usd: f64,
        /// Hours of work.
        life_hours: f64,
    },
}

/// Where the electricity comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub enum Grid {
    /// Not stated: no carbon.
    #[default]
    Unknown,
    /// A row of the shipped table.
    Region(String),
    /// The user's own figure, g `CO₂e` per kWh.
    PerKwh(f64),
}

/// `[budget]`: caps; `None` = no cap.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Budget {
    /// USD.
    pub max_usd: Option<f64>,
    /// Wall-clock hours.
    pub max_hours: Option<f64>,
    /// Peak memory, GiB.
    pub max_memory_gib: Option<f64>,
    /// Energy, kWh.
    pub max_energy_kwh: Option<f64>,
    /// An exact repeat of an earlier run is refused, not only pointed out.
    pub refuse_repeats: bool,
}

/// `[meter]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Meter {
    /// Milliseconds from sample to sample.
    pub interval_ms: u64,
}
