//! Bases in four bits and in a GGUF file's own types: QLoRA against PEFT on bitsandbytes, a file's types against its
//! f32 copy, and the program from `--qlora` to `generate`. The formats themselves are held against their makers in
//! kernels/.

#[path = "support/run.rs"]
mod run;
mod support;

use candle_core::{DType, Device};
use fttrain::arch::gguf::{self, NewTensor, Type, Value};
use fttrain::arch::source::Source;
use fttrain::config::{self, Base};
use fttrain::data::Batch;
use fttrain::data::packing::{Epochs, Order};
use fttrain::model::adapter::{Adapter, gguf_lora, peft};
use fttrain::model::build::{self, Trained};
use fttrain::model::weights::Loader;
use fttrain::model::{Decoder, Frozen};
use fttrain::ops::matmul::Precision;
use fttrain::ops::{Matrix, device};
use fttrain::ranks::Ranks;
use fttrain::train::optimizer::Optimizer;
use fttrain::train::schedule::Schedule;
use fttrain::train::step::accumulate;
use run::{Place, json};
use std::io::Write;
use std::path::Path;
use support::{Made, golden, gpu, make, rows, values};

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
    let mut optimizer = Optimizer::new(&made.params, &made.config.train).unwrap();
    let schedule = Schedule::new(&made.config.train, epochs.total_steps());
    (0..epochs.total_steps())
        .map(|k| {
            let step = epochs.step(k).unwrap();
            let done =
                accumulate(&made.decoder, &made.params, &step, k, 0, recompute, &Ranks::alone()).unwrap();
            let norm = optimizer.norm(&done.grads).unwrap();
            optimizer.apply(&made.params, &done.grads, norm, schedule.lr_at(k)).unwrap();
            (done.loss, norm)
        })
        .collect()
}

#[test]
fn losses_and_norms_of_qlora_equal_peft_on_bitsandbytes() {
    qlora_equals_peft("cpu");
}

#[test]
#[ignore = "needs FTTRAIN_GPU, the GPU to compute on (cuda:0), and the feature cuda"]
fn losses_and_norms_of_qlora_on_a_gpu_equal_peft_on_bitsandbytes() {
    qlora_equals_peft(&gpu());
}

