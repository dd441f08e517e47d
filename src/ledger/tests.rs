//! The ledger at work; `failing` is the rest.

mod failing;

use super::*;
use crate::error::Result;
use crate::estimate::parts::{Part, PartBytes};
use crate::estimate::{Amount, CostLine};
use crate::fs::fault::rehearse;
use std::path::Path;
use tempfile::TempDir;

pub(super) fn run(id: &str, out: &Path) -> NewRun {
    NewRun {
        run_id: id.into(),
        started_at: now(),
        output_dir: out.to_str().unwrap().into(),
        config_toml: "base_model = \"x\"\n".into(),
        config_hash: "c1".into(),
        data_hash: "d1".into(),
        base_hash: "b1".into(),
        project: "support".into(),
        purpose: "experiment".into(),
        method: "lora".into(),
        base: "org/x".into(),
        prediction_json: Some("{\"wall_s\":10}".into()),
        usd_per_hour: Some(2.5),
    }
}

fn end(loss: f64) -> Final {
    Final {
        finished_at: now(),
        step: 20,
        wall_s: 12.5,
        cost_usd: Some(0.25),
        energy_j: Some(900.0),
        loss: Some(loss),
        report_json: Some("{\"wall_s\":12.5}".into()),
    }
}

fn beat(step: u64, wall_s: f64, cost_usd: Option<f64>, loss: Option<f64>) -> Sample {
    let at_ms = jiff::Timestamp::now().as_millisecond();
    Sample { wall_s, at_ms, step, phase: "train".into(), cost_usd, loss, ..Sample::default() }
}

struct Place {
    home: TempDir,
    out: TempDir,
}

fn place() -> Place {
    Place { home: tempfile::tempdir().unwrap(), out: tempfile::tempdir().unwrap() }
}

/// All that a run records, in order.
fn whole_run(to: &mut dyn Record, id: &str, out: &Path) -> Vec<Result<()>> {
    let phase = Phase {
        name: "train".into(),
        wall_s: 12.0,
        cpu_s: Some(20.0),
        peak_rss_bytes: Some(1 << 33),
        cost_usd: None,
    };
    let line = CostLine::of_run("energy", Amount::Unknown);
    vec![
        to.start_run(&run(id, out)),
        to.heartbeat(id, &beat(10, 6.0, Some(0.1), Some(2.0))),
        to.checkpoint(id, 10, &out.join("checkpoints/step-00000010")),
        to.phase(id, &phase),
        to.cost_line(id, &line),
        to.finish_run(id, Status::Done, &end(1.5)),
    ]
}

fn count(ledger: &Ledger, table: &str) -> i64 {
    ledger.connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0)).unwrap()
}

#[test]
fn phases_and_costs_that_are_said_anew_replace_those_of_earlier_processes() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for id in ["abcd", "other"] {
        for outcome in whole_run(&mut ledger, id, p.out.path()) {
            outcome.unwrap();
        }
    }
    ledger.anew("abcd").unwrap();
    let phase = |name: &str| Phase { name: name.into(), wall_s: 7.0, ..Phase::default() };
    ledger.phase("abcd", &phase("before the resume")).unwrap();
    let mut read = ledger.connection.prepare("SELECT run_id, name FROM phases ORDER BY run_id").unwrap();
    let rows: Vec<(String, String)> =
        read.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    let expected = [("abcd", "before the resume"), ("other", "train")];
    assert_eq!(rows, expected.map(|(id, name)| (id.to_owned(), name.to_owned())));
    drop(read);
    assert_eq!(count(&ledger, "cost_lines"), 1);
}

