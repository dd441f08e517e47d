//! A run that was killed or stopped ends with the bytes of one that was not, from whatever step it goes on; and what
//! must not go on is refused.

#[path = "support/run.rs"]
mod run;

use nix::sys::signal::Signal;
use run::{Config, Place, assert_same, checkpoint, copy, golden, json, lines, names, quoted, result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// What a kill after the commit of `step` leaves of a finished run: later records, and a line that was cut.
fn kill_after(finished: &Path, out: &Path, step: u64) {
    copy(finished, out);
    for name in names(out) {
        if name.contains("model") || name.contains("report") || name.contains("tokenizer") {
            fs::remove_file(out.join(name)).unwrap();
        }
    }
    for name in names(&out.join("checkpoints")) {
        if name.trim_start_matches("step-").parse::<u64>().unwrap() > step {
            fs::remove_dir_all(out.join("checkpoints").join(name)).unwrap();
        }
    }
    let path = out.join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let next = usize::try_from(step).unwrap() + 1;
    let torn = ends.get(next).map_or(text.len(), |end| end - 5);
    fs::write(path, &text[..torn]).unwrap();
}

/// From every kind of position: 4 steps an epoch, 3 steps of warm-up, 12 steps.
fn resumes_from_every_position(flag: &str, config: Config) {
    let place = Place::new();
    let config = config
        .with("val_set_size", "3")
        .with("eval_steps", "3")
        .with("save_steps", "1")
        .with("warmup_steps", "3")
        .with("max_steps", "12");
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&[flag, &path]).expect(0);
    let epochs: Vec<f64> =
        lines(&unbroken.join("metrics.jsonl")).iter().map(|line| line["epoch"].as_f64().unwrap()).collect();
    assert_eq!((epochs[3], epochs[7]), (1.0, 2.0));
    for (step, what) in [
        (1, "the first step"),
        (2, "warm-up"),
        (6, "the middle of an epoch"),
        (4, "the last step of an epoch"),
        (5, "the first step of the next"),
        (11, "the last step but one"),
        (12, "the last step, before the result was saved"),
    ] {
        let out = place.path(&format!("killed{step}"));
        kill_after(&unbroken, &out, step);
        let newest = format!("step-{step:08}");
        place.run(&["resume", out.to_str().unwrap()]).expect(0).says(&["going on from", &newest]);
        assert_same(&unbroken, &out, what);
        assert_eq!(json(&out.join("report.json"))["status"], "done", "{what}");
    }
}

#[test]
fn an_adapter_resumes_from_every_kind_of_position() {
    resumes_from_every_position("--lora", Config::lora());
}

#[test]
fn full_fine_tuning_resumes_from_every_kind_of_position() {
    resumes_from_every_position("--full", full());
}

/// Stopped in the middle, gone on with: the bytes of a run that was not.
fn resumes_in_the_middle(flag: &str, config: Config, what: &str) {
    let place = Place::new();
    let config = config.with("save_steps", "1").with("warmup_steps", "2").with("max_steps", "6");
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&[flag, &path]).expect(0);
    let out = place.path("killed");
    kill_after(&unbroken, &out, 3);
    place.run(&["resume", out.to_str().unwrap()]).expect(0);
    assert_same(&unbroken, &out, what);
}

#[test]
fn every_kind_of_adapter_resumes() {
    for (key, value) in
        [("use_dora", "true"), ("init_lora_weights", "\"pissa\""), ("rank_pattern", "{ q_proj = 3 }")]
    {
        resumes_in_the_middle("--lora", Config::lora().with(key, value), key);
    }
}

#[test]
fn every_optimizer_resumes() {
    for optimizer in ["adamw_8bit", "adafactor", "lion", "sgd"] {
        let config = full().with("optimizer", &format!("{optimizer:?}"));
        resumes_in_the_middle("--full", config, optimizer);
    }
    let config = full().with("optimizer", "\"sgd\"").with("momentum", "0.9");
    resumes_in_the_middle("--full", config, "sgd with momentum");
}

#[test]
fn weights_in_bf16_resume_with_the_same_draws() {
    let narrow = || full().with("master_weights", "\"bf16\"");
    resumes_in_the_middle("--full", narrow(), "bf16 weights");
    let early = narrow().with("gradient_accumulation_steps", "1").with("max_grad_norm", "0");
    resumes_in_the_middle(
        "--full",
        early.with("optimizer_in_backward", "true"),
        "updates in the backward pass",
    );
}

