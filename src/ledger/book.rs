//! Where a run writes its records: into the ledger while it works, else into the run's own folder. Nothing here ever
//! stops a run, or keeps one waiting for more than a moment.

use super::journal::{Journal, PENDING};
use super::record::{Entry, Record};
use super::store::Ledger;
use crate::error::{Error, Kind, Problem, Result};
use crate::fs::{self, RunLock};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A ledger that failed is asked again after this: another process holds it for a while, and not for ever.
const AGAIN: Duration = Duration::from_secs(10);

/// The records of one run.
#[derive(Debug)]
pub struct Book {
    home: PathBuf,
    out: PathBuf,
    keeper: Keeper,
    /// What this process began with: the journal begins with it too.
    start: Option<Entry>,
    /// The folder is there and locked: records may be kept in it.
    owns_folder: bool,
    /// When the ledger was last asked in vain.
    failed: Option<Instant>,
    /// The user was told where the records go.
    is_said: bool,
}

#[derive(Debug)]
enum Keeper {
    Ledger(Box<Ledger>),
    Journal(Journal),
    Nobody,
}

impl Book {
    /// Opens the ledger under `home`, and enters what an earlier process had to leave in `out`. The second value is
    /// what the user must be told where that fails; the records then go to `out`, which is there and locked.
    pub fn open(home: &Path, out: &Path) -> (Self, Option<Error>) {
        let mut book = Self { owns_folder: true, ..Self::closed(home, out) };
        let warning = match book.opened(Ledger::open_in_haste) {
            Ok(ledger) => {
                book.keeper = Keeper::Ledger(Box::new(ledger));
                None
            }
            Err(error) => Some(book.fall_back(error)),
        };
        (book, warning)
    }

    /// Opens the ledger for a run whose folder is not its own yet: where that fails, nothing is kept before
    /// [`Self::own_folder`], which says why.
    pub fn early(home: &Path, out: &Path) -> Self {
        let mut book = Self::closed(home, out);
        match Ledger::open_in_haste(home) {
            Ok(ledger) => book.keeper = Keeper::Ledger(Box::new(ledger)),
            Err(_) => book.failed = Some(Instant::now()),
        }
        book
    }

    /// From here on the run's folder is there and locked. Enters what an earlier process left in it, and what this one
    /// began with, where that could not be entered before. What the user must be told.
    pub fn own_folder(&mut self) -> Option<Error> {
        // That they go there was not said yet.
        (self.owns_folder, self.is_said) = (true, false);
        match self.opened(Ledger::open_in_haste) {
            Ok(ledger) => {
                self.keeper = Keeper::Ledger(Box::new(ledger));
                self.start.clone().and_then(|start| self.record(start).err())
            }
            Err(error) => Some(self.fall_back(error)),
        }
    }

    fn closed(home: &Path, out: &Path) -> Self {
        Self {
            home: home.to_owned(),
            out: out.to_owned(),
            keeper: Keeper::Nobody,
            start: None,
            owns_folder: false,
            failed: None,
            is_said: false,
        }
    }

    /// The ledger, while it works.
    pub fn ledger(&self) -> Option<&Ledger> {
        match &self.keeper {
            Keeper::Ledger(ledger) => Some(ledger),
            _ => None,
        }
    }

    /// Enters what other runs had to leave in their folders below `place`, where nobody is at work in them. What the user
    /// must be told; that the ledger is busy, the next record says.
    pub fn enter_left(&mut self, place: &Path) -> Vec<Error> {
        let Keeper::Ledger(ledger) = &mut self.keeper else { return Vec::new() };
        let mut warnings = Vec::new();
        for folder in fs::entries(place).unwrap_or_default() {
            let pending = folder.join(PENDING);
            if pending.symlink_metadata().is_err() {
                continue;
            }
            let Ok(_lock) = RunLock::acquire(&folder) else { continue };
            match ledger.absorb(&pending) {
                Ok(_) => {}
                Err(error) if error.kind == Kind::Resource => break,
                Err(error) => warnings.push(error),
            }
        }
        warnings
    }

    /// At the end of a run, when nothing waits any more: enters what had to be left in the run's folder, where the
    /// ledger works again. An error is a warning; the records stay where they are.
    pub fn settle(&mut self) -> Result<()> {
        if matches!(self.keeper, Keeper::Ledger(_)) {
            return Ok(());
        }
        self.keeper = Keeper::Ledger(Box::new(self.opened(Ledger::open)?));
        Ok(())
    }

    fn opened(&self, open: fn(&Path) -> Result<Ledger>) -> Result<Ledger> {
        let mut ledger = open(&self.home)?;
        let pending = self.out.join(PENDING);
        if self.owns_folder && pending.symlink_metadata().is_ok() {
            ledger.absorb(&pending)?;
        }
        Ok(ledger)
    }

