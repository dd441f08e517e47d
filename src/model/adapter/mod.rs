//! A low-rank adapter in PEFT's terms: what it adapts, its scale, and the values that it starts from.

pub mod gguf_lora;
pub mod peft;

use crate::arch::{self, Arch};
use crate::config;
use crate::error::Result;
use crate::ops::host;
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the adapter's folder cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file of the adapter's folder does not say what PEFT says.
    #[error("{}: {fact}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fact: String,
    },
    /// The config asks for something else than the adapter is.
    #[error("{}: the adapter has {key} = {theirs}, the config says {ours}", path.display())]
    Conflict {
        /// `adapter_config.json`.
        path: PathBuf,
        /// PEFT's name of the setting.
        key: &'static str,
        /// The adapter's value.
        theirs: String,
        /// The config's value.
        ours: String,
    },
    /// The adapter was not made for this base.
    #[error("{}: the adapter does not fit the base model: {}", path.display(), differences.join("; "))]
    Mismatch {
        /// `adapter_model.safetensors`.
        path: PathBuf,
        /// The first differences.
        differences: Vec<String>,
    },
}

impl crate::error::Fault for Error {
    fn kind(&self) -> crate::error::Kind {
        crate::error::Kind::Model
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => {
                "an adapter is a folder with adapter_config.json and adapter_model.safetensors".into()
            }
            Self::Format { .. } => "save the adapter again with PEFT (safe_serialization) or fttrain".into(),
            Self::Conflict { key, .. } => {
                format!("leave `{key}` out: a continued adapter keeps its own")
            }
            Self::Mismatch { .. } => {
                "continue an adapter on the base, rank and modules that it was trained with".into()
            }
        })
    }
}

/// The numbers of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// R.
    pub r: usize,
    /// α, raw.
    pub alpha: f64,
    /// Scale α/√R in place of α/R.
    pub rslora: bool,
    /// Drop probability on the input of A.
    pub dropout: f64,
    /// Learning rate of B over that of A (LoRA+).
    pub lr_ratio: f64,
}

impl Spec {
    /// s.
    #[allow(clippy::cast_possible_truncation)] // The scale is applied in f32.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.alpha / if self.rslora { r.sqrt() } else { r }) as f32
    }
}

/// A resolved adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its numbers.
    pub spec: Spec,
    /// Which linears, as the adapter's file will say it.
    pub targets: config::Targets,
    /// Names of the adapted linears.
    pub modules: BTreeSet<String>,
    /// Names of the modules that are trained whole.
    pub modules_to_save: BTreeSet<String>,
    /// Values to start from, by PEFT's names; empty for a fresh adapter.
    start: BTreeMap<String, Tensor>,
    seed: u64,
}

impl Adapter {
    /// Resolves the config's adapter on this model; reads `model_dir` where there is one.
    ///
    /// # Errors
    /// Targets match nothing; the adapter to continue is broken, conflicts with the config or fits another base.
    pub fn resolve(arch: &Arch, lora: &config::Lora, lr_ratio: Option<f64>, seed: u64) -> Result<Self> {
        let found = match &lora.model_dir {
            Some(folder) => Some(peft::Folder::open(folder)?.agreed(lora)?),
            None => None,
        };
        let settings = found.as_ref().map(|f| &f.settings);
        let targets = match settings {
            Some(settings) => settings.targets.clone(),
            None => lora.targets.clone().unwrap_or(config::Targets::AllLinear),
        };
        let saved = settings.map_or(&lora.modules_to_save, |s| &s.modules_to_save);
        let mut adapter = Self {
            spec: Spec {
                r: settings.map_or(lora.r.unwrap_or(16), |s| s.r),
                alpha: settings.map_or(lora.alpha.unwrap_or(32.0), |s| s.alpha),
                rslora: settings.map_or(lora.rslora.unwrap_or(false), |s| s.rslora),
                dropout: lora.dropout,
                lr_ratio: lr_ratio.unwrap_or(1.0),
            },
            modules: arch::targets::select(arch, &targets)?.into_iter().map(|l| l.name).collect(),
            modules_to_save: arch::targets::modules_to_save(arch, saved)?.into_iter().collect(),
            targets,
            start: BTreeMap::new(),
            seed,
        };
        if let Some(found) = found {
            adapter.start = found.tensors(&adapter.expected(arch))?;
        }
        Ok(adapter)
    }

    /// Whether the linear `module` gets A and B. A module that is trained whole does not.
    pub fn adapts(&self, module: &str) -> bool {
        self.modules.contains(module) && !self.trains_whole(module)
    }

    /// Whether `module` is trained whole beside the adapter.
    pub fn trains_whole(&self, module: &str) -> bool {
        self.modules_to_save.contains(module)
    }

    /// The value that a trained tensor starts from, where the run continues an adapter.
    pub fn start(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.start.get(name).map(Tensor::copy).transpose()?)
    }

    /// A fresh A `[R, in]`: uniform in ±1/√in, which is PEFT's `kaiming_uniform` with a = √5.
    pub fn fresh_a(&self, linear: &arch::Linear) -> Result<Tensor> {
        let bound = 1.0 / (linear.inputs as f64).sqrt();
        let mut noise = crate::data::rng::Rng::new(self.seed, &linear.name, 0, 0);
        #[allow(clippy::cast_possible_truncation)]
        let values = (0..self.spec.r * linear.inputs)
            .map(|_| ((2.0 * noise.uniform_f64() - 1.0) * bound) as f32)
            .collect();
        host::tensor(values, (self.spec.r, linear.inputs))
    }

    /// Every tensor of the adapter's file, with its shape.
    pub fn expected(&self, arch: &Arch) -> BTreeMap<String, Vec<usize>> {
        let low_rank = arch.linears().filter(|l| self.adapts(&l.name)).flat_map(|l| {
            let at = format!("base_model.model.{}", l.name);
            [
                (format!("{at}.lora_A.weight"), vec![self.spec.r, l.inputs]),
                (format!("{at}.lora_B.weight"), vec![l.outputs, self.spec.r]),
            ]
        });
        let mut parameters = arch.parameters();
        if arch.tie_word_embeddings {
            parameters.push(arch::Parameter {
                name: "lm_head.weight".into(),
                shape: vec![arch.vocab_size, arch.hidden_size],
            });
        }
        let whole = parameters
            .into_iter()
            .filter(|p| p.name.rsplit_once('.').is_some_and(|(module, _)| self.trains_whole(module)))
            .map(|p| (format!("base_model.model.{}", p.name), p.shape));
        low_rank.chain(whole).collect()
    }
}
