//! Runs another program: its terminal is ours, signals that we get go to it, and its end is ours. What is written down
//! of its command line holds no secret.

use crate::error::{Fault, Kind};
use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Why a command was not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program, or it cannot be started.
    #[error("`{program}` cannot be started: {source}")]
    Start {
        /// As written.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Signals cannot be watched.
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    /// The system lost track of it.
    #[error("the command cannot be waited for: {0}")]
    Wait(Errno),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Start { .. } => Kind::Usage,
            Self::Signals(_) | Self::Wait(_) => Kind::Resource,
        }
    }

    fn hint(&self) -> Option<String> {
        let is_start = matches!(self, Self::Start { .. });
        is_start.then(|| "check its name and PATH; a pipeline needs a shell: sh -c '…'".into())
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl End {
    /// What the shell would say: 128 + the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => number.saturating_add(128),
        }
    }
}

/// Signals that are passed on; a terminal sends the first two to the command by itself.
const FROM_TERMINALS: [i32; 2] = [SIGINT, SIGQUIT];
const PASSED_ON: [i32; 5] = [SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCONT];
/// A closed terminal must not end the meter before its report is written.
const IGNORED: [i32; 2] = [SIGPIPE, SIGWINCH];

/// Runs a command to its end; `started` is called when it runs, `tick` about every `interval` from then. With `quiet_stdout` its output goes to stderr.
///
/// # Errors
/// The command cannot be started (2), or the system fails (5).
pub fn run(
    command: &[OsString],
    quiet_stdout: bool,
    interval: Duration,
    started: &dyn Fn(),
    tick: &mut dyn FnMut(),
) -> Result<End, Error> {
    adopt_orphans();
    let watched = [SIGCHLD].into_iter().chain(FROM_TERMINALS).chain(PASSED_ON).chain(IGNORED);
    let mut signals = Signals::new(watched).map_err(Error::Signals)?;
    let handle = signals.handle();
    let (heard, hear) = mpsc::channel();
    let listener = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if heard.send(signal).is_err() {
                break;
            }
        }
    });
    let child = listener.map_err(Error::Signals).and_then(|_| start(command, quiet_stdout));
    let end = child.and_then(|child| {
        started();
        follow(&child, &hear, interval, tick)
    });
    handle.close();
    end
}

fn start(command: &[OsString], quiet_stdout: bool) -> Result<Child, Error> {
    let program = command.first().cloned().unwrap_or_default();
    let mut started = Command::new(&program);
    started.args(command.iter().skip(1));
    if quiet_stdout {
        started.stdout(Stdio::from(io::stderr()));
    }
    let named = program.to_string_lossy().into_owned();
    started.spawn().map_err(|source| Error::Start { program: named, source })
}

fn follow(
    child: &Child,
    hear: &mpsc::Receiver<i32>,
    interval: Duration,
    tick: &mut dyn FnMut(),
) -> Result<End, Error> {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let from_terminal = is_in_foreground();
    loop {
        match hear.recv_timeout(interval) {
            Ok(number) => {
                let is_doubled = from_terminal && FROM_TERMINALS.contains(&number);
                let is_passed = PASSED_ON.contains(&number) || FROM_TERMINALS.contains(&number);
                if is_passed
                    && !is_doubled
                    && let Ok(signal) = Signal::try_from(number)
                {
                    // Waited for only below: the number is still the child's.
                    let _ = signal::kill(pid, signal);
                }
            }
            Err(RecvTimeoutError::Timeout) => tick(),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(interval),
        }
        if let Some(end) = reap(pid)? {
            return Ok(end);
        }
    }
}

/// Waits for whatever has ended: the command, or orphans that it left.
fn reap(pid: Pid) -> Result<Option<End>, Error> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(who, code)) if who == pid => {
                return Ok(Some(End::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX))));
            }
            Ok(WaitStatus::Signaled(who, signal, _)) if who == pid => {
                return Ok(Some(End::Signal(u8::try_from(signal as i32).unwrap_or(u8::MAX))));
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::Wait(errno)),
        }
    }
}

/// Whether a terminal sends its Ctrl-C to this process and, by itself, to the command.
fn is_in_foreground() -> bool {
    let group = nix::unistd::getpgrp();
    nix::unistd::tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == group)
        || nix::unistd::tcgetpgrp(io::stderr()).is_ok_and(|foreground| foreground == group)
}

/// Processes whose parent ended become ours, not init's: they stay in the tree that is metered.
#[cfg(target_os = "linux")]
fn adopt_orphans() {
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

#[cfg(not(target_os = "linux"))]
fn adopt_orphans() {}

/// Words in the name of an option, variable or header whose value is a secret.
const SECRET_WORDS: [&str; 10] = [
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "credentials",
    "apikey",
    "key",
    "authorization",
    "bearer",
];
/// Beginnings of well-known keys.
const SECRET_BEGINNINGS: [&str; 6] = ["hf_", "sk-", "ghp_", "github_pat_", "AKIA", "glpat-"];
const HIDDEN: &str = "…";
/// What may stand before a word inside another.
const OPENING: [char; 5] = ['"', '\'', '{', '(', '['];

/// The command line as it may be written down. A line for a shell has words of its own: where one of them is a secret, none
/// is shown, for only the shell knows where the secret ends.
pub fn shown(command: &[OsString]) -> Vec<String> {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let mut all = without_secrets(words.iter().map(AsRef::as_ref));
    for (shown, word) in all.iter_mut().zip(&words) {
        let has_several = word.contains(char::is_whitespace);
        let bare = word.split_whitespace().map(|inner| inner.trim_matches(OPENING));
        if has_several && without_secrets(bare).iter().any(|inner| inner.contains(HIDDEN)) {
            HIDDEN.clone_into(shown);
        }
    }
    all
}

/// What tells a command line from others, whatever secrets they hold.
pub fn digest(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let inner = words.iter().flat_map(|word| word.split_whitespace());
    crate::fs::sha256_bytes(without_secrets(inner).join("\0").as_bytes())
}

fn without_secrets<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut hides_next = false;
    let one = |word: &'a str| {
        let hides = std::mem::replace(&mut hides_next, names_the_next(word));
        if hides { HIDDEN.into() } else { without_secret(word) }
    };
    words.map(one).collect()
}