#[test]
fn what_holds_on_to_the_start_holds_a_resumed_run_alike() {
    let held = |config: Config| {
        let old =
            format!("[[retention_datasets]]\npath = {:?}\ntype = \"tokenized\"", golden("llama/rows.jsonl"));
        config.with("l2_sp", "0.1").with("ewc", "10").with("retention_share", "0.25").table(&old)
    };
    resumes_in_the_middle("--full", held(full()), "full fine-tuning that is held");
    resumes_in_the_middle("--lora", held(Config::lora()), "an adapter that is held");
    let early = full().with("gradient_accumulation_steps", "1").with("max_grad_norm", "0");
    let early = early.with("optimizer_in_backward", "true").with("master_weights", "\"bf16\"");
    resumes_in_the_middle("--full", held(early), "bf16 weights that are held in the backward pass");
}

fn full() -> Config {
    Config::lora().without("lora_r").without("lora_dropout").with("weight_decay", "0.1")
}

/// Twenty steps that take long enough to be watched.
fn slow(place: &Place) -> Config {
    let text = fs::read_to_string(golden("llama/rows.jsonl")).unwrap().repeat(40);
    let rows = place.file("rows.jsonl", &text);
    Config::lora()
        .rows(&rows, "tokenized")
        .with("max_steps", "20")
        .with("save_steps", "5")
        .with("eval_steps", "8")
        .with("val_set_size", "4")
        .with("gradient_accumulation_steps", "40")
        .table("[cost]\nusd_per_hour = 3600\nbilling_granularity_s = 1")
}

#[test]
fn a_run_killed_after_a_commit_ends_with_the_bytes_of_one_that_was_not() {
    let place = Place::new();
    let config = slow(&place);
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&["--lora", &path]).expect(0);
    let (path, out) = config.write(&place, "killed");
    let mut running = place.start(&["--lora", &path]);
    assert!(running.wait_until(|| checkpoint(&out, 10).exists()));
    running.kill().expect(-9);
    assert!(!checkpoint(&out, 20).exists(), "the run ended before it was killed");
    assert!(!out.join("adapter_model.safetensors").exists());

    let killed = place.runs()[0].clone();
    assert_eq!(killed["status"], "killed");
    assert!(killed["cost_usd"].as_f64().unwrap() > 0.0 && killed["wall_s"].as_f64().unwrap() > 0.0);
    let report = place.run(&["report", out.to_str().unwrap()]).expect(0).stdout;
    assert!(report.contains("killed"), "{report}");
    place.run(&["--lora", &path]).expect(8).says(&["did not finish", "fttrain resume"]);

    place.run(&["resume", killed["run_id"].as_str().unwrap()]).expect(0);
    assert_same(&unbroken, &out, "killed");
    let runs = place.runs();
    assert_eq!(runs.len(), 2, "a resumed run is one run");
    assert_eq!((&runs[0]["status"], &runs[0]["run_id"]), (&"done".into(), &killed["run_id"]));
    let report = json(&out.join("report.json"));
    let phases = report["phases"].as_array().unwrap();
    let phase = |name: &str| phases.iter().find(|p| p["name"] == name).and_then(|p| p["wall_s"].as_f64());
    assert!(phase("before the resume").is_some_and(|s| s > 0.0), "{phases:?}");
    let all: f64 = phases.iter().map(|p| p["wall_s"].as_f64().unwrap()).sum();
    assert!((all - report["measured"]["wall_s"].as_f64().unwrap()).abs() < 1e-6);
    assert!(report["measured"]["wall_s"].as_f64() > killed["wall_s"].as_f64());
}

#[test]
fn a_signal_ends_a_run_after_a_commit_and_says_how_to_go_on() {
    let place = Place::new();
    let config = slow(&place);
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&["--lora", &path]).expect(0);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let (path, out) = config.write(&place, signal.as_str());
        let mut running = place.start(&["--lora", &path]);
        let steps = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count();
        assert!(running.wait_until(|| steps() >= 3));
        running.signal(signal);
        let folder = out.to_str().unwrap();
        running.end().expect(code).says(&[&format!("fttrain resume {folder}")]);
        let taken = steps() as u64;
        assert!(taken < 20, "the run ended before it was asked to");
        assert!(checkpoint(&out, taken).exists(), "every step that was taken is kept");
        assert_eq!(json(&out.join("report.json"))["status"], "stopped");
        assert_eq!(place.runs()[0]["status"], "stopped");
        place.run(&["report", folder]).expect(0);
        place.run(&["resume", folder]).expect(0);
        assert_same(&unbroken, &out, signal.as_str());
        assert_eq!(place.runs()[0]["status"], "done");
    }
}

