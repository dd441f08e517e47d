//! The hot path: each op is a pair, forward and backward side by side in one file, on candle tensors whose rows are
//! the tokens of a batch end to end. candle's own autograd is the reference in the tests, never the engine.
//!
//! A backward adds gradients of parameters to [`Grads`] and returns, or adds to, the gradient of its input: what is
//! frozen gets none.

pub mod attention;
pub mod device;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod gate;
pub mod gpu;
pub mod grads;
pub mod head;
pub mod host;
pub mod linear;
pub mod matmul;
pub mod matrix;
pub mod narrow;
pub mod norm;
pub mod optimizer;
pub mod profile;
pub mod pull;
pub mod residual;
pub mod rope;

pub use grads::{Grads, ParamId, Weight};
pub use matrix::{Matrix, Operand};