fn qlora_equals_peft(device: &str) {
    let run = golden().join("quantised");
    let theirs = support::json(&run.join("qlora.json"));
    let unquantised = train(&make(&run, true, &[("device", device), ("adapter", "lora")]), false);
    for (name, double_quant) in [("plain", "false"), ("double", "true")] {
        for recompute in [false, true] {
            let overrides = [("device", device), ("bnb_4bit_use_double_quant", double_quant)];
            let ours = train(&make(&run, true, &overrides), recompute);
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

fn decoder(base: &Path, frozen: Frozen, device: &Device) -> Decoder {
    let base =
        Base { model: base.to_str().unwrap().into(), revision: None, reinit_weights: false, bf16: None };
    let source = Source::locate(&base).unwrap_or_else(|e| panic!("{e}"));
    let arch = source.arch().unwrap_or_else(|e| panic!("{e}"));
    let loader = Loader::open(&source.weights().unwrap(), &arch, 0, source.name()).unwrap().on(device);
    build::decoder(&arch, Trained::Nothing, frozen, 128, &loader).unwrap().0
}

#[test]
fn a_gguf_file_in_its_own_types_is_the_model_that_its_f32_copy_is() {
    own_types_are_their_f32_copy(&Device::Cpu);
}

#[test]
#[ignore = "needs FTTRAIN_GPU, the GPU to compute on (cuda:0), and the feature cuda"]
fn a_gguf_file_in_its_own_types_on_a_gpu_is_the_model_that_its_f32_copy_is() {
    let gpu: usize = gpu().trim_start_matches("cuda:").parse().expect("FTTRAIN_GPU is like cuda:0");
    own_types_are_their_f32_copy(&device::open(Some(gpu)).unwrap_or_else(|e| panic!("{e}")));
}

fn own_types_are_their_f32_copy(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gguf");
    write_gguf(&path);
    let own = decoder(&path, Frozen::AsStored { precision: Precision::F32 }, device);
    let f32 = decoder(&path, Frozen::Dense(DType::F32), device);
    let matrices = |decoder: &Decoder| {
        let linears = decoder.blocks.iter().flat_map(fttrain::model::block::Block::linears);
        let all = linears.map(|linear| linear.weight.value.clone());
        all.chain([decoder.embedding.value.clone(), decoder.head.weight.value.clone()]).collect::<Vec<_>>()
    };
    let mut in_blocks = 0;
    for (own, f32) in matrices(&own).iter().zip(&matrices(&f32)) {
        // Rows of q and k are put back whole, whatever they hold.
        assert!(values(&own.to_f32().unwrap()) == values(&f32.to_f32().unwrap()));
        in_blocks += usize::from(!matches!(own, Matrix::Dense(_)));
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
    let said =
        place.run(&["generate", &out("whole"), "--prompt", "w", "--max-tokens", "3", "--raw"]).expect(0);
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

/// What `gguf_lora::write` makes of the golden llama's adapter.
fn write_lora(folder: &Path, overrides: support::Overrides<'_>) -> (gguf::Header, Vec<u8>, Made) {
    let run = golden().join("llama/lora");
    let made = make(&run, true, overrides);
    let text = std::fs::read_to_string(run.join("run.toml")).unwrap();
    let config = config::parse("test", &text, None, &[]).unwrap_or_else(|e| panic!("{e}")).config;
    let config::Method::Lora(lora) = &config.method else { panic!("{:?}", config.method) };
    let adapter = Adapter::resolve(&made.arch, lora, None, 0).unwrap_or_else(|e| panic!("{e}"));
    let path = folder.join("adapter.gguf");
    gguf_lora::write(&adapter, &made.arch, &path).unwrap_or_else(|e| panic!("{e}"));
    (gguf::Header::read(&path).unwrap(), std::fs::read(&path).unwrap(), made)
}

#[test]
fn a_gguf_lora_holds_every_pair_under_llama_cpps_names_and_in_its_row_order() {
    let folder = tempfile::tempdir().unwrap();
    let (header, file, made) = write_lora(folder.path(), &[]);
    for (key, value) in [
        ("general.type", Value::Text("adapter".into())),
        ("general.architecture", Value::Text("llama".into())),
        ("adapter.type", Value::Text("lora".into())),
        ("adapter.lora.alpha", Value::Float(8.0)),
    ] {
        assert_eq!(header.metadata.get(key), Some(&value), "{key}");
    }
    assert_eq!(header.tensors.len(), 2 * 7 * 2);
    let find = |name: &str| {
        let entry =
            header.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"));
        let at = usize::try_from(entry.offset).unwrap();
        let bytes = &file[at..at + usize::try_from(entry.len).unwrap()];
        let values: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (entry.dims.clone(), values)
    };
    let peft = |name: &str| {
        let params = made.params.sorted();
        let (_, param) = params.iter().find(|(_, param)| param.name.contains(name)).unwrap();
        values(&param.value)
    };
    // Innermost first, as A `[R, in]` and B `[out, R]` lie.
    let (dims, a) = find("blk.1.attn_q.weight.lora_a");
    assert_eq!((dims, a), (vec![32, 4], peft("layers.1.self_attn.q_proj.lora_A")));
    let (dims, b) = find("blk.0.ffn_up.weight.lora_b");
    assert_eq!((dims, b), (vec![4, 40], peft("layers.0.mlp.up_proj.lora_B")));
    // Heads of eight rows: the second row of the file is the fifth of Hugging Face's.
    let ((_, b), whole) = (find("blk.0.attn_k.weight.lora_b"), peft("layers.0.self_attn.k_proj.lora_B"));
    assert_eq!((&b[..4], &b[4..8], &b[32..36]), (&whole[..4], &whole[16..20], &whole[32..36]));
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2 and FTTRAIN_PYTHON with xllamacpp"]
fn llama_cpp_takes_the_gguf_lora_and_answers_as_fttrain() {
    let base = named("FTTRAIN_SMOLLM2");
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "base_model = '{base}'\nadapter = 'qlora'\nlora_r = 4\nlora_alpha = 8\nbf16 = false\ndevice = 'cpu'\n\
         output_dir = 'unused'\nmicro_batch_size = 2\nlearning_rate = 1e-2\nlr_scheduler = 'constant'\nsequence_len = 128\n\
         sample_packing = false\n[[datasets]]\npath = 'unused'\ntype = 'tokenized'\n"
    );
    let text = text.as_str();
    let (before, after) = (support::from_text(text, false, &[]), support::from_text(text, true, &[]));
    after.train(&rows(&golden().join("quantised")), 4, false);
    // The run's folder, as PEFT has it, is what an export starts from.
    let config::Method::Qlora { lora, .. } = &after.config.method else {
        panic!("{:?}", after.config.method)
    };
    let fresh = Adapter::resolve(&after.arch, lora, None, 0).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), peft::config_json(&fresh, "x", None)).unwrap();
    let mut file = std::fs::File::create(folder.path().join("adapter_model.safetensors")).unwrap();
    peft::write_tensors(&after.params, &mut file).unwrap();
    let saved = config::Lora { model_dir: Some(folder.path().into()), r: None, alpha: None, ..lora.clone() };
    let adapter = Adapter::resolve(&after.arch, &saved, None, 0).unwrap_or_else(|e| panic!("{e}"));
    let gguf = folder.path().join("adapter.gguf");
    gguf_lora::write(&adapter, &after.arch, &gguf).unwrap();
    let last = |decoder: &Decoder, ids: &[u32]| {
        let row = fttrain::data::Sample { ids: ids.into(), labels: ids.iter().map(|_| -100).collect() };
        let logits = decoder.logits(&Batch::new([&row], 0)).unwrap();
        values(&logits.get(ids.len() - 1).unwrap().copy().unwrap())
    };
    // "The capital of France is Paris, and the capital of Germany is", less and less of it.
    let ids = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 5024, 314];
    let texts = [13, 9, 5].map(|count| {
        let (base, adapted) = (last(&before.decoder, &ids[..count]), last(&after.decoder, &ids[..count]));
        serde_json::json!({"ids": ids[..count], "base": base, "adapted": adapted})
    });
    let logits = folder.path().join("logits.json");
    std::fs::write(&logits, serde_json::to_vec(&texts).unwrap()).unwrap();
    let done = std::process::Command::new(named("FTTRAIN_PYTHON"))
        .arg(golden().join("check_gguf_lora.py"))
        .args([Path::new(&base), &gguf, &logits])
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(done.status.success(), "{said}");
    println!("{said}");
}

/// Writes a llama of 1.1 billion random weights in bf16, sharded, and returns the bytes of its largest tensor.
fn write_billion(folder: &Path) -> u64 {
    let config = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}"#;
    std::fs::write(folder.join("config.json"), config).unwrap();
    let base =
        Base { model: folder.to_str().unwrap().into(), revision: None, reinit_weights: true, bf16: None };
    let parameters = Source::locate(&base).unwrap().arch().unwrap().parameters();
    // Finite and small: the exponent is below that of 1.
    let noise: Vec<u8> =
        (0..1_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0xbf).collect();
    let mut map = serde_json::Map::new();
    let (mut largest, shards) = (0, parameters.chunks(parameters.len().div_ceil(4)));
    for (i, shard) in shards.enumerate() {
        let name = format!("model-0000{}-of-00004.safetensors", i + 1);
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for parameter in shard {
            let end = at + 2 * parameter.shape.iter().product::<usize>();
            let entry =
                serde_json::json!({"dtype": "BF16", "shape": parameter.shape, "data_offsets": [at, end]});
            header.insert(parameter.name.clone(), entry);
            map.insert(parameter.name.clone(), name.clone().into());
            largest = largest.max(end - at);
            at = end;
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join(name)).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        while at > 0 {
            let part = at.min(noise.len());
            file.write_all(&noise[..part]).unwrap();
            at -= part;
        }
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    largest as u64
}

/// The largest resident size of this process so far.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Names the base to the process that loads it and does nothing else.
const LOAD: &str = "FTTRAIN_TEST_LOAD";

#[test]
#[ignore = "writes 2 GB into the temporary folder"]
fn a_base_of_a_billion_weights_is_quantised_in_its_own_size_and_one_tensor_more() {
    if let Ok(base) = std::env::var(LOAD) {
        let before = peak_bytes();
        let frozen = Frozen::Nf4 { double_quant: true, others: DType::BF16 };
        let kept = decoder(Path::new(&base), frozen, &Device::Cpu).frozen_bytes();
        println!("loaded {before} {kept} {}", peak_bytes());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let largest = write_billion(folder.path());
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "--exact"])
        .arg("a_base_of_a_billion_weights_is_quantised_in_its_own_size_and_one_tensor_more")
        .env(LOAD, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let (_, line) = said.split_once("loaded ").unwrap_or_else(|| panic!("{said}"));
    let numbers: Vec<u64> = line.split_whitespace().take(3).map(|n| n.parse().unwrap()).collect();
    let [before, kept, peak] = numbers[..] else { panic!("{said}") };
    let bound = kept + largest + (200 << 20);
    assert!(kept < 900 << 20 && peak - before <= bound, "{before} before, {kept} kept, {peak} at most");
    println!("{} MiB for {} MiB kept", (peak - before) >> 20, kept >> 20);
}