#[test]
fn a_config_may_ask_for_the_resume_itself() {
    let place = Place::new();
    let config = slow(&place).with("auto_resume_from_checkpoints", "true");
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&["--lora", &path]).expect(0);
    let (path, out) = config.write(&place, "killed");
    let mut running = place.start(&["--lora", &path]);
    assert!(running.wait_until(|| checkpoint(&out, 5).exists()));
    running.kill().expect(-9);
    place.run(&["--lora", &path]).expect(0).says(&["going on from"]);
    assert_same(&unbroken, &out, "auto_resume_from_checkpoints");
    place.run(&["--lora", &path]).expect(0).says(&["nothing to do"]);
}

#[test]
fn a_run_killed_before_its_first_commit_begins_again_under_its_name() {
    let place = Place::new();
    let config = slow(&place).with("save_steps", "19");
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&["--lora", &path]).expect(0);
    let (path, out) = config.write(&place, "killed");
    let mut running = place.start(&["--lora", &path]);
    assert!(running.wait_until(|| {
        fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|text| text.lines().count() > 2)
    }));
    running.kill().expect(-9);
    let killed = place.runs()[0].clone();
    place.run(&["resume", out.to_str().unwrap()]).expect(0);
    assert_same(&unbroken, &out, "killed before a commit");
    assert_eq!(place.runs()[0]["run_id"], killed["run_id"]);
    assert_eq!(place.runs().len(), 2);
}

/// A finished run of eight steps; its folder.
fn finished(place: &Place, config: Config) -> PathBuf {
    let (path, out) = config.with("save_steps", "4").write(place, "run");
    place.run(&["--lora", &path]).expect(0);
    out
}

#[test]
fn a_finished_run_has_nothing_to_do_until_more_steps_are_asked_for() {
    let place = Place::new();
    let out = finished(&place, Config::lora().with("lr_scheduler", "\"constant\""));
    let folder = out.to_str().unwrap();
    let before = run::files(&out);
    for more in [&[][..], &["--set", "max_steps=6"], &["--set", "max_steps=8"]] {
        place.run(&[&["resume", folder], more].concat()).expect(0).says(&["nothing to do"]);
    }
    assert!(run::files(&out) == before);
    place.run(&["resume", folder, "--set", "max_steps=12"]).expect(0);
    assert!(checkpoint(&out, 12).exists());
    let longer = place.path("longer");
    let (path, _) =
        Config::lora().with("lr_scheduler", "\"constant\"").with("save_steps", "4").write(&place, "longer");
    place.run(&["--lora", &path, "--set", "max_steps=12"]).expect(0);
    assert_same(&longer, &out, "with a constant rate, later steps do not depend on their number");
    assert_eq!(json(&out.join("report.json"))["training"]["planned_steps"], 12);
}

#[test]
fn a_finished_run_without_its_checkpoints_is_left_as_it_is() {
    let place = Place::new();
    let out = finished(&place, Config::lora());
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let (folder, before) = (out.to_str().unwrap(), run::files(&out));
    let known = place.runs();
    place.run(&["resume", folder]).expect(0).says(&["nothing to do"]);
    place.run(&["resume", folder, "--set", "max_steps=12"]).expect(4).says(&["without a checkpoint"]);
    assert!(run::files(&out) == before);
    assert_eq!(place.runs(), known, "the ledger says what it said");
}

#[test]
fn a_finished_run_may_be_given_more_epochs() {
    let place = Place::new();
    let out = finished(&place, Config::lora().without("max_steps").with("num_epochs", "1"));
    let taken = |out: &Path| lines(&out.join("metrics.jsonl")).len();
    assert_eq!(taken(&out), 5);
    place.run(&["resume", out.to_str().unwrap(), "--set", "num_epochs=2"]).expect(0);
    assert_eq!(taken(&out), 10);
}

#[test]
fn an_interrupted_run_whose_steps_were_lowered_below_its_checkpoint_just_ends() {
    let place = Place::new();
    let unbroken = finished(&place, Config::lora());
    let out = place.path("killed");
    kill_after(&unbroken, &out, 8);
    place.run(&["resume", out.to_str().unwrap(), "--set", "max_steps=4"]).expect(0);
    assert_eq!(result(&out).0, result(&unbroken).0);
}

#[test]
fn settings_that_decide_the_result_cannot_change_at_a_resume() {
    let place = Place::new();
    let out = finished(&place, Config::lora());
    let resume = ["resume", out.to_str().unwrap(), "--set", "max_steps=12", "--set"];
    let changed = [&resume[..], &["learning_rate=0.02", "--set", "lora_dropout=0.3"]].concat();
    place.run(&changed).expect(2).says(&[
        "learning_rate = 0.01",
        "now 0.02",
        "lora_dropout = 0.1",
        "now 0.3",
    ]);
    place.run(&[&resume[..], &["logging_steps=2"]].concat()).expect(0);
}

