//! What a program took and what it cost, against the operating system's own account; any program, with all that it
//! starts.

#[path = "support/run.rs"]
mod run;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike;
use run::{Config, Place, golden};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// Of the wall and the CPU time.
const AGREEMENT: f64 = 0.01;
/// What starting the accountant beside the work may take, s: a program of ten megabytes that is loaded.
const START_S: f64 = 0.1;
/// What a run of our own does before its meter starts and after it stops, s: reading the config, writing the report.
const OUTSIDE_S: f64 = 0.3;
/// Most of the wall time that metering may take, of a tree too.
const OVERHEAD: f64 = 0.005;
/// Of the peak, bytes.
const MEMORY: f64 = 1_048_576.0;

/// Two seconds of counting in two shells beside the one that waits for them, and 150 MB held by a fourth program.
const WORK: &str = "count() { i=0; while [ $i -lt 1200000 ]; do i=$((i+1)); done; }; \
                    head -c 150000000 /dev/zero | tail | wc -c; count & count & wait; sleep 0.5";

/// `fttrain meter` with these options in front of the command; the report.
fn meter(place: &Place, options: &[&str], command: &[&str]) -> Value {
    let arguments = [&["meter", "--json"], options, &["--"], command].concat();
    place.run(&arguments).expect(0).json()
}

/// What the operating system says of a command, else of [`WORK`]; run in a process of its own, whose only child it is.
#[test]
fn account_in_a_process_of_its_own() {
    let Ok(file) = std::env::var("FTTRAIN_ACCOUNT") else {
        return;
    };
    let asked = std::env::var("FTTRAIN_ACCOUNT_OF").ok();
    let command: Vec<String> = asked.map_or_else(
        || ["sh", "-c", WORK].map(str::to_owned).to_vec(),
        |text| serde_json::from_str(&text).unwrap(),
    );
    let begun = Instant::now();
    assert!(Command::new(&command[0]).args(&command[1..]).status().unwrap().success());
    let wall_s = begun.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    let account = serde_json::json!({
        "wall_s": wall_s, "cpu_s": cpu as f64 / 1e6, "peak_bytes": usage.max_rss() * 1024,
    });
    std::fs::write(file, account.to_string()).unwrap();
}

#[test]
fn time_processor_and_memory_agree_with_the_systems_account_and_metering_is_cheap() {
    let place = Place::new();
    let file = place.path("account.json");
    let account = format!("FTTRAIN_ACCOUNT={}", file.display());
    let program = std::env::current_exe().unwrap();
    let test = ["--exact", "account_in_a_process_of_its_own"];
    let command = [&["env", &account, program.to_str().unwrap()], &test[..]].concat();
    let report = meter(&place, &[], &command);

    let account: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let seen = &report["meter"];
    let figure = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("no {key} in {of}"));
    for key in ["wall_s", "cpu_s"] {
        let (system, metered) = (figure(&account, key), figure(seen, key));
        let most = AGREEMENT * system + START_S;
        assert!(metered >= system - 0.01 && metered - system <= most, "{key}: {metered} against {system}");
    }
    let (system, metered) = (figure(&account, "peak_bytes"), figure(seen, "largest_process_bytes"));
    assert!((metered - system).abs() <= MEMORY, "peak: {metered} against {system}");
    assert!(figure(seen, "peak_rss_bytes") >= metered, "{seen}");
    assert!(figure(seen, "processes") >= 4.0, "{seen}");

    let share = figure(seen, "meter_cpu_s") / figure(seen, "wall_s");
    assert!(share <= OVERHEAD, "the meter took {share} of the time");
}

