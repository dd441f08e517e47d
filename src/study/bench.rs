//! What the runs of the grid are made of: a random model's shapes, a tokenizer of its vocabulary, rows of exact lengths.

use super::Error;
use super::grid::{Cell, Extent, Size};
use super::{quoted, sample};
use crate::config::{Device, MethodFlag};
use crate::data::rng::Rng;
use crate::data::{IGNORE, Sample};
use crate::error::Result;
use crate::fs;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The quickstart's; larger vocabularies are made from it.
const TOKENIZER: &str = include_str!("../../configs/quickstart/model/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../configs/quickstart/model/tokenizer_config.json");

/// A folder in which runs of the grid are laid out.
#[derive(Debug, Clone)]
pub struct Bench {
    folder: PathBuf,
    extent: Extent,
    /// Where all of them compute.
    device: Device,
}

/// Shapes of a random model.
struct Shapes {
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
}

impl Size {
    fn folder(self) -> &'static str {
        match self {
            Self::Small => "model-small",
            Self::Medium => "model-medium",
            Self::Smollm2 => "model-smollm2",
            Self::Half => "model-half",
        }
    }

    fn shapes(self) -> Shapes {
        let of = |layers, hidden, intermediate, heads, kv_heads, vocabulary| Shapes {
            layers,
            hidden,
            intermediate,
            heads,
            kv_heads,
            vocabulary,
        };
        match self {
            Self::Small => of(4, 256, 768, 4, 2, 2048),
            Self::Medium => of(8, 512, 1536, 8, 4, 2048),
            Self::Smollm2 => of(30, 576, 1536, 9, 3, 49_152),
            Self::Half => of(26, 1280, 3584, 20, 4, 32_000),
        }
    }
}

impl Bench {
    /// Lays out the models of the cells under `folder`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(folder: &Path, extent: Extent, cells: &[Cell], device: Device) -> Result<Self> {
        for size in Size::ALL.into_iter().filter(|size| cells.iter().any(|cell| cell.size == *size)) {
            let model = folder.join(size.folder());
            let shapes = size.shapes();
            fs::create_folders(&model)?;
            fs::write_durable(&model.join("config.json"), model_config(&shapes).as_bytes())?;
            fs::write_durable(&model.join("tokenizer.json"), tokenizer(shapes.vocabulary)?.as_bytes())?;
            fs::write_durable(&model.join("tokenizer_config.json"), TOKENIZER_CONFIG.as_bytes())?;
        }
        Ok(Self { folder: folder.to_owned(), extent, device })
    }

    /// Writes data and config of a cell under the name `row`; gives the config's path and the output folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lay(&self, row: &str, cell: &Cell) -> Result<(PathBuf, PathBuf)> {
        let folder = self.folder.join(row);
        fs::create_folders(&folder)?;
        let (data, config, out) = (folder.join("rows.jsonl"), folder.join("run.toml"), folder.join("out"));
        let steps = self.extent.steps(cell);
        fs::write_durable(&data, sample::jsonl(&rows(cell, steps)).as_bytes())?;
        fs::write_durable(&config, self.config(cell, steps, &data, &out)?.as_bytes())?;
        Ok((config, out))
    }

    fn config(&self, cell: &Cell, steps: usize, data: &Path, out: &Path) -> Result<String> {
        let adapter = match cell.method {
            MethodFlag::Full => String::new(),
            MethodFlag::Lora => format!("adapter = \"lora\"\nlora_r = {}\n", cell.rank),
            MethodFlag::Qlora => format!("adapter = \"qlora\"\nlora_r = {}\n", cell.rank),
        };
        let threads = if cell.alone { "threads = 1\n" } else { "" };
        Ok(format!(
            "base_model = {model}\nreinit_weights = true\n{adapter}{threads}sequence_len = {sequence}\n\
             sample_packing = false\nmicro_batch_size = {batch}\nmax_steps = {steps}\n\
             gradient_checkpointing = {recompute}\ndevice = \"{device}\"\noutput_dir = {out}\n\n\
             [[datasets]]\npath = {data}\ntype = \"tokenized\"\n",
            model = quoted(&self.folder.join(cell.size.folder()))?,
            sequence = cell.sequence,
            batch = cell.batch,
            recompute = cell.recompute,
            device = self.device,
            out = quoted(out)?,
            data = quoted(data)?,
        ))
    }
}

