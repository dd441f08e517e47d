//! The hot loops of fttrain on plain slices. The only crate with `unsafe`: run-time dispatch to vector code, and
//! writes by several threads into disjoint parts of one buffer. It knows shapes and numbers, not models.

// A kernel's body must take on the instruction set of the function that it is compiled into.
#![allow(clippy::inline_always)]

pub mod cpu;
pub mod cuda;
pub mod sys;