    /// Asks a ledger that failed a while ago again. What failed was said: this says nothing.
    fn ask_again(&mut self) {
        let is_due = self.failed.is_some_and(|at| at.elapsed() >= AGAIN);
        if !is_due || matches!(self.keeper, Keeper::Ledger(_)) {
            return;
        }
        let found = self.opened(Ledger::open_in_haste).and_then(|mut ledger| {
            // What a journal kept is entered; without one the ledger may never have heard of the run.
            let unheard = self.start.clone().filter(|_| matches!(self.keeper, Keeper::Nobody));
            unheard.map_or(Ok(()), |start| ledger.record(start)).map(|()| ledger)
        });
        match found {
            Ok(ledger) => (self.keeper, self.failed) = (Keeper::Ledger(Box::new(ledger)), None),
            Err(_) => self.failed = Some(Instant::now()),
        }
    }

    /// From here on records go to the run's folder; `cause` with that said.
    fn fall_back(&mut self, mut cause: Error) -> Error {
        (self.failed, self.is_said) = (Some(Instant::now()), true);
        if !self.owns_folder {
            self.keeper = Keeper::Nobody;
            return cause;
        }
        let opened = Journal::open(&self.out).and_then(|mut journal| {
            if let Some(start) = &self.start {
                journal.record(start.clone())?;
            }
            Ok(journal)
        });
        let (keeper, message) = match opened {
            Ok(journal) => {
                let path = journal.path().display();
                let kept =
                    format!("the run goes on; its records are kept in {path} until the ledger takes them");
                (Keeper::Journal(journal), kept)
            }
            Err(error) => {
                cause.problems.extend(error.problems);
                (Keeper::Nobody, "the run goes on without a ledger".to_owned())
            }
        };
        self.keeper = keeper;
        cause.problems.push(Problem { message, hint: None });
        cause
    }
}

