//! Bases in four bits and in a GGUF file's own types: QLoRA against PEFT on bitsandbytes, a file's types against its
//! f32 copy, and the program from `--qlora` to `generate`. The formats themselves are held against their makers in
//! kernels/.

#[path = "support/run.rs"]
mod run;
mod support;

use fttrain::arch::gguf::{self, NewTensor, Type, Value};
use fttrain::arch::source::Source;
use fttrain::config::{self, Base};
use fttrain::data::Batch;
use fttrain::data::packing::{Epochs, Order};
use fttrain::model::build::{self, Trained};
use fttrain::model::weights::Loader;
use fttrain::model::{Decoder, Frozen};
use fttrain::ops::Matrix;
use fttrain::train::optimizer::AdamW;
use fttrain::train::schedule::Schedule;
use fttrain::train::step::accumulate;
use run::{Place, json};
use std::path::Path;
use support::{Made, golden, make, rows, values};

/// Of a loss or norm: the peer computes in f32 as fttrain does, but four steps of training apart.
const PEER: f64 = 1e-3;
/// Of a loss on the same numbers, dequantised before or inside the product.
const SAME: f64 = 1e-4;

fn near(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance * theirs.abs(), "{what}: {ours}, expected {theirs}");
}

/// Losses and norms of the run in `tests/golden/quantised`, `steps` of them.
fn train(made: &Made, recompute: bool) -> Vec<(f64, f64)> {
    let mut epochs = Epochs::new(rows(&golden().join("quantised")), Order::from(&made.config));
    let mut optimizer = AdamW::new(&made.params, &made.config.train).unwrap();
    let schedule = Schedule::new(&made.config.train, epochs.total_steps());
    (0..epochs.total_steps())
        .map(|k| {
            let step = epochs.step(k).unwrap();
            let done = accumulate(&made.decoder, &made.params, &step, k, 0, recompute).unwrap();
            let norm = optimizer.norm(&done.grads).unwrap();
            optimizer.apply(&made.params, &done.grads, norm, schedule.lr_at(k)).unwrap();
            (done.loss, norm)
        })
        .collect()
}

#[test]
fn losses_and_norms_of_qlora_equal_peft_on_bitsandbytes() {
    let run = golden().join("quantised");
    let theirs = support::json(&run.join("qlora.json"));
    let unquantised = train(&make(&run, true, &[("adapter", "lora")]), false);
    for (name, double_quant) in [("plain", "false"), ("double", "true")] {
        for recompute in [false, true] {
            let made = make(&run, true, &[("bnb_4bit_use_double_quant", double_quant)]);
            let ours = train(&made, recompute);
            let steps = theirs[name].as_array().unwrap();
            assert_eq!((ours.len(), steps.len()), (4, 4));
            for (i, ((loss, norm), step)) in ours.iter().zip(steps).enumerate() {
                near(&format!("{name}: loss {i}"), *loss, step["loss"].as_f64().unwrap(), PEER);
                near(&format!("{name}: norm {i}"), *norm, step["grad_norm"].as_f64().unwrap(), PEER);
            }
            // The tolerance tells a quantised base from one that is not.
            assert!((unquantised[0].0 - ours[0].0).abs() > 3.0 * PEER * ours[0].0);
        }
    }
}

#[test]
fn four_bits_are_kept_in_linears_alone_and_in_less_than_a_third_of_bf16() {
    let run = golden().join("quantised");
    for (double_quant, most) in [("true", 0.26), ("false", 0.30)] {
        let made = make(&run, false, &[("bnb_4bit_use_double_quant", double_quant), ("bf16", "true")]);
        assert!(matches!(&made.decoder.embedding.value, Matrix::Dense(t) if t.elem_count() == 2048 * 128));
        for linear in made.decoder.blocks.iter().flat_map(fttrain::model::block::Block::linears) {
            let Matrix::Quantised(blocks) = &linear.weight.value else { panic!("{linear:?}") };
            let (rows, width) = blocks.shape();
            let share = blocks.bytes() as f64 / (2 * rows * width) as f64;
            assert!(share < most, "{share} of bf16's bytes");
        }
    }
}

/// A llama with all the types that a file may have, its q and k interleaved as llama.cpp keeps them.
fn write_gguf(path: &Path) {
    let metadata = [
        ("general.architecture", Value::Text("llama".into())),
        ("llama.block_count", Value::Unsigned(2)),
        ("llama.embedding_length", Value::Unsigned(256)),
        ("llama.feed_forward_length", Value::Unsigned(512)),
        ("llama.attention.head_count", Value::Unsigned(8)),
        ("llama.attention.head_count_kv", Value::Unsigned(4)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ("llama.context_length", Value::Unsigned(128)),
        ("llama.rope.freq_base", Value::Float(10_000.0)),
        ("llama.vocab_size", Value::Unsigned(40)),
    ];
    let tensor = |name: &str, dims: &[usize], kind| NewTensor { name: name.into(), dims: dims.into(), kind };
    let mut tensors = vec![
        tensor("token_embd.weight", &[256, 40], Type::Q6_K),
        tensor("output_norm.weight", &[256], Type::F32),
        tensor("output.weight", &[256, 40], Type::Q5_1),
    ];
    let types = [
        [Type::Q4_K, Type::Q6_K, Type::Q5_K, Type::Q3_K, Type::Q2_K, Type::Q8_0, Type::Q4_0],
        [Type::Q4_1, Type::F16, Type::BF16, Type::F32, Type::Q5_0, Type::Q4_K, Type::Q2_K],
    ];
    for (i, [q, k, v, o, gate, up, down]) in types.into_iter().enumerate() {
        let mut add = |part: &str, dims: &[usize], kind| {
            tensors.push(tensor(&format!("blk.{i}.{part}.weight"), dims, kind));
        };
        add("attn_norm", &[256], Type::F32);
        add("attn_q", &[256, 256], q);
        add("attn_k", &[256, 128], k);
        add("attn_v", &[256, 128], v);
        add("attn_output", &[256, 256], o);
        add("ffn_norm", &[256], Type::F32);
        add("ffn_gate", &[256, 512], gate);
        add("ffn_up", &[256, 512], up);
        add("ffn_down", &[512, 256], down);
    }
    gguf::write(path, &metadata, &tensors, &mut |i, out| {
        let values: usize = tensors[i].dims.iter().product();
        let count = values as u64 / tensors[i].kind.block() * tensors[i].kind.block_bytes();
        let mut state = i as u64;
        let bytes: Vec<u8> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // No byte makes a half or a float that is large or not finite.
                (state >> 56) as u8 & 0x9b
            })
            .collect();
        out.write_all(&bytes)
    })
    .unwrap();
}

