//! The program as other programs call it: what each verb prints, what a run leaves, and how every refusal ends.

#[path = "support/run.rs"]
mod run;

use run::{Config, Ended, Place, checkpoint, copy, files, golden, json, keys, lines, names, quoted};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Of a loss or a norm over itself; tests/parity.rs says why.
const TOLERANCE: f64 = 1e-4;

const STEP_KEYS: [&str; 11] = [
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens",
    "padded_tokens",
    "loss_tokens",
    "step_s",
    "rss_bytes",
    "device_bytes",
];
const EVAL_KEYS: [&str; 5] = ["step", "epoch", "loss", "loss_tokens", "wall_s"];
const QUANTITIES: [&str; 6] =
    ["wall_s", "step_s", "tokens_per_s", "peak_memory_bytes", "energy_j", "cost_usd"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The sum over a list of parts; parts that are not known count nothing.
fn bytes(parts: &Value, key: &str) -> Option<i64> {
    Some(parts.as_array()?.iter().filter_map(|part| part[key].as_i64()).sum())
}

fn near(what: &str, ours: &Value, theirs: &Value) {
    let (ours, theirs) = (number(ours), number(theirs));
    assert!((ours - theirs).abs() <= TOLERANCE * theirs.abs(), "{what}: {ours}, golden {theirs}");
}

/// Every `tests/golden/CASE/RUN` with its flag.
fn golden_runs() -> Vec<(PathBuf, &'static str)> {
    let folders = |at: &Path| -> Vec<PathBuf> {
        let all = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.is_dir()).collect()
    };
    let runs = folders(Path::new(&golden(""))).iter().flat_map(|case| folders(case)).collect::<Vec<_>>();
    let flag = |run: &PathBuf| {
        let text = fs::read_to_string(run.join("run.toml")).ok()?;
        Some(if text.contains("adapter = \"lora\"") { "--lora" } else { "--full" })
    };
    runs.into_iter().filter_map(|run| Some((run.clone(), flag(&run)?))).collect()
}

#[test]
fn every_golden_run_records_the_steps_of_torch() {
    let place = Place::new();
    let runs = golden_runs();
    assert!(runs.len() >= 8, "{runs:?}");
    for (nth, (folder, flag)) in runs.into_iter().enumerate() {
        let what = folder.display().to_string();
        let out = place.path(&format!("run{nth}"));
        let output = format!("output_dir={}", out.display());
        place.run(&[flag, folder.join("run.toml").to_str().unwrap(), "--set", &output]).expect(0);
        let (ours, theirs) = (lines(&out.join("metrics.jsonl")), json(&folder.join("golden.json")));
        let theirs = theirs["steps"].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            let what = format!("{what}, step {}", theirs["step"]);
            assert_eq!(keys(ours), STEP_KEYS, "{what}");
            for key in ["step", "tokens", "loss_tokens"] {
                assert_eq!(ours[key], theirs[key], "{what}: {key}");
            }
            for key in ["loss", "grad_norm", "learning_rate"] {
                near(&format!("{what}: {key}"), &ours[key], &theirs[key]);
            }
            assert_eq!(ours["padded_tokens"], 0, "{what}");
            assert!(number(&ours["step_s"]) > 0.0 && ours["device_bytes"].is_null(), "{what}");
        }
        let left = names(&out);
        let result: &[&str] = if flag == "--lora" {
            &["adapter_config.json", "adapter_model.safetensors"]
        } else {
            &["config.json", "model.safetensors"]
        };
        let always = [
            "checkpoints",
            "config.resolved.toml",
            "estimate.json",
            "eval.jsonl",
            "metrics.jsonl",
            "report.html",
            "report.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ];
        for name in result.iter().chain(&always) {
            assert!(left.iter().any(|l| l == name), "{what}: no {name} in {left:?}");
        }
        assert!(left.iter().all(|name| !name.starts_with(".tmp")), "{what}: {left:?}");
    }
}

