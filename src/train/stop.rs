//! Signals that end a run in order: the first one asks, the loop finishes its step and commits; the second one ends
//! the process on the spot.

use crate::error::{Fault, Kind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A signal that asks for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: a scheduler or `kill`.
    Terminate,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Interrupt, Self::Terminate];

    /// What the process ends with: 128 + the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }

    fn number(self) -> i32 {
        match self {
            Self::Interrupt => SIGINT,
            Self::Terminate => SIGTERM,
        }
    }
}

/// Signals cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch for signals: {0}")]
pub struct Error(std::io::Error);

impl Fault for Error {
    fn kind(&self) -> Kind {
        Kind::Resource
    }
}

/// Whether the run was asked to end. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// The exit code of the signal that came; 0 = none.
    code: Arc<AtomicUsize>,
}

impl Stop {
    /// Watches SIGINT and SIGTERM for the rest of the process: the first of either is noted, the second ends the
    /// process at once with its code. SIGHUP and SIGPIPE no longer end it: a closed terminal or a `| head` must not
    /// stop a training run.
    pub fn install() -> Result<Self> {
        let stop = Self::default();
        stop.register().map_err(Error)?;
        Ok(stop)
    }

    /// Never asked by a signal; for tests and for calls from other programs.
    pub fn never() -> Self {
        Self::default()
    }

    /// Asks as the signal would.
    pub fn request(&self, signal: Signal) {
        self.code.store(usize::from(signal.exit_code()), Ordering::SeqCst);
    }

    /// The signal that came, if one did.
    pub fn requested(&self) -> Option<Signal> {
        let code = self.code.load(Ordering::SeqCst);
        Signal::ALL.into_iter().find(|signal| usize::from(signal.exit_code()) == code)
    }

    fn register(&self) -> std::io::Result<()> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in Signal::ALL {
            let code = signal.exit_code();
            // Actions run in this order: the first signal passes the first line, the second does not.
            flag::register_conditional_shutdown(signal.number(), code.into(), Arc::clone(&asked))?;
            flag::register(signal.number(), Arc::clone(&asked))?;
            flag::register_usize(signal.number(), Arc::clone(&self.code), code.into())?;
        }
        for ignored in [SIGHUP, SIGPIPE] {
            flag::register(ignored, Arc::new(AtomicBool::new(false)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{self, raise};
    use std::process::Command;

    /// Handlers are the whole process's: each case runs in a copy of the test program of its own.
    fn ends_with(case: &str) -> (Option<i32>, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::stop::tests::case_in_a_process_of_its_own", "--nocapture"])
            .env("FTTRAIN_STOP_CASE", case)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn case_in_a_process_of_its_own() {
        let Ok(case) = std::env::var("FTTRAIN_STOP_CASE") else {
            return;
        };
        let stop = Stop::install().unwrap();
        assert_eq!(stop.requested(), None);
        for name in case.split(' ') {
            raise(name.parse::<signal::Signal>().unwrap()).unwrap();
            println!("after {name}: {:?}", stop.requested());
        }
        std::process::exit(stop.requested().map_or(0, |s| s.exit_code().into()));
    }

    #[test]
    fn the_first_signal_asks_and_the_run_ends_itself() {
        let (code, out) = ends_with("SIGINT");
        assert_eq!(code, Some(130));
        assert!(out.contains("after SIGINT: Some(Interrupt)"), "{out}");
        let (code, out) = ends_with("SIGTERM");
        assert_eq!(code, Some(143));
        assert!(out.contains("after SIGTERM: Some(Terminate)"), "{out}");
    }

    #[test]
    fn the_second_signal_ends_the_process_at_once() {
        let (code, out) = ends_with("SIGINT SIGINT SIGINT");
        assert_eq!(code, Some(130));
        assert_eq!(out.matches("after SIGINT").count(), 1, "{out}");
        assert_eq!(ends_with("SIGINT SIGTERM").0, Some(143));
    }

    #[test]
    fn hang_up_and_broken_pipe_change_nothing() {
        let (code, out) = ends_with("SIGHUP SIGPIPE");
        assert_eq!(code, Some(0));
        assert!(out.contains("after SIGPIPE: None"), "{out}");
    }

    #[test]
    fn a_request_is_seen_by_every_clone() {
        let stop = Stop::never();
        let clone = stop.clone();
        assert_eq!(clone.requested(), None);
        stop.request(Signal::Terminate);
        assert_eq!(clone.requested(), Some(Signal::Terminate));
    }
}