#[test]
fn a_run_is_found_with_what_it_took_and_its_pinned_keys() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for outcome in whole_run(&mut ledger, "abcd2345", p.out.path()) {
        outcome.unwrap();
    }
    drop(ledger);
    let ledger = Ledger::open(p.home.path()).unwrap();
    let rows = ledger.runs().unwrap();
    let json = serde_json::to_value(&rows).unwrap();
    let keys: Vec<&String> = json[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["run_id", "status", "wall_s", "cost_usd", "loss", "output_dir", "started_at"]);
    assert_eq!(json[0]["status"], "done");
    assert_eq!(json[0]["wall_s"], 12.5);
    assert_eq!(json[0]["cost_usd"], 0.25);
    assert_eq!(json[0]["loss"], 1.5);
    json[0]["started_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    for table in ["runs", "predictions", "phases", "samples", "checkpoints", "cost_lines"] {
        assert_eq!(count(&ledger, table), 1, "{table}");
    }
    let history = ledger.history(10).unwrap();
    assert_eq!(history[0].prediction_json, "{\"wall_s\":10}");
    assert_eq!(history[0].report_json, "{\"wall_s\":12.5}");
    let details = ledger.details("abcd2345").unwrap();
    assert!(details.config_toml.contains("base_model"));
    assert_eq!((details.phases.len(), details.costs[0].amount), (1, Amount::Unknown));
    assert_eq!(details.checkpoints[0].step, 10);
    let samples = ledger.samples("abcd2345", 0.0).unwrap();
    assert_eq!((samples[0].step, samples[0].loss), (10, Some(2.0)));
    assert!(ledger.samples("abcd2345", 6.0).unwrap().is_empty());
}

#[test]
fn a_cost_of_any_category_kind_and_period_is_kept_as_it_is() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    ledger.start_run(&run("abcd", p.out.path())).unwrap();
    let line = |category: &str, amount, period: &str| CostLine {
        category: category.into(),
        amount,
        period: period.into(),
    };
    let usd = crate::units::Usd;
    let lines = [
        line("compute", Amount::Measured(usd(0.25)), "run"),
        line("electricity", Amount::Modelled(usd(0.01)), "run"),
        line("hosting", Amount::Predicted(usd(38.5)), "month"),
        line("hosting", Amount::Stated(usd(400.0)), "year"),
        line("labelling", Amount::Stated(usd(1_200.0)), "run"),
        line("people", Amount::Unknown, "month"),
    ];
    for line in &lines {
        ledger.cost_line("abcd", line).unwrap();
    }
    assert_eq!(ledger.details("abcd").unwrap().costs, lines);
    // Known better, it is the same line.
    let better = line("compute", Amount::Measured(usd(0.5)), "run");
    ledger.cost_line("abcd", &better).unwrap();
    let costs = ledger.details("abcd").unwrap().costs;
    assert_eq!((costs.len(), &costs[0]), (lines.len(), &better));
}

#[test]
fn runs_are_found_by_id_by_its_beginning_and_by_folder() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for id in ["aaaa1111", "aaaa2222", "bbbb1111"] {
        let out = p.out.path().join(id);
        std::fs::create_dir(&out).unwrap();
        ledger.start_run(&run(id, &out)).unwrap();
    }
    assert_eq!(ledger.find("aaaa1111").unwrap().run_id, "aaaa1111");
    assert_eq!(ledger.find("bb").unwrap().run_id, "bbbb1111");
    let folder = p.out.path().join("aaaa2222/../aaaa2222/");
    assert_eq!(ledger.find(folder.to_str().unwrap()).unwrap().run_id, "aaaa2222");
    let error = ledger.find("aaaa").unwrap_err().to_string();
    assert!(error.contains("aaaa1111") && error.contains("aaaa2222"), "{error}");
    for unknown in ["", "zz", "%", "aaaa1111x", "a' OR 1=1 --"] {
        let error = ledger.find(unknown).unwrap_err();
        assert_eq!(error.kind, Kind::Usage, "{unknown}");
        assert!(error.to_string().contains("no run"), "{error}");
    }
}

#[test]
fn repeats_share_config_data_and_base() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    let mut other = run("other", p.out.path());
    other.data_hash = "d2".into();
    for run in [run("first", p.out.path()), other, run("again", p.out.path())] {
        ledger.start_run(&run).unwrap();
    }
    let rows = ledger.repeats_of("c1", "d1", "b1").unwrap();
    let ids: Vec<&str> = rows.iter().map(|r| r.run_id.as_str()).collect();
    assert_eq!(ids, ["again", "first"]);
    assert!(ledger.repeats_of("c1", "d1", "b9").unwrap().is_empty());
}