impl Record for Book {
    /// An error is a warning, given once: the record itself was kept if that was possible at all. A ledger that fails
    /// again says nothing while the run's folder takes the records.
    fn record(&mut self, entry: Entry) -> Result<()> {
        let is_start = matches!(entry, Entry::Start { .. } | Entry::Resume { .. });
        if is_start {
            self.start = Some(entry.clone());
        } else if matches!(entry, Entry::Heartbeat { .. }) {
            self.ask_again();
        }
        let failed = match &mut self.keeper {
            Keeper::Ledger(ledger) => ledger.record(entry.clone()),
            Keeper::Journal(journal) => {
                let outcome = journal.record(entry);
                if outcome.is_err() {
                    self.keeper = Keeper::Nobody;
                }
                return outcome;
            }
            Keeper::Nobody => return Ok(()),
        };
        let Err(cause) = failed else { return Ok(()) };
        let was_said = self.is_said;
        let mut warning = self.fall_back(cause);
        if let Keeper::Journal(journal) = &mut self.keeper
            && !is_start
            && let Err(error) = journal.record(entry)
        {
            warning.problems.extend(error.problems);
            self.keeper = Keeper::Nobody;
        }
        let is_lost = self.owns_folder && matches!(self.keeper, Keeper::Nobody);
        if was_said && !is_lost { Ok(()) } else { Err(warning) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::tests::run;
    use crate::ledger::{Prepared, Sample, Status};

    /// More than the two writes before the first step may wait together, on a busy machine too.
    const MOMENT: Duration = Duration::from_secs(1);

    fn beat(book: &mut Book, wall_s: f64) -> Result<()> {
        book.heartbeat("abcd", &Sample { wall_s, ..Sample::default() })
    }

    #[test]
    fn a_ledger_that_another_process_holds_costs_a_moment_and_has_everything_when_it_is_free() {
        let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = Ledger::open(home.path()).unwrap();
        other.connection.execute_batch("BEGIN IMMEDIATE").unwrap();

        let begun = Instant::now();
        let mut book = Book::early(home.path(), out.path());
        let said = book.start_run(&run("abcd", out.path())).unwrap_err().to_string();
        assert!(said.contains("another process holds"), "{said}");
        beat(&mut book, 1.0).unwrap();
        assert!(!out.path().join(PENDING).exists(), "the folder is not the run's own yet");
        let said = book.own_folder().unwrap().to_string();
        assert!(said.contains("another process holds") && said.contains(PENDING), "{said}");
        book.prepared("abcd", &Prepared { base: "org/y".into(), ..Prepared::default() }).unwrap();
        beat(&mut book, 2.0).unwrap();
        assert!(begun.elapsed() < MOMENT, "{:?}", begun.elapsed());

        // It is asked again after a while: in vain, and then with success, which nobody needs to be told.
        let a_while_ago = Instant::now().checked_sub(AGAIN);
        book.failed = a_while_ago;
        beat(&mut book, 3.0).unwrap();
        assert!(book.ledger().is_none() && book.failed > a_while_ago);
        other.connection.execute_batch("ROLLBACK").unwrap();
        beat(&mut book, 4.0).unwrap();
        assert!(book.ledger().is_none(), "not at every beat");
        book.failed = a_while_ago;
        beat(&mut book, 5.0).unwrap();
        let ledger = book.ledger().unwrap();
        let row = ledger.find("abcd").unwrap();
        assert_eq!((row.base.as_str(), row.wall_s), ("org/y", Some(5.0)));
        let heard: Vec<f64> = ledger.samples("abcd", 0.0).unwrap().iter().map(|s| s.wall_s).collect();
        assert_eq!(heard, [2.0, 3.0, 4.0, 5.0]);
        assert!(!out.path().join(PENDING).exists());
    }

    #[test]
    fn a_ledger_that_is_busy_again_and_again_is_said_once() {
        let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut book, _) = Book::open(home.path(), out.path());
        book.start_run(&run("abcd", out.path())).unwrap();
        let other = Ledger::open(home.path()).unwrap();
        let held = |is_held| {
            other.connection.execute_batch(if is_held { "BEGIN IMMEDIATE" } else { "ROLLBACK" }).unwrap();
        };
        held(true);
        assert!(beat(&mut book, 1.0).unwrap_err().to_string().contains(PENDING));
        held(false);
        book.failed = Instant::now().checked_sub(AGAIN);
        beat(&mut book, 2.0).unwrap();
        assert!(book.ledger().is_some());
        held(true);
        beat(&mut book, 3.0).unwrap();
        assert!(book.ledger().is_none() && out.path().join(PENDING).exists());
        held(false);
        book.settle().unwrap();
        let heard = book.ledger().unwrap().samples("abcd", 0.0).unwrap();
        assert_eq!(heard.iter().map(|sample| sample.wall_s).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        // Where nothing keeps the records, that is another matter.
        held(true);
        std::fs::create_dir(out.path().join(PENDING)).unwrap();
        assert!(beat(&mut book, 4.0).unwrap_err().to_string().contains("without a ledger"));
    }

    #[test]
    fn a_ledger_that_is_free_again_before_the_run_has_its_folder_hears_of_it_then() {
        let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = Ledger::open(home.path()).unwrap();
        other.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut book = Book::early(home.path(), out.path());
        assert!(book.start_run(&run("abcd", out.path())).is_err());
        other.connection.execute_batch("ROLLBACK").unwrap();
        book.failed = Instant::now().checked_sub(AGAIN);
        beat(&mut book, 7.0).unwrap();
        let row = book.ledger().unwrap().find("abcd").unwrap();
        assert_eq!((row.status, row.wall_s), (Status::Running, Some(7.0)));
        assert!(book.own_folder().is_none());
        assert_eq!(book.ledger().unwrap().runs().unwrap().len(), 1);
    }

    #[test]
    fn a_ledger_that_becomes_unwritable_or_is_damaged_in_the_middle_stops_nothing_and_loses_nothing() {
        type Spoil = fn(&Path, &Book);
        let cases: [(&str, bool, Spoil); 2] = [
            ("readonly", false, |_, book| {
                book.ledger().unwrap().connection.pragma_update(None, "query_only", true).unwrap();
            }),
            // Its first page is whole, so that it opens; the tables behind it are not.
            ("malformed", true, |db, book| {
                let ledger = book.ledger().unwrap();
                ledger.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
                let mut bytes = std::fs::read(db).unwrap();
                bytes[4096..].fill(7);
                std::fs::write(db, bytes).unwrap();
                ledger.connection.execute_batch("PRAGMA shrink_memory").unwrap();
            }),
        ];
        for (said, is_damaged, spoil) in cases {
            let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let db = home.path().join("ledger.db");
            let (mut book, _) = Book::open(home.path(), out.path());
            book.start_run(&run("abcd", out.path())).unwrap();
            spoil(&db, &book);
            let warning = beat(&mut book, 1.0).unwrap_err().to_string();
            assert!(warning.contains(said) && warning.contains(PENDING), "{said}: {warning}");
            beat(&mut book, 2.0).unwrap();
            if is_damaged {
                assert!(book.settle().is_err());
                // Its owner begins a new one.
                std::fs::remove_file(&db).unwrap();
            }
            book.settle().unwrap();
            assert_eq!(book.ledger().unwrap().find("abcd").unwrap().wall_s, Some(2.0), "{said}");
        }
    }
}
