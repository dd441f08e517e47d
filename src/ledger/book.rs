//! Where a run writes its records: into the ledger while it works, else into the run's own folder. Nothing here ever
//! stops a run.

use super::journal::{Journal, PENDING};
use super::record::{Entry, Record};
use super::store::Ledger;
use crate::error::{Error, Problem, Result};
use std::path::{Path, PathBuf};

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
        let warning = match book.opened() {
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
        let ledger = Ledger::open(home).map_or(Keeper::Nobody, |ledger| Keeper::Ledger(Box::new(ledger)));
        Self { keeper: ledger, ..Self::closed(home, out) }
    }

    /// From here on the run's folder is there and locked. Enters what an earlier process left in it, and what this one
    /// began with, where that could not be entered before. What the user must be told.
    pub fn own_folder(&mut self) -> Option<Error> {
        self.owns_folder = true;
        match self.opened() {
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
        }
    }

    /// The ledger, while it works.
    pub fn ledger(&self) -> Option<&Ledger> {
        match &self.keeper {
            Keeper::Ledger(ledger) => Some(ledger),
            _ => None,
        }
    }

    /// At the end of a run: enters what had to be left in the run's folder, where the ledger works again. An error
    /// is a warning; the records stay where they are.
    pub fn settle(&mut self) -> Result<()> {
        if matches!(self.keeper, Keeper::Ledger(_)) {
            return Ok(());
        }
        self.keeper = Keeper::Ledger(Box::new(self.opened()?));
        Ok(())
    }

    fn opened(&self) -> Result<Ledger> {
        let mut ledger = Ledger::open(&self.home)?;
        let pending = self.out.join(PENDING);
        if pending.symlink_metadata().is_ok() {
            ledger.absorb(&pending)?;
        }
        Ok(ledger)
    }

    /// From here on records go to the run's folder; `cause` with that said.
    fn fall_back(&mut self, mut cause: Error) -> Error {
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
                let kept = format!("the run goes on; its records are kept in {}", journal.path().display());
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
    /// An error is a warning, given once: the record itself was kept if that was possible at all.
    fn record(&mut self, entry: Entry) -> Result<()> {
        let is_start = matches!(entry, Entry::Start { .. } | Entry::Resume { .. });
        if is_start {
            self.start = Some(entry.clone());
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
        let mut warning = self.fall_back(cause);
        if let Keeper::Journal(journal) = &mut self.keeper
            && !is_start
            && let Err(error) = journal.record(entry)
        {
            warning.problems.extend(error.problems);
            self.keeper = Keeper::Nobody;
        }
        Err(warning)
    }
}
