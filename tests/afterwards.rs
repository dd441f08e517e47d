//! What people do with an adapter afterwards: merged into its base, or written for other programs, it is the same model.

#[path = "support/run.rs"]
mod run;
mod support;

use candle_core::{DType, Tensor};
use fttrain::arch::gguf::{Header, Type};
use fttrain::arch::source::{Source, WeightFiles};
use fttrain::config::Base;
use fttrain::model::adapter::Adapter;
use fttrain::model::build::{self, Trained};
use fttrain::model::likeness::Logits;
use fttrain::model::merge::Merged;
use fttrain::model::weights::Loader;
use fttrain::model::write::{self, Kind};
use fttrain::model::{Decoder, Frozen, tensors};
use run::Place;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{golden, rows, runs};

/// Logits of a few units by another order of sums: `W + s·B·A` once, against both products each time.
const MERGED: f32 = 1e-4;
/// Logits of weights that were rounded to 8 bits of mantissa.
const ROUNDED: f32 = 0.1;

/// A copy of an adapter in which no tensor is zero or the base's own: some goldens begin with B = 0.
fn taught(adapter: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(adapter.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu).unwrap();
    let named: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let count = tensor.elem_count();
            let noise: Vec<f32> = (0..count).map(|i| 0.1 * (i as f32 * 0.7 + 1.0).sin()).collect();
            let noise = Tensor::from_vec(noise, tensor.shape(), &candle_core::Device::Cpu).unwrap();
            (name, (tensor.to_dtype(DType::F32).unwrap() + noise).unwrap())
        })
        .collect();
    let mut out = Vec::new();
    tensors::write(named.iter().map(|(name, tensor)| (name.as_str(), tensor)), &mut out).unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), out).unwrap();
    folder
}

/// A golden's base with an adapter on it.
struct Case {
    files: WeightFiles,
    arch: fttrain::arch::Arch,
    adapter: Adapter,
    texts: Vec<Vec<u32>>,
}

fn source(path: &Path) -> Source {
    let model = path.to_str().unwrap().to_owned();
    Source::locate(&Base { model, revision: None, reinit_weights: false, bf16: Some(false) }).unwrap()
}

