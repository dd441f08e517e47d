//! Measures this machine into a profile that the estimate reads: products at the model's own shapes, memory, and
//! whatever op the caller brings along. A profile is kept and used again while machine, threads and build are the same.

mod known;
pub mod profile;
pub mod quick;
pub mod shapes;
pub mod stopwatch;

pub use known::machine;
pub use profile::Profiles;
pub use quick::{Case, Provenance, quick};
pub use shapes::{Shape, lacking, shapes};
