//! `fttrain`: parse, call, and end with the exit code that says what happened.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fttrain_kernels::sys::keep_pages();
    fttrain::cli::main(std::env::args_os())
}
