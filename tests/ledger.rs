//! Every run is in the ledger with what it cost, and is found there again: listed, filtered, compared, summed, repeated
//! knowingly. A ledger that another process holds, or that is broken, stops no run and loses none.

#[path = "support/run.rs"]
mod run;

use run::{Config, Place, json, lines};
use rusqlite::Connection;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// More than a held ledger may cost a run before its first step, on a busy machine.
const MOMENT: Duration = Duration::from_secs(4);

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("no {key} in {of}"))
}

#[test]
fn a_run_that_only_repeats_another_is_a_warning_or_refused() {
    let place = Place::new();
    let (path, _) = Config::lora().write(&place, "first");
    let ended = place.run(&["--lora", &path]).expect(0);
    assert!(!ended.stderr.contains("was done before"));
    let out = place.path("second");
    let output = format!("output_dir={}", out.display());
    let again = ["--lora", &path, "--set", &output];
    let refuse = [&again[..], &["--set", "budget.repeats=refuse"]].concat();
    let id = place.runs()[0]["run_id"].as_str().unwrap().to_owned();
    place.run(&refuse).expect(5).says(&["was done before", &id]);
    assert!(!out.exists());
    place.run(&[&refuse[..], &["--set", "seed=7"]].concat()).expect(0);
    fs::remove_dir_all(&out).unwrap();
    place.run(&again).expect(0).says(&["was done before"]);
}

#[test]
fn a_broken_ledger_is_a_warning() {
    type Spoil = fn(&Path);
    let cases: [(&str, i32, Spoil); 3] = [
        ("not a database", 5, |db| {
            fs::write(db, b"this is not a database, and it is long enough to be one").unwrap();
        }),
        ("has schema 99", 2, |db| {
            rusqlite::Connection::open(db)
                .unwrap()
                .execute_batch("PRAGMA application_id = 1718908012; PRAGMA user_version = 99")
                .unwrap();
        }),
        ("unable to open", 5, |db| fs::create_dir(db).unwrap()),
    ];
    for (said, code, spoil) in cases {
        let place = Place::new();
        let db = place.home().join("ledger.db");
        spoil(&db);
        let (path, out) = Config::lora().write(&place, "run");
        place.run(&["--lora", &path]).expect(0).says(&["warning", "ledger.db", said, "ledger-pending.jsonl"]);
        assert!(out.join("ledger-pending.jsonl").exists());
        // Whoever asks the ledger itself is told what to do.
        place.run(&["runs"]).expect(code).says(&["ledger.db", said, "hint"]);
        fs::rename(&db, place.path("aside")).unwrap();
        // The next process in that folder hands the records over.
        place.run(&["resume", out.to_str().unwrap(), "--set", "max_steps=9"]).expect(0);
        assert!(!out.join("ledger-pending.jsonl").exists());
        assert_eq!(place.runs()[0]["status"], "done");
    }
}

