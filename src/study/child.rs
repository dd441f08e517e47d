//! The program, started again: its own memory, its own clock, a home of its own.

use super::Error;
use crate::error::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program with a home folder.
#[derive(Debug, Clone)]
pub struct Child {
    program: PathBuf,
    home: PathBuf,
}

/// Bytes of what a failed run said that an error repeats.
const SAID: usize = 600;

impl Child {
    /// The running program, with its ledger and profile under `home`.
    ///
    /// # Errors
    /// The system does not say where the program is.
    pub fn new(home: &Path) -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::Start)?;
        Ok(Self { program, home: home.to_owned() })
    }

    /// Where its ledger and profile lie.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Runs it with `arguments` and reads the JSON that it prints.
    ///
    /// # Errors
    /// It cannot be started, fails, or prints something else.
    pub fn json(&self, arguments: &[String]) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("FTTRAIN_HOME", &self.home).stdin(std::process::Stdio::null());
        let output = command.output().map_err(Error::Start)?;
        let arguments = arguments.join(" ");
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: String = said.trim().chars().rev().take(SAID).collect();
            let said = said.chars().rev().collect();
            return Err(Error::Run { arguments, code: output.status.code().unwrap_or(-1), said }.into());
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|e| Error::Output { arguments, fact: e.to_string() }.into())
    }
}
