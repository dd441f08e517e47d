//! The estimate as its users meet it: it grows where it must, it is refused with its numbers and the way out, its
//! JSON has the pinned names, and what is metered adds up to what is billed.

use fttrain::arch::{Arch, Linear, config_json};
use fttrain::config::{self, Config, Method};
use fttrain::error::Kind;
use fttrain::estimate::history::Learned;
use fttrain::estimate::{Counts, Inputs, Limits, Machine, Part, Prediction, predict, price_used, refuse};
use fttrain::meter::fake::Fake;
use fttrain::meter::{Meter, Phase};
use std::time::Duration;

const GIB: u64 = 1 << 30;

fn llama(layers: usize, d: usize, f: usize, heads: usize, kv_heads: usize, vocab: usize) -> Arch {
    let json = serde_json::json!({
        "model_type": "llama", "num_hidden_layers": layers, "hidden_size": d, "intermediate_size": f,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "tie_word_embeddings": d < 2048, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 1e5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    });
    config_json::parse(json.to_string().as_bytes(), "config.json").unwrap()
}

fn smollm2() -> Arch {
    llama(30, 576, 1536, 9, 3, 49_152)
}

fn llama_70b() -> Arch {
    llama(80, 8192, 28_672, 64, 8, 128_256)
}

const FULL: &str = "";
const QLORA: &str = "adapter = \"qlora\"";

fn lora(rank: usize) -> String {
    format!("adapter = \"lora\"\nlora_r = {rank}")
}

fn config(method: &str, micro_batch_size: usize, sequence_len: usize) -> Config {
    let text = format!(
        "base_model = \"model\"\nbf16 = false\n{method}\nsequence_len = {sequence_len}\nmax_steps = 50\n\
         micro_batch_size = {micro_batch_size}\noutput_dir = \"out\"\ndevice = \"cpu\"\n\
         [[datasets]]\npath = \"rows.jsonl\"\ntype = \"completion\"\n\
         [cost]\nusd_per_hour = 1.2\nbilling_granularity_s = 60\n"
    );
    config::parse("run.toml", &text, None, &[]).unwrap().config
}

fn limits(memory_bytes: u64) -> Limits {
    Limits { cores: 2, memory_bytes, memory_source: "test".into() }
}

fn estimate(arch: &Arch, config: &Config, memory_bytes: u64) -> Prediction {
    let adapted: Vec<Linear> = match config.method {
        Method::Full => Vec::new(),
        _ => arch.linears().collect(),
    };
    predict(&Inputs {
        arch,
        config,
        adapted: &adapted,
        counts: &Counts::uniform(10_000, 512, config),
        machine: &Machine::assumed("test", 2),
        limits: &limits(memory_bytes),
        price: &price_used(&config.cost, "2026-11-21".parse().unwrap()).unwrap(),
        learned: &Learned::default(),
        taken: &[],
        logits_rows: 512,
        file_bytes: None,
        resident_bytes: 0,
    })
}

