//! From a checked config to a trained adapter: what can be refused is refused in [`plan`], then the loop in
//! [`run()`] takes one optimizer step after the other and commits what it has.

pub mod anchor;
pub mod artifacts;
mod beside;
pub mod budget;
pub mod checkpoint;
mod crew;
pub mod entered;
mod error;
pub mod evaluate;
pub mod examine;
mod exchange;
pub mod folder;
pub mod ground;
pub mod history;
pub mod learner;
pub mod material;
pub mod metrics;
pub mod optimizer;
pub mod plan;
pub mod progress;
pub mod run;
pub mod samples;
pub mod schedule;
pub mod screen;
pub mod session;
pub mod step;
pub mod stop;
pub mod subject;

pub use crew::{Crew, Taken, follow};
pub use entered::Entered;
pub use error::Error;
pub use plan::{Draft, Options, Plan};
pub use run::{Outcome, run};
pub use session::Session;