/// A finished run on rows and a base of its own.
fn on_its_own(place: &Place) -> (PathBuf, PathBuf, PathBuf) {
    let (rows, base) = (place.path("rows.jsonl"), place.path("base"));
    fs::copy(golden("llama/rows.jsonl"), &rows).unwrap();
    copy(Path::new(&golden("llama")), &base);
    let config = Config::lora().rows(rows.to_str().unwrap(), "tokenized").with("base_model", &quoted(&base));
    (finished(place, config), rows, base)
}

#[test]
fn changed_data_stops_a_resume_unless_it_is_accepted() {
    let place = Place::new();
    let (out, rows, _) = on_its_own(&place);
    let text = fs::read_to_string(&rows).unwrap();
    fs::write(&rows, text.replacen("[72, 77", "[71, 77", 1)).unwrap();
    let resume = ["resume", out.to_str().unwrap(), "--set", "max_steps=12"];
    place.run(&resume).expect(3).says(&["data has changed", "--accept-data-change"]);
    place.run(&[&resume[..], &["--accept-data-change"]].concat()).expect(0);
}

#[test]
fn a_changed_base_stops_a_resume_unless_it_is_accepted() {
    let place = Place::new();
    let (out, _, base) = on_its_own(&place);
    let shard = base.join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    // The lowest bit of the last value.
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let resume = ["resume", out.to_str().unwrap(), "--set", "max_steps=12"];
    place.run(&resume).expect(4).says(&["base model has changed", "--accept-base-change"]);
    place.run(&[&resume[..], &["--accept-base-change"]].concat()).expect(0);
}

#[test]
fn a_start_that_fails_is_a_failed_run_and_takes_nothing_from_what_it_was() {
    let place = Place::new();
    let (out, _, base) = on_its_own(&place);
    let before = place.runs()[0].clone();
    let shard = base.join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&shard, bytes).unwrap();
    let resume = ["resume", out.to_str().unwrap(), "--set", "max_steps=12", "--accept-base-change"];
    place.run(&resume).expect(4).says(&["NaN"]);
    let after = place.runs()[0].clone();
    assert_eq!(after["status"], "failed");
    for key in ["run_id", "loss", "started_at"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    // What the failed start took counts, too.
    assert!(after["wall_s"].as_f64().unwrap() > before["wall_s"].as_f64().unwrap());
}

#[test]
fn a_broken_checkpoint_is_named_skipped_and_kept() {
    let place = Place::new();
    let config = Config::lora().with("save_steps", "2").with("save_total_limit", "9");
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&["--lora", &path]).expect(0);
    let out = place.path("killed");
    kill_after(&unbroken, &out, 6);
    let broken = checkpoint(&out, 6).join("optimizer.safetensors");
    let mut bytes = fs::read(&broken).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&broken, &bytes).unwrap();
    let folder = out.to_str().unwrap();
    place.run(&["resume", folder]).expect(0).says(&[
        "skipped",
        "step-00000006",
        "going on from",
        "step-00000004",
    ]);
    assert!(fs::read(&broken).unwrap() == bytes, "what is broken stays");
    assert_same(&unbroken, &out, "from the checkpoint before");

    let none = place.path("none");
    kill_after(&unbroken, &none, 2);
    fs::write(checkpoint(&none, 2).join("manifest.json"), "{").unwrap();
    place.run(&["resume", none.to_str().unwrap()]).expect(4).says(&["step-00000002", "--overwrite"]);
}

