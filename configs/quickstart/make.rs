//! Makes everything in this folder from `world.txt` and a seed:
//!
//! ```text
//! cargo run --release --example make-quickstart -- [--overwrite] [--only-data]
//! ```
//!
//! It writes a corpus (under target/), learns a tokenizer from it, writes the rows of the fine-tune, pretrains the
//! base model with `fttrain --full` and keeps its weights in bf16. Files that exist are left alone without
//! `--overwrite`; `--only-data` stops before the pretraining.

mod grammar;
mod texts;
mod tokens;
mod weights;

use grammar::Grammar;
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::path::Path;

/// What ships; all of it is made here.
const MODEL: &str = "configs/quickstart/model";
const ROWS: &str = "configs/quickstart/train.jsonl";

/// What the base model learns from; too large to ship, and quick to write again.
const SCRATCH: &str = "target/quickstart";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    if let Some(unknown) = arguments.iter().find(|a| !["--overwrite", "--only-data"].contains(&a.as_str())) {
        return Err(format!("unknown argument `{unknown}`: there are --overwrite and --only-data").into());
    }
    if !has("--overwrite") && (Path::new(MODEL).exists() || Path::new(ROWS).exists()) {
        return Err(format!("{MODEL} or {ROWS} exists: say --overwrite to make both anew").into());
    }
    fs::create_dir_all(MODEL)?;
    fs::create_dir_all(SCRATCH)?;

    let grammar = Grammar::parse(include_str!("world.txt"))?;
    let corpus = texts::corpus(&grammar)?;
    write_rows(&format!("{SCRATCH}/texts.jsonl"), &corpus.texts)?;
    write_rows(&format!("{SCRATCH}/chats.jsonl"), &corpus.chats)?;
    write_rows(ROWS, &texts::reports(&grammar)?)?;

    let tokenizer = tokens::learn(corpus.strings()).map_err(|e| e.to_string())?;
    tokenizer.save(format!("{MODEL}/tokenizer.json"), false).map_err(|e| e.to_string())?;
    write_json("tokenizer_config.json", &tokens::config())?;
    write_json("config.json", &shapes())?;
    if !has("--only-data") {
        let trained =
            weights::pretrain("configs/quickstart/pretrain.toml", &format!("{SCRATCH}/pretrained"))?;
        weights::keep_as_bf16(&trained, &Path::new(MODEL).join("model.safetensors"))?;
    }
    Ok(())
}

/// `config.json`: Llama shapes, 1.44 M parameters.
fn shapes() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokens::VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "initializer_range": 0.05,
        "bos_token_id": null,
        "eos_token_id": 4,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    })
}

fn write_rows(path: &str, rows: &[Value]) -> Result<(), Box<dyn Error>> {
    fs::write(path, texts::lines(rows))?;
    println!("{path}: {} rows", rows.len());
    Ok(())
}

fn write_json(name: &str, value: &Value) -> Result<(), Box<dyn Error>> {
    let path = format!("{MODEL}/{name}");
    fs::write(&path, format!("{value:#}\n"))?;
    println!("{path}");
    Ok(())
}