/// The part of the next test that is killed.
#[test]
fn killed_run() {
    let (Ok(home), Ok(out)) = (std::env::var("FTTRAIN_KILLED_HOME"), std::env::var("FTTRAIN_KILLED_OUT"))
    else {
        return;
    };
    let _lock = fs::RunLock::acquire(Path::new(&out)).unwrap();
    let (mut book, warning) = Book::open(Path::new(&home), Path::new(&out));
    assert!(warning.is_none());
    book.start_run(&run("killed", Path::new(&out))).unwrap();
    book.heartbeat("killed", &beat(3, 4.5, Some(0.01), Some(2.0))).unwrap();
    book.heartbeat("killed", &beat(4, 5.5, Some(0.02), None)).unwrap();
    println!("ready.");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

#[test]
fn a_killed_run_is_listed_as_such_with_its_last_heartbeat() {
    use std::io::{BufRead, BufReader};
    let p = place();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ledger::tests::killed_run", "--nocapture"])
        .env("FTTRAIN_KILLED_HOME", p.home.path())
        .env("FTTRAIN_KILLED_OUT", p.out.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(std::io::Result::ok).any(|line| line.contains("ready.")));
    let ledger = Ledger::open(p.home.path()).unwrap();
    assert_eq!(ledger.find("killed").unwrap().status, Status::Running);
    child.kill().unwrap();
    child.wait().unwrap();
    let row = ledger.find("killed").unwrap();
    assert_eq!(row.status, Status::Killed);
    assert_eq!((row.wall_s, row.cost_usd, row.loss, row.step), (Some(5.5), Some(0.02), Some(2.0), 4));
    // Another run in the same folder does not bring it back to life; going on with it does.
    let _lock = fs::RunLock::acquire(p.out.path()).unwrap();
    assert_eq!(ledger.find("killed").unwrap().status, Status::Killed);
    let (mut book, _) = Book::open(p.home.path(), p.out.path());
    book.resume_run("killed", None).unwrap();
    assert_eq!(ledger.find("killed").unwrap().status, Status::Running);
}

#[test]
fn samples_are_bounded_while_a_run_goes_and_fewer_when_it_ends() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    ledger.start_run(&run("abcd", p.out.path())).unwrap();
    for second in 1..=2500 {
        ledger.heartbeat("abcd", &beat(second, second as f64, None, Some(1.0))).unwrap();
    }
    let samples = ledger.samples("abcd", 0.0).unwrap();
    assert!((300..=1000).contains(&samples.len()), "{}", samples.len());
    // Every beat was the last one once: a kill behind any of them loses nothing.
    assert_eq!(samples.last().unwrap().step, 2500);
    assert_eq!(ledger.find("abcd").unwrap().wall_s, Some(2500.0));
    ledger.finish_run("abcd", Status::Done, &end(1.0)).unwrap();
    let samples = ledger.samples("abcd", 0.0).unwrap();
    assert!((150..=300).contains(&samples.len()), "{}", samples.len());
    assert_eq!(samples.last().unwrap().step, 2500);
    let gaps: Vec<f64> = samples.windows(2).map(|two| two[1].wall_s - two[0].wall_s).collect();
    let widest = gaps.iter().copied().fold(0.0, f64::max);
    assert!(widest <= 40.0, "evenly over the run: {widest}");
}

/// How a run of the CPU stands at a second of its time, every figure as long as it comes.
fn second(nth: u32) -> Sample {
    let at = f64::from(nth) + f64::from(nth % 97) * 1.234_567e-5;
    let held = |part| (part as u64 + 1) * 31_457_280 + u64::from(nth % 7) * 4096;
    Sample {
        wall_s: at,
        at_ms: 1_762_078_272_250 + i64::from(nth) * 1000,
        step: u64::from(nth) * 7,
        phase: "train".into(),
        cost_usd: Some(at * 1.234e-4),
        loss: Some(2.0 + 1.0 / at),
        rss_bytes: Some(1_473_221_120 + u64::from(nth) * 4096),
        cpu_s: Some(at * 1.987),
        energy_j: Some(at * 61.3),
        parts: Some(PartBytes(Part::ALL.map(held))),
    }
}