#[test]
fn more_of_anything_never_costs_less() {
    let arch = smollm2();
    for method in [lora(16).as_str(), FULL] {
        for (batch, length) in [(1, 512), (2, 512), (2, 2048), (8, 1024)] {
            for (more_batch, more_length) in [(2 * batch, length), (batch, 2 * length)] {
                let a = estimate(&arch, &config(method, batch, length), u64::MAX);
                let b = estimate(&arch, &config(method, more_batch, more_length), u64::MAX);
                let (a, b) = (a.predicted, b.predicted);
                assert!(a.peak_memory_bytes < b.peak_memory_bytes, "{a:?} {b:?}");
                assert!(a.step_s < b.step_s && a.cost_usd <= b.cost_usd, "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn a_larger_rank_costs_memory_time_and_disk() {
    let arch = smollm2();
    let at = |r| estimate(&arch, &config(&lora(r), 1, 1024), u64::MAX);
    let (small, large) = (at(8), at(64));
    assert_eq!(8 * small.trainable, large.trainable);
    assert!(small.predicted.peak_memory_bytes < large.predicted.peak_memory_bytes);
    assert!(small.predicted.wall_s < large.predicted.wall_s);
    assert!(small.disk_bytes < large.disk_bytes);
}

#[test]
fn four_bit_bases_need_less_than_half_of_f32_ones() {
    let arch = llama(16, 2048, 8192, 32, 8, 32_000);
    let base = |method: &str| estimate(&arch, &config(method, 1, 512), u64::MAX).memory_parts[0].bytes;
    assert!(2 * base(QLORA) < base(&lora(16)));
}

#[test]
fn a_model_ten_times_too_large_is_refused_at_once_with_both_numbers() {
    let (arch, config) = (llama_70b(), config(&lora(16), 1, 2048));
    let start = std::time::Instant::now();
    let p = estimate(&arch, &config, 24 * GIB);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(100), "{took:?}");
    let error = refuse(&p, &limits(24 * GIB), &config.budget).unwrap_err();
    assert_eq!(error.kind, Kind::Resource);
    let text = error.to_string();
    let needed = p.predicted.peak_memory_bytes.unwrap();
    assert!(needed > 240 * GIB, "{needed}");
    assert!(text.contains(&needed.to_string()) && text.contains("25769803776"), "{text}");
    assert!(text.contains("--qlora"), "{text}");
}

#[test]
fn a_batch_of_two_to_the_fortieth_is_refused_and_does_not_wrap() {
    let (arch, mut config) = (smollm2(), config(&lora(16), 1, 1024));
    // Beyond what a config may say: the estimate must not rely on that.
    config.train.micro_batch_size = 1 << 40;
    config.data.sequence_len = 1 << 30;
    let p = estimate(&arch, &config, 24 * GIB);
    let error = refuse(&p, &limits(24 * GIB), &config.budget).unwrap_err();
    assert_eq!(error.kind, Kind::Resource);
    assert!(error.to_string().contains("micro_batch_size = "), "{error}");
}

#[test]
fn the_json_has_the_pinned_names() {
    let p = estimate(&smollm2(), &config(&lora(16), 1, 1024), 24 * GIB);
    let json = serde_json::to_value(&p).unwrap();
    let keys = ["wall_s", "step_s", "tokens_per_s", "peak_memory_bytes", "energy_j", "cost_usd"];
    for key in keys {
        assert!(json["predicted"].get(key).is_some(), "{key}");
        let known = !json["predicted"][key].is_null();
        assert_eq!(json["interval"][key]["low"].is_number(), known, "{key}");
        assert_eq!(json["interval"][key]["high"].is_number(), known, "{key}");
    }
    let names: Vec<&str> =
        json["memory_parts"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, Part::ALL.map(Part::name));
    assert_eq!(json["phases"].as_array().unwrap().last().unwrap()["name"], "rounding");
    let back: Prediction = serde_json::from_value(json).unwrap();
    assert_eq!(back.predicted, p.predicted);
}

#[test]
fn what_was_metered_adds_up_to_what_is_billed() {
    let meter = Meter::start(Box::new(Fake::new(Vec::new())), Duration::from_millis(1), Phase::Idle);
    for phase in [Phase::Load, Phase::Train, Phase::Evaluate, Phase::Train, Phase::Save] {
        meter.enter(phase);
        std::thread::sleep(Duration::from_millis(2));
    }
    let measured = meter.finish();
    let price = price_used(&config(&lora(16), 1, 1024).cost, "2026-11-21".parse().unwrap()).unwrap();
    let phases: Vec<(String, f64)> = measured.phases.iter().map(|p| (p.name.clone(), p.wall_s)).collect();
    let shares = price.share(&phases);
    let wall: f64 = shares.iter().map(|p| p.wall_s).sum();
    let cost: f64 = shares.iter().filter_map(|p| p.cost_usd).sum();
    assert!((wall - measured.wall_s).abs() < 1e-9);
    // One minute at $1.20 an hour.
    assert!((cost - 0.02).abs() < 1e-12, "{cost}");
}
