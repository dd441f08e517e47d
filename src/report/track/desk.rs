//! The thread that follows a run for its trackers.

use super::{Run, Tracker};
use crate::config::Output;
use crate::error::Result;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// From look to look.
const INTERVAL: Duration = Duration::from_secs(5);
/// A tracker that is down is asked again after this, then after twice as long, and so on.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Attempts at the end of a run.
const LAST_ATTEMPTS: u32 = 3;
/// How long the end of a run waits for them.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tracker that lacks something of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// Its name in `report_to`.
    pub tracker: &'static str,
    /// Why.
    pub cause: String,
}

/// Follows a run until it is closed.
#[derive(Debug)]
pub struct Desk {
    close: mpsc::Sender<()>,
    unsent: mpsc::Receiver<Vec<Unsent>>,
    names: Vec<&'static str>,
}

struct Place {
    tracker: Box<dyn Tracker>,
    wait: Duration,
    next: Instant,
    trouble: Option<String>,
}

impl Desk {
    /// Begins to follow the run in `folder` for the trackers that its config names; `None` where it names none.
    ///
    /// # Errors
    /// A tracker lacks something.
    pub fn open(output: &Output, folder: PathBuf, home: PathBuf) -> Result<Option<Self>> {
        let trackers = super::open(&output.report_to, output)?;
        if trackers.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self::follow(trackers, folder, home, INTERVAL)))
    }

    fn follow(trackers: Vec<Box<dyn Tracker>>, folder: PathBuf, home: PathBuf, interval: Duration) -> Self {
        let names = trackers.iter().map(|tracker| tracker.name()).collect();
        let (close, closed) = mpsc::channel::<()>();
        let (said, unsent) = mpsc::channel();
        let now = Instant::now();
        let place = |tracker| Place { tracker, wait: FIRST_WAIT, next: now, trouble: None };
        let mut places: Vec<Place> = trackers.into_iter().map(place).collect();
        let run = move || {
            let Ok(mut run) = Run::open(&folder, &home) else { return };
            while let Err(RecvTimeoutError::Timeout) = closed.recv_timeout(interval) {
                round(&mut places, &mut run, false);
            }
            for attempt in 1..=LAST_ATTEMPTS {
                round(&mut places, &mut run, true);
                if attempt == LAST_ATTEMPTS || places.iter().all(|place| place.trouble.is_none()) {
                    break;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            let unsent = |place: Place| Some(Unsent { tracker: place.tracker.name(), cause: place.trouble? });
            let troubles: Vec<Unsent> = places.into_iter().filter_map(unsent).collect();
            // Nobody waits any more: the process is about to end.
            let _ = said.send(troubles);
        };
        // Without a thread there is no answer, and that is said at the end.
        let _ = std::thread::Builder::new().name("trackers".into()).spawn(run);
        Self { close, unsent, names }
    }

    /// Ends it after a last look, and says what could not be sent.
    pub fn close(self) -> Vec<Unsent> {
        self.close_within(PATIENCE)
    }

    fn close_within(self, patience: Duration) -> Vec<Unsent> {
        // It may have ended by itself.
        let _ = self.close.send(());
        let late = |tracker| Unsent { tracker, cause: format!("{tracker}: no answer in time") };
        self.unsent.recv_timeout(patience).unwrap_or_else(|_| self.names.into_iter().map(late).collect())
    }
}

fn round(places: &mut [Place], run: &mut Run, is_over: bool) {
    let read = run.refresh();
    for place in places {
        let is_done = is_over && place.trouble.is_none() && place.wait.is_zero();
        if is_done || (!is_over && place.next > Instant::now()) {
            continue;
        }
        match read.clone().and_then(|()| place.tracker.take(run, is_over)) {
            Ok(()) => {
                // At the end it is not asked again.
                place.wait = if is_over { Duration::ZERO } else { FIRST_WAIT };
                place.trouble = None;
            }
            Err(error) => {
                place.next = Instant::now() + place.wait;
                place.wait = (place.wait * 2).min(LONGEST_WAIT);
                place.trouble = error.problems.into_iter().next().map(|problem| problem.message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Flaky {
        asked: Arc<AtomicU32>,
        fails: u32,
    }

    impl Tracker for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }
        fn take(&mut self, _: &mut Run, _: bool) -> Result<()> {
            let asked = self.asked.fetch_add(1, Ordering::SeqCst);
            if asked < self.fails { Err(Error::new(Kind::Resource, "flaky: down")) } else { Ok(()) }
        }
    }

    /// A server that takes the connection and never answers.
    struct Silent(mpsc::Receiver<()>);

    impl Tracker for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }
        fn take(&mut self, _: &mut Run, _: bool) -> Result<()> {
            let _ = self.0.recv_timeout(10 * PATIENCE);
            Ok(())
        }
    }

    /// The folder of a run with nothing in it yet.
    fn run_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("run_id"), "abcd\n").unwrap();
        std::fs::write(folder.path().join("config.resolved.toml"), "seed = 1\n").unwrap();
        folder
    }

    #[test]
    fn a_tracker_that_never_answers_holds_up_no_step_and_the_end_for_its_patience_at_most() {
        let folder = run_folder();
        let (_answer, waits) = mpsc::channel();
        let begun = Instant::now();
        let desk = Desk::follow(
            vec![Box::new(Silent(waits))],
            folder.path().to_owned(),
            folder.path().join("home"),
            Duration::from_millis(1),
        );
        assert!(begun.elapsed() < PATIENCE / 4, "following a run waits for nothing");
        std::thread::sleep(Duration::from_millis(50));
        let unsent = desk.close_within(Duration::from_millis(200));
        assert_eq!(unsent, [Unsent { tracker: "silent", cause: "silent: no answer in time".into() }]);
        assert!(begun.elapsed() < PATIENCE);
    }

    fn closed(fails: u32) -> (Vec<Unsent>, u32) {
        let folder = run_folder();
        let asked = Arc::new(AtomicU32::new(0));
        let tracker = Box::new(Flaky { asked: Arc::clone(&asked), fails });
        let home = folder.path().join("home");
        let desk = Desk::follow(vec![tracker], folder.path().to_owned(), home, Duration::from_secs(60));
        (desk.close(), asked.load(Ordering::SeqCst))
    }

    #[test]
    fn what_fails_is_tried_again_at_the_end_and_then_said() {
        assert_eq!(closed(0), (vec![], 1));
        assert_eq!(closed(1), (vec![], 2));
        assert_eq!(
            closed(99),
            (vec![Unsent { tracker: "flaky", cause: "flaky: down".into() }], LAST_ATTEMPTS)
        );
    }
}