/// A finished run of 10,000 seconds that was heard of at each of them, with texts as long as those of real ones.
fn heard(ledger: &mut Ledger, id: &str) {
    let mut new = run(id, Path::new("/runs").join(id).as_path());
    new.config_toml = "# a line as long as those of a resolved config\n".repeat(80);
    new.prediction_json = Some(format!("{{\"filler\":\"{}\"}}", "x".repeat(6000)));
    ledger.start_run(&new).unwrap();
    let transaction = ledger.connection.transaction().unwrap();
    for nth in 1..=10_000 {
        store::heartbeat(&transaction, id, &second(nth)).unwrap();
    }
    transaction.commit().unwrap();
    let report = Some(format!("{{\"filler\":\"{}\"}}", "x".repeat(8000)));
    ledger.finish_run(id, Status::Done, &Final { report_json: report, ..end(1.25) }).unwrap();
}

/// A ledger of a thousand runs, of which so many were really heard of; the others are their copies.
fn a_thousand_runs(heard_of: u32) {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for n in 0..heard_of {
        heard(&mut ledger, &format!("run{n:05}"));
    }
    for n in heard_of..1000 {
        let ids = [format!("run{n:05}"), format!("run{:05}", n % heard_of)];
        for (table, columns) in [
            (
                "runs",
                "status, started_at, finished_at, output_dir, purpose, method, base, config_toml, config_hash,
                 data_hash, base_hash, usd_per_hour, owner_json, step, wall_s, cost_usd, loss, report_json",
            ),
            ("predictions", "prediction_json"),
            (
                "samples",
                "wall_s, at_ms, step, phase, cost_usd, loss, rss_bytes, cpu_s, energy_j, parts",
            ),
        ] {
            let copy = format!(
                "INSERT INTO {table} (run_id, {columns}) SELECT ?1, {columns} FROM {table} WHERE run_id = ?2"
            );
            ledger.connection.execute(&copy, [&ids[0], &ids[1]]).unwrap();
        }
    }
    ledger.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let kept = count(&ledger, "samples");
    drop(ledger);
    let bytes = std::fs::metadata(p.home.path().join("ledger.db")).unwrap().len();
    let begun = std::time::Instant::now();
    let rows = Ledger::open(p.home.path()).unwrap().runs().unwrap();
    let took = begun.elapsed();
    println!("{bytes} bytes with {kept} samples, listed in {took:?}");
    assert_eq!(rows.len(), 1000);
    assert!(kept >= 200 * 1000, "{kept}");
    assert!(bytes < 100_000_000, "{bytes} bytes");
    assert!(took.as_millis() < 200, "{took:?}");
}

#[test]
fn a_thousand_runs_are_listed_in_a_moment_and_take_little_room() {
    a_thousand_runs(1);
}

#[test]
#[ignore = "needs some minutes"]
fn a_thousand_runs_of_ten_thousand_heartbeats_each_are_too() {
    a_thousand_runs(1000);
}

#[test]
fn a_folder_that_moved_is_known_by_its_new_place_and_a_copy_is_not() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    let (old, new) = (p.out.path().join("old"), p.out.path().join("new"));
    for folder in [&old, &new] {
        std::fs::create_dir(folder).unwrap();
    }
    ledger.start_run(&run("abcd", &old)).unwrap();
    assert!(!ledger.find("abcd").unwrap().is_elsewhere(&new), "the old one is there: this is a copy");
    std::fs::remove_dir(&old).unwrap();
    assert!(ledger.find("abcd").unwrap().is_elsewhere(&new));
    ledger.moved("abcd", &new).unwrap();
    assert_eq!(ledger.find(new.to_str().unwrap()).unwrap().run_id, "abcd");
}

#[test]
fn a_loss_that_is_no_number_is_not_known() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    for recorder in [&mut ledger as &mut dyn Record, &mut Journal::open(p.out.path()).unwrap()] {
        recorder.start_run(&run("abcd", p.out.path())).unwrap();
        recorder.finish_run("abcd", Status::Diverged, &end(f64::NAN)).unwrap();
    }
    assert_eq!(ledger.find("abcd").unwrap().loss, None);
}

#[test]
fn a_record_of_an_unknown_run_is_refused() {
    let p = place();
    let mut ledger = Ledger::open(p.home.path()).unwrap();
    let error = ledger.heartbeat("nobody", &beat(1, 1.0, None, None)).unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[test]
fn ids_are_short_and_differ() {
    let ids: std::collections::BTreeSet<String> = (0..200).map(|_| new_run_id()).collect();
    assert_eq!(ids.len(), 200);
    assert!(ids.iter().all(|id| id.len() == 8 && id.bytes().all(|b| b.is_ascii_alphanumeric())));
}
