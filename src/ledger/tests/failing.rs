//! A ledger that cannot be opened, read or written: what waits for it, and what a strange file cannot do.

use super::*;

#[test]
fn a_ledger_that_cannot_be_opened_is_left_alone_and_its_records_wait() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 4] = [
        ("newer", |db| set_version(db, 99), "schema 99"),
        ("foreign", |db| foreign(db), "not a ledger"),
        ("corrupt", |db| std::fs::write(db, vec![7; 8192]).unwrap(), "not a database"),
        ("folder", |db| std::fs::create_dir(db).unwrap(), "unable to open"),
    ];
    for (name, spoil, said) in cases {
        let p = place();
        let db = p.home.path().join("ledger.db");
        spoil(&db);
        let before = std::fs::read(&db).ok();
        let (mut book, warning) = Book::open(p.home.path(), p.out.path());
        let warning = warning.unwrap().to_string();
        assert!(warning.contains(said) && warning.contains(PENDING), "{name}: {warning}");
        for outcome in whole_run(&mut book, "abcd", p.out.path()) {
            outcome.unwrap();
        }
        assert!(book.settle().is_err(), "{name}");
        assert_eq!(std::fs::read(&db).ok(), before, "{name}: the file was changed");
        // The file is moved away by its owner: the records are entered, once.
        std::fs::rename(&db, p.home.path().join("away")).unwrap();
        book.settle().unwrap();
        assert!(!p.out.path().join(PENDING).exists());
        assert_eq!(book.ledger().unwrap().find("abcd").unwrap().status, Status::Done);
    }
}

fn set_version(db: &Path, version: u32) {
    let home = db.parent().unwrap();
    let ledger = Ledger::open(home).unwrap();
    ledger.connection.pragma_update(None, "user_version", version).unwrap();
}

fn foreign(db: &Path) {
    let connection = rusqlite::Connection::open(db).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
}

#[test]
fn a_ledger_that_fails_in_the_middle_of_a_run_loses_nothing() {
    for n in 1.. {
        let p = place();
        let ((warnings, entered), fired) = rehearse(format!("{n}:once").parse().unwrap(), || {
            let (mut book, warning) = Book::open(p.home.path(), p.out.path());
            let outcomes = whole_run(&mut book, "abcd", p.out.path());
            let mut warnings = outcomes.into_iter().filter_map(Result::err).count();
            warnings += usize::from(warning.is_some());
            (warnings, book.settle().is_ok())
        });
        assert_eq!(warnings, usize::from(fired), "at {n}: one fault, one warning");
        let (book, warning) = Book::open(p.home.path(), p.out.path());
        assert!(entered && warning.is_none(), "at {n}");
        let ledger = book.ledger().unwrap();
        let row = ledger.find("abcd").unwrap();
        assert_eq!((row.status, row.loss), (Status::Done, Some(1.5)), "at {n}");
        for table in ["runs", "predictions", "phases", "samples", "checkpoints", "cost_lines"] {
            assert_eq!(count(ledger, table), 1, "{table} at {n}");
        }
        if !fired {
            break;
        }
    }
}

#[test]
fn where_nothing_can_be_written_the_run_is_told_once_and_goes_on() {
    let p = place();
    let (outcomes, _) = rehearse("1:enospc".parse().unwrap(), || {
        let (mut book, warning) = Book::open(&p.home.path().join("new"), p.out.path());
        assert!(warning.unwrap().to_string().contains("without a ledger"));
        whole_run(&mut book, "abcd", p.out.path())
    });
    assert!(outcomes.iter().all(Result::is_ok));
}

fn prepared() -> Prepared {
    Prepared { base: "org/y".into(), base_hash: "b9".into(), data_hash: "d9".into(), ..Prepared::default() }
}

#[test]
fn a_run_is_known_before_its_data_are_and_keeps_its_first_fingerprints() {
    let p = place();
    let mut book = Book::early(p.home.path(), p.out.path());
    let new = NewRun { data_hash: String::new(), base_hash: String::new(), ..run("abcd", p.out.path()) };
    book.start_run(&new).unwrap();
    book.heartbeat("abcd", &beat(0, 1.0, Some(0.5), None)).unwrap();
    assert!(book.own_folder().is_none());
    book.prepared("abcd", &prepared()).unwrap();
    book.prepared("abcd", &Prepared { data_hash: "d10".into(), ..prepared() }).unwrap();
    let row = book.ledger().unwrap().find("abcd").unwrap();
    assert_eq!((row.base.as_str(), row.content()), ("org/y", ["c1", "d9", "b9"]));
    assert_eq!((row.wall_s, row.cost_usd), (Some(1.0), Some(0.5)));
}

#[test]
fn a_start_that_is_taken_back_leaves_nothing_and_a_run_with_steps_is_never_taken_back() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for (id, step) in [("bare", 0), ("busy", 3)] {
        ledger.start_run(&run(id, p.out.path())).unwrap();
        ledger.heartbeat(id, &beat(step, 1.0, None, None)).unwrap();
        ledger.phase(id, &Phase { name: "set-up".into(), wall_s: 5.0, ..Phase::default() }).unwrap();
        ledger.withdraw(id).unwrap();
    }
    let left: Vec<String> = ledger.runs().unwrap().into_iter().map(|row| row.run_id).collect();
    assert_eq!(left, ["busy"]);
    assert_eq!(
        (count(&ledger, "samples"), count(&ledger, "phases"), count(&ledger, "predictions")),
        (1, 1, 1)
    );
}

