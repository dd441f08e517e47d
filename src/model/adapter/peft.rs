//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

use super::{Adapter, Error};
use crate::config;
use crate::error::Result;
use crate::model::Params;
use crate::ops::host;
use candle_core::Tensor;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// An `adapter_config.json` is a few hundred bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What an adapter's config decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// R.
    pub r: usize,
    /// α, raw.
    pub alpha: f64,
    /// Scale α/√R.
    pub rslora: bool,
    /// Which linears.
    pub targets: config::Targets,
    /// Modules trained whole.
    pub modules_to_save: Vec<String>,
}

/// An adapter on disk whose config was read and understood.
pub struct Folder {
    path: PathBuf,
    /// What its config says.
    pub settings: Settings,
}

impl Folder {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// It is missing, not PEFT's, or asks for a kind of adapter that is not LoRA.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("adapter_config.json");
        let read = |path: &Path| -> io::Result<String> {
            let mut text = String::new();
            std::fs::File::open(path)?.take(MAX_CONFIG_BYTES).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let settings = settings(&text).map_err(|fact| Error::Format { path, fact })?;
        Ok(Self { path: folder.to_owned(), settings })
    }

    /// Itself, if no key that the config states contradicts it.
    pub fn agreed(self, lora: &config::Lora) -> Result<Self, Error> {
        let s = &self.settings;
        let stated = [
            ("r", s.r.to_string(), lora.r.map(|r| r.to_string())),
            ("lora_alpha", s.alpha.to_string(), lora.alpha.map(|a| a.to_string())),
            ("use_rslora", s.rslora.to_string(), lora.rslora.map(|r| r.to_string())),
            (
                "modules_to_save",
                format!("{:?}", s.modules_to_save),
                Some(&lora.modules_to_save).filter(|m| !m.is_empty()).map(|m| format!("{m:?}")),
            ),
            (
                "target_modules",
                format!("{:?}", s.targets),
                lora.targets.as_ref().filter(|t| !same_targets(t, &s.targets)).map(|t| format!("{t:?}")),
            ),
        ];
        for (key, theirs, ours) in stated {
            if let Some(ours) = ours.filter(|ours| *ours != theirs) {
                let path = self.path.join("adapter_config.json");
                return Err(Error::Conflict { path, key, theirs, ours });
            }
        }
        Ok(self)
    }

    /// Its tensors in f32: exactly those expected, in exactly those shapes.
    pub fn tensors(&self, expected: &BTreeMap<String, Vec<usize>>) -> Result<BTreeMap<String, Tensor>> {
        let path = self.path.join("adapter_model.safetensors");
        let values: u64 = expected.values().map(|s| s.iter().map(|&n| n as u64).product::<u64>()).sum();
        // Values at 8 bytes at most, and a header of 1 KiB a tensor: more cannot be this adapter.
        let bytes = read_bounded(&path, values * 8 + (expected.len() as u64 + 64) * 1024)?;
        let broken = |fact: String| Error::Format { path: path.clone(), fact };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
        let mut differences = Vec::new();
        for (name, shape) in expected {
            match file.tensor(name) {
                Err(_) => differences.push(format!("`{name}` is missing")),
                Ok(view) if view.shape() != shape => {
                    differences.push(format!("`{name}` has shape {:?}, expected {shape:?}", view.shape()));
                }
                Ok(_) => {}
            }
        }
        let extra = file.names().into_iter().filter(|name| !expected.contains_key(*name));
        differences.extend(extra.map(|name| format!("`{name}` has no place in this base")));
        if !differences.is_empty() {
            differences.sort();
            differences.truncate(10);
            return Err(Error::Mismatch { path, differences }.into());
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = floats(view.dtype(), view.data()).ok_or_else(|| {
                broken(format!("`{name}` is of type {:?}, expected F32, F16 or BF16", view.dtype()))
            })?;
            if let Some(bad) = values.iter().position(|x| !x.is_finite()) {
                return Err(broken(format!("`{name}` holds {} at element {bad}", values[bad])).into());
            }
            tensors.insert(name, host::tensor(values, view.shape())?);
        }
        Ok(tensors)
    }
}

/// `all-linear` and the list of every linear's name mean the same.
fn same_targets(a: &config::Targets, b: &config::Targets) -> bool {
    let sorted = |t: &config::Targets| match t {
        config::Targets::Names(names) => {
            let mut names = names.clone();
            names.sort();
            config::Targets::Names(names)
        }
        config::Targets::AllLinear => config::Targets::Names(all_linear()),
        other @ config::Targets::Regex(_) => other.clone(),
    };
    sorted(a) == sorted(b)
}

