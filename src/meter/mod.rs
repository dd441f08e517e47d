//! Measures a run while it goes: clock, CPU time, memory, energy by phase, on a thread of its own that the training
//! thread never waits for. What could not be measured is `None`, never 0.

pub mod fake;
pub mod machine;
pub mod phase;
pub mod probe;
pub mod process;
pub mod rapl;
pub mod sampler;
pub mod tag;

pub use phase::Phase;
pub use probe::{Probe, Reading};
pub use process::ProcessProbe;
pub use sampler::{Measured, Meter, PhaseTotal, Sample};
