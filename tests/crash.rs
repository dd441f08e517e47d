//! Killed at any instant, or with the disk failing under it, a run ends with the bytes of one that was left alone; and
//! the ledger opens and knows what was spent.

#[path = "support/run.rs"]
mod run;

use run::{Config, Ended, Place, assert_same, golden, json, lines, names};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Instants, spread over the time that the run takes when it is left alone.
const KILLS: u32 = 12;

/// Most that a ledger may miss of a killed run: a heartbeat, and what a busy machine adds to it.
const MISSED_S: f64 = 1.5;

/// A run that commits often; its steps take long enough for a kill to meet one.
fn busy(place: &Place, name: &str) -> (String, PathBuf) {
    let rows = place.path("rows.jsonl");
    fs::write(&rows, fs::read_to_string(golden("llama/rows.jsonl")).unwrap().repeat(10)).unwrap();
    Config::lora()
        .rows(rows.to_str().unwrap(), "tokenized")
        .with("max_steps", "12")
        .with("save_steps", "2")
        .with("save_total_limit", "2")
        .with("eval_steps", "5")
        .with("val_set_size", "4")
        .with("gradient_accumulation_steps", "8")
        .table("[cost]\nusd_per_hour = 3600")
        .write(place, name)
}

/// How a run that did not end is brought to its end: gone on with where there is something to go on with.
fn go_on<'a>(config: &'a str, out: &'a Path) -> [&'a str; 2] {
    if out.join("config.resolved.toml").exists() {
        ["resume", out.to_str().unwrap()]
    } else {
        ["--lora", config]
    }
}

#[test]
fn a_run_killed_at_any_instant_ends_with_the_same_bytes() {
    let place = Place::new();
    let (config, unbroken) = busy(&place, "unbroken");
    place.run(&["--lora", &config]).expect(0);
    let whole = json(&unbroken.join("report.json"))["measured"]["wall_s"].as_f64().unwrap();
    let beside = names(unbroken.parent().unwrap());
    for nth in 0..KILLS {
        let name = format!("killed{nth}");
        let (config, out) = busy(&place, &name);
        let instant = Duration::from_secs_f64(whole * (f64::from(nth) + 0.5) / f64::from(KILLS));
        // Some are killed again while they go on.
        for _ in 0..=nth % 3 {
            let running = place.start(&go_on(&config, &out));
            thread::sleep(instant);
            let ended = running.kill();
            assert!([-9, 0].contains(&ended.code), "{}", ended.stderr);
            ledger_knows(&place, &out, &ended);
        }
        let last = place.run(&go_on(&config, &out)).expect(0);
        assert!(!last.stderr.contains("skipped"), "a kill breaks no checkpoint:\n{}", last.stderr);
        assert_same(&unbroken, &out, &format!("killed after {instant:?}"));
        let left = names(&out).into_iter().chain(names(&out.join("checkpoints")));
        assert!(left.clone().all(|name| !name.starts_with(".tmp") && !name.starts_with(".trash")));
        let others = names(out.parent().unwrap()).into_iter().filter(|n| !n.starts_with("killed"));
        assert_eq!(others.collect::<Vec<_>>(), beside, "nothing outside the run's folder");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// The ledger opens, and a killed run that took steps is there with what it has cost.
fn ledger_knows(place: &Place, out: &Path, ended: &Ended) {
    let runs = place.runs();
    let folder = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    let row = runs.iter().find(|row| row["output_dir"] == folder.to_str().unwrap());
    let steps = if out.join("metrics.jsonl").exists() { whole_lines(&out.join("metrics.jsonl")) } else { 0 };
    if let (true, Some(row)) = (ended.code == -9, row) {
        assert!(row["status"] == "killed" || row["status"] == "done", "{row}");
    }
    if steps >= 2 {
        let row = row.unwrap_or_else(|| panic!("{steps} steps and no run in the ledger"));
        assert!(row["cost_usd"].as_f64().is_some_and(|usd| usd > 0.0), "{row}");
    }
}

fn whole_lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().matches('\n').count()
}

#[test]
fn seconds_that_a_kill_took_back_are_paid_for() {
    let place = Place::new();
    let rows = place.path("rows.jsonl");
    fs::write(&rows, fs::read_to_string(golden("llama/rows.jsonl")).unwrap().repeat(40)).unwrap();
    let config = Config::lora()
        .rows(rows.to_str().unwrap(), "tokenized")
        .with("max_steps", "400")
        .with("save_steps", "400")
        .with("gradient_accumulation_steps", "60")
        .table("[cost]\nusd_per_hour = 3600");
    let (path, out) = config.write(&place, "run");
    let mut running = place.start(&["--lora", &path]);
    let begun = std::time::Instant::now();
    // The ledger hears of a run once a second.
    let heard = || place.runs().first().and_then(|run| run["wall_s"].as_f64()).is_some_and(|s| s > 1.0);
    assert!(running.wait_until(heard));
    let lived = begun.elapsed().as_secs_f64();
    running.kill().expect(-9);
    let killed = place.runs()[0].clone();
    assert!(killed["wall_s"].as_f64().unwrap() > lived - MISSED_S, "{lived} s: {killed}");
    assert!(killed["cost_usd"].as_f64().unwrap() > 1.0, "a dollar a second: {killed}");
    place.run(&["resume", out.to_str().unwrap(), "--set", "max_steps=3"]).expect(0);
    let report = json(&out.join("report.json"));
    let phases = report["phases"].as_array().unwrap();
    let lost = phases.iter().find(|phase| phase["name"] == "lost to a kill").unwrap();
    assert!(lost["cost_usd"].as_f64().unwrap() > 1.0, "{lost}");
    assert!(report["measured"]["wall_s"].as_f64() > killed["wall_s"].as_f64());
    assert!(report["measured"]["cost_usd"].as_f64() >= killed["cost_usd"].as_f64());
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 3);
}

