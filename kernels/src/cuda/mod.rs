//! The kernels of `cuda/*.cu`: here, what each launch looks like, its grid and its arguments in their order; behind the
//! feature `cuda`, the device that they run on. Launches are plain values, so that the tests run the same ones on an
//! emulated device.

pub mod adamw;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gate;
pub mod ggml;
pub mod head;
mod launch;
pub mod nf4;
pub mod norm;
mod product;
pub mod rope;
pub mod values;

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod sums;

#[cfg(feature = "cuda")]
pub use device::{address, give_back_memory, keep_memory, multiply, run, sum_in_f32, unwritten};
pub use launch::{Address, Argument, FILES, Launch};
pub use product::Product;
#[cfg(feature = "cuda")]
pub use sums::{Begun, Sums};
