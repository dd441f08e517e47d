//! What can go wrong between a valid config and a finished run.

use crate::error::{Fault, Kind};
use std::path::PathBuf;

/// Why a run cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output folder holds a finished run.
    #[error("{}: holds a finished run", .0.display())]
    Finished(PathBuf),
    /// A finished run is to take more steps, and its checkpoints are gone.
    #[error("{}: holds a finished run without a checkpoint to go on from", .0.display())]
    NoCheckpoints(PathBuf),
    /// The output folder holds a run that did not finish.
    #[error("{}: holds a run that did not finish", .0.display())]
    Interrupted(PathBuf),
    /// There is no run.
    #[error("{}: holds no run", .0.display())]
    NoRun(PathBuf),
    /// Another run has the folder now.
    #[error("{}: the folder of run `{run}` is run `{by}`'s now", folder.display())]
    Taken {
        /// The run's folder.
        folder: PathBuf,
        /// The run that was named.
        run: String,
        /// The run that is there.
        by: String,
    },
    /// The run was made with other settings.
    #[error("{}: made with {key} = {old}, now {new}", run.display())]
    ConfigChanged {
        /// The run's folder.
        run: PathBuf,
        /// The setting.
        key: String,
        /// Then.
        old: String,
        /// Now.
        new: String,
    },
    /// The run was made by another number of processes.
    #[error("{}: made by {then} {}, now there {}", run.display(), processes(*then), are(*now))]
    OtherProcesses {
        /// The run's folder.
        run: PathBuf,
        /// Then.
        then: usize,
        /// Now.
        now: usize,
    },
    /// The run was made from other data.
    #[error("{}: its data has changed since the checkpoint was made", .0.display())]
    DataChanged(PathBuf),
    /// The run was made from other weights.
    #[error("{}: its base model has changed since the checkpoint was made", .0.display())]
    BaseChanged(PathBuf),
    /// Asked for on a GPU, which cannot do it yet.
    #[error("{0} does not run on a GPU yet")]
    NotOnGpu(&'static str),
    /// The kernels that the environment asks for cannot be used.
    #[error("FTTRAIN_KERNEL: {0}")]
    Kernel(String),
    /// The loss stopped being finite.
    #[error("the loss is {0}")]
    Loss(f64),
    /// A gradient stopped being finite.
    #[error("the gradient of `{0}` is not finite")]
    Gradient(String),
    /// The loss on held-out rows is not finite.
    #[error("step {step}: the evaluation loss is {loss}")]
    EvalLoss {
        /// Steps taken.
        step: u64,
        /// NaN or infinite.
        loss: f64,
        /// The last checkpoint, where there is one.
        last: Option<PathBuf>,
    },
    /// A trained tensor stopped being finite.
    #[error("step {step}: the update left values in `{name}` that are not finite; they are not saved")]
    Weights {
        /// Steps taken.
        step: u64,
        /// The first such tensor in name order.
        name: String,
        /// The last checkpoint, where there is one.
        last: Option<PathBuf>,
    },
    /// The result cannot be used.
    #[error("the trained weights give logits that are not finite; they are not saved")]
    Logits,
    /// The step at which loss or gradient stopped being finite.
    #[error("step {step}: {what}, at learning rate {lr:e}, on samples {samples:?}; {after}")]
    Diverged {
        /// From 1.
        step: u64,
        /// The fact.
        what: String,
        /// Of that step.
        lr: f64,
        /// What became of the weights.
        after: &'static str,
        /// The step's samples by index, the first few.
        samples: Vec<u32>,
        /// The last checkpoint, where there is one.
        last: Option<PathBuf>,
    },
    /// The result would be written over what the run learns from.
    #[error("`output_dir` and `{key}` are one folder: {}", folder.display())]
    OutputIsInput {
        /// The key of the input.
        key: &'static str,
        /// The folder.
        folder: PathBuf,
    },
    /// `--overwrite` would move what the run learns from.
    #[error("`--overwrite` would move {} aside, and `{key}` lies in it: {}", folder.display(), input.display())]
    OutputHoldsInput {
        /// The key of the input.
        key: &'static str,
        /// The output folder.
        folder: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// A run with the same settings, data and base was done before.
    #[error(
        "this run was done before: {run} ({started_at}; {came_to}) in {folder}, with the same settings, data and base"
    )]
    Repeat {
        /// The earlier run's id.
        run: String,
        /// When.
        started_at: String,
        /// Its cost and result.
        came_to: String,
        /// Where.
        folder: String,
    },
    /// A file of saved state does not hold what it should.
    #[error("saved state: {0}")]
    State(String),
    /// What was saved does not give the logits that training ended with.
    #[error("{}: reopened, it gives other logits (largest difference {difference:e})", path.display())]
    SavedDiffers {
        /// The file.
        path: PathBuf,
        /// max |a − b|.
        difference: f32,
    },
    /// A cap of the budget is about to be crossed.
    #[error("the run would cross `budget.{key}` = {cap}: {spent} so far")]
    BudgetReached {
        /// The cap's key.
        key: &'static str,
        /// The cap.
        cap: String,
        /// Spent.
        spent: String,
        /// The run's folder.
        run: PathBuf,
    },
}