#[test]
fn two_runs_are_compared_by_settings_cost_and_losses_and_the_second_was_called_near() {
    let place = Place::new();
    let config = Config::lora()
        .with("project", "\"support\"")
        .with("val_set_size", "3")
        .table("[cost]\nusd_per_hour = 3600");
    let (path, first) = config.write(&place, "first");
    place.run(&["--lora", &path]).expect(0);
    let second = place.path("second");
    let other = ["--set", "learning_rate=0.02", "--set", "purpose=final", "--set"];
    let output = format!("output_dir={}", second.display());
    let ended = place.run(&[&["--lora", &path], &other[..], &[&output]].concat()).expect(0);
    let runs = place.runs();
    let a = &runs[1];
    // Before it starts: which run it is near to, what that one cost, and the one key in which it differs.
    let near = format!("near run {} (", text(a, "run_id"));
    let said = ended.stderr.lines().collect::<Vec<_>>().join(" ");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains(&near), "{said}");
    assert!(said.contains("this one differs in learning_rate = 0.02 (then 0.01)"), "{said}");

    let compare = ["runs", "compare", text(a, "run_id"), second.to_str().unwrap()];
    let found = place.run(&[&compare[..], &["--json"]].concat()).expect(0).json();
    let settings: Vec<(&str, &Value)> =
        found["settings"].as_array().unwrap().iter().map(|s| (text(s, "key"), &s["values"])).collect();
    for (key, values) in [
        ("learning_rate", serde_json::json!(["0.01", "0.02"])),
        ("purpose", serde_json::json!(["\"experiment\"", "\"final\""])),
    ] {
        assert!(settings.contains(&(key, &values)), "{key}: {settings:?}");
    }
    assert!(settings.iter().all(|(key, _)| !key.starts_with("lora")), "{settings:?}");
    assert_eq!(found["same"], serde_json::json!({ "config": false, "data": true, "base": true }));
    let curve = |out: &Path| -> Vec<(u64, f64)> {
        let records = lines(&out.join("metrics.jsonl"));
        records.iter().map(|r| (r["step"].as_u64().unwrap(), r["loss"].as_f64().unwrap())).collect()
    };
    assert_eq!(found["loss"], serde_json::json!([curve(&first), curve(&second)]));
    let quantity = |name: &str| {
        let all = found["quantities"].as_array().unwrap();
        all.iter().find(|q| q["name"] == name).unwrap()["values"].clone()
    };
    let reports = [&first, &second].map(|out| json(&out.join("report.json")));
    for key in ["cost_usd", "wall_s", "step_s", "tokens_per_s", "peak_memory_bytes"] {
        for (value, report) in quantity(key).as_array().unwrap().iter().zip(&reports) {
            assert_eq!(value.as_f64(), report["measured"][key].as_f64(), "{key}");
        }
    }
    assert_eq!(quantity("eval_loss")[1], reports[1]["training"]["eval_after"]);
    // The second one's own report says which run it is nearest to, and in what it differs.
    let parent = &reports[1]["parent"];
    assert_eq!((text(parent, "run_id"), &parent["cost_usd"]), (text(a, "run_id"), &a["cost_usd"]));
    let differs = serde_json::json!([{ "key": "learning_rate", "then": "0.01", "now": "0.02" }]);
    assert_eq!(parent["differences"], differs);
    let page = fs::read_to_string(second.join("report.html")).unwrap();
    assert!(page.contains(&format!("Against run {}", text(a, "run_id"))));
    let shown = place.run(&compare).expect(0).stdout;
    for part in ["Settings that differ", "learning_rate", "Cost and result", "Loss by step"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn runs_are_filtered_and_their_money_is_summed_with_what_bought_nothing() {
    let place = Place::new();
    let config = |name: &str| {
        let config = Config::lora().with("max_steps", "2").table("[cost]\nusd_per_hour = 3600");
        config.with("project", &format!("{name:?}"))
    };
    let (path, _) = config("a").write(&place, "one");
    place.run(&["--lora", &path]).expect(0);
    let (path, _) = config("a").with("purpose", "\"final\"").write(&place, "again");
    place.run(&["--lora", &path]).expect(0).says(&["was done before"]);
    let (path, _) = config("b")
        .without("warmup_steps")
        .with("learning_rate", "1e30")
        .with("max_steps", "8")
        .write(&place, "broken");
    place.run(&["--lora", &path]).expect(7);
    let runs = place.runs();
    let cost = |n: usize| runs[n]["cost_usd"].as_f64().unwrap();
    let [broken, again, one] = [0, 1, 2].map(cost);
    assert!([broken, again, one].iter().all(|usd| *usd >= 1.0), "a dollar a second: {runs:?}");

    let spend = place.run(&["runs", "spend", "--json"]).expect(0).json();
    let usd = |of: &str, name: &str| {
        let sums = spend[of].as_array().unwrap();
        sums.iter().find(|sum| sum["name"] == name).unwrap()["cost_usd"].as_f64().unwrap()
    };
    for (of, name, wanted) in [
        ("by_project", "a", one + again),
        ("by_project", "b", broken),
        ("by_purpose", "experiment", one + broken),
        ("by_purpose", "final", again),
        ("by_status", "diverged", broken),
    ] {
        assert!((usd(of, name) - wanted).abs() < 1e-9, "{of} {name}: {spend}");
    }
    let lost =
        |of: &str| spend[of].as_array().unwrap().iter().map(|l| l["run_id"].clone()).collect::<Vec<_>>();
    assert_eq!(lost("failed"), [runs[0]["run_id"].clone()]);
    assert_eq!(lost("repeats"), [runs[1]["run_id"].clone()]);
    assert_eq!(spend["repeats"][0]["repeats"], runs[2]["run_id"]);
    for (filter, wanted) in [
        (&["--project", "b"][..], &[0][..]),
        (&["--purpose", "final"], &[1]),
        (&["--status", "done"], &[1, 2]),
        (&["--status", "diverged", "--status", "done", "--since", "1h"], &[0, 1, 2]),
        (&["--method", "full"], &[]),
    ] {
        let found = place.run(&[&["runs", "--json"], filter].concat()).expect(0).json();
        let ids: Vec<&Value> = found.as_array().unwrap().iter().map(|run| &run["run_id"]).collect();
        assert_eq!(ids, wanted.iter().map(|n| &runs[*n]["run_id"]).collect::<Vec<_>>(), "{filter:?}");
    }
}

/// Holds the ledger as a program does that has stopped in the middle of a write; `alone`: nobody may even read it.
fn hold(place: &Place, alone: bool) -> Connection {
    let held = Connection::open(place.home().join("ledger.db")).unwrap();
    if alone {
        held.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    }
    held.execute_batch("BEGIN IMMEDIATE; UPDATE runs SET step = step;").unwrap();
    held
}

#[test]
fn a_ledger_that_another_process_holds_delays_no_run_and_has_it_when_it_is_free() {
    for alone in [false, true] {
        let place = Place::new();
        let (path, unheld) = Config::lora().write(&place, "unheld");
        place.run(&["--lora", &path]).expect(0);
        let held = hold(&place, alone);
        let (path, out) = Config::lora().with("seed", "7").write(&place, "held");
        let begun = Instant::now();
        let mut running = place.start(&["--lora", &path]);
        assert!(running.wait_until(|| out.join("metrics.jsonl").exists()));
        let took = begun.elapsed();
        assert!(took < MOMENT, "{took:?} to the first step");
        let ended = running.end().expect(0);
        ended.says(&["warning", "ledger.db", "another process holds", "ledger-pending.jsonl"]);
        assert!(out.join("ledger-pending.jsonl").exists());
        // It took what it takes: no phase of its report waited for a ledger.
        let wall = |out: &Path| json(&out.join("report.json"))["measured"]["wall_s"].as_f64().unwrap();
        assert!(wall(&out) < wall(&unheld) + MOMENT.as_secs_f64());

        drop(held);
        place.run(&["resume", out.to_str().unwrap(), "--set", "max_steps=9"]).expect(0);
        assert!(!out.join("ledger-pending.jsonl").exists());
        let run = &place.runs()[0];
        assert_eq!((text(run, "output_dir"), text(run, "status")), (out.to_str().unwrap(), "done"));
        assert_eq!(run["wall_s"], json(&out.join("report.json"))["measured"]["wall_s"]);
    }
}

#[test]
fn a_ledger_that_is_free_again_while_the_run_goes_on_has_all_of_it_at_its_end() {
    let place = Place::new();
    place.run(&["runs"]).expect(0);
    let held = hold(&place, false);
    let (path, out) = Config::lora().with("max_steps", "200").write(&place, "run");
    let mut running = place.start(&["--lora", &path]);
    assert!(running.wait_until(|| out.join("metrics.jsonl").exists()));
    drop(held);
    running.end().expect(0).says(&["another process holds"]);
    assert!(!out.join("ledger-pending.jsonl").exists());
    let run = &place.runs()[0];
    assert_eq!(
        (text(run, "status"), &run["wall_s"]),
        ("done", &json(&out.join("report.json"))["measured"]["wall_s"])
    );
}

#[test]
fn a_ledger_of_an_older_version_is_brought_up_to_date_with_all_that_it_holds() {
    let place = Place::new();
    let (path, out) = Config::lora().with("max_steps", "2").write(&place, "old");
    place.run(&["--lora", &path]).expect(0);
    let db = place.home().join("ledger.db");
    // What the second schema did not have yet.
    let old = "ALTER TABLE samples DROP COLUMN parts; PRAGMA user_version = 2";
    Connection::open(&db).unwrap().execute_batch(old).unwrap();
    let (path, _) = Config::lora().with("max_steps", "2").with("seed", "7").write(&place, "new");
    let ended = place.run(&["--lora", &path]).expect(0);
    assert!(!ended.stderr.contains("ledger.db"), "{}", ended.stderr);
    let runs = place.runs();
    assert_eq!(runs.len(), 2);
    assert_eq!(text(&runs[1], "output_dir"), out.to_str().unwrap());
    let version: u32 =
        Connection::open(&db).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert!(version > 2, "{version}");
}

#[test]
fn an_evaluation_is_a_run_of_the_ledger_with_its_cost() {
    let place = Place::new();
    let config = Config::lora()
        .with("project", "\"support\"")
        .with("val_set_size", "3")
        .table("[cost]\nusd_per_hour = 3600");
    let (path, out) = config.write(&place, "run");
    place.run(&["--lora", &path]).expect(0);
    let folder = out.to_str().unwrap();
    let with = place.run(&["eval", folder, "--json"]).expect(0).json();
    let without = place.run(&["eval", folder, "--no-adapter"]).expect(0).stdout;
    let runs = place.runs();
    assert_eq!(runs.len(), 3);
    let [base, adapted, trained] = [&runs[0], &runs[1], &runs[2]];
    assert!(without.contains(text(base, "run_id")), "{without}");
    assert_eq!(adapted["run_id"], with["run_id"]);
    for key in ["cost_usd", "wall_s"] {
        assert_eq!(adapted[key], with[key], "{key}");
    }
    assert_eq!(adapted["loss"], with["loss"]["loss"]);
    // A dollar a second, billed by whole seconds.
    let wall_s = with["wall_s"].as_f64().unwrap();
    assert!((with["cost_usd"].as_f64().unwrap() - wall_s.ceil()).abs() < 1e-9, "{with}");
    let evaluations = place.run(&["runs", "--purpose", "evaluation", "--json"]).expect(0).json();
    assert_eq!(evaluations.as_array().unwrap().len(), 2);
    let spend = place.run(&["runs", "spend", "--project", "support", "--json"]).expect(0).json();
    let whole: f64 = runs.iter().filter_map(|run| run["cost_usd"].as_f64()).sum();
    assert!((spend["whole"]["cost_usd"].as_f64().unwrap() - whole).abs() < 1e-9);
    assert_eq!(spend["repeats"], serde_json::json!([]), "with and without the adapter are two questions");

    // The run's folder is still the run's.
    let shown = |run: &str| place.run(&["runs", "show", run, "--json"]).expect(0).json();
    assert_eq!(shown(folder)["run_id"], trained["run_id"]);
    let found = shown(text(adapted, "run_id"));
    assert_eq!((text(&found, "method"), text(&found, "purpose")), ("evaluation", "evaluation"));
    assert_eq!(found["settings"]["run"], Value::from(format!("{:?}", text(trained, "run_id"))));
    assert!(found["phases"].as_array().unwrap().iter().any(|phase| phase["name"] == "evaluate"), "{found}");
    let before_and_after = ["runs", "compare", text(base, "run_id"), text(adapted, "run_id"), "--json"];
    let compared = place.run(&before_and_after).expect(0).json();
    assert_eq!(compared["settings"].as_array().unwrap().len(), 1, "{compared}");
    assert_eq!(compared["settings"][0]["values"], serde_json::json!(["false", "true"]));
    let report = place.run(&["report", text(adapted, "run_id"), "--json"]).expect(0).json();
    assert_eq!((text(&report, "status"), &report["measured"]["cost_usd"]), ("done", &with["cost_usd"]));
    assert_eq!(json(&Path::new(text(adapted, "output_dir")).join("eval.json")), with);
    // Training again is compared with training.
    let next = Config::lora().with("val_set_size", "3").with("seed", "8");
    let (path, _) = next.write(&place, "next");
    let ended = place.run(&["--lora", &path]).expect(0);
    assert!(ended.stderr.contains(text(trained, "run_id")), "{}", ended.stderr);
}

#[test]
fn an_evaluation_that_fails_is_a_failed_run_and_one_without_a_ledger_judges_all_the_same() {
    let place = Place::new();
    let (path, out) = Config::lora().with("max_steps", "2").with("val_set_size", "3").write(&place, "run");
    place.run(&["--lora", &path]).expect(0);
    let folder = out.to_str().unwrap();
    let missing = place.path("none.jsonl");
    place.run(&["eval", folder, "--data", missing.to_str().unwrap()]).expect(3).says(&["none.jsonl"]);
    assert_eq!(text(&place.runs()[0], "status"), "failed");
    let whole = place.run(&["eval", folder, "--json"]).expect(0).json();
    // A file stands where the home would be.
    let home = place.path("a-file");
    fs::write(&home, "").unwrap();
    let ended = place.run_with(&["eval", folder, "--json"], "FTTRAIN_HOME", home.to_str().unwrap()).expect(0);
    let found = ended.says(&["warning", "without a ledger"]).json();
    assert_eq!((&found["loss"], &found["run_id"]), (&whole["loss"], &Value::Null));
    // There is no home at all.
    let mut command = place.command(&["eval", folder, "--json"]);
    command.envs([("FTTRAIN_HOME", ""), ("XDG_DATA_HOME", ""), ("HOME", "nowhere")]);
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("without a ledger"), "{said}");
    let found: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((&found["loss"], &found["run_id"]), (&whole["loss"], &Value::Null));
}