/// The place of a run that was killed as soon as the ledger knew of a second of it, with its rows, its config and the folder
/// that it would have made once its data were read.
fn killed_over_its_data(times: usize) -> (Place, PathBuf, String, PathBuf) {
    let place = Place::new();
    let rows = place.path("rows.jsonl");
    fs::write(&rows, fs::read_to_string(golden("llama/rows.jsonl")).unwrap().repeat(times)).unwrap();
    let config = Config::lora().with("max_steps", "2").table("[cost]\nusd_per_hour = 3600");
    let (path, out) = config.rows(rows.to_str().unwrap(), "tokenized").write(&place, "run");
    let mut running = place.start(&["--lora", &path]);
    let heard = || place.runs().first().and_then(|run| run["wall_s"].as_f64()).is_some_and(|s| s > 1.0);
    if running.wait_until(heard) {
        running.kill();
    }
    (place, rows, path, out)
}

#[test]
fn a_run_killed_over_its_data_has_its_cost_and_its_report_though_another_has_its_folder() {
    // More data for a machine that has read them before the ledger hears of the run.
    let mut tries = [60_000, 240_000, 960_000].into_iter().map(killed_over_its_data);
    let (place, rows, path, out) =
        tries.find(|(.., out)| !out.exists()).expect("data that take over a second");
    let killed = place.runs()[0].clone();
    assert_eq!(killed["status"], "killed");
    assert!(killed["cost_usd"].as_f64().unwrap() >= 2.0, "{killed}");
    let id = killed["run_id"].as_str().unwrap();
    let report = |run: &str| place.run(&["report", run, "--json"]).expect(0).json();
    assert_eq!(report(id)["measured"]["wall_s"], killed["wall_s"]);

    fs::write(&rows, fs::read_to_string(golden("llama/rows.jsonl")).unwrap()).unwrap();
    place.run(&["--lora", &path]).expect(0);
    assert_eq!(place.runs().len(), 2, "it is another run");
    assert_eq!((&report(id)["status"], &report(id)["run_id"]), (&"killed".into(), &killed["run_id"]));
    assert_eq!(report(out.to_str().unwrap())["status"], "done");
    place.run(&["resume", id]).expect(2).says(&[id, "'s now"]);
    // The ledger has a report of a run whose folder is gone.
    let kept = report(out.to_str().unwrap());
    fs::remove_dir_all(&out).unwrap();
    let remembered = report(kept["run_id"].as_str().unwrap());
    for key in ["run_id", "status", "measured", "phases", "memory_parts"] {
        assert_eq!(remembered[key], kept[key], "{key}");
    }
}

