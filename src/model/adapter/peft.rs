//! PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

use super::{Adapter, Error};
use crate::arch::Arch;
use crate::arch::safetensors::{Dtype, Shard, TensorEntry};
use crate::arch::targets::modules_to_save;
use crate::config;
use crate::error::Result;
use crate::model::{Param, Params, tensors};
use crate::ops::host;
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
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
    /// R of single modules.
    pub rank_pattern: Vec<(String, usize)>,
    /// α of single modules.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale α/√R.
    pub rslora: bool,
    /// Trained lengths of rows.
    pub dora: bool,
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

    /// Itself, if no key that the config states contradicts it on this model.
    ///
    /// # Errors
    /// One does (4), or names a module that is not there (2).
    pub fn agreed(self, arch: &Arch, lora: &config::Lora) -> Result<Self> {
        let s = &self.settings;
        // The same modules may be named by longer or shorter ends, in any order.
        let saved = |names: &[String]| modules_to_save(arch, names).map(|modules| format!("{modules:?}"));
        let own = if lora.modules_to_save.is_empty() { None } else { Some(saved(&lora.modules_to_save)?) };
        let stated = [
            ("r", s.r.to_string(), lora.r.map(|r| r.to_string())),
            ("lora_alpha", s.alpha.to_string(), lora.alpha.map(|a| a.to_string())),
            ("use_rslora", s.rslora.to_string(), lora.rslora.map(|r| r.to_string())),
            ("use_dora", s.dora.to_string(), lora.dora.map(|d| d.to_string())),
            ("rank_pattern", format!("{:?}", s.rank_pattern), stated(&lora.rank_pattern)),
            ("alpha_pattern", format!("{:?}", s.alpha_pattern), stated(&lora.alpha_pattern)),
            ("modules_to_save", saved(&s.modules_to_save)?, own),
            (
                "target_modules",
                format!("{:?}", s.targets),
                lora.targets.as_ref().filter(|t| !same_targets(t, &s.targets)).map(|t| format!("{t:?}")),
            ),
        ];
        for (key, theirs, ours) in stated {
            if let Some(ours) = ours.filter(|ours| *ours != theirs) {
                let path = self.path.join("adapter_config.json");
                return Err(Error::Conflict { path, key, theirs, ours }.into());
            }
        }
        Ok(self)
    }

    /// Its tensors in f32: exactly those expected, in exactly those shapes.
    pub fn tensors(&self, expected: &BTreeMap<String, Vec<usize>>) -> Result<BTreeMap<String, Tensor>> {
        let path = self.path.join("adapter_model.safetensors");
        let shard = Shard::read(&path)?;
        let mut differences = Vec::new();
        for (name, shape) in expected {
            match shard.tensors.iter().find(|entry| entry.name == *name) {
                None => differences.push(format!("`{name}` is missing")),
                Some(TensorEntry { shape: found, .. }) if found != shape => {
                    differences.push(format!("`{name}` has shape {found:?}, expected {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let extra = shard.tensors.iter().filter(|entry| !expected.contains_key(&entry.name));
        differences.extend(extra.map(|entry| format!("`{}` has no place in this base", entry.name)));
        if !differences.is_empty() {
            differences.sort();
            differences.truncate(10);
            return Err(Error::Mismatch { path, differences }.into());
        }
        let broken = |fact: String| Error::Format { path: path.clone(), fact };
        let unreadable = |source| Error::Read { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(unreadable)?;
        let mut tensors = BTreeMap::new();
        let mut bytes = Vec::new();
        for TensorEntry { name, dtype, shape, offset, len } in shard.tensors {
            bytes.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            file.read_exact_at(&mut bytes, offset).map_err(unreadable)?;
            let values = floats(dtype, &bytes).ok_or_else(|| {
                broken(format!("`{name}` is of type {}, expected F32, F16 or BF16", dtype.name()))
            })?;
            if let Some(bad) = values.iter().position(|x| !x.is_finite()) {
                return Err(broken(format!("`{name}` holds {} at element {bad}", values[bad])).into());
            }
            tensors.insert(name, host::tensor(values, shape)?);
        }
        Ok(tensors)
    }
}

/// A list as a message shows it; an empty one states nothing.
fn stated<T: std::fmt::Debug>(list: &[T]) -> Option<String> {
    (!list.is_empty()).then(|| format!("{list:?}"))
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
    // The others have changed the base's own weights, and belong to those alone.
    let keeps_base = |init: &Value| match init {
        Value::Null | Value::Bool(_) => true,
        Value::String(name) => name == "gaussian",
        _ => false,
    };
    if !keeps_base(&config["init_lora_weights"]) {
        return Err(format!(
            "`init_lora_weights` = {}: made for a base whose weights it changed; PEFT turns it into a plain adapter \
             with `path_initial_model_for_weight_conversion`",
            config["init_lora_weights"]
        ));
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
    Ok(Settings {
        r: rank(&config["r"]).ok_or_else(|| format!("`r` = {} is not a rank", config["r"]))?,
        alpha: alpha(&config["lora_alpha"])
            .ok_or_else(|| format!("`lora_alpha` = {} is not above 0", config["lora_alpha"]))?,
        rank_pattern: pattern(&config, "rank_pattern", rank)?,
        alpha_pattern: pattern(&config, "alpha_pattern", alpha)?,
        dora: config["use_dora"].as_bool().unwrap_or(false),
        rslora: config["use_rslora"].as_bool().unwrap_or(false),
        targets,
        modules_to_save: names(&config["modules_to_save"]).unwrap_or_default(),
    })
}

fn rank(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=1 << 16).contains(r))
}

fn alpha(value: &Value) -> Option<f64> {
    value.as_f64().filter(|a| a.is_finite() && *a > 0.0)
}

fn pattern<T>(
    config: &Value,
    key: &str,
    value: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>, String> {
    let entries = config[key].as_object().into_iter().flatten();
    entries
        .map(|(name, given)| match value(given) {
            Some(value) => Ok((name.clone(), value)),
            None => Err(format!("`{key}`: `{name}` = {given} is neither a rank nor an alpha")),
        })
        .collect()
}

/// The text of `adapter_config.json`; `base` must not be a path of this machine.
pub fn config_json(adapter: &Adapter, base: &str, revision: Option<&str>) -> String {
    let targets = match &adapter.targets {
        config::Targets::AllLinear => json!(all_linear()),
        config::Targets::Names(names) => json!(names),
        config::Targets::Regex(pattern) => json!(pattern),
    };
    let modules_to_save: Vec<&String> = adapter.modules_to_save.iter().collect();
    let spec = &adapter.spec;
    // As PEFT writes what it turns into a plain adapter: [A; A₀], [B, −B₀], twice the rank, the same scale.
    let (more, louder) = match (spec.init, spec.rslora) {
        (config::LoraInit::Zero, _) => (1, 1.0),
        (config::LoraInit::Pissa { .. }, false) => (2, 2.0),
        (config::LoraInit::Pissa { .. }, true) => (2, std::f64::consts::SQRT_2),
    };
    let ranks: serde_json::Map<String, Value> =
        spec.rank_pattern.iter().map(|(name, r)| (name.clone(), json!(r * more))).collect();
    let alphas: serde_json::Map<String, Value> =
        spec.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), number(alpha * louder))).collect();
    let config = json!({
        "alpha_pattern": alphas,
        "auto_mapping": null,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(spec.alpha * louder),
        "lora_dropout": spec.dropout,
        "modules_to_save": if modules_to_save.is_empty() { Value::Null } else { json!(modules_to_save) },
        "peft_type": "LORA",
        "r": spec.r * more,
        "rank_pattern": ranks,
        "revision": revision,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": spec.dora,
        "use_rslora": spec.rslora,
    });
    format!("{config:#}\n")
}

/// A whole number without a point, as Python writes an `int`.
fn number(x: f64) -> Value {
    #[allow(clippy::cast_possible_truncation)]
    if x.fract() == 0.0 && x < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Writes the trained tensors as safetensors, in name order, with the one metadata key that transformers asks for.
pub fn write_tensors(params: &Params, out: &mut dyn Write) -> io::Result<()> {
    let stored = params
        .sorted()
        .into_iter()
        .map(|(_, p)| Ok((p.name.clone(), stored(p)?)))
        .collect::<Result<Vec<_>>>()
        .map_err(|e| io::Error::other(e.to_string()))?;
    tensors::write(stored.iter().map(|(name, value)| (name.as_str(), value)), out)
}

/// A trained tensor as its file holds it: behind what `PiSSA` made of A and B stands what it began with, B negative,
/// so that the file is an adapter of the base as it was.
fn stored(param: &Param) -> Result<Tensor> {
    Ok(match &param.lent {
        None => param.value.clone(),
        Some(lent) if is_b(param) => Tensor::cat(&[&param.value, &lent.neg()?], 1)?.contiguous()?,
        Some(lent) => Tensor::cat(&[&param.value, lent], 0)?,
    })
}

fn is_b(param: &Param) -> bool {
    param.name.ends_with(".lora_B.weight")
}

/// Puts the values of a file that [`write_tensors`] wrote, of `size` bytes, into the trained tensors, one at a time.
///
/// # Errors
/// A tensor is missing, of another shape or type, or one too many: what is wrong, in words.
pub fn read_tensors(params: &Params, from: &mut dyn Read, size: u64) -> Result<(), String> {
    let wanted = params.sorted().into_iter().map(|(_, param)| (param.name.clone(), param)).collect();
    tensors::read(from, size, wanted, fill)
}

fn fill(param: &Param, entry: &TensorEntry, data: &[u8]) -> Result<(), String> {
    if param.lent.is_none() {
        return tensors::put(&param.value, entry, data);
    }
    let expected = stored(param).map_err(|e| e.to_string())?;
    tensors::expect(entry, Dtype::F32, expected.dims())?;
    let values = floats(Dtype::F32, data).unwrap_or_default();
    let width = expected.dims().last().copied().unwrap_or(1).max(1);
    let own = if is_b(param) { width / 2 } else { width };
    let filled = host::edit(&param.value, |to| {
        for (to, from) in to.chunks_exact_mut(own).zip(values.chunks_exact(width)) {
            to.copy_from_slice(&from[..own]);
        }
    });
    filled.map_err(|e| e.to_string())
}