fn model_config(shapes: &Shapes) -> String {
    serde_json::json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": shapes.vocabulary,
        "hidden_size": shapes.hidden,
        "intermediate_size": shapes.intermediate,
        "num_hidden_layers": shapes.layers,
        "num_attention_heads": shapes.heads,
        "num_key_value_heads": shapes.kv_heads,
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

/// The quickstart's tokenizer with merges of its own tokens up to `entries`: its tables weigh what a real one's do.
fn tokenizer(entries: usize) -> Result<String> {
    let broken = |fact: String| Error::Write { path: "tokenizer.json".into(), fact };
    let mut json: Value = serde_json::from_str(TOKENIZER).map_err(|e| broken(e.to_string()))?;
    let vocabulary = json["model"]["vocab"].as_object().cloned().unwrap_or_default();
    let mut tokens: Vec<(u64, String)> =
        vocabulary.iter().filter_map(|(token, id)| Some((id.as_u64()?, token.clone()))).collect();
    tokens.sort_unstable();
    // Special tokens are no text.
    let parts: Vec<&String> = tokens.iter().map(|(_, token)| token).filter(|t| !t.starts_with('<')).collect();
    let mut known: HashSet<String> = tokens.iter().map(|(_, token)| token.clone()).collect();
    let pairs = parts.iter().flat_map(|a| parts.iter().map(move |b| (*a, *b)));
    let mut next = tokens.last().map_or(0, |(id, _)| id + 1);
    for (a, b) in pairs {
        if known.len() >= entries {
            break;
        }
        let both = format!("{a}{b}");
        if known.insert(both.clone()) {
            json["model"]["vocab"][&both] = next.into();
            if let Some(merges) = json["model"]["merges"].as_array_mut() {
                let pair = merges.first().is_some_and(Value::is_array);
                merges.push(if pair { serde_json::json!([a, b]) } else { format!("{a} {b}").into() });
            }
            next += 1;
        }
    }
    Ok(json.to_string())
}

/// Rows of exactly the cell's length, half of each counted: as many as the steps take.
fn rows(cell: &Cell, steps: usize) -> Vec<Sample> {
    let mut noise = Rng::new(42, "validate", 0, 0);
    let most = cell.size.shapes().vocabulary as u64 - 3;
    let mut id = || u32::try_from(3 + noise.below(most)).unwrap_or(0);
    (0..cell.batch * steps)
        .map(|_| {
            let ids: Vec<u32> = (0..cell.sequence).map(|_| id()).collect();
            let label = |(at, id): (usize, &u32)| match i32::try_from(*id) {
                Ok(id) if at >= cell.sequence / 2 => id,
                _ => IGNORE,
            };
            Sample { labels: ids.iter().enumerate().map(label).collect(), ids }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_has_as_many_entries_as_its_model() {
        for entries in [2048, 5000] {
            let json: Value = serde_json::from_str(&tokenizer(entries).unwrap()).unwrap();
            let vocabulary = json["model"]["vocab"].as_object().unwrap();
            assert_eq!(vocabulary.len(), entries);
            let ids: HashSet<u64> = vocabulary.values().filter_map(Value::as_u64).collect();
            assert_eq!((ids.len(), ids.iter().max()), (entries, Some(&(entries as u64 - 1))));
        }
    }

    #[test]
    fn a_row_computes_where_the_study_does() {
        let folder = tempfile::tempdir().unwrap();
        let cells = &super::super::grid::sample(Extent::Quick, true)[..1];
        for device in [Device::Cpu, Device::Cuda(1)] {
            let bench = Bench::new(folder.path(), Extent::Quick, cells, device).unwrap();
            let (config, _) = bench.lay("row-000", &cells[0]).unwrap();
            let resolved = crate::config::load(&config, Some(cells[0].method), &[]).unwrap();
            assert_eq!(resolved.config.train.device, device);
        }
    }

    #[test]
    fn half_a_billion_is_half_a_billion() {
        let config = model_config(&Size::Half.shapes());
        let arch = crate::arch::config_json::parse(config.as_bytes(), "config.json").unwrap();
        assert!((490_000_000..520_000_000).contains(&arch.parameter_count()), "{}", arch.parameter_count());
    }

    #[test]
    fn rows_are_as_long_as_the_cell_and_half_counted() {
        let cell = super::super::grid::sample(Extent::Quick, false)[0];
        let rows = rows(&cell, 2);
        assert_eq!(rows.len(), 2 * cell.batch);
        for row in &rows {
            assert_eq!((row.ids.len(), row.loss_tokens()), (cell.sequence, cell.sequence / 2));
        }
    }
}