fn judged(place: &Place) -> (Ended, PathBuf, String) {
    let config = Config::lora()
        .with("val_set_size", "3")
        .with("eval_steps", "3")
        .with("save_steps", "4")
        .with("sample_prompts", "[\"w5 w6 w7\"]")
        .table("[cost]\nusd_per_hour = 3.6");
    let (path, out) = config.write(place, "judged");
    (place.run(&["--lora", &path]).expect(0), out, path)
}

#[test]
fn a_run_is_judged_reported_and_kept_in_the_ledger() {
    let place = Place::new();
    let (ended, out, _) = judged(&place);
    assert!(ended.stdout.contains("predicted") && ended.stdout.contains("measured"), "{}", ended.stdout);
    assert!(ended.stderr.contains("step 8/8"), "progress goes to stderr:\n{}", ended.stderr);
    assert!(!ended.stdout.contains("step 8/8"), "progress is not a result:\n{}", ended.stdout);

    let evals = lines(&out.join("eval.jsonl"));
    assert!(evals.iter().all(|line| keys(line) == EVAL_KEYS), "{evals:?}");
    let steps: Vec<u64> = evals.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 3, 6, 8]);
    assert_eq!(names(&out.join("checkpoints")), ["step-00000004", "step-00000008"]);
    let left = names(&checkpoint(&out, 4));
    assert_eq!(
        left,
        ["adapter_config.json", "adapter_model.safetensors", "manifest.json", "optimizer.safetensors"]
    );

    let report = json(&out.join("report.json"));
    assert_eq!(report["status"], "done");
    for table in ["predicted", "measured", "error_pct"] {
        assert_eq!(keys(&report[table]), QUANTITIES, "{table}");
    }
    let measured = &report["measured"];
    for key in ["wall_s", "step_s", "tokens_per_s", "peak_memory_bytes", "cost_usd"] {
        assert!(number(&measured[key]) > 0.0, "{key}: {measured}");
        let error = (number(&report["predicted"][key]) / number(&measured[key]) - 1.0) * 100.0;
        assert!((number(&report["error_pct"][key]) - error).abs() < 1e-6, "{key}");
        assert!(number(&report["interval"][key]["low"]) <= number(&report["interval"][key]["high"]), "{key}");
    }
    let sum = |list: &str, key: &str| -> f64 {
        report[list].as_array().unwrap().iter().filter_map(|row| row[key].as_f64()).sum()
    };
    assert!((sum("phases", "wall_s") - number(&measured["wall_s"])).abs() < 1e-6);
    assert!((sum("phases", "cost_usd") - number(&measured["cost_usd"])).abs() < 1e-9);
    let parts = &report["memory_parts"];
    assert_eq!(bytes(parts, "measured_bytes"), measured["peak_memory_bytes"].as_i64());
    assert_eq!(bytes(parts, "predicted_bytes"), report["predicted"]["peak_memory_bytes"].as_i64());
    assert_eq!(keys(&report["price"]), ["usd_per_hour", "source", "as_of"]);
    assert_eq!(report["price"]["usd_per_hour"], 3.6);
    for key in ["version", "cpu", "threads", "kernel", "base_hash", "data_hash", "config_hash"] {
        assert!(!report["provenance"][key].is_null(), "{key}");
    }
    let estimate = json(&out.join("estimate.json"));
    assert_eq!(estimate["predicted"], report["predicted"]);

    let runs = place.runs();
    assert_eq!(
        keys(&runs[0]),
        ["run_id", "status", "wall_s", "cost_usd", "loss", "output_dir", "started_at"]
    );
    assert_eq!(runs[0]["status"], "done");
    assert_eq!(runs[0]["run_id"], report["run_id"]);
    assert_eq!(runs[0]["cost_usd"], measured["cost_usd"]);
    let last = lines(&out.join("metrics.jsonl")).pop().unwrap();
    assert_eq!(runs[0]["loss"], last["loss"]);

    let id = report["run_id"].as_str().unwrap();
    for name in [id, out.to_str().unwrap()] {
        assert_eq!(place.run(&["report", name, "--json"]).expect(0).json(), report);
        assert!(place.run(&["report", name]).expect(0).stdout.contains(id));
    }
}

