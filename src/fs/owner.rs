//! Who holds a run: a process, told apart from a later one with the same number.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A process, as lock files and the ledger record it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process number.
    pub pid: u32,
    /// Host name; in a container, the container's.
    pub host: String,
    /// When the record was made, RFC 3339 UTC.
    pub started_at: String,
    /// The kernel's id of this boot, where it tells one.
    pub boot_id: Option<String>,
    /// When the process began, in clock ticks since the boot: numbers are used again, pairs are not.
    pub process_ticks: Option<u64>,
}

impl Owner {
    /// This process, now.
    pub fn here() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            host: nix::unistd::gethostname()
                .map_or_else(|_| "unknown".to_owned(), |h| h.to_string_lossy().into_owned()),
            started_at: format!("{:.3}", jiff::Timestamp::now()),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()
                .map(|id| id.trim().to_owned()),
            process_ticks: ticks_of(pid),
        }
    }

    /// Whether two records are of one process.
    pub fn is_same_process(&self, other: &Self) -> bool {
        self.pid == other.pid
            && self.host == other.host
            && self.boot_id == other.boot_id
            && self.process_ticks == other.process_ticks
    }

    /// Whether the process still runs; `None` where that cannot be told from here (another host).
    pub fn is_alive(&self) -> Option<bool> {
        let here = Self::here();
        if self.host != here.host {
            return None;
        }
        if let (Some(then), Some(now)) = (&self.boot_id, &here.boot_id)
            && then != now
        {
            return Some(false);
        }
        if self.process_ticks.is_some() {
            return Some(ticks_of(self.pid) == self.process_ticks);
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid).ok()?);
        Some(!matches!(nix::sys::signal::kill(pid, None), Err(nix::errno::Errno::ESRCH)))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}, since {}", self.pid, self.host, self.started_at)
    }
}

/// Field 22 of `/proc/<pid>/stat`; `None` where there is no such process or no such file. A zombie has ended.
fn ticks_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold both blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state was field 3.
    fields.nth(22 - 4)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_its_double_of_another_time_does_not() {
        let here = Owner::here();
        assert_eq!(here.is_alive(), Some(true));
        let mut earlier = here.clone();
        earlier.process_ticks = here.process_ticks.map(|t| t + 1);
        assert_eq!(earlier.is_alive(), Some(false));
        let mut before_the_boot = here.clone();
        before_the_boot.boot_id = Some("another".into());
        assert_eq!(before_the_boot.is_alive(), Some(false));
        let mut elsewhere = here;
        elsewhere.host = "elsewhere".into();
        assert_eq!(elsewhere.is_alive(), None);
    }

    #[test]
    fn a_process_that_ended_is_dead_before_and_after_it_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner { pid: child.id(), process_ticks: ticks_of(child.id()), ..Owner::here() };
        assert_eq!(owner.is_alive(), Some(true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(owner.is_alive(), Some(false));
    }
}
