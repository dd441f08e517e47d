//! What the estimate refuses: prices that are not there, runs that do not fit, budgets that would break.

use crate::config::MOST_USD_PER_HOUR;
use crate::error::{Fault, Kind};
use crate::units::{Bytes, group_thousands};

/// A refusal of the estimate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The price table has no such row.
    #[error("`cost.machine`: the price table has no row `{name}`")]
    UnknownMachine {
        /// As written.
        name: String,
        /// Rows with the most similar keys.
        nearest: Vec<String>,
    },
    /// An accelerator's name alone is not a price: providers differ by a factor of five.
    #[error("`cost.machine`: `{name}` is an accelerator; its price depends on the provider")]
    BareAccelerator {
        /// As written.
        name: String,
        /// Its rows, each with the price.
        rows: Vec<String>,
    },
    /// A row that does not say what it rents out.
    #[error("`{name}` has a price, but neither its cores nor its memory are known")]
    UnknownHost {
        /// The row.
        name: String,
    },
    /// A price that cannot be one.
    #[error("`{key}` must be from 0 to {}, got {value:?}", group_thousands(MOST_USD_PER_HOUR.into()))]
    BadPrice {
        /// Config key or table column.
        key: String,
        /// As found.
        value: f64,
    },
    /// The row has no spot price.
    #[error("`cost.spot`: `{name}` has no spot price in the table")]
    NoSpot {
        /// The row.
        name: String,
    },
    /// The grid table has no such region.
    #[error("`cost.region`: the grid table has no region `{name}`")]
    UnknownRegion {
        /// As written.
        name: String,
        /// Names most like it.
        nearest: Vec<String>,
    },
    /// A line of a table that cannot be read.
    #[error("{table}:{line}: {fact}")]
    Table {
        /// Which table.
        table: &'static str,
        /// Line in the file, from 1.
        line: usize,
        /// What is wrong.
        fact: String,
    },
    /// The predicted peak exceeds the memory there is.
    #[error("{what} needs {} of memory ({needed} bytes), {} are available ({available} bytes, {limit})", Bytes(*.needed), Bytes(*.available))]
    DoesNotFit {
        /// `this run` or the full micro-batch.
        what: String,
        /// Predicted peak, bytes.
        needed: u64,
        /// What the process may use, bytes.
        available: u64,
        /// Which limit that is.
        limit: String,
        /// Settings that fit, nearest first.
        levers: Vec<String>,
    },
    /// Even the low end of the interval is over a cap.
    #[error("the estimate is over `budget.{key}`: at least {low}, the cap is {cap}")]
    OverBudget {
        /// The cap's key.
        key: &'static str,
        /// Low end of the interval.
        low: String,
        /// The cap.
        cap: String,
        /// Settings that keep it, nearest first; empty where none was found.
        levers: Vec<String>,
    },
    /// The checkpoints will not fit on the disk.
    #[error("the run writes up to {} ({needed} bytes), the disk of {folder} has {} free ({free} bytes)", Bytes(*.needed), Bytes(*.free))]
    Disk {
        /// Output folder.
        folder: String,
        /// Predicted bytes on disk.
        needed: u64,
        /// Free bytes.
        free: u64,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownMachine { .. }
            | Self::BareAccelerator { .. }
            | Self::UnknownHost { .. }
            | Self::BadPrice { .. }
            | Self::NoSpot { .. }
            | Self::UnknownRegion { .. }
            | Self::Table { .. } => Kind::Usage,
            Self::DoesNotFit { .. } | Self::OverBudget { .. } | Self::Disk { .. } => Kind::Resource,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownMachine { nearest, .. } => {
                format!("the nearest are {}; or set `usd_per_hour`", quoted(nearest))
            }
            Self::BareAccelerator { rows, .. } => {
                format!("choose one of its rows:\n    {}", rows.join("\n    "))
            }
            Self::UnknownHost { .. } => "choose a row whose instance names its vCPUs and memory".into(),
            Self::BadPrice { .. } => "a price is USD per hour, such as 1.5".into(),
            Self::NoSpot { .. } => "`fttrain prices --spot` lists the rows that have one".into(),
            Self::UnknownRegion { nearest, .. } => {
                format!("the nearest are {}; or set `grid_g_per_kwh`", quoted(nearest))
            }
            Self::Table { .. } => "its columns are those of the shipped table".into(),
            Self::DoesNotFit { levers, .. } if levers.is_empty() => {
                "no batch or length makes it fit: a smaller base model, or `--qlora`, is needed".into()
            }
            Self::DoesNotFit { levers, .. } => format!("what fits: {}", levers.join("; ")),
            Self::OverBudget { key, levers, .. } if !levers.is_empty() => {
                format!("what keeps it: {}; or raise `budget.{key}`", levers.join("; "))
            }
            Self::OverBudget { key: "max_memory_gib", .. } => {
                "raise `budget.max_memory_gib`, or take a smaller base model or `--qlora`: no batch or length keeps it"
                    .into()
            }
            Self::OverBudget { key, .. } => {
                format!("raise `budget.{key}`, or lower `max_steps` or `num_epochs`")
            }
            Self::Disk { .. } => {
                "free some space, lower `save_total_limit`, or choose another `output_dir`".into()
            }
        })
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}