#[test]
fn a_profile_closes_to_the_steps_time_and_counts_what_the_report_counts() {
    let place = Place::new();
    let (path, out) = Config::lora().with("gradient_checkpointing", "true").write(&place, "profiled");
    let ended = place.run(&["--lora", &path, "--profile"]).expect(0);
    assert!(ended.stderr.contains("Where the steps' time went"), "{}", ended.stderr);
    let (profile, report) = (json(&out.join("profile.json")), json(&out.join("report.json")));
    let rows = profile["table"].as_array().unwrap();
    let sum = |key: &str| rows.iter().filter_map(|row| row[key].as_f64()).sum::<f64>();
    let steps: f64 = lines(&out.join("metrics.jsonl")).iter().map(|step| number(&step["step_s"])).sum();
    assert!((sum("seconds") / steps - 1.0).abs() < 0.02, "{} of {steps} s", sum("seconds"));
    let flops = number(&report["work"]["flops"]);
    assert!((sum("flops") / flops - 1.0).abs() < 1e-9, "{} of {flops}", sum("flops"));
    let has = |op: &str, pass: &str| rows.iter().any(|row| row["op"] == op && row["pass"] == pass);
    for pass in ["forward", "recompute", "backward"] {
        assert!(has("attention", pass) && has("down", pass), "{pass}: {rows:?}");
    }
    assert!(has("head and loss", "forward") && has("update", "update"), "{rows:?}");
    let spans = profile["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X");
    assert_eq!(spans.filter(|event| event["name"] == "step").count() as u64, report["training"]["steps"]);
}

#[test]
fn the_resolved_config_says_where_each_value_comes_from_and_runs_again() {
    let place = Place::new();
    let (path, out) = Config::lora().write(&place, "first");
    place.run(&["--lora", &path, "--set", "learning_rate=3e-3"]).expect(0);
    let resolved = out.join("config.resolved.toml");
    let text = fs::read_to_string(&resolved).unwrap();
    assert!(text.contains("learning_rate = 0.003  # --set"), "{text}");
    assert!(text.contains("lora_r = 4  # file") && text.contains("seed = 42  # default"), "{text}");
    let again = place.path("again");
    let output = format!("output_dir={}", again.display());
    let printed =
        place.run(&["--lora", resolved.to_str().unwrap(), "--set", &output, "--json"]).expect(0).json();
    assert_eq!(printed, json(&again.join("report.json")));
    let weights = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&again), "the same config gives the same bytes");
}

#[test]
fn estimates_need_data_or_its_size_and_write_nothing() {
    let place = Place::new();
    let (path, out) = Config::lora().table("[cost]\nusd_per_hour = 1").write(&place, "run");
    let with_data = place.run(&["estimate", &path, "--json"]).expect(0).json();
    assert_eq!(keys(&with_data["predicted"]), QUANTITIES);
    let peak = with_data["predicted"]["peak_memory_bytes"].as_i64();
    assert_eq!(bytes(&with_data["memory_parts"], "predicted_bytes"), peak);
    assert!(number(&with_data["interval"]["wall_s"]["low"]) <= number(&with_data["predicted"]["wall_s"]));

    let gone = "datasets.0.path=/nowhere/rows.jsonl";
    place.run(&["estimate", &path, "--set", gone]).expect(3);
    let sized = ["estimate", &path, "--set", gone, "--json", "--rows", "1000", "--tokens-per-row"];
    let steps = |tokens: &str| {
        let arguments = [&sized[..], &[tokens, "--set", "max_steps=4"]].concat();
        number(&place.run(&arguments).expect(0).json()["flops_per_step"])
    };
    assert!(steps("60") > 2.0 * steps("20"), "longer rows are more work");
    let table = place.run(&["estimate", &path]).expect(0).stdout;
    assert!(table.contains("peak memory"), "{table}");
    assert!(!out.exists());
}

