//! Measures a run while it goes: clock, CPU time, memory, disk, energy and accelerators by phase, on a thread of its own
//! that the training thread never waits for. What could not be measured is `None`, never 0.

pub mod cgroup;
pub mod command;
pub mod device;
pub mod energy;
pub mod fake;
pub mod gpu;
mod latest;
pub mod machine;
pub mod measured;
mod nvml;
pub mod phase;
pub mod probe;
pub mod process;
mod procfs;
pub mod rapl;
mod record;
pub mod sampler;
mod samples;
pub mod tag;
pub mod tree;

pub use device::DeviceTotal;
pub use measured::{Measured, PhaseTotal};
pub use phase::Phase;
pub use probe::{Closing, Probe, Reading};
pub use process::ProcessProbe;
pub use sampler::{Meter, Watch};
pub use samples::Sample;
pub use tree::TreeProbe;
