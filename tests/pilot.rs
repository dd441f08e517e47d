//! SmolLM2-135M-Instruct on GSM8K, as a user would begin: twenty steps from the GGUF file and from the Hugging Face
//! folder. What was learned shows in the evaluation loss, and PEFT reads the adapter as fttrain does.

#[path = "support/run.rs"]
mod run;

use candle_core::DType;
use fttrain::arch::source::Source;
use fttrain::config::{Base, Lora};
use fttrain::data::tokenizer::Tokenizer;
use fttrain::data::{Batch, Sample};
use fttrain::model::Frozen;
use fttrain::model::adapter::Adapter;
use fttrain::model::build::{self, Trained};
use fttrain::model::weights::Loader;
use fttrain::ops::host;
use run::{Place, json, lines};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Evaluation loss after twenty steps over that before: 0.80 when it was measured.
const FALLS_TO: f64 = 0.85;

/// Twenty steps of a debug build beside other work.
const PATIENCE: Duration = Duration::from_secs(3600);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Trains `configs/smollm2-gsm8k.toml` for twenty steps of one pack; its folder.
fn pilot(place: &Place, base: &str) -> PathBuf {
    let out = place.path("pilot");
    let sets = [
        format!("base_model={base}"),
        format!("datasets.0.path={}", variable("FTTRAIN_GSM8K")),
        format!("output_dir={}", out.display()),
        "max_steps=20".into(),
        "gradient_accumulation_steps=1".into(),
        "val_set_size=20".into(),
        "sample_prompts=[]".into(),
    ];
    let mut arguments = vec!["--lora", "configs/smollm2-gsm8k.toml"];
    for set in &sets {
        arguments.extend(["--set", set]);
    }
    place.run_within(PATIENCE, &arguments).expect(0);
    out
}

fn learns(out: &Path) {
    let evals = lines(&out.join("eval.jsonl"));
    let loss = |nth: usize| evals[nth]["loss"].as_f64().unwrap();
    assert_eq!((&evals[0]["step"], &evals[1]["step"]), (&0.into(), &20.into()));
    let ratio = loss(1) / loss(0);
    println!("evaluation loss {} -> {}, {ratio:.3} of it", loss(0), loss(1));
    assert!(ratio < FALLS_TO, "{} -> {}", loss(0), loss(1));
    let measured = &json(&out.join("report.json"))["measured"];
    assert!(measured["peak_memory_bytes"].as_f64().is_some_and(|bytes| bytes > 5e8), "{measured}");
}

/// The adapter in `out` on the Hugging Face folder: logits by fttrain and by PEFT.
fn peft_agrees(place: &Place, out: &Path) {
    let (hf, python) = (variable("FTTRAIN_SMOLLM2_HF"), variable("FTTRAIN_PYTHON"));
    let file = place.file("logits.json", &logits(&hf, out));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/check_adapter.py");
    let output = Command::new(python).args([script, &hf, out.to_str().unwrap(), &file]).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    println!("{}", said[0]);
    assert!(output.status.success(), "{said:?}");
}

/// What `check_adapter.py` reads: ids with fttrain's logits.
fn logits(base: &str, adapter: &Path) -> String {
    let base = Base { model: base.into(), revision: None, reinit_weights: false, bf16: Some(false) };
    let source = Source::locate(&base).unwrap();
    let arch = source.arch().unwrap();
    let lora = Lora { model_dir: Some(adapter.into()), ..Lora::default() };
    let adapter = Adapter::resolve(&arch, &lora, None, 0).unwrap();
    let loader = Loader::open(&source.weights().unwrap(), &arch, 0, source.name()).unwrap();
    let (decoder, _) =
        build::decoder(&arch, Trained::Adapter(&adapter), Frozen::Dense(DType::F32), 256, &loader).unwrap();
    let tokenizer = Tokenizer::open(&source.tokenizer().unwrap(), &arch, None).unwrap();
    let texts = ["Natalia sold clips to 48 of her friends in April.", "2 + 2 = <<2+2=4>>4\n#### 4"];
    let one = |text: &str| {
        let ids = tokenizer.encode(text).unwrap();
        let labels = ids.iter().map(|id| i32::try_from(*id).unwrap()).collect();
        let batch = Batch::new([&Sample { ids: ids.clone(), labels }], 0);
        let logits = decoder.logits(&batch).unwrap();
        let values = host::read(&logits).unwrap();
        let rows: Vec<&[f32]> = values.chunks(arch.vocab_size).collect();
        assert_eq!(rows.len(), ids.len());
        serde_json::json!({ "ids": ids, "logits": rows })
    };
    serde_json::to_string(&texts.map(one)).unwrap()
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2, FTTRAIN_SMOLLM2_HF, FTTRAIN_GSM8K and FTTRAIN_PYTHON (with torch and peft)"]
fn twenty_steps_on_the_gguf_file_teach_and_peft_reads_the_adapter() {
    let place = Place::new();
    let out = pilot(&place, &variable("FTTRAIN_SMOLLM2"));
    learns(&out);
    peft_agrees(&place, &out);
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2_HF, FTTRAIN_GSM8K and FTTRAIN_PYTHON (with torch and peft)"]
fn twenty_steps_on_the_hugging_face_folder_teach_and_peft_reads_the_adapter() {
    let place = Place::new();
    let out = pilot(&place, &variable("FTTRAIN_SMOLLM2_HF"));
    learns(&out);
    peft_agrees(&place, &out);
}
