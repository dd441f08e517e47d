//! Each op pair against two references in f64: candle's plain ops with candle's own autograd, and plain loops with
//! central differences; on shapes that no tile divides.

#![allow(clippy::cast_possible_truncation)] // Ours is f32, the references are f64.

mod attention;
mod dora;
mod dropout;
mod embedding;
mod gate;
mod head;
mod linear;
mod norm;
mod on_a_gpu;
mod optimizer;
mod references;
mod rope;
