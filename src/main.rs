//! `fttrain`: parse, call, and end with the exit code that says what happened.

#![forbid(unsafe_code)]

use fttrain_kernels::sys::memory::{self, Allocator};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    memory::keep_pages();
    fttrain::cli::main(std::env::args_os())
}