/// A run of some minutes, killed as often as this at moments that have nothing to do with its own: while it reads its
/// data, while it loads, while it trains.
#[test]
#[ignore = "needs three minutes"]
fn killed_at_fifty_moments_the_ledger_misses_no_more_than_a_heartbeat() {
    let place = Place::new();
    let rows = place.path("rows.jsonl");
    let mut seed = u64::from(std::process::id());
    let (mut known, mut prepared, mut trained) = (0, 0, 0);
    // A machine and a build take their time over data: the moments lie around the first step of the first run.
    let mut first_step = Duration::ZERO;
    for nth in 0..=50 {
        let name = format!("run{nth}");
        // Other data each time, or the tokenised ones of the run before would be at hand.
        let times = if cfg!(debug_assertions) { 2000 } else { 8000 } + nth;
        fs::write(&rows, fs::read_to_string(golden("llama/rows.jsonl")).unwrap().repeat(times)).unwrap();
        let config = Config::lora()
            .rows(rows.to_str().unwrap(), "tokenized")
            .with("max_steps", "100000")
            .with("save_steps", "50")
            .with("save_total_limit", "1")
            .with("gradient_accumulation_steps", "40")
            .with("seed", &nth.to_string())
            .table("[cost]\nusd_per_hour = 3600");
        let (path, out) = config.write(&place, &name);
        let mut running = place.start(&["--lora", &path]);
        let begun = std::time::Instant::now();
        if nth == 0 {
            assert!(running.wait_until(|| out.join("metrics.jsonl").exists()));
            first_step = begun.elapsed();
            running.kill().expect(-9);
            continue;
        }
        // The generator of Numerical Recipes: only its spread matters.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (seed >> 33) as f64 / f64::from(1_u32 << 31);
        thread::sleep(Duration::from_millis(200) + first_step.mul_f64(2.0 * share));
        let lived = begun.elapsed().as_secs_f64();
        running.kill().expect(-9);
        let folder = out.canonicalize().unwrap_or_else(|_| out.clone());
        let runs = place.runs();
        let Some(row) = runs.iter().find(|row| row["output_dir"] == folder.to_str().unwrap()) else {
            assert!(lived < MISSED_S, "{lived} s, and the ledger has no run");
            continue;
        };
        assert_eq!(row["status"], "killed");
        *(if out.join("metrics.jsonl").exists() { &mut trained } else { &mut prepared }) += 1;
        let wall_s = row["wall_s"].as_f64().unwrap_or(0.0);
        assert!(wall_s > lived - MISSED_S, "{lived} s: {row}");
        // A dollar a second, billed by whole seconds.
        let cost = row["cost_usd"].as_f64().unwrap_or(0.0);
        assert!((cost - wall_s.ceil()).abs() < 1e-9, "{row}");
        known += 1;
    }
    println!("of {known} runs {prepared} were killed before and {trained} after their model was loaded");
    assert!(known > 30, "only {known} of the runs had begun");
    assert!(prepared > 3 && trained > 3, "{prepared} before and {trained} after their model was loaded");
}

/// Every durable operation of a run, and every way in which it can fail. `cargo test --release --features faults
/// --test crash -- --ignored`
#[cfg(feature = "faults")]
mod faults {
    use super::*;

    /// How an operation fails, and how many operations lie between two that are tried.
    const MODES: [(&str, usize); 7] =
        [("kill", 1), ("enospc", 1), ("once", 3), ("eio", 3), ("edquot", 5), ("eintr", 5), ("short", 5)];

    fn tiny(place: &Place) -> (String, PathBuf) {
        Config::lora()
            .with("max_steps", "6")
            .with("save_steps", "2")
            .with("save_total_limit", "1")
            .with("val_set_size", "3")
            .with("sample_prompts", "[\"w5\"]")
            .write(place, "run")
    }

    /// Lets operation `nth` fail; false where the run has no such operation.
    fn survives(unbroken: &Path, nth: usize, mode: &str) -> bool {
        let what = format!("FTTRAIN_FAULT={nth}:{mode}");
        let place = Place::new();
        let (config, out) = tiny(&place);
        let broken = place.run_with(&["--lora", &config], "FTTRAIN_FAULT", &format!("{nth}:{mode}"));
        let fired = broken.stderr.contains("fault: ");
        let codes: &[i32] = if mode == "kill" && fired { &[-9] } else { &[0, 5] };
        assert!(codes.contains(&broken.code), "{what}: {}\n{}", broken.code, broken.stderr);
        if broken.code != 0 {
            let ended = place.run(&go_on(&config, &out)).expect(0);
            assert!(!ended.stderr.contains("skipped"), "{what}:\n{}", ended.stderr);
        }
        assert_same(unbroken, &out, &what);
        assert_eq!(names(out.parent().unwrap()), ["home", "run", "run.toml"], "{what}");
        // Where the whole disk fails to the end there is no place for records, and that is said.
        let kept = names(&out).contains(&"ledger-pending.jsonl".to_owned());
        let excused = kept || broken.stderr.contains("goes on without a ledger");
        assert!(excused || place.runs()[0]["status"] == "done", "{what}\n{}", broken.stderr);
        fired
    }

    #[test]
    #[ignore = "needs --features faults, and two minutes"]
    fn a_run_survives_the_failure_of_any_durable_operation() {
        let place = Place::new();
        let (config, unbroken) = tiny(&place);
        place.run(&["--lora", &config]).expect(0);
        thread::scope(|scope| {
            for (mode, stride) in MODES {
                let unbroken = &unbroken;
                scope.spawn(move || {
                    let tried =
                        (1..).step_by(stride).take_while(|nth| survives(unbroken, *nth, mode)).count();
                    assert!(tried * stride > 50, "{mode}: only {tried} operations");
                    println!("{mode}: {tried} operations");
                });
            }
        });
    }
}