#[test]
fn what_the_ledger_could_not_take_of_an_evaluation_is_entered_by_the_next() {
    let place = Place::new();
    let (path, out) = Config::lora().with("max_steps", "2").with("val_set_size", "3").write(&place, "run");
    place.run(&["--lora", &path]).expect(0);
    let judge = ["eval", out.to_str().unwrap(), "--json"];
    // Something else stands where the ledger was.
    let (ledger, away) = (place.home().join("ledger.db"), place.home().join("away.db"));
    fs::rename(&ledger, &away).unwrap();
    fs::create_dir(&ledger).unwrap();
    let left = place.run(&judge).expect(0).says(&["warning", "ledger-pending.jsonl"]).json();
    let metered =
        place.run(&["meter", "--json", "--", "true"]).expect(0).says(&["ledger-pending.jsonl"]).json();
    fs::remove_dir(&ledger).unwrap();
    fs::rename(&away, &ledger).unwrap();
    assert_eq!(place.runs().len(), 1);
    let found = place.run(&judge).expect(0).json();
    let runs = place.runs();
    assert_eq!(runs.len(), 4);
    let of = |report: &Value| runs.iter().find(|run| run["run_id"] == report["run_id"]).unwrap();
    assert_eq!((text(of(&left), "status"), &of(&left)["cost_usd"]), ("done", &left["cost_usd"]));
    assert_eq!((text(of(&metered), "status"), text(of(&found), "status")), ("done", "done"));
    assert!(!Path::new(text(of(&left), "output_dir")).join("ledger-pending.jsonl").exists());
}