impl Case {
    fn new(case: &Path, run: &Path) -> Self {
        let source = source(case);
        let text = std::fs::read_to_string(run.join("run.toml")).unwrap();
        let taught = taught(&run.join("adapter"));
        let overrides = [("lora_model_dir".to_owned(), taught.path().display().to_string())];
        let keys =
            ["lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "lora_modules_to_save", "use_dora"];
        let is_kept = |line: &&str| !keys.iter().any(|key| line.starts_with(key));
        let kept = text.lines().filter(is_kept).collect::<Vec<_>>().join("\n");
        let config = fttrain::config::parse("run.toml", &kept, None, &overrides).unwrap().config;
        let (fttrain::config::Method::Lora(lora) | fttrain::config::Method::Qlora { lora, .. }) =
            &config.method
        else {
            panic!("{} has no adapter", run.display());
        };
        let arch = source.arch().unwrap();
        Self {
            adapter: Adapter::resolve(&arch, lora, None, 42).unwrap(),
            files: source.weights().unwrap(),
            texts: rows(case).into_iter().take(3).map(|row| row.ids).collect(),
            arch,
        }
    }

    fn loader(&self) -> Loader {
        Loader::open(&self.files, &self.arch, 42, "base").unwrap()
    }

    fn adapted(&self) -> Logits {
        let loader = self.loader();
        let trained = Trained::Adapter(&self.adapter);
        let frozen = Frozen::Dense(DType::F32);
        self.logits(&build::decoder(&self.arch, trained, frozen, 128, &loader).unwrap().0)
    }

    fn logits(&self, decoder: &Decoder) -> Logits {
        Logits::of(decoder, &self.texts).unwrap()
    }

    /// Logits of a model that was written.
    fn written(&self, path: &Path) -> Logits {
        let source = source(path);
        let arch = source.arch().unwrap();
        let loader = Loader::open(&source.weights().unwrap(), &arch, 42, "written").unwrap();
        let frozen = Frozen::Dense(DType::F32);
        self.logits(&build::decoder(&arch, Trained::Nothing, frozen, 128, &loader).unwrap().0)
    }
}

fn adapters() -> Vec<(PathBuf, PathBuf)> {
    let all: Vec<_> = runs().into_iter().filter(|(_, run)| run.join("adapter").is_dir()).collect();
    assert!(all.len() >= 6, "{all:?}");
    all
}

fn config(path: &Path) -> Vec<(String, Vec<u8>)> {
    vec![("config.json".into(), std::fs::read(path).unwrap())]
}

#[test]
fn a_merged_folder_is_base_and_adapter_in_the_shards_of_the_base() {
    let out = tempfile::tempdir().unwrap();
    for (at, (folder, run)) in adapters().iter().enumerate() {
        let case = Case::new(folder, run);
        let loader = case.loader();
        let merged = Merged::new(&loader, &case.arch, Some(&case.adapter));
        let own = folder.join("config.json");
        let text =
            write::config_json(Some((own.clone(), std::fs::read(&own).unwrap())), merged.arch(), Kind::F32);
        let small = [("config.json".to_owned(), text.unwrap().into_bytes())];
        let path = out.path().join(at.to_string());
        write::folder(&merged, &case.files, Kind::of(&case.files), &small, &path).unwrap();
        let found = case.adapted().likeness(&case.written(&path));
        assert!(found.max_abs < MERGED, "{}: {found:?}", run.display());
        let names = |folder: &Path| {
            let mut names: Vec<_> =
                support::files(folder).into_iter().filter(|name| name.starts_with("model")).collect();
            names.sort();
            names
        };
        assert_eq!(names(&path), names(folder));
        // Without the adapter it is another model: the comparison can fail.
        let base = Merged::new(&loader, &case.arch, None);
        let plain = out.path().join(format!("{at}-base"));
        write::folder(&base, &case.files, Kind::F32, &config(&own), &plain).unwrap();
        assert!(case.adapted().likeness(&case.written(&plain)).max_abs > 10.0 * MERGED);
        assert!(
            write::folder(&base, &case.files, Kind::F32, &[], &plain)
                .unwrap_err()
                .to_string()
                .contains("exists")
        );
    }
}

#[test]
fn a_gguf_file_of_every_family_is_the_merged_model() {
    let out = tempfile::tempdir().unwrap();
    for (at, (folder, run)) in adapters().iter().enumerate() {
        let case = Case::new(folder, run);
        let loader = case.loader();
        let merged = Merged::new(&loader, &case.arch, Some(&case.adapter));
        // Ropes and windows that the format has no words for.
        if merged.arch().gguf_metadata("x").is_err() || folder.ends_with("llama3-rope") {
            continue;
        }
        for (kind, tolerance) in
            [(Type::F32, MERGED), (Type::F16, ROUNDED), (Type::BF16, ROUNDED), (Type::Q8_0, 0.3)]
        {
            let path = out.path().join(format!("{at}-{}.gguf", kind.name()));
            write::gguf(&merged, "x", kind, Vec::new(), &path).unwrap();
            let found = case.adapted().likeness(&case.written(&path));
            assert!(found.max_abs < tolerance, "{} {}: {found:?}", run.display(), kind.name());
        }
    }
}

#[test]
fn a_gguf_base_is_written_again_in_its_own_types() {
    let out = tempfile::tempdir().unwrap();
    let (folder, run) = (golden().join("llama"), golden().join("llama/lora"));
    let mut case = Case::new(&folder, &run);
    let loader = case.loader();
    let path = out.path().join("base.gguf");
    let key = ("tokenizer.ggml.model".to_owned(), fttrain::arch::gguf::Value::Text("gpt2".into()));
    write::gguf(&Merged::new(&loader, &case.arch, None), "x", Type::Q8_0, vec![key], &path).unwrap();
    let header = Header::read(&path).unwrap();
    case.arch = header.arch().unwrap();
    case.files = WeightFiles::Gguf(header.clone());
    let loader = case.loader();
    let merged = Merged::new(&loader, &case.arch, Some(&case.adapter));
    let again = out.path().join("again.gguf");
    write::gguf_like(&merged, &header, &again).unwrap();
    let found = Header::read(&again).unwrap();
    assert_eq!(found.metadata, header.metadata);
    assert_eq!(found.tensors, header.tensors);
    let likeness = case.adapted().likeness(&case.written(&again));
    assert!(likeness.max_abs < 0.3 && likeness.max_abs > 0.0, "{likeness:?}");
    let plain = case.written(&path);
    assert!(case.adapted().likeness(&plain).kl > 3.0 * likeness.kl, "{likeness:?}");
}

/// Three steps of the quickstart, in `out`.
fn quickstart(place: &Place) -> PathBuf {
    let out = place.path("out");
    let text = format!(
        "base_model = 'configs/quickstart/model'\nadapter = 'lora'\nbf16 = false\nmax_steps = 3\nlearning_rate = 1e-2\n\
         sequence_len = 128\nmicro_batch_size = 4\noutput_dir = '{}'\n\
         [cost]\nusd_per_hour = 36\n\
         [[datasets]]\npath = 'configs/quickstart/train.jsonl'\nsplit = 'train[:40]'\n\
         [[test_datasets]]\npath = 'configs/quickstart/train.jsonl'\nsplit = 'train[40:60]'\n",
        out.display()
    );
    place.run(&["--lora", &place.file("run.toml", &text)]).expect(0);
    out
}

#[test]
fn a_run_of_the_quickstart_is_merged_and_exported_by_its_verbs() {
    let place = Place::new();
    let out = quickstart(&place);
    let id = place.runs()[0]["run_id"].as_str().unwrap().to_owned();
    let merged = place.path("out-merged");
    let found = place.run(&["merge", &id, "--json"]).expect(0).json();
    assert_eq!(found["out"], merged.to_str().unwrap());
    // Rounded to bf16, the base's own type.
    assert!(found["likeness"]["max_abs"].as_f64().unwrap() < 0.2, "{found}");
    assert!(found["likeness"]["kl"].as_f64().unwrap() < 1e-3, "{found}");
    place.run(&["merge", &id]).expect(2).says(&["exists already", "--out"]);
    place.run(&["merge", merged.to_str().unwrap()]).expect(2).says(&["no adapter to merge"]);

    let file = place.path("model.gguf");
    let export =
        ["export", out.to_str().unwrap(), "--gguf", "--type", "f16", "--out", file.to_str().unwrap()];
    place.run(&export).expect(0);
    let ask = |model: &str| {
        let question = ["generate", model, "--prompt", "Who lives in the house?", "--max-tokens", "24"];
        place.run(&question).expect(0).stdout
    };
    let answer = ask(out.to_str().unwrap());
    assert!(!answer.trim().is_empty());
    assert_eq!(ask(merged.to_str().unwrap()), answer);
    assert_eq!(ask(file.to_str().unwrap()), answer);
}

#[test]
fn base_and_adapter_are_asked_side_by_side_and_as_json() {
    let place = Place::new();
    let out = quickstart(&place);
    let out = out.to_str().unwrap();
    let ask = [
        "generate",
        out,
        "--prompt",
        "Ella lost her ring.",
        "--prompt",
        "Who are you?",
        "--max-tokens",
        "12",
    ];
    let found = place.run(&[&ask[..], &["--compare", "--json"]].concat()).expect(0).json();
    for (at, prompt) in ["Ella lost her ring.", "Who are you?"].iter().enumerate() {
        let alone = |model: &str| {
            place.run(&["generate", model, "--prompt", prompt, "--max-tokens", "12"]).expect(0).stdout
        };
        assert_eq!(found[at]["prompt"], *prompt);
        assert_eq!(found[at]["adapter"].as_str().unwrap().trim(), alone(out).trim());
        assert_eq!(found[at]["base"].as_str().unwrap().trim(), alone("configs/quickstart/model").trim());
    }
    let shown = place.run(&[&ask[..], &["--compare"]].concat()).expect(0).stdout;
    assert!(shown.contains("--- base: Ella lost") && shown.contains("--- adapter: Who are you?"), "{shown}");
    place
        .run(&["generate", "configs/quickstart/model", "--prompt", "a", "--compare"])
        .expect(2)
        .says(&["--adapter"]);
    let forced = place.run_with(&ask, "FTTRAIN_KERNEL", "portable").expect(0).stdout;
    assert!(!forced.is_empty());
    place.run_with(&ask, "FTTRAIN_KERNEL", "nonsense").expect(2).says(&["FTTRAIN_KERNEL", "nonsense"]);
}

#[test]
fn an_alpaca_run_is_asked_in_alpacas_words() {
    let place = Place::new();
    let row = |n: usize| format!("{{\"instruction\": \"Count to {n}.\", \"output\": \"{n} and no more\"}}\n");
    let rows = place.file("rows.jsonl", &(0..8).map(row).collect::<String>());
    let (out, prompt) = (place.path("out"), "Ella lost her");
    let text = format!(
        "base_model = 'configs/quickstart/model'\nadapter = 'lora'\nbf16 = false\nmax_steps = 1\n\
         sequence_len = 256\nsample_prompts = ['{prompt}']\noutput_dir = '{}'\n\
         [[datasets]]\npath = '{rows}'\ntype = 'alpaca'\n",
        out.display()
    );
    place.run(&["--lora", &place.file("run.toml", &text)]).expect(0);
    let say = |more: &[&str]| {
        let ask = ["generate", out.to_str().unwrap(), "--max-tokens", "96"];
        place.run(&[&ask[..], more].concat()).expect(0).stdout
    };
    let asked = say(&["--prompt", prompt]);
    let whole = fttrain::data::alpaca_prompt(prompt, None);
    assert_eq!(asked, say(&["--raw", "--prompt", &whole]));
    assert_ne!(asked, say(&["--raw", "--prompt", prompt]), "Alpaca's words change what the model reads");
    let report = support::json(&out.join("report.json"));
    assert_eq!(report["samples"][0]["after"], asked.trim());
}

#[test]
fn a_run_is_judged_by_its_loss_and_by_its_answers() {
    let place = Place::new();
    let out = quickstart(&place);
    let folder = out.to_str().unwrap();
    let answers = place.path("answers.jsonl");
    let pattern = r"(?s)\{.*\}";
    let judge = ["eval", folder, "--match", pattern, "--max-tokens", "40", "--json"];
    let more = ["--limit", "9", "--answers", answers.to_str().unwrap()];
    let found = place.run(&[&judge[..], &more].concat()).expect(0).json();
    let last = std::fs::read_to_string(out.join("eval.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    let [ours, theirs] = [&found["loss"]["loss"], &last["loss"]].map(|loss| loss.as_f64().unwrap());
    assert!((ours - theirs).abs() < 1e-4 * theirs, "{ours} {theirs}");
    assert_eq!(found["loss"]["loss_tokens"], last["loss_tokens"]);
    assert!(found["loss"]["low"].as_f64().unwrap() < ours && ours < found["loss"]["high"].as_f64().unwrap());
    assert!((found["loss"]["perplexity"].as_f64().unwrap().ln() - ours).abs() < 1e-9);
    let accuracy = found["loss"]["token_accuracy"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy), "{accuracy}");
    assert_eq!(found["exact_match"]["asked"], 9);
    // 36 dollars an hour: a hundredth of a dollar a second, started ones counted.
    let cost = found["cost_usd"].as_f64().unwrap();
    assert!(cost >= 0.01 * found["wall_s"].as_f64().unwrap() - 1e-9, "{found}");
    let lines = std::fs::read_to_string(&answers).unwrap();
    assert_eq!(lines.lines().count(), 9);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["line"], 41);
    let asked = support::json_lines(Path::new("configs/quickstart/train.jsonl"))[40].clone();
    assert_eq!(first["wanted"], asked["messages"][1]["content"]);

    // The base, with examples of the training rows before each question.
    let base =
        place.run(&[&judge[..], &["--limit", "2", "--no-adapter", "--shots", "2"]].concat()).expect(0).json();
    assert_eq!((&base["adapted"], &base["exact_match"]["asked"]), (&false.into(), &2.into()));
    assert!(base["loss"]["loss"].as_f64().unwrap() > ours, "three steps teach something");
    place.run(&["eval", folder, "--match", "("]).expect(2).says(&["--match", "hint"]);
    place.run(&["eval", "configs/quickstart/model"]).expect(2).says(&["--data"]);
    let none = ["eval", folder, "--match", "nowhere", "--limit", "1"];
    place.run(&none).expect(3).says(&["line 41", "has no match"]);
}

#[test]
fn a_run_that_held_rows_out_is_judged_by_them() {
    let place = Place::new();
    let out = place.path("out");
    // Three of the 60 rows are longer, which no split counts.
    let text = format!(
        "base_model = 'configs/quickstart/model'\nadapter = 'lora'\nmax_steps = 1\nsequence_len = 74\n\
         val_set_size = 7\noutput_dir = '{}'\n\
         [[datasets]]\npath = 'configs/quickstart/train.jsonl'\nsplit = 'train[40:100]'\n",
        out.display()
    );
    place.run(&["--lora", &place.file("run.toml", &text)]).expect(0);
    let last = support::json_lines(&out.join("eval.jsonl")).pop().unwrap();
    let answers = place.path("answers.jsonl");
    let judge = [
        "eval",
        out.to_str().unwrap(),
        "--match",
        r"(?s)\{.*\}",
        "--max-tokens",
        "2",
        "--shots",
        "1",
        "--json",
    ];
    let found = place.run(&[&judge[..], &["--answers", answers.to_str().unwrap()]].concat()).expect(0).json();
    assert_eq!(found["loss"]["loss_tokens"], last["loss_tokens"], "the same rows as while it was trained");
    let [ours, theirs] = [&found["loss"]["loss"], &last["loss"]].map(|loss| loss.as_f64().unwrap());
    assert!((ours - theirs).abs() < 1e-3 * theirs, "{ours} {theirs}");
    let asked: Vec<u64> =
        support::json_lines(&answers).iter().map(|answer| answer["line"].as_u64().unwrap()).collect();
    assert_eq!(asked.len(), 7);
    assert!(asked.iter().all(|line| (41..=100).contains(line)), "{asked:?}");
}

#[test]
fn an_axolotl_config_is_imported_and_runs() {
    let place = Place::new();
    let yaml = format!(
        "base_model: configs/quickstart/model\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n\
         datasets:\n  - path: configs/quickstart/train.jsonl\n    type: chat_template\n    split: train[:8]\n\
         sequence_len: 128\nmax_steps: 1\nflash_attention: true\noutput_dir: {}\n",
        place.path("out").display()
    );
    let yaml = place.file("axolotl.yml", &yaml);
    let config = place.path("config.toml");
    let import = ["import", &yaml, "--out", config.to_str().unwrap()];
    place.run(&import).expect(0).says(&[
        "axolotl.yml:12: `flash_attention` left out",
        "axolotl.yml: `sample_packing = false` added: what Axolotl takes without the key",
        "axolotl.yml: `warmup_ratio = 0.03` added",
    ]);
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("\nsample_packing = false ") && !text.contains("sequence_len = 512"), "{text}");
    place.run(&import).expect(2).says(&["exists already"]);
    place.run(&["--lora", config.to_str().unwrap()]).expect(0);
    let hub =
        place.file("hub.yml", "base_model: x/y\ndatasets:\n  - path: tatsu-lab/alpaca\n    type: alpaca\n");
    place.run(&["import", &hub]).expect(2).says(&["hub.yml:2", "on the hub", "--data rows.jsonl"]);
    let printed = place.run(&["import", &hub, "--data", "rows.jsonl", "--type", "alpaca"]).expect(0).stdout;
    assert!(printed.contains("path = \"rows.jsonl\"\ntype = \"alpaca\""), "{printed}");
}

#[test]
#[ignore = "needs FTTRAIN_PYTHON"]
fn the_gguf_package_reads_an_export_as_the_merged_model() {
    let python = std::env::var("FTTRAIN_PYTHON").expect("FTTRAIN_PYTHON is not set");
    let place = Place::new();
    let out = quickstart(&place);
    let merged = place.path("merged");
    let merge = ["merge", out.to_str().unwrap(), "--dtype", "f32", "--out", merged.to_str().unwrap()];
    place.run(&merge).expect(0);
    for kind in ["f32", "f16", "bf16", "q8_0"] {
        let file = place.path(&format!("{kind}.gguf"));
        let export =
            ["export", out.to_str().unwrap(), "--gguf", "--type", kind, "--out", file.to_str().unwrap()];
        place.run(&export).expect(0);
        let script = golden().join("check_gguf.py");
        let judged = std::process::Command::new(&python).arg(script).args([&file, &merged]).output().unwrap();
        assert!(judged.status.success(), "{kind}: {}", String::from_utf8_lossy(&judged.stderr));
    }
}
