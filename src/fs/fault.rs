//! The place where tests let the disk fail: every durable operation passes through [`point`] or [`allowed`].
//! With the feature `faults`, `FTTRAIN_FAULT=<n>:<mode>` hits the n-th operation of the process; without it (and
//! outside unit tests) both compile to nothing.

use std::io;

/// The durable operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Make a folder.
    Mkdir,
    /// Make a file.
    Create,
    /// Write bytes.
    Write,
    /// Cut a file's tail.
    Truncate,
    /// Flush a file or a folder to the disk.
    Fsync,
    /// Give the final name.
    Rename,
    /// Delete.
    Remove,
    /// Commit a transaction of the ledger.
    Ledger,
}

/// Passes, or fails as the plan says. Stands in front of the operation itself.
pub fn point(op: Op) -> io::Result<()> {
    plan::hit(op).map(|_| ())
}

/// How many of `len` bytes the next write may take; fails as the plan says.
pub fn allowed(len: usize) -> io::Result<usize> {
    plan::hit(Op::Write).map(|reach| match reach {
        plan::Reach::Whole => len,
        // Never 0: that would mean "the end" and not "go on".
        plan::Reach::Half => len.div_ceil(2),
    })
}

#[cfg(test)]
pub(crate) use plan::{Mode, Plan, rehearse};

#[cfg(not(any(test, feature = "faults")))]
mod plan {
    use super::{Op, io};

    pub(super) enum Reach {
        Whole,
        #[allow(dead_code, reason = "only a fault makes a write short")]
        Half,
    }

    #[inline]
    #[allow(clippy::unnecessary_wraps, reason = "the armed twin fails")]
    pub(super) fn hit(_: Op) -> io::Result<Reach> {
        Ok(Reach::Whole)
    }
}

#[cfg(any(test, feature = "faults"))]
mod plan {
    use super::{Op, io};
    use nix::sys::signal::{Signal, raise};
    use std::str::FromStr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    pub(super) enum Reach {
        Whole,
        Half,
    }

    /// What happens at the n-th operation.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Mode {
        /// SIGKILL to this process.
        Kill,
        /// One EIO; everything after it works.
        Once,
        /// This error, from here on.
        Lasting(i32),
        /// Three interrupted calls; for ever would be a machine that does not exist.
        Interrupted,
        /// From here on every write takes half of what it is given.
        Short,
    }

    /// A fault that waits for its operation.
    #[derive(Debug)]
    pub(crate) struct Plan {
        at: u64,
        mode: Mode,
        seen: AtomicU64,
        fired: AtomicBool,
    }

    impl Plan {
        /// Fires at operation `at`, counted from 1.
        pub(crate) fn new(at: u64, mode: Mode) -> Self {
            Self { at, mode, seen: AtomicU64::new(0), fired: AtomicBool::new(false) }
        }

        fn hit(&self, op: Op) -> io::Result<Reach> {
            let n = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
            let due = match self.mode {
                Mode::Kill | Mode::Once => n == self.at,
                Mode::Interrupted => (self.at..self.at + 3).contains(&n),
                Mode::Lasting(_) => n >= self.at,
                Mode::Short => n >= self.at && op == Op::Write,
            };
            if !due {
                return Ok(Reach::Whole);
            }
            if !self.fired.swap(true, Ordering::SeqCst) {
                eprintln!("fault: {:?} at operation {n} ({op:?})", self.mode);
            }
            let errno = match self.mode {
                Mode::Kill => {
                    raise(Signal::SIGKILL)?;
                    nix::libc::EIO
                }
                Mode::Once => nix::libc::EIO,
                Mode::Lasting(errno) => errno,
                Mode::Interrupted => nix::libc::EINTR,
                Mode::Short => return Ok(Reach::Half),
            };
            Err(io::Error::from_raw_os_error(errno))
        }
    }

    impl FromStr for Plan {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let wrong = || {
                format!(
                    "FTTRAIN_FAULT must be <n>:<mode> with mode kill, once, eio, enospc, edquot, eintr \
                     or short, got `{text}`"
                )
            };
            let (at, mode) = text.split_once(':').ok_or_else(wrong)?;
            let mode = match mode {
                "kill" => Mode::Kill,
                "once" => Mode::Once,
                "eio" => Mode::Lasting(nix::libc::EIO),
                "enospc" => Mode::Lasting(nix::libc::ENOSPC),
                "edquot" => Mode::Lasting(nix::libc::EDQUOT),
                "eintr" => Mode::Interrupted,
                "short" => Mode::Short,
                _ => return Err(wrong()),
            };
            match at.parse() {
                Ok(at) if at > 0 => Ok(Self::new(at, mode)),
                _ => Err(wrong()),
            }
        }
    }

    static FROM_ENVIRONMENT: OnceLock<Option<Result<Plan, String>>> = OnceLock::new();

    pub(super) fn hit(op: Op) -> io::Result<Reach> {
        #[cfg(test)]
        if let Some(reach) = REHEARSED.with_borrow(|plan| plan.as_ref().map(|p| p.hit(op))) {
            return reach;
        }
        let plan =
            FROM_ENVIRONMENT.get_or_init(|| std::env::var("FTTRAIN_FAULT").ok().map(|text| text.parse()));
        match plan {
            None => Ok(Reach::Whole),
            Some(Ok(plan)) => plan.hit(op),
            Some(Err(why)) => Err(io::Error::new(io::ErrorKind::InvalidInput, why.clone())),
        }
    }

    #[cfg(test)]
    thread_local! {
        static REHEARSED: std::cell::RefCell<Option<Plan>> = const { std::cell::RefCell::new(None) };
    }

    /// Runs `act` with the plan armed on this thread alone; says whether it fired.
    #[cfg(test)]
    pub(crate) fn rehearse<T>(plan: Plan, act: impl FnOnce() -> T) -> (T, bool) {
        REHEARSED.set(Some(plan));
        let outcome = act();
        let fired = REHEARSED.take().is_some_and(|p| p.fired.into_inner());
        (outcome, fired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_hits_the_operation_it_names_and_says_so() {
        let ((), fired) = rehearse(Plan::new(2, Mode::Once), || {
            assert!(point(Op::Mkdir).is_ok());
            assert_eq!(point(Op::Fsync).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
            assert!(point(Op::Fsync).is_ok());
        });
        assert!(fired);
        let ((), fired) = rehearse(Plan::new(9, Mode::Once), || point(Op::Mkdir).unwrap());
        assert!(!fired);
    }

    #[test]
    fn a_full_disk_stays_full_and_a_short_write_takes_half() {
        rehearse("1:enospc".parse().unwrap(), || {
            for _ in 0..3 {
                assert_eq!(allowed(8).unwrap_err().kind(), io::ErrorKind::StorageFull);
            }
        });
        rehearse("1:short".parse().unwrap(), || {
            assert!(point(Op::Rename).is_ok());
            assert_eq!(allowed(8).unwrap(), 4);
            assert_eq!(allowed(1).unwrap(), 1);
        });
    }

    #[test]
    fn a_plan_that_cannot_be_read_is_refused() {
        for text in ["", "3", "0:kill", "x:kill", "3:explode"] {
            assert!(text.parse::<Plan>().is_err(), "{text}");
        }
    }
}
