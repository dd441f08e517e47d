//! Measures this machine's CPU or a GPU of it: rates of the engine's own ops by shape, memory, disk, power, and what the
//! program itself takes. No speed stands in the source; after a change of kernels a calibration is all it takes.

pub mod bulk;
pub mod computer;
pub mod known;
pub mod probe;
pub mod profile;
pub mod program;
pub mod rig;
pub mod shapes;
pub mod stopwatch;
pub mod whole;

pub use computer::Computer;
pub use known::{calibrate, machine};
pub use profile::{Profiles, Provenance};
pub use shapes::Ask;
