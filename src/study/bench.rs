//! What the runs of the grid are made of: a random model's shapes, a tokenizer, and rows of exact lengths.

use super::Error;
use super::grid::{Cell, Method, Size};
use crate::data::rng::Rng;
use crate::error::Result;
use crate::fs;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The quickstart's: any will do, for rows come as ids.
const TOKENIZER: &str = include_str!("../../configs/quickstart/model/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../configs/quickstart/model/tokenizer_config.json");
const VOCABULARY: u64 = 2048;

/// A folder in which runs of the grid are laid out.
#[derive(Debug, Clone)]
pub struct Bench {
    folder: PathBuf,
    steps: usize,
}

impl Bench {
    /// Lays out the models under `folder`; each run takes `steps` optimizer steps.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path, steps: usize) -> Result<Self> {
        for size in [Size::Small, Size::Medium] {
            let model = folder.join(name(size));
            fs::create_folders(&model)?;
            fs::write_durable(&model.join("config.json"), model_config(size).as_bytes())?;
            fs::write_durable(&model.join("tokenizer.json"), TOKENIZER.as_bytes())?;
            fs::write_durable(&model.join("tokenizer_config.json"), TOKENIZER_CONFIG.as_bytes())?;
        }
        Ok(Self { folder: folder.to_owned(), steps })
    }

    /// Writes data and config of a cell under the name `row`; gives the config's path and the output folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lay(&self, row: &str, cell: &Cell) -> Result<(PathBuf, PathBuf)> {
        let folder = self.folder.join(row);
        fs::create_folders(&folder)?;
        let (data, config, out) = (folder.join("rows.jsonl"), folder.join("run.toml"), folder.join("out"));
        fs::write_durable(&data, rows(cell, self.steps).as_bytes())?;
        fs::write_durable(&config, self.config(cell, &data, &out)?.as_bytes())?;
        Ok((config, out))
    }

    fn config(&self, cell: &Cell, data: &Path, out: &Path) -> Result<String> {
        let adapter = match cell.method {
            Method::Full => String::new(),
            Method::Lora => format!("adapter = \"lora\"\nlora_r = {}\n", cell.rank),
        };
        let quoted = |path: &Path| -> Result<String> {
            serde_json::to_string(&path.to_string_lossy())
                .map_err(|e| Error::Write { path: path.to_owned(), fact: e.to_string() }.into())
        };
        Ok(format!(
            "base_model = {model}\nreinit_weights = true\nbf16 = false\n{adapter}sequence_len = {sequence}\n\
             sample_packing = false\nmicro_batch_size = {batch}\nmax_steps = {steps}\n\
             gradient_checkpointing = {recompute}\noutput_dir = {out}\n\n\
             [[datasets]]\npath = {data}\ntype = \"tokenized\"\n",
            model = quoted(&self.folder.join(name(cell.size)))?,
            sequence = cell.sequence,
            batch = cell.batch,
            steps = self.steps,
            recompute = cell.recompute,
            out = quoted(out)?,
            data = quoted(data)?,
        ))
    }
}

fn name(size: Size) -> &'static str {
    match size {
        Size::Small => "model-small",
        Size::Medium => "model-medium",
    }
}

fn model_config(size: Size) -> String {
    let (layers, hidden, intermediate, heads, kv_heads) = match size {
        Size::Small => (4, 256, 768, 4, 2),
        Size::Medium => (8, 512, 1536, 8, 4),
    };
    serde_json::json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
    })
    .to_string()
}

/// Rows of exactly the cell's length, half of each counted: as many as the steps take.
fn rows(cell: &Cell, steps: usize) -> String {
    let mut noise = Rng::new(42, "validate", 0, 0);
    let mut text = String::new();
    for _ in 0..cell.batch * steps {
        let ids: Vec<u64> = (0..cell.sequence).map(|_| 3 + noise.below(VOCABULARY - 3)).collect();
        let list = |value: &dyn Fn(usize, u64) -> i64| {
            let all: Vec<String> = ids.iter().enumerate().map(|(i, id)| value(i, *id).to_string()).collect();
            all.join(",")
        };
        let id = |id: u64| i64::try_from(id).unwrap_or(0);
        let ids_text = list(&|_, value| id(value));
        let labels = list(&|i, value| if i < cell.sequence / 2 { -100 } else { id(value) });
        let _ = writeln!(text, "{{\"input_ids\": [{ids_text}], \"labels\": [{labels}]}}");
    }
    text
}
