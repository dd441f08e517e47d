//! One decoder for all families, built from `arch` and `ops`: weights in, adapters in and out, text generated,
//! adapter and base written as one model.
//!
//! Shapes: B rows of a micro-batch, N tokens of all its rows end to end, C counted tokens, D hidden size, F width of
//! the MLP, H query heads, K key/value heads, d size of a head, V vocabulary, R rank.

pub mod adapter;
pub mod block;
pub mod build;
pub mod cache;
pub mod decoder;
pub mod frozen;
pub mod generate;
pub mod likeness;
pub mod merge;
pub mod params;
pub mod tensors;
pub mod weights;
pub mod write;

pub use decoder::Decoder;
pub use frozen::Frozen;
pub use params::{Param, Params};