/// `--token`, and `"token":` inside a word.
fn names_the_next(word: &str) -> bool {
    let is_name = word.starts_with('-') || word.ends_with(':') || word.eq_ignore_ascii_case("bearer");
    is_name && !word.contains('=') && is_secret_name(word)
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase();
    name.split(|c: char| !c.is_alphanumeric()).any(|word| SECRET_WORDS.contains(&word))
}

fn without_secret(word: &str) -> String {
    let bare = word.trim_start_matches(OPENING);
    if SECRET_BEGINNINGS.iter().any(|beginning| bare.starts_with(beginning)) {
        return HIDDEN.into();
    }
    let word = without_password(word);
    // `name=value`, `name:value`, and so on in the value: `{"a":1,"key":"secret"}`.
    let Some(at) = word.find(['=', ':']) else { return word };
    let (name, value) = word.split_at(at + 1);
    let is_secret = is_secret_name(name) && !value.is_empty();
    format!("{name}{}", if is_secret { HIDDEN.to_owned() } else { without_secret(value) })
}

/// `https://user:password@host` without the part before the host.
fn without_password(word: &str) -> String {
    match word.split_once("://") {
        Some((scheme, rest)) => match rest.split('/').next().and_then(|host| host.rsplit_once('@')) {
            Some((before, _)) => {
                format!("{scheme}://{HIDDEN}{}", rest.get(before.len()..).unwrap_or_default())
            }
            None => word.to_owned(),
        },
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_as(words: &[&str]) -> String {
        shown(&words.iter().map(OsString::from).collect::<Vec<_>>()).join(" ")
    }

    #[test]
    fn no_secret_of_a_command_line_is_shown() {
        assert_eq!(shown_as(&["python", "train.py", "--lr", "2e-4"]), "python train.py --lr 2e-4");
        assert_eq!(shown_as(&["x", "--hub_token", "abc", "--lr", "1"]), "x --hub_token … --lr 1");
        assert_eq!(shown_as(&["env", "HF_TOKEN=abc", "x"]), "env HF_TOKEN=… x");
        assert_eq!(shown_as(&["x", "--wandb-api-key=abc"]), "x --wandb-api-key=…");
        assert_eq!(shown_as(&["x", "hf_abcdef", "\"hf_abcdef\""]), "x … …");
        assert_eq!(shown_as(&["x", "{\"a\":1,\"api_key\":\"b\"}"]), "x {\"a\":1,\"api_key\":…");
        assert_eq!(shown_as(&["x", "-H", "Authorization:Bearer abc"]), "x -H …");
        assert_eq!(
            shown_as(&["x", "--url=https://a/b?token=c", "a:b", "key:"]),
            "x --url=https://a/b?token=… a:b key:"
        );
        assert_eq!(shown_as(&["x", "--name=hf_abcdef"]), "x --name=…");
        assert_eq!(shown_as(&["x", "https://me:pw@host/a"]), "x https://…@host/a");
        for line in [
            "A_KEY='a b' x",
            "x --token abc",
            "x --password 'a b c' --lr 1",
            "x \"hf_y\" | tee z",
            "curl -H 'Authorization: Bearer abc' u",
            "x '{\"api_key\": \"abc\"}'",
            "x '{\"a\":1,\"api_key\":\"abc\"}'",
            "curl -H 'Authorization:Bearer abc' u",
            "curl -H 'X-Auth: Bearer abc' u",
            "curl -H X-Api-Key:abc u",
        ] {
            assert_eq!(shown_as(&["sh", "-c", line]), "sh -c …", "{line}");
        }
        assert_eq!(shown_as(&["sh", "-c", "x  --lr 'a b' | tee z"]), "sh -c x  --lr 'a b' | tee z");
        assert_eq!(shown_as(&["x", "--max_tokens=5", "--tokenizer", "t"]), "x --max_tokens=5 --tokenizer t");
    }

    #[test]
    fn lines_with_other_secrets_are_one_and_other_lines_are_not() {
        let of = |line: &str| digest(&["sh", "-c", line].map(OsString::from));
        assert_eq!(of("A_KEY=a train 1"), of("A_KEY=b train 1"));
        assert_ne!(of("A_KEY=a train 1"), of("A_KEY=a train 2"));
    }

    #[test]
    fn a_signal_is_the_shells_exit_code() {
        assert_eq!((End::Code(7).exit_code(), End::Signal(9).exit_code()), (7, 137));
    }
}
