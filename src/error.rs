//! The one error of the program: what went wrong, where, and the way out, with the exit code it ends in.
//! Rooms define their own enums, implement [`Fault`] for them, and `?` folds them in here.

use std::fmt;

/// The kind of a failure; its number is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The program is at fault.
    Bug = 1,
    /// Command line or config.
    Usage = 2,
    /// Training or evaluation data.
    Data = 3,
    /// Model, tokenizer, adapter or checkpoint file.
    Model = 4,
    /// Disk, memory or budget.
    Resource = 5,
    /// Accelerator missing, lost or too old.
    Device = 6,
    /// Loss or gradient stopped being finite.
    Diverged = 7,
    /// The output folder belongs to another run.
    Busy = 8,
}

/// What a room's error enum provides beside its message: the kind, and what to do about it.
pub trait Fault: std::error::Error {
    /// Decides the exit code.
    fn kind(&self) -> Kind;
    /// The action that helps, where one is known.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// One fact that is wrong, with its place inside the message and the action that helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The fact, with its place in front: `configs/lora.toml:14:17: …`.
    pub message: String,
    /// The action.
    pub hint: Option<String>,
}

/// One or more problems of one kind; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// All that was found, in the order of their places.
    pub problems: Vec<Problem>,
}

/// The program's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// One problem without a hint.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, problems: vec![Problem { message: message.into(), hint: None }] }
    }

    /// Adds the action that helps to the last problem.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(last) = self.problems.last_mut() {
            last.hint = Some(hint.into());
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "error: {}", problem.message)?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl<F: Fault> From<F> for Error {
    fn from(fault: F) -> Self {
        Self {
            kind: fault.kind(),
            problems: vec![Problem { message: fault.to_string(), hint: fault.hint() }],
        }
    }
}

/// A tensor operation that fails after all shapes were checked is a fault of the program, or of a GPU: its driver's and
/// cuBLAS's codes stand in the text.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        let (kind, hint) = if text.contains("CUDA_ERROR_OUT_OF_MEMORY") {
            (
                Kind::Resource,
                "lower `micro_batch_size` or `sequence_len`, or set `gradient_checkpointing = true`",
            )
        } else if text.contains("NCCL") {
            (Kind::Device, "see what NCCL says with NCCL_DEBUG=WARN, then resume the run")
        } else if ["CUDA_ERROR_", "CUBLAS_STATUS_"].iter().any(|code| text.contains(code)) {
            (Kind::Device, "look at the driver's log (`nvidia-smi`, `dmesg`), then resume the run")
        } else {
            (Kind::Bug, "please report this with the config that led to it")
        };
        Self::new(kind, format!("tensor operation failed: {text}")).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_fails_is_no_fault_of_the_program() {
        for (text, kind) in [
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", Kind::Resource),
            ("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, \"\")", Kind::Device),
            ("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)", Kind::Device),
            ("NCCL refuses ncclAllReduce: remote process exited", Kind::Device),
            ("shape mismatch in matmul", Kind::Bug),
        ] {
            assert_eq!(Error::from(candle_core::Error::Msg(text.into()).bt()).kind, kind, "{text}");
        }
    }

    #[test]
    fn all_problems_are_listed_with_their_hints() {
        let mut error = Error::new(Kind::Usage, "a.toml:1:1: first").hint("do this");
        error.problems.push(Problem { message: "a.toml:2:1: second".into(), hint: None });
        assert_eq!(error.to_string(), "error: a.toml:1:1: first\n  hint: do this\nerror: a.toml:2:1: second");
    }
}