#[test]
fn only_an_evaluation_of_the_same_weights_by_the_same_rules_was_done_before() {
    let place = Place::new();
    let (path, out) = Config::lora().with("max_steps", "2").with("val_set_size", "3").write(&place, "run");
    place.run(&["--lora", &path]).expect(0);
    let folder = out.to_str().unwrap();
    let rules = Config::lora().with("val_set_size", "3").with("train_on_inputs", "true");
    let (rules, _) = rules.write(&place, "rules");
    let judge = |more: &[&str]| {
        let found = place.run(&[&["eval", folder, "--json"], more].concat()).expect(0).json();
        text(&found, "run_id").to_owned()
    };
    let first = judge(&[]);
    let by_others = judge(&["--config", &rules]);
    let spend = || place.run(&["runs", "spend", "--json"]).expect(0).json()["repeats"].clone();
    assert_eq!(spend(), serde_json::json!([]), "other rules");
    place.run(&["resume", folder, "--set", "max_steps=4"]).expect(0);
    let longer = judge(&[]);
    assert_eq!(spend(), serde_json::json!([]), "the run went on");
    let again = judge(&[]);
    let repeats = spend();
    assert_eq!((repeats.as_array().unwrap().len(), text(&repeats[0], "run_id")), (1, again.as_str()));
    assert_eq!(text(&repeats[0], "repeats"), longer);
    // What lies between the two is to be read.
    for (other, key) in [(&longer, "trained_sha256"), (&by_others, "rules.data.train_on_inputs")] {
        let compared = place.run(&["runs", "compare", &first, other, "--json"]).expect(0).json();
        let settings = compared["settings"].as_array().unwrap();
        assert_eq!(settings.iter().map(|setting| text(setting, "key")).collect::<Vec<_>>(), [key]);
    }
}
