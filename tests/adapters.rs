//! Every trained tensor learns and nothing else moves: on every family, for every target.

mod support;

use candle_core::{DType, Tensor};
use fttrain::arch::Arch;
use fttrain::arch::source::Source;
use fttrain::config::{Lora, Method};
use fttrain::data::Batch;
use fttrain::data::packing::{Epochs, Order};
use fttrain::model::adapter::{Adapter, peft};
use fttrain::model::block::Block;
use fttrain::model::build::{self, Trained};
use fttrain::model::weights::Loader;
use fttrain::model::{Decoder, Frozen};
use fttrain::ranks::Ranks;
use fttrain::train::optimizer::Optimizer;
use fttrain::train::step::accumulate;
use std::path::Path;
use std::process::Command;
use support::{Made, cases, fresh, golden, make, rows, runs, values};

const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn largest(tensor: &Tensor) -> f32 {
    let values = values(tensor);
    assert!(values.iter().all(|x| x.is_finite()));
    values.iter().fold(0f32, |m, x| m.max(x.abs()))
}

/// Largest |gradient| of each trained tensor, before the first update and after it.
fn gradients(made: &Made, case: &Path) -> Vec<(String, f32, f32)> {
    let mut epochs = Epochs::new(rows(case), Order::from(&made.config));
    let step = epochs.step(0).unwrap();
    let mut optimizer = Optimizer::new(&made.params, &made.config.train).unwrap();
    let mut next = |k| {
        let done = accumulate(&made.decoder, &made.params, &step, k, 0, false, &Ranks::alone()).unwrap();
        let norm = optimizer.norm(&done.grads).unwrap();
        optimizer.apply(&made.params, &done.grads, norm, made.config.train.learning_rate).unwrap();
        let of = |id| done.grads.get(id).map_or_else(|| panic!("{id:?} has no gradient"), largest);
        made.params.sorted().into_iter().map(|(id, _)| of(id)).collect::<Vec<_>>()
    };
    let (before, after) = (next(0), next(1));
    let names = made.params.sorted().into_iter().map(|(_, param)| param.name.clone());
    names.zip(before.into_iter().zip(after)).map(|(name, (before, after))| (name, before, after)).collect()
}

/// B starts at zero: A can only learn once B has moved.
fn check_fresh(case: &Path, target: &str, expected: usize) {
    for dropout in ["0", "0.3"] {
        let made = fresh(case, &[("lora_target_modules", target), ("lora_dropout", dropout)]);
        let gradients = gradients(&made, case);
        assert_eq!(gradients.len(), expected, "{} {target}", case.display());
        for (name, before, after) in gradients {
            let what = format!("{}: {name}: {before} at the start, {after} after an update", case.display());
            if name.ends_with("lora_A.weight") {
                assert_eq!(before.to_bits(), 0, "{what}");
            } else {
                assert!(name.ends_with("lora_B.weight") && before > 0.0, "{what}");
            }
            assert!(after > 0.0, "{what}");
        }
    }
}

#[test]
fn every_b_learns_at_once_and_every_a_after_the_first_update() {
    for case in cases() {
        check_fresh(&case, "\"all-linear\"", 2 * 7 * 2);
        for target in TARGETS {
            check_fresh(&case, &format!("[\"{target}\"]"), 2 * 2);
        }
        check_fresh(&case, "[\"layers.1.mlp.down_proj\"]", 2);
        check_fresh(&case, "[\"layers.0.self_attn.q_proj\"]", 2);
    }
}

#[test]
fn every_tensor_of_a_full_or_saved_module_learns_at_once() {
    let mut tensors = 0;
    for (case, run) in runs() {
        let made = make(&run, true, &[]);
        for (name, before, after) in gradients(&made, &case) {
            if !name.contains(".lora_") {
                assert!(before > 0.0 && after > 0.0, "{}: {name}: {before}, {after}", run.display());
                tensors += 1;
            }
        }
    }
    assert!(tensors > 30, "{tensors}");
}

/// The values of what is frozen, widened.
fn frozen(decoder: &Decoder) -> Vec<Vec<f32>> {
    let linears = decoder.blocks.iter().flat_map(Block::linears).map(|linear| &linear.weight);
    let matrices = linears.chain([&decoder.embedding, &decoder.head.weight]).filter(|w| w.param.is_none());
    let vectors = decoder.blocks.iter().flat_map(Block::vectors).chain([&decoder.norm.weight]);
    let vectors = vectors.filter(|w| w.param.is_none()).map(|w| w.value.to_dtype(DType::F32).unwrap());
    let all = matrices.map(|w| w.value.to_f32().unwrap()).chain(vectors.map(|v| v.copy().unwrap()));
    all.map(|value| values(&value)).collect()
}