#[test]
fn without_a_ledger_nothing_is_kept_in_a_folder_that_is_not_the_runs_own_yet() {
    let p = place();
    let db = p.home.path().join("ledger.db");
    std::fs::create_dir(&db).unwrap();
    let mut book = Book::early(p.home.path(), p.out.path());
    book.start_run(&run("abcd", p.out.path())).unwrap();
    book.heartbeat("abcd", &beat(0, 1.0, None, None)).unwrap();
    assert_eq!(std::fs::read_dir(p.out.path()).unwrap().count(), 0);
    let said = book.own_folder().unwrap().to_string();
    assert!(said.contains(PENDING), "{said}");
    book.prepared("abcd", &prepared()).unwrap();
    // The ledger comes back: the run is there from its start.
    std::fs::remove_dir(&db).unwrap();
    book.settle().unwrap();
    assert_eq!(book.ledger().unwrap().find("abcd").unwrap().base, "org/y");
}

#[test]
fn a_refused_start_does_not_stand_before_the_run_that_has_the_folder() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for outcome in whole_run(&mut ledger, "whole", p.out.path()) {
        outcome.unwrap();
    }
    ledger.start_run(&run("refused", p.out.path())).unwrap();
    ledger.finish_run("refused", Status::Failed, &Final { step: 0, ..end(1.0) }).unwrap();
    assert_eq!(ledger.find(p.out.path().to_str().unwrap()).unwrap().run_id, "whole");
}

#[test]
fn a_locked_ledger_is_said_to_be_locked() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    let other = Ledger::open(p.home.path()).unwrap();
    other.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = ledger.start_run(&run("a", p.out.path())).unwrap_err();
    assert_eq!(error.kind, Kind::Resource);
    assert!(error.to_string().contains("another process holds"), "{error}");
    // Whoever only reads does not wait.
    assert!(ledger.runs().unwrap().is_empty());
}

#[test]
fn a_ledger_that_may_only_be_read_is_read_and_says_what_to_do() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    ledger.connection.pragma_update(None, "query_only", true).unwrap();
    let error = ledger.start_run(&run("a", p.out.path())).unwrap_err();
    assert!(error.to_string().contains("FTTRAIN_HOME"), "{error}");
    assert!(ledger.runs().unwrap().is_empty());
}

#[test]
fn pending_records_are_entered_all_or_none_and_twice_is_once() {
    let p = place();
    let pending = p.out.path().join(PENDING);
    for outcome in whole_run(&mut Journal::open(p.out.path()).unwrap(), "abcd", p.out.path()) {
        outcome.unwrap();
    }
    let text = std::fs::read_to_string(&pending).unwrap();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    std::fs::write(&pending, format!("{text}{{\"entry\":\"unheard\"}}\n")).unwrap();
    let error = ledger.absorb(&pending).unwrap_err().to_string();
    assert!(error.contains(&format!("{PENDING}:7:")), "{error}");
    assert!(ledger.runs().unwrap().is_empty() && pending.exists());
    for torn in ["", "{\"entry\":\"hea"] {
        std::fs::write(&pending, format!("{text}{torn}")).unwrap();
        assert_eq!(ledger.absorb(&pending).unwrap(), 6);
        assert!(!pending.exists());
    }
    assert_eq!(count(&ledger, "samples"), 1);
}

#[test]
fn pending_records_of_a_strange_folder_change_no_other_run() {
    type Attempt<'a> = &'a dyn Fn(&mut Journal) -> Result<()>;
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    ledger.start_run(&run("mine", &p.home.path().join("mine"))).unwrap();
    let pending = p.out.path().join(PENDING);
    let attempts: [Attempt<'_>; 4] = [
        &|j| j.finish_run("mine", Status::Done, &end(0.0)),
        &|j| j.resume_run("mine", None),
        &|j| j.start_run(&NewRun { config_hash: "other".into(), ..run("mine", p.out.path()) }),
        &|j| {
            j.start_run(&run("new", p.out.path()))?;
            j.finish_run("mine", Status::Done, &end(0.0))
        },
    ];
    for (n, attempt) in attempts.iter().enumerate() {
        attempt(&mut Journal::open(p.out.path()).unwrap()).unwrap();
        assert!(ledger.absorb(&pending).is_err(), "attempt {n}");
        assert_eq!(ledger.find("mine").unwrap().loss, None);
        assert_eq!(ledger.runs().unwrap().len(), 1);
        std::fs::remove_file(&pending).unwrap();
    }
}

#[test]
fn a_resumed_run_whose_ledger_fails_is_entered_from_its_own_folder() {
    let p = place();
    Ledger::open(p.home.path()).unwrap().start_run(&run("abcd", p.out.path())).unwrap();
    let mut journal = Journal::open(p.out.path()).unwrap();
    journal.resume_run("abcd", None).unwrap();
    journal.finish_run("abcd", Status::Stopped, &end(1.0)).unwrap();
    let (book, warning) = Book::open(p.home.path(), p.out.path());
    assert!(warning.is_none(), "{warning:?}");
    assert_eq!(book.ledger().unwrap().find("abcd").unwrap().status, Status::Stopped);
}
