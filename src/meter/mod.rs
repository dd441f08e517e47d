//! Measures a run while it goes: clock, CPU time, memory, disk, energy and accelerators by phase, on a thread of its own
//! that the training thread never waits for. What could not be measured is `None`, never 0.

pub mod cgroup;
pub mod command;
pub mod energy;
pub mod fake;
pub mod gpu;
mod latest;
pub mod machine;
mod nvml;
pub mod phase;
pub mod probe;
pub mod process;
mod procfs;
pub mod rapl;
pub mod record;
pub mod sampler;
mod samples;
pub mod tag;
pub mod tree;

pub use gpu::DeviceTotal;
pub use phase::Phase;
pub use probe::{Closing, Probe, Reading};
pub use process::ProcessProbe;
pub use record::{Measured, PhaseTotal};
pub use sampler::{Meter, Watch};
pub use samples::Sample;
pub use tree::TreeProbe;