#[test]
fn no_frozen_tensor_changes_in_a_run_and_every_trained_one_does() {
    for (case, run) in runs() {
        let made = make(&run, true, &[]);
        let before = frozen(&made.decoder);
        let start: Vec<_> = made.params.sorted().into_iter().map(|(_, p)| values(&p.value)).collect();
        let whole = made.config.method == Method::Full;
        assert_eq!(before.is_empty(), whole, "{}", run.display());
        let trace = made.train(&rows(&case), 5, false);
        assert!(before == frozen(&made.decoder), "{}: a frozen tensor has changed", run.display());
        for (start, (name, end)) in start.iter().zip(&trace.params) {
            assert_ne!(start, end, "{}: {name} has not changed", run.display());
        }
    }
}

#[test]
fn dropout_is_for_training_alone() {
    let (case, run) = (golden().join("llama"), golden().join("llama/lora"));
    let batch = Batch::new(&rows(&case), 0);
    let with = |dropout| {
        let made = make(&run, true, &[("lora_dropout", dropout)]);
        let logits = values(&made.decoder.logits(&batch).unwrap());
        let loss = made.decoder.loss(&batch).unwrap();
        (loss.to_bits(), logits, made.train(&rows(&case), 1, false).losses)
    };
    let (without, with) = (with("0"), with("0.5"));
    assert!(without.0 == with.0 && without.1 == with.1, "an evaluation drops nothing");
    assert_ne!(without.2, with.2, "training does");
}

/// An adapter's folder, trained for five steps as its run says; the model's logits on the first row.
fn trained(run: &Path, case: &Path, folder: &Path) -> Option<Vec<f32>> {
    let made = make(run, true, &[]);
    let Method::Lora(lora) = &made.config.method else { return None };
    made.train(&rows(case), 5, false);
    let adapter = Adapter::resolve(&made.arch, lora, None, 0).unwrap();
    let mut file = std::fs::File::create(folder.join("adapter_model.safetensors")).unwrap();
    peft::write_tensors(&made.params, &mut file).unwrap();
    std::fs::write(folder.join("adapter_config.json"), peft::config_json(&adapter, "base", None)).unwrap();
    Some(values(&made.decoder.logits(&Batch::new([&rows(case)[0]], 0)).unwrap()))
}

/// The base of a case with a saved adapter on it.
fn opened(arch: &Arch, base: &Path, folder: &Path) -> Decoder {
    let config = fttrain::config::Base {
        model: base.to_str().unwrap().into(),
        revision: None,
        reinit_weights: false,
        bf16: Some(false),
    };
    let source = Source::locate(&config).unwrap();
    let loader = Loader::open(&source.weights().unwrap(), arch, 0, "golden").unwrap();
    let lora = Lora { model_dir: Some(folder.into()), ..Lora::default() };
    let adapter = Adapter::resolve(arch, &lora, None, 0).unwrap_or_else(|e| panic!("{e}"));
    let trained = Trained::Adapter(&adapter);
    build::decoder(arch, trained, Frozen::Dense(DType::F32), 512, &loader).unwrap().0
}

/// Rounding of a base that lost its principal part and gets it back.
const REOPENED: f32 = 1e-5;

#[test]
fn what_was_saved_gives_the_logits_of_training_on_the_base_as_it_was() {
    for (case, run) in runs() {
        let folder = tempfile::tempdir().unwrap();
        let Some(logits) = trained(&run, &case, folder.path()) else { continue };
        let arch = make(&run, false, &[]).arch;
        let again = opened(&arch, &case, folder.path());
        let again = values(&again.logits(&Batch::new([&rows(&case)[0]], 0)).unwrap());
        let most = logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let off = logits.iter().zip(&again).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= REOPENED * most, "{}: off by {off:e} of {most:e}", run.display());
    }
}

#[test]
#[ignore = "needs FTTRAIN_PYTHON (with torch and peft)"]
fn peft_reads_every_kind_of_adapter() {
    let python = std::env::var("FTTRAIN_PYTHON").expect("FTTRAIN_PYTHON is not set");
    let script = golden().join("check_adapter.py");
    let mut read = 0;
    for (case, run) in runs() {
        let folder = tempfile::tempdir().unwrap();
        let Some(logits) = trained(&run, &case, folder.path()) else { continue };
        let row = &rows(&case)[0];
        let by_token: Vec<&[f32]> = logits.chunks(logits.len() / row.ids.len()).collect();
        let file = folder.path().join("logits.json");
        std::fs::write(&file, serde_json::json!({ "ids": row.ids, "logits": by_token }).to_string()).unwrap();
        let output = Command::new(&python).args([&script, &case, folder.path(), &file]).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{}: {said:?}", run.display());
        println!("{}: {}", run.display(), said[0].trim());
        read += 1;
    }
    assert!(read >= 9, "{read}");
}