fn processes(count: usize) -> &'static str {
    if count == 1 { "process" } else { "processes" }
}

fn are(count: usize) -> String {
    if count == 1 { "is 1".into() } else { format!("are {count}") }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Finished(_) | Self::Interrupted(_) => Kind::Busy,
            Self::NoRun(_)
            | Self::Taken { .. }
            | Self::ConfigChanged { .. }
            | Self::OtherProcesses { .. }
            | Self::OutputIsInput { .. }
            | Self::OutputHoldsInput { .. }
            | Self::Kernel(_) => Kind::Usage,
            Self::DataChanged(_) => Kind::Data,
            Self::NoCheckpoints(_) | Self::BaseChanged(_) | Self::State(_) => Kind::Model,
            Self::NotOnGpu(_) => Kind::Device,
            Self::Loss(_)
            | Self::Gradient(_)
            | Self::EvalLoss { .. }
            | Self::Weights { .. }
            | Self::Logits
            | Self::Diverged { .. } => Kind::Diverged,
            Self::SavedDiffers { .. } | Self::BudgetReached { .. } | Self::Repeat { .. } => Kind::Resource,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Finished(run) => format!(
                "`--overwrite` moves it aside; to go on with it, raise `max_steps` or `num_epochs` and run `fttrain resume {}`",
                run.display()
            ),
            Self::Interrupted(run) => {
                format!("go on with `fttrain resume {}`, or move it aside with `--overwrite`", run.display())
            }
            Self::NoCheckpoints(run) => format!(
                "put {} back; or go on from the result in another `output_dir` (`lora_model_dir`, of full fine-tuning \
                 `base_model`), or begin again with `--overwrite`",
                run.join("checkpoints").display()
            ),
            Self::NoRun(_) => "give a run id (`fttrain runs` lists them) or a run's folder".into(),
            Self::Taken { run, by, .. } => {
                format!("`fttrain runs show {run}` says what is known of it; for the other name `{by}`")
            }
            Self::ConfigChanged { key, .. } => {
                format!("leave `{key}` as it was, or start a new run in another `output_dir`")
            }
            Self::OtherProcesses { then: 1, .. } => "start one process: more would take other steps".into(),
            Self::OtherProcesses { then, .. } => {
                format!("start {then} (`mpirun -np {then}`): another number would take other steps")
            }
            Self::DataChanged(_) => "put the data back, or accept it with `--accept-data-change`".into(),
            Self::BaseChanged(_) => "put the base back, or accept it with `--accept-base-change`".into(),
            Self::NotOnGpu(_) => "use `device = \"cpu\"` or \"auto\"".into(),
            Self::Kernel(_) => "unset it: the best path of this CPU is chosen on its own".into(),
            Self::EvalLoss { step: 0, .. } => {
                "nothing is trained yet: the base model, or a held-out row, is at fault".into()
            }
            Self::OutputIsInput { .. } | Self::OutputHoldsInput { .. } => {
                "give the run a folder of its own".into()
            }
            Self::Repeat { .. } => "use its result, or allow it with `budget.repeats = \"warn\"`".into(),
            Self::Logits => "lower `learning_rate`, or lengthen the warm-up".into(),
            Self::Diverged { last, .. } | Self::EvalLoss { last, .. } | Self::Weights { last, .. } => {
                match last {
                    Some(last) => format!(
                        "lower `learning_rate`, lengthen the warm-up, or look at these samples; the last checkpoint is {}",
                        last.display()
                    ),
                    None => "lower `learning_rate`, lengthen the warm-up, or look at these samples".into(),
                }
            }
            Self::BudgetReached { run, .. } => {
                format!(
                    "what was done is committed; raise the cap and run `fttrain resume {}`",
                    run.display()
                )
            }
            Self::SavedDiffers { .. } => "the disk may be failing: resume from the last checkpoint".into(),
            Self::Loss(_) | Self::Gradient(_) | Self::State(_) => return None,
        })
    }
}