fn decoder(base: &Path, frozen: Frozen) -> Decoder {
    let base =
        Base { model: base.to_str().unwrap().into(), revision: None, reinit_weights: false, bf16: None };
    let source = Source::locate(&base).unwrap_or_else(|e| panic!("{e}"));
    let arch = source.arch().unwrap_or_else(|e| panic!("{e}"));
    let loader = Loader::open(&source.weights().unwrap(), &arch, 0, source.name()).unwrap();
    build::decoder(&arch, Trained::Nothing, frozen, 128, &loader).unwrap().0
}

#[test]
fn a_gguf_file_in_its_own_types_is_the_model_that_its_f32_copy_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gguf");
    write_gguf(&path);
    let own = decoder(&path, Frozen::AsStored);
    let f32 = decoder(&path, Frozen::Dense(candle_core::DType::F32));
    let matrices = |decoder: &Decoder| {
        let linears = decoder.blocks.iter().flat_map(fttrain::model::block::Block::linears);
        let all = linears.map(|linear| linear.weight.value.clone());
        all.chain([decoder.embedding.value.clone(), decoder.head.value.clone()]).collect::<Vec<_>>()
    };
    let mut in_blocks = 0;
    for (own, f32) in matrices(&own).iter().zip(&matrices(&f32)) {
        // Rows of q and k are put back whole, whatever they hold.
        assert!(values(&own.to_f32().unwrap()) == values(&f32.to_f32().unwrap()));
        in_blocks += usize::from(matches!(own, Matrix::Quantised(_)));
    }
    assert_eq!(in_blocks, 14, "all but the f32 and the bf16 one");
    assert!(own.frozen_bytes() * 3 < f32.frozen_bytes());
    let row = fttrain::data::Sample { ids: (0..40).collect(), labels: (0..40).collect() };
    let batch = Batch::new([&row], 0);
    near("loss", own.loss(&batch).unwrap(), f32.loss(&batch).unwrap(), SAME);
}

#[test]
fn the_program_trains_resumes_reports_and_generates_on_four_bits() {
    let place = Place::new();
    let config = golden().join("quantised/run.toml");
    let out = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let train = |name: &str, steps: &str| {
        let settings = [format!("output_dir={}", out(name)), format!("max_steps={steps}")];
        let mut arguments = vec!["--qlora", config.to_str().unwrap(), "--set", "lr_scheduler=constant"];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        place.run(&arguments).expect(0);
    };
    train("whole", "4");
    train("parts", "2");
    place.run(&["resume", &out("parts"), "--set", "max_steps=4"]).expect(0);
    let adapter = |name: &str| std::fs::read(place.path(name).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("parts"), "a resumed run is the run");
    let report = json(&place.path("whole").join("report.json"));
    let parts = report["memory_parts"].as_array().unwrap();
    for name in ["base weights", "adapter", "gradients", "moments"] {
        let part = parts.iter().find(|part| part["name"] == name).unwrap_or_else(|| panic!("{parts:?}"));
        let bytes = |key: &str| part[key].as_f64().unwrap();
        near(name, bytes("predicted_bytes"), bytes("measured_bytes"), 0.01);
    }
    let said = place.run(&["generate", &out("whole"), "w", "--max-tokens", "3", "--raw"]).expect(0);
    assert!(!said.stdout.is_empty());
}

/// What a variable names, for tests on a real model.
fn named(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"))
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2"]
fn smollm2_in_its_own_types_trains_as_its_f32_copy() {
    let text = |method: &str| {
        format!(
            "base_model = '{}'\nadapter = '{method}'\nlora_r = 8\nbf16 = false\ndevice = 'cpu'\noutput_dir = 'unused'\n\
             micro_batch_size = 2\nlearning_rate = 1e-3\nsequence_len = 128\nsample_packing = false\n\
             [[datasets]]\npath = 'unused'\ntype = 'tokenized'\n",
            named("FTTRAIN_SMOLLM2")
        )
    };
    config::parse("test", &text("qlora"), None, &[]).unwrap_or_else(|e| panic!("{e}"));
    let rows = rows(&golden().join("quantised"));
    let own = support::from_text(&text("qlora"), true, &[]);
    let f32 = support::from_text(&text("lora"), true, &[]);
    assert!(own.decoder.frozen_bytes() * 4 < f32.decoder.frozen_bytes());
    let (own, f32) = (own.train(&rows, 4, false), f32.train(&rows, 4, false));
    for i in 0..4 {
        near(&format!("loss {i}"), own.losses[i], f32.losses[i], SAME);
        near(&format!("norm {i}"), own.norms[i], f32.norms[i], PEER);
    }
}
