//! `fttrain` fine-tunes small causal language models and tells the truth about what that costs.
//!
//! ```text
//! config -> arch -> data -> estimate -> model -> train -> report
//!                                        meter ┘ └ ledger
//! ```
//!
//! Rooms stand below in the order in which they may import: a room knows only those above it
//! (`tests/layers.rs` reads the `use crate::` lines and fails otherwise).

#![forbid(unsafe_code)]

pub mod error;
pub mod units;

pub mod fs;

pub mod ranks;

pub mod config;

pub mod arch;

pub mod data;

pub mod estimate;

pub mod ops;

pub mod model;

pub mod meter;

pub mod ledger;

pub mod calibrate;

pub mod train;

pub mod report;

pub mod study;

pub mod cli;