#[test]
fn a_run_of_our_own_agrees_with_the_systems_account() {
    let place = Place::new();
    let rows = std::fs::read_to_string(golden("llama/rows.jsonl")).unwrap().repeat(40);
    let (config, out) = Config::lora()
        .rows(&place.file("rows.jsonl", &rows), "tokenized")
        // Steps that hold more than the writing of a report does.
        .with("micro_batch_size", "400")
        .with("gradient_accumulation_steps", "1")
        .with("max_steps", "10")
        .write(&place, "own");
    let file = place.path("account.json");
    let run = serde_json::json!([env!("CARGO_BIN_EXE_fttrain"), "--lora", config]);
    let mut account = Command::new(std::env::current_exe().unwrap());
    account.args(["--exact", "account_in_a_process_of_its_own"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    account.env("FTTRAIN_ACCOUNT", &file).env("FTTRAIN_ACCOUNT_OF", run.to_string());
    assert!(account.env("FTTRAIN_HOME", place.home()).output().unwrap().status.success());

    let account: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let report = run::json(&out.join("report.json"));
    for (key, metered) in [("wall_s", &report["measured"]["wall_s"]), ("cpu_s", &report["meter"]["cpu_s"])] {
        let (system, metered) = (account[key].as_f64().unwrap(), metered.as_f64().unwrap());
        let most = AGREEMENT * system + OUTSIDE_S;
        assert!(metered <= system && system - metered <= most, "{key}: {metered} against {system}");
    }
    let peak = |of: &Value, key: &str| of[key].as_f64().unwrap();
    let (system, metered) = (peak(&account, "peak_bytes"), peak(&report["measured"], "peak_memory_bytes"));
    assert!((metered - system).abs() <= MEMORY, "peak: {metered} against {system}");
    let share = report["meter"]["meter_cpu_s"].as_f64().unwrap() / peak(&report["measured"], "wall_s");
    assert!(share <= OVERHEAD, "the meter took {share} of the time");
}

#[test]
fn the_cost_is_the_price_times_the_billed_time_and_the_phases_are_the_whole() {
    let place = Place::new();
    let report = meter(&place, &["--usd-per-hour", "3.6", "--name", "nap"], &["sleep", "1.2"]);
    let wall_s = report["measured"]["wall_s"].as_f64().unwrap();
    assert!((1.2..2.0).contains(&wall_s), "{wall_s}");
    let billed = 0.001 * wall_s.ceil();
    assert!((report["measured"]["cost_usd"].as_f64().unwrap() - billed).abs() < 1e-9);
    let phases = report["phases"].as_array().unwrap();
    let sum = |key: &str| phases.iter().filter_map(|p| p[key].as_f64()).sum::<f64>();
    assert!((sum("wall_s") - wall_s).abs() < 1e-9 && (sum("cost_usd") - billed).abs() < 1e-9);
    let lines = report["costs"].as_array().unwrap();
    let lines: f64 = lines.iter().filter_map(|l| l["amount_usd"].as_f64()).sum();
    assert!((lines - billed).abs() < 1e-9);
    assert_eq!(
        (report["status"].as_str(), report["provenance"]["base"].as_str()),
        (Some("done"), Some("nap"))
    );

    let runs = place.runs();
    assert_eq!(runs[0]["run_id"], report["run_id"]);
    assert!((runs[0]["cost_usd"].as_f64().unwrap() - billed).abs() < 1e-9);
    let again = place.run(&["report", report["run_id"].as_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!(again, report);
    assert!(std::path::Path::new(runs[0]["output_dir"].as_str().unwrap()).join("report.html").is_file());
}

#[test]
fn exit_codes_pass_through_and_what_cannot_start_is_said() {
    let place = Place::new();
    let out = place.run(&["meter", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).expect(7);
    assert_eq!(out.stdout, "out\n");
    out.says(&["err", "the command ended with exit code 7", "report.html"]);
    place.run(&["meter", "--", "sh", "-c", "kill -9 $$"]).expect(137).says(&["signal 9 ended the command"]);
    place.run(&["meter", "--", "/no/such/program"]).expect(2).says(&["`/no/such/program` cannot be started"]);
    place.run(&["meter"]).expect(2);
    let statuses: Vec<Value> = place.runs().iter().map(|run| run["status"].clone()).collect();
    assert_eq!(statuses, ["failed", "failed", "failed"]);
}

#[test]
fn signals_reach_the_command_and_its_report_is_written() {
    let place = Place::new();
    let flag = place.path("ready");
    let script = format!("trap 'exit 5' TERM; touch {}; while :; do sleep 0.02; done", flag.display());
    let mut running = place.start(&["meter", "--", "sh", "-c", &script]);
    assert!(running.wait_until(|| flag.exists()));
    running.signal(Signal::SIGTERM);
    running.end().expect(5).says(&["exit code 5"]);
}

#[test]
fn what_outlives_the_command_is_pointed_out() {
    let place = Place::new();
    let report = meter(&place, &[], &["sh", "-c", "sleep 1.5 > /dev/null 2>&1 & sleep 0.3"]);
    assert!(
        report["warnings"][0].as_str().unwrap().starts_with("1 processes of the command go on"),
        "{report}"
    );
    assert!(report["measured"]["wall_s"].as_f64().unwrap() < 1.4);
}

#[test]
fn a_meter_that_is_killed_has_its_cost_in_the_ledger() {
    let place = Place::new();
    let running = place.start(&["meter", "--usd-per-hour", "3600", "--", "sleep", "4"]);
    std::thread::sleep(Duration::from_millis(2700));
    running.kill();
    let run = &place.runs()[0];
    assert_eq!(run["status"], "killed");
    assert!(run["wall_s"].as_f64().unwrap() >= 1.0 && run["cost_usd"].as_f64().unwrap() >= 1.0, "{run}");
}

#[test]
fn no_secret_of_the_command_line_is_kept() {
    let place = Place::new();
    let report = meter(&place, &[], &["env", "HF_TOKEN=topsecret", "true", "--api_key", "topsecret"]);
    assert_eq!(report["command"], serde_json::json!(["env", "HF_TOKEN=…", "true", "--api_key", "…"]));
    let ledger = std::fs::read(place.home().join("ledger.db")).unwrap();
    assert!(!ledger.windows(9).any(|w| w == b"topsecret"));
}

#[test]
fn an_equivalent_config_puts_its_estimate_beside() {
    let place = Place::new();
    let config = golden("llama/lora/run.toml");
    let report = meter(&place, &["--config", &config, "--usd-per-hour", "1"], &["sleep", "0.3"]);
    for key in ["wall_s", "peak_memory_bytes", "cost_usd"] {
        assert!(report["predicted"][key].is_number() && report["error_pct"][key].is_number(), "{key}");
    }
    assert!(report["interval"]["wall_s"]["low"].is_number());
}

/// A run of this program with tables of its own below its config; the report.
fn train(place: &Place, name: &str, tables: &str) -> Value {
    let (config, out) = Config::lora().with("max_steps", "2").table(tables).write(place, name);
    place.run(&["--lora", &config]).expect(0);
    run::json(&out.join("report.json"))
}

#[test]
fn energy_that_nobody_can_measure_is_modelled_and_the_grids_carbon_follows() {
    let place = Place::new();
    let report = train(
        &place,
        "a",
        "[cost]\nhardware_usd = 2000\nhardware_life_hours = 10000\nusd_per_kwh = 0.3\nregion = \"Paris\"",
    );
    let parts = report["energy"].as_array().unwrap();
    assert!(!parts.is_empty() && parts.iter().all(|p| p["source"].is_string()));
    let kinds: Vec<&str> = parts.iter().map(|p| p["kind"].as_str().unwrap()).collect();
    let (measured, modelled) = (&report["measured"]["energy_j"], &report["modelled"]["energy_j"]);
    let whole =
        match kinds.iter().max_by_key(|k| ["measured", "modelled", "unknown"].iter().position(|w| w == *k)) {
            Some(&"measured") => measured,
            Some(&"modelled") => modelled,
            _ => &Value::Null,
        };
    assert!(measured.is_null() || modelled.is_null());
    if let Some(joules) = whole.as_f64() {
        assert!(joules > 0.0);
        let grams = report["carbon"]["grams"].as_f64().unwrap();
        assert!((grams - joules / 3.6e6 * 15.83).abs() < 1e-9 * grams.max(1.0));
        let electricity = report["costs"].as_array().unwrap().iter().find(|l| l["category"] == "electricity");
        let usd = electricity.unwrap()["amount_usd"].as_f64().unwrap();
        assert!((usd - joules / 3.6e6 * 0.3).abs() < 1e-12);
    } else {
        assert!(report["measured"]["cost_usd"].is_null() && report["modelled"]["cost_usd"].is_null());
    }
}

#[test]
fn looks_come_as_often_as_they_are_asked_for_and_each_belongs_to_a_phase() {
    let place = Place::new();
    let often = train(&place, "often", "[meter]\ninterval_ms = 10");
    let seldom = train(&place, "seldom", "[meter]\ninterval_ms = 60000");
    let looks = |report: &Value| report["meter"]["looks"].as_u64().unwrap();
    assert_eq!(looks(&seldom), 2, "the first and the last");
    // Of the fifty or more that fit, most: a busy machine wakes a thread late.
    let wall_s = often["measured"]["wall_s"].as_f64().unwrap();
    assert!(looks(&often) as f64 > 20.0 * wall_s, "{} in {wall_s} s", looks(&often));
    // No step looks for itself: its record has what the meter saw last.
    let steps = run::lines(&place.path("seldom").join("metrics.jsonl"));
    assert!(steps.len() == 2 && steps[0]["rss_bytes"].is_u64());
    assert_eq!(steps[0]["rss_bytes"], steps[1]["rss_bytes"]);
    for report in [&often, &seldom] {
        let phases: Vec<&Value> = report["phases"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
        let moments = report["timeline"].as_array().unwrap();
        assert!(!moments.is_empty() && moments.iter().all(|m| phases.contains(&&m["phase"])), "{report}");
        assert!(
            report["meter"]["meter_cpu_s"].as_f64().unwrap() > 0.0,
            "what it took itself is in every report"
        );
    }
}

#[test]
fn the_machine_is_paid_for_from_its_start_or_from_the_last_run_on_it() {
    let place = Place::new();
    let tables = "[cost]\nusd_per_hour = 36\nbill_from = \"boot\"\nrelease_after_s = 60";
    let first = train(&place, "a", tables);
    let second = train(&place, "b", tables);
    for (report, name) in [(&first, "set-up"), (&second, "idle before")] {
        let phases = report["phases"].as_array().unwrap();
        let beside: Vec<&str> =
            phases.iter().filter(|p| p["beside"] == true).map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(beside, [name, "until release"]);
        let own = phases.iter().filter(|p| p["beside"] != true).filter_map(|p| p["wall_s"].as_f64());
        assert!((own.sum::<f64>() - report["measured"]["wall_s"].as_f64().unwrap()).abs() < 1e-6);
        let cost: f64 = phases.iter().filter_map(|p| p["cost_usd"].as_f64()).sum();
        assert!((cost - report["measured"]["cost_usd"].as_f64().unwrap()).abs() < 1e-9);
        assert!(cost >= 0.6, "a minute is stated");
    }
    let paid = |report: &Value| report["phases"][0]["wall_s"].as_f64().unwrap();
    assert!(paid(&second) < 60.0 && paid(&second) < paid(&first), "{} {}", paid(&first), paid(&second));
}

#[test]
fn a_run_that_goes_on_is_still_billed_for_the_set_up_before_it() {
    let place = Place::new();
    let tables = "[cost]\nusd_per_hour = 36\nbill_from = \"boot\"";
    let (config, out) = Config::lora().with("max_steps", "2").table(tables).write(&place, "a");
    place.run(&["--lora", &config]).expect(0);
    let before = run::json(&out.join("report.json"));
    place.run(&["resume", out.to_str().unwrap(), "--set", "max_steps=4"]).expect(0);
    let after = run::json(&out.join("report.json"));
    let paid = |report: &Value, name: &str| {
        let phases = report["phases"].as_array().unwrap();
        phases.iter().find(|p| p["name"] == name && p["beside"] == true).unwrap()["wall_s"].as_f64().unwrap()
    };
    assert!((paid(&after, "set-up") - paid(&before, "set-up")).abs() < 1e-6, "{after}");
    assert!((0.0..60.0).contains(&paid(&after, "idle before")), "{after}");
    let phases = after["phases"].as_array().unwrap();
    let cost: f64 = phases.iter().filter_map(|p| p["cost_usd"].as_f64()).sum();
    assert!((cost - after["measured"]["cost_usd"].as_f64().unwrap()).abs() < 1e-9);
}

#[test]
fn the_price_table_is_listed_and_filtered() {
    let place = Place::new();
    let rows = place.run(&["prices", "--gpu", "h100", "--max-usd", "4", "--json"]).expect(0).json();
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 2 && rows.iter().all(|r| r["usd_per_hour"].as_f64().unwrap() <= 4.0));
    assert!(rows.iter().all(|r| r["accelerator"] == "H100" && r["source"].is_string()));
    let text = place.run(&["prices", "--provider", "lambda"]).expect(0).stdout;
    assert!(text.contains("lambda/gpu_1x_gh200") && text.contains("days old"), "{text}");
    place.run(&["prices", "--gpu", "abacus"]).expect(2).says(&["no row of the price table"]);
    let own = place.file("own.csv", "provider,instance,accelerator,usd_per_hour_on_demand,source,as_of\nme,box,H100,0.5,mine,2026-11-01\n");
    let rows = place.run(&["prices", "--gpu", "H100", "--price-file", &own, "--json"]).expect(0).json();
    assert_eq!(rows[0]["machine"], "me/box");
}