#[test]
fn the_best_checkpoint_outlives_the_limit_and_becomes_the_result() {
    let place = Place::new();
    let config = Config::lora()
        .with("val_set_size", "4")
        .with("eval_steps", "1")
        .with("max_steps", "40")
        .with("learning_rate", "5e-2")
        .with("save_total_limit", "1")
        .with("early_stopping_patience", "4")
        .with("load_best_model_at_end", "true");
    let (path, out) = config.write(&place, "run");
    place.run(&["--lora", &path]).expect(0).says(&["stopping early"]);
    let evals = lines(&out.join("eval.jsonl"));
    let later = evals.iter().filter(|line| line["step"] != 0);
    let best =
        later.min_by(|a, b| a["loss"].as_f64().unwrap().total_cmp(&b["loss"].as_f64().unwrap())).unwrap();
    let (best, last) = (best["step"].as_u64().unwrap(), evals.last().unwrap()["step"].as_u64().unwrap());
    assert_eq!(last, best + 4, "four evaluations without a gain");
    assert!(last < 40);
    assert_eq!(names(&out.join("checkpoints")), [best, last].map(|step| format!("step-{step:08}")));
    let weights = |folder: &Path| fs::read(folder.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&checkpoint(&out, best)));
    assert!(weights(&out) != weights(&checkpoint(&out, last)));
    assert_eq!(json(&out.join("report.json"))["status"], "done");
    place.run(&["resume", out.to_str().unwrap()]).expect(0).says(&["nothing to do"]);

    // Killed where it stands best, it stops at the same step.
    let killed = place.path("killed");
    kill_after(&out, &killed, best);
    place.run(&["resume", killed.to_str().unwrap()]).expect(0).says(&["stopping early"]);
    assert_same(&out, &killed, "stopped early");

    // Killed after it had stopped, it trains no further.
    let stopped = place.path("stopped");
    kill_after(&out, &stopped, last);
    place.run(&["resume", stopped.to_str().unwrap()]).expect(0);
    assert_same(&out, &stopped, "killed before its result was saved");

    // Unless it was given more steps meanwhile: then it goes on to the next evaluation.
    let more = place.path("more");
    kill_after(&out, &more, last);
    place
        .run(&["resume", more.to_str().unwrap(), "--set", "max_steps=60"])
        .expect(0)
        .says(&["stopping early"]);
    assert_eq!(lines(&more.join("eval.jsonl")).last().unwrap()["step"], last + 1);
}

#[test]
fn a_run_moved_to_another_machines_ledger_goes_on_under_its_name() {
    let (here, there) = (Place::new(), Place::new());
    let out = finished(&here, Config::lora());
    let moved = there.path("moved");
    kill_after(&out, &moved, 4);
    there.run(&["resume", moved.to_str().unwrap()]).expect(0);
    assert_same(&out, &moved, "moved");
    let (ours, theirs) = (here.runs(), there.runs());
    assert_eq!(theirs.len(), 1);
    assert_eq!(theirs[0]["run_id"], ours[0]["run_id"]);
    assert_eq!(theirs[0]["status"], "done");
    assert_eq!(theirs[0]["output_dir"], Value::from(moved.canonicalize().unwrap().to_str().unwrap()));
}

#[test]
fn samples_of_the_base_model_are_kept_over_a_resume() {
    let place = Place::new();
    let out = finished(&place, Config::lora().with("sample_prompts", "[\"w5 w6\"]"));
    let killed = place.path("killed");
    kill_after(&out, &killed, 4);
    place.run(&["resume", killed.to_str().unwrap()]).expect(0);
    let samples = |out: &Path| json(&out.join("report.json"))["samples"].clone();
    assert!(samples(&out)[0]["before"].is_string());
    assert_eq!(samples(&killed), samples(&out));
}

#[test]
fn the_budget_ends_a_run_after_a_commit_and_it_goes_on_where_the_cap_is_raised() {
    let place = Place::new();
    let config = slow(&place);
    let (path, unbroken) = config.write(&place, "unbroken");
    place.run(&["--lora", &path]).expect(0);
    let whole = json(&unbroken.join("report.json"))["measured"]["wall_s"].as_f64().unwrap();
    // Above the low end of the estimate, or the run would not start; below what it takes.
    let low = json(&unbroken.join("estimate.json"))["interval"]["wall_s"]["low"].as_f64().unwrap();
    let cap = f64::midpoint(low.max(whole * 0.2), whole);
    assert!(low < cap && cap < whole, "low {low}, whole {whole}");
    let (path, out) = config.write(&place, "capped");
    let hours = format!("budget.max_hours={}", cap * 0.8 / 3600.0);
    let ended = place.run(&["--lora", &path, "--set", &hours]).expect(5);
    ended.says(&["max_hours", "fttrain resume"]);
    assert_eq!(json(&out.join("report.json"))["status"], "stopped");
    let (steps, first) = (lines(&out.join("metrics.jsonl")).len(), json(&out.join("estimate.json")));
    // What was spent is remembered, and how long a step may take: under the same cap there is room for none.
    place.run(&["resume", out.to_str().unwrap()]).expect(5).says(&["max_hours"]);
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), steps);
    let resume = ["resume", out.to_str().unwrap(), "--set", "budget.max_hours=1"];
    place.run(&resume).expect(0);
    assert_same(&unbroken, &out, "capped");
    // The first estimate is the one that the whole run is held against.
    assert_eq!(json(&out.join("estimate.json")), first);
    assert_eq!(json(&out.join("report.json"))["predicted"], first["predicted"]);
}
