//! Every trained tensor learns and nothing else moves: on every family, for every target.

mod support;

use candle_core::{DType, Tensor};
use fttrain::data::Batch;
use fttrain::data::packing::{Epochs, Order};
use fttrain::model::Decoder;
use fttrain::model::block::Block;
use fttrain::train::optimizer::AdamW;
use fttrain::train::step::accumulate;
use std::path::Path;
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
    let mut optimizer = AdamW::new(&made.params, &made.config.train).unwrap();
    let mut next = |k| {
        let done = accumulate(&made.decoder, &made.params, &step, k, 0, false).unwrap();
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
    let matrices = linears.chain([&decoder.embedding, &decoder.head]).filter(|w| w.param.is_none());
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
        let whole = !run.join("adapter").is_dir();
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