#[test]
fn data_is_counted_without_a_run() {
    let place = Place::new();
    let (path, out) = Config::lora().with("val_set_size", "3").write(&place, "run");
    let data = place.run(&["data", &path, "--json"]).expect(0).json();
    assert_eq!(data["rows"], 19);
    assert_eq!((&data["train_samples"], &data["eval_samples"]), (&16.into(), &3.into()));
    let text = fs::read_to_string(golden("llama/rows.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let tokens: usize = rows.map(|row| row["input_ids"].as_array().unwrap().len()).sum();
    let counted = data["tokens"].as_u64().unwrap() + data["eval_tokens"].as_u64().unwrap();
    assert_eq!(counted, tokens as u64);
    assert!(place.run(&["data", &path]).expect(0).stdout.contains("19"));
    assert!(!out.exists());
}

#[test]
fn data_shows_what_is_counted_in_some_of_its_samples() {
    let place = Place::new();
    // A first label is never a target.
    let row = |a: usize| {
        format!(
            "{{\"input_ids\": [{a}, 4, 5, 6], \"labels\": [{a}, 4, -100, 6]}}\n{{\"input_ids\": [7, 8], \
             \"labels\": [-100, 8]}}\n"
        )
    };
    let rows = place.file("rows.jsonl", &[row(3), row(9)].concat());
    let (path, _) = Config::lora().rows(&rows, "tokenized").write(&place, "run");
    let data = place.run(&["data", &path, "--json"]).expect(0).json();
    let run = |text: &str, counted: bool| serde_json::json!({ "text": text, "counted": counted });
    let long = |first: &str| {
        let text = [run(first, false), run(" w4", true), run(" w5", false), run(" w6", true)];
        serde_json::json!({ "tokens": 4, "counted": 2, "text": text })
    };
    let text = [run("w7", false), run(" w8", true)];
    let short = serde_json::json!({ "tokens": 2, "counted": 1, "text": text });
    assert_eq!(data["samples"], serde_json::json!([long("w3"), long("w9"), short]));
    let marked = "  3: 4 tokens, 2 of them counted\n    w9⟦ w4⟧ w5⟦ w6⟧\n";
    for (locale, shown) in [("C.UTF-8", marked), ("C", "    w9[[ w4]] w5[[ w6]]\n")] {
        let ended = place.run_with(&["data", &path], "LC_ALL", locale).expect(0);
        assert!(ended.stdout.contains(shown), "{locale}\n{}", ended.stdout);
    }
}

#[test]
fn what_a_config_says_in_vain_is_said_before_the_run_and_a_flag_says_what_is_trained() {
    let place = Place::new();
    let (path, _) = Config::lora().write(&place, "run");
    let vain = "`lora_r` has no effect";
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let estimate = |more: &[&str]| place.run(&[&["estimate", &path][..], more].concat()).expect(0);
    let whole = estimate(&["--json"]).json();
    assert!(whole["warnings"].to_string().contains(vain), "{}", whole["warnings"]);
    assert_eq!(whole["trainable"], whole["parameters"]);
    let table = estimate(&[]).stdout;
    assert!(one_line(&table).contains(vain), "{table}");
    estimate(&["--on", "here"]).says(&["warning: ", vain]);
    let adapter = estimate(&["--json", "--lora"]).json();
    assert!(adapter["trainable"].as_u64() < adapter["parameters"].as_u64(), "{adapter}");
    assert!(!adapter["warnings"].to_string().contains("no effect"), "{}", adapter["warnings"]);

    place.run(&["data", &path]).expect(0).says(&["warning: ", vain]);
    let ended = place.run(&["data", "--lora", &path]).expect(0);
    assert!(!ended.stderr.contains("no effect"), "{}", ended.stderr);
    for verb in ["estimate", "pilot", "data"] {
        place.run(&[verb, &path, "--lora", "--full"]).expect(2).says(&["--lora", "--full"]);
        let named = [verb, &path, "--full", "--set", "adapter=lora"];
        place.run(&named).expect(2).says(&["contradicts `--full`"]);
    }
}

#[test]
fn a_name_with_run_in_it_is_a_new_folder_each_time() {
    let place = Place::new();
    let folder = quoted(&place.path("runs/tiny-{run}"));
    let (path, _) = Config::lora().with("output_dir", &folder).write(&place, "run");
    for _ in 0..2 {
        place.run(&["--lora", &path]).expect(0);
    }
    let mut ids: Vec<String> =
        place.runs().iter().map(|run| format!("tiny-{}", run["run_id"].as_str().unwrap())).collect();
    ids.sort();
    assert_eq!(names(&place.path("runs")), ids);
    assert_eq!(ids.len(), 2);
}

/// Rewrites the tensors of a file of f32 whose names contain `part`.
fn zero(path: &Path, part: &str) -> usize {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut zeroed = 0;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let is_meant = name.contains(part);
            zeroed += usize::from(is_meant);
            let data = if is_meant { vec![0; view.data().len()] } else { view.data().to_vec() };
            (name.to_owned(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    zeroed
}

/// The samples of a run's report, and what `generate` makes of their prompts with its adapter and without.
fn compare_with_generate(place: &Place, out: &Path) {
    let report = json(&out.join("report.json"));
    let bare = place.path("bare");
    copy(out, &bare);
    assert!(zero(&bare.join("adapter_model.safetensors"), "lora_B") > 0);
    let samples = report["samples"].as_array().unwrap();
    assert!(!samples.is_empty());
    for sample in samples {
        let prompt = sample["prompt"].as_str().unwrap();
        assert_ne!(sample["before"], sample["after"], "nothing was learned");
        for (folder, when) in [(out, "after"), (&bare, "before"), (&checkpoint(out, 8), "after")] {
            let arguments = ["generate", folder.to_str().unwrap(), "--prompt", prompt, "--max-tokens", "96"];
            let said = place.run(&arguments).expect(0).stdout;
            assert_eq!(said.trim(), sample[when].as_str().unwrap(), "{when}");
        }
    }
}

#[test]
fn generate_says_what_the_report_says_with_the_adapter_and_without() {
    let place = Place::new();
    let (_, out, _) = judged(&place);
    compare_with_generate(&place, &out);
}

#[test]
fn generate_makes_conversations_as_the_run_did() {
    let place = Place::new();
    let turn = |a: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"w{} w{}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"w{} w9 w{}\"}}]}}\n",
            a + 3,
            a + 4,
            a + 20,
            a + 21
        )
    };
    let rows = place.file("rows.jsonl", &(0..16).map(turn).collect::<String>());
    let template = "{% for m in messages %}{% if m.role == 'user' %}w70 {% else %}w71 {% endif %}\
                    {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}w71 {% endif %}";
    let config = Config::lora()
        .rows(&rows, "chat_template")
        .with("chat_template", &format!("{template:?}"))
        .with("sample_prompts", "[\"w5 w6\", \"w50\"]");
    let (path, out) = config.write(&place, "chat");
    place.run(&["--lora", &path]).expect(0);
    compare_with_generate(&place, &out);
    let prompt = ["generate", out.to_str().unwrap(), "--prompt", "w5 w6"];
    let raw = place.run(&[&prompt[..], &["--raw"]].concat()).expect(0).stdout;
    assert_ne!(raw, place.run(&prompt).expect(0).stdout, "the template changes what the model reads");
}

#[test]
fn generate_continues_a_base_model_with_an_adapter_or_without() {
    let place = Place::new();
    let (base, adapter) = (golden("llama"), golden("llama/lora/adapter"));
    let about = json(Path::new(&golden("llama/golden.json")));
    let words = |ids: &Value| {
        let text = fs::read_to_string(golden("llama/tokenizer.json")).unwrap();
        let tokenizer: Value = serde_json::from_str(&text).unwrap();
        let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
        let word = |id: &Value| vocabulary.iter().find(|(_, i)| *i == id).unwrap().0.clone();
        ids.as_array().unwrap().iter().map(word).collect::<Vec<_>>().join(" ")
    };
    let prompt = words(&about["generate"]["prompt"]);
    let arguments = ["generate", &base, "--prompt", &prompt, "--max-tokens", "20"];
    let plain = place.run(&arguments).expect(0).stdout;
    assert_eq!(plain.trim(), words(&about["generate"]["continuation"]));
    let adapted = place.run(&[&arguments[..], &["--adapter", &adapter]].concat()).expect(0).stdout;
    assert_ne!(adapted, plain);
    place.run(&["generate", &adapter, "--prompt", "w3"]).expect(2).says(&["--base"]);
    let named = ["generate", &adapter, "--base", &base, "--prompt", &prompt, "--max-tokens", "20"];
    assert_eq!(place.run(&named).expect(0).stdout, adapted);
}

/// Runs a config that must be refused, and sees to it that nothing was written.
fn refused(place: &Place, config: &str, out: &Path, more: &[&str], code: i32, says: &[&str]) {
    let before = out.exists().then(|| files(out));
    let beside = names(out.parent().unwrap());
    place.run(&[&["--lora", config], more].concat()).expect(code).says(says);
    assert_eq!(names(out.parent().unwrap()), beside, "{says:?}");
    assert!(out.exists().then(|| files(out)) == before, "{says:?}: the output folder was changed");
}

#[test]
fn configs_that_are_wrong_end_with_2_and_all_their_problems() {
    let place = Place::new();
    let (path, out) = Config::lora()
        .with("learning_rat", "1")
        .with("lora_r", "0")
        .with("seed", "\"x\"")
        .write(&place, "run");
    refused(&place, &path, &out, &[], 2, &["did you mean `learning_rate`?", "lora_r", "seed", "run.toml:"]);
    let (path, out) = Config::lora().write(&place, "sets");
    refused(&place, &path, &out, &["--set", "lora_rang=3"], 2, &["lora_rang", "hint"]);
    refused(&place, &path, &out, &["--set", "seed"], 2, &["KEY=VALUE"]);
    refused(&place, "nowhere.toml", &out, &[], 2, &["nowhere.toml"]);
    place.run(&["--lora"]).expect(2);
    place.run(&["--lora", &path, "--full", &path]).expect(2);
    place.run(&["frobnicate"]).expect(2);
    place.run(&["resume", "nothing"]).expect(2).says(&["nothing", "hint"]);
    place.run(&["report", "nothing"]).expect(2).says(&["nothing", "hint"]);
    place.run(&["resume", place.path("").to_str().unwrap()]).expect(2).says(&["no run"]);
}

#[test]
fn data_that_cannot_be_read_ends_with_3() {
    let place = Place::new();
    let (path, out) = Config::lora().write(&place, "run");
    refused(&place, &path, &out, &["--set", "datasets.0.path=/nowhere.jsonl"], 3, &["/nowhere.jsonl"]);
    let torn = place.file("torn.jsonl", "{\"input_ids\": [3, 4], \"labels\": [3, 4]}\n{\"input_ids\": [3,\n");
    refused(&place, &path, &out, &["--set", &format!("datasets.0.path={torn}")], 3, &["torn.jsonl:2"]);
}

/// A copy of the golden llama whose first shard was changed.
fn changed_base(place: &Place, name: &str, change: impl Fn(&mut Vec<u8>)) -> String {
    let folder = place.path(name);
    copy(Path::new(&golden("llama")), &folder);
    let shard = folder.join("model-00001-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    change(&mut bytes);
    fs::write(&shard, bytes).unwrap();
    format!("base_model={}", folder.display())
}

/// Puts `value` in the place of the last value of a file of f32.
fn last_value(value: f32) -> impl Fn(&mut Vec<u8>) {
    move |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
    }
}

#[test]
fn models_that_cannot_be_used_end_with_4() {
    let place = Place::new();
    let (path, out) = Config::lora().write(&place, "run");
    refused(&place, &path, &out, &["--set", "base_model=/nowhere"], 4, &["/nowhere"]);
    let cut = changed_base(&place, "cut", |bytes| bytes.truncate(bytes.len() - 8));
    refused(&place, &path, &out, &["--set", &cut], 4, &["model-00001-of-00002.safetensors"]);
    let nan = changed_base(&place, "nan", last_value(f32::NAN));
    place.run(&["--lora", &path, "--set", &nan]).expect(4).says(&["NaN"]);
}

#[test]
fn what_the_machine_or_the_budget_cannot_bear_ends_with_5_before_anything_is_loaded() {
    let place = Place::new();
    let (path, out) = Config::lora().table("[cost]\nusd_per_hour = 3600").write(&place, "run");
    for (cap, value) in [("max_usd", "1e-6"), ("max_hours", "1e-7"), ("max_memory_gib", "1e-3")] {
        let set = format!("budget.{cap}={value}");
        refused(&place, &path, &out, &["--set", &set], 5, &[cap, "hint"]);
    }
    refused(&place, &path, &out, &["--set", "micro_batch_size=100000000"], 5, &["GiB", "micro_batch_size"]);
}

#[test]
fn a_device_that_is_not_there_ends_with_6_and_never_on_the_cpu() {
    let place = Place::new();
    let (path, out) = Config::lora().write(&place, "run");
    refused(&place, &path, &out, &["--set", "device=cuda"], 6, &["cuda"]);
}

#[test]
fn a_device_that_is_not_there_is_neither_measured_nor_judged() {
    let place = Place::unknown();
    let out = place.path("study");
    let validate = ["validate", "--out", out.to_str().unwrap()];
    for device in ["cuda", "cuda:3"] {
        for verb in [&["calibrate"][..], &validate] {
            let ended = place.run(&[verb, &["--device", device]].concat()).expect(6);
            ended.says(&["error: `device = \"cuda\"`", "hint: ", "\"cpu\""]);
        }
    }
    for verb in ["calibrate", "validate"] {
        place.run(&[verb, "--device", "cuda:x"]).expect(2).says(&["cuda:x", "\"cuda:N\""]);
    }
    assert!(!place.home().exists() && !out.exists(), "nothing is written");
}

#[test]
fn a_run_that_diverges_ends_with_7_and_keeps_its_last_finite_weights() {
    let place = Place::new();
    let config = Config::lora().with("save_steps", "1").without("warmup_steps").with("learning_rate", "1e30");
    let (path, out) = config.write(&place, "run");
    place.run(&["--lora", &path]).expect(7).says(&["step ", "learning rate 9.6", "samples [", "checkpoint"]);
    let report = json(&out.join("report.json"));
    assert_eq!(report["status"], "diverged");
    assert!(!report["reason"].as_str().unwrap().contains("hint"), "{}", report["reason"]);
    assert_eq!(place.runs()[0]["status"], "diverged");
    assert!(!out.join("adapter_model.safetensors").exists());
    let steps = lines(&out.join("metrics.jsonl"));
    assert_eq!(names(&out.join("checkpoints")).len(), steps.len(), "one for each step that was taken");
    for name in names(&out.join("checkpoints")) {
        let bytes = fs::read(out.join("checkpoints").join(name).join("adapter_model.safetensors")).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let mut values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            assert!(values.all(f32::is_finite), "{name}");
        }
    }
}

#[test]
fn a_base_that_overflows_ends_with_7_where_the_evaluation_sees_it_first() {
    let place = Place::new();
    let (path, out) = Config::lora().with("val_set_size", "3").write(&place, "run");
    // The last matrix of the first shard, whatever it is, is far from any loss: the overflow must travel.
    let huge = changed_base(&place, "huge", |bytes| {
        for at in (bytes.len() - 4096..bytes.len()).step_by(4) {
            bytes[at..at + 4].copy_from_slice(&3e38f32.to_le_bytes());
        }
    });
    place.run(&["--lora", &path, "--set", &huge]).expect(7).says(&["evaluation loss", "step 0"]);
    assert_eq!(json(&out.join("report.json"))["status"], "diverged");
    let text = fs::read_to_string(out.join("report.json")).unwrap();
    assert!(!text.contains(": NaN"), "{text}");
}

#[test]
fn a_folder_with_a_run_in_it_is_left_alone() {
    let place = Place::new();
    let (path, out) = Config::lora().with("save_steps", "4").write(&place, "run");
    place.run(&["--lora", &path]).expect(0);
    refused(&place, &path, &out, &[], 8, &["finished run", "--overwrite", "fttrain resume"]);
    fs::remove_file(out.join("report.json")).unwrap();
    refused(&place, &path, &out, &[], 8, &["did not finish", "fttrain resume"]);

    let old = files(&out);
    place.run(&["--lora", &path, "--overwrite"]).expect(0);
    let aside = out.with_file_name("run.old");
    let kept = files(&aside);
    assert!(old.iter().all(|(name, bytes)| name.ends_with(".lock") || kept.get(name) == Some(bytes)));
    assert_eq!(json(&out.join("report.json"))["status"], "done");
    // What the run learns from is not moved away with the old run.
    let inside = out.join("base");
    copy(Path::new(&golden("llama")), &inside);
    let base = format!("base_model={}", inside.display());
    place.run(&["--lora", &path, "--overwrite", "--set", &base]).expect(2).says(&[
        "--overwrite",
        "base_model",
        "lies in it",
    ]);
    let rows =
        format!("[[retention_datasets]]\npath = {:?}\ntype = \"tokenized\"", inside.join("rows.jsonl"));
    let (remembering, _) = Config::lora().table(&rows).write(&place, "remembering");
    let output = format!("output_dir={}", out.display());
    let said = "`retention_datasets` lies in it";
    place.run(&["--lora", &remembering, "--overwrite", "--set", &output]).expect(2).says(&[said]);
    assert!(inside.join("config.json").is_file());
    fs::remove_dir_all(&inside).unwrap();
    // Even where a run would be gone on with.
    place.run(&["--lora", &path, "--overwrite", "--set", "auto_resume_from_checkpoints=true"]).expect(0);
    assert!(out.with_file_name("run.old-2").is_dir());
}

#[test]
fn a_folder_in_use_names_its_process_and_is_left_alone() {
    let place = Place::new();
    let (path, out) = Config::lora().with("max_steps", "1000000").write(&place, "run");
    let mut first = place.start(&["--lora", &path]);
    assert!(first.wait_until(|| fs::read(out.join("metrics.jsonl")).is_ok_and(|bytes| !bytes.is_empty())));
    let pid = first.pid().to_string();
    let folder = out.to_str().unwrap();
    for arguments in [&["--lora", &path][..], &["--lora", &path, "--overwrite"], &["resume", folder]] {
        place.run(arguments).expect(8).says(&["in use", &pid]);
    }
    assert_eq!(place.runs()[0]["status"], "running");
    assert!(out.is_dir() && !out.with_file_name("run.old").exists());
    first.kill();
    assert_eq!(place.runs()[0]["status"], "killed");
}

#[test]
fn a_result_never_takes_the_place_of_what_it_is_made_from() {
    let place = Place::new();
    let base = place.path("base");
    copy(Path::new(&golden("llama")), &base);
    let before = files(&base);
    let config = Config::lora().with("base_model", &quoted(&base)).with("output_dir", &quoted(&base));
    let (path, _) = config.write(&place, "run");
    place.run(&["--lora", &path]).expect(2).says(&["output_dir", "base_model"]);
    assert!(files(&base) == before);
}