fn all_linear() -> Vec<String> {
    ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"].map(String::from).to_vec()
}

fn read_bounded(path: &Path, bound: u64) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    if size > bound {
        let fact = format!("{size} bytes, at most {bound} expected for this rank and these modules");
        return Err(Error::Format { path: path.to_owned(), fact });
    }
    let mut bytes = Vec::new();
    file.take(bound).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    Some(match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}

fn settings(text: &str) -> Result<Settings, String> {
    let config: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if config["peft_type"] != "LORA" {
        return Err(format!("`peft_type` is {}, expected \"LORA\"", config["peft_type"]));
    }
    let plain = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(o) => o.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::String(s) => s == "none",
        _ => false,
    };
    for key in [
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "fan_in_fan_out",
        "layers_to_transform",
        "trainable_token_indices",
        "target_parameters",
        "exclude_modules",
        "layer_replication",
        "lora_bias",
        "use_qalora",
        "alora_invocation_tokens",
    ] {
        if !plain(&config[key]) {
            return Err(format!("`{key}` = {} is not supported yet", config[key]));
        }
    }
    // Anything but PEFT's default has changed the base's own weights.
    if !matches!(&config["init_lora_weights"], Value::Null | Value::Bool(_)) {
        return Err(format!("`init_lora_weights` = {} is not supported yet", config["init_lora_weights"]));
    }
    let names = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|v| v.as_str().map(String::from)).collect()
    };
    let targets = match &config["target_modules"] {
        Value::String(all) if all == "all-linear" => config::Targets::AllLinear,
        Value::String(pattern) => config::Targets::Regex(pattern.clone()),
        list => config::Targets::Names(
            names(list).ok_or("`target_modules` is neither a list of names nor a string")?,
        ),
    };
    let r = config["r"].as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=1 << 16).contains(r));
    let alpha = config["lora_alpha"].as_f64().filter(|a| a.is_finite() && *a > 0.0);
    Ok(Settings {
        r: r.ok_or_else(|| format!("`r` = {} is not a rank", config["r"]))?,
        alpha: alpha.ok_or_else(|| format!("`lora_alpha` = {} is not above 0", config["lora_alpha"]))?,
        rslora: config["use_rslora"].as_bool().unwrap_or(false),
        targets,
        modules_to_save: names(&config["modules_to_save"]).unwrap_or_default(),
    })
}

/// The text of `adapter_config.json`; `base` must not be a path of this machine.
pub fn config_json(adapter: &Adapter, base: &str, revision: Option<&str>) -> String {
    let targets = match &adapter.targets {
        config::Targets::AllLinear => json!(all_linear()),
        config::Targets::Names(names) => json!(names),
        config::Targets::Regex(pattern) => json!(pattern),
    };
    let modules_to_save: Vec<&String> = adapter.modules_to_save.iter().collect();
    #[allow(clippy::cast_possible_truncation)]
    let alpha = if adapter.spec.alpha.fract() == 0.0 && adapter.spec.alpha < 1e15 {
        json!(adapter.spec.alpha as i64)
    } else {
        json!(adapter.spec.alpha)
    };
    let config = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": adapter.spec.dropout,
        "modules_to_save": if modules_to_save.is_empty() { Value::Null } else { json!(modules_to_save) },
        "peft_type": "LORA",
        "r": adapter.spec.r,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": adapter.spec.rslora,
    });
    format!("{config:#}\n")
}

/// Writes the trained tensors as safetensors, in name order, with the one metadata key that transformers asks for.
pub fn write_tensors(params: &Params, out: &mut dyn Write) -> io::Result<()> {
    write_safetensors(params.sorted().iter().map(|(_, p)| (p.name.as_str(), &p.value)), out)
}

/// Writes f32 tensors as safetensors, in the order given.
pub fn write_safetensors<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let tensors: Vec<_> = tensors.collect();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0usize;
    for (name, value) in &tensors {
        let end = at + value.elem_count() * 4;
        header.insert(
            (*name).into(),
            json!({"dtype": "F32", "shape": value.dims(), "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    let mut buffer = Vec::with_capacity(1 << 16);
    for (_, value) in &tensors {
        let values = host::read(value).map_err(|e| io::Error::other(e.to_string()))?;
        for part in values.chunks(1 << 14) {
            buffer.clear();
            buffer.extend(part.iter().flat_map(|x| x.to_le_bytes()));
            out.write_all(&buffer)?;
        }
    }
    Ok(())
}
