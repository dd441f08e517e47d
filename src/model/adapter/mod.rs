//! A low-rank adapter in PEFT's terms: what it adapts, its scale, and the values that it starts from.

pub mod gguf_lora;
pub mod peft;
pub mod pissa;

use crate::arch::{self, Arch};
use crate::config;
use crate::error::Result;
use crate::model::params::MAGNITUDE;
use crate::ops::{Matrix, host};
use candle_core::{DType, Device, Tensor};
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
    /// A pattern names no adapted module.
    #[error("`{key}`: `{pattern}` matches no module with an adapter")]
    IdlePattern {
        /// The key.
        key: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// A principal part of more values than a weight has.
    #[error("`init_lora_weights`: {module} has {most} singular values, and its rank is {rank}")]
    TooFewValues {
        /// The module.
        module: String,
        /// The rank asked for.
        rank: usize,
        /// The smaller side of its weight.
        most: usize,
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
        match self {
            Self::IdlePattern { .. } | Self::TooFewValues { .. } => crate::error::Kind::Usage,
            _ => crate::error::Kind::Model,
        }
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
            Self::IdlePattern { .. } => {
                "a pattern is a regular expression for the end of a module's name, behind a dot".into()
            }
            Self::TooFewValues { .. } => "lower `lora_r`, or its `rank_pattern`".into(),
            Self::Mismatch { .. } => {
                "continue an adapter on the base, rank and modules that it was trained with".into()
            }
        })
    }
}

/// The numbers of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// R of every module that no pattern names.
    pub r: usize,
    /// α, raw, likewise.
    pub alpha: f64,
    /// R of modules by PEFT's patterns; the first that matches holds.
    pub rank_pattern: Vec<(String, usize)>,
    /// α of modules, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Scale α/√R in place of α/R.
    pub rslora: bool,
    /// The rows of W + s·B·A have trained lengths.
    pub dora: bool,
    /// What a fresh A and B start from.
    pub init: config::LoraInit,
    /// Drop probability on the input of A.
    pub dropout: f64,
    /// Learning rate of B over that of A (LoRA+).
    pub lr_ratio: f64,
}

impl Spec {
    /// R of a module.
    pub fn rank(&self, module: &str) -> usize {
        arch::targets::matching(&self.rank_pattern, module).copied().unwrap_or(self.r)
    }

    /// s of a module.
    #[allow(clippy::cast_possible_truncation)] // The scale is applied in f32.
    pub fn scale(&self, module: &str) -> f32 {
        let r = self.rank(module) as f64;
        let alpha = arch::targets::matching(&self.alpha_pattern, module).copied().unwrap_or(self.alpha);
        (alpha / if self.rslora { r.sqrt() } else { r }) as f32
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
            Some(folder) => Some(peft::Folder::open(folder)?.agreed(arch, lora)?),
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
                rank_pattern: settings.map_or(&lora.rank_pattern, |s| &s.rank_pattern).clone(),
                alpha_pattern: settings.map_or(&lora.alpha_pattern, |s| &s.alpha_pattern).clone(),
                rslora: settings.map_or(lora.rslora.unwrap_or(false), |s| s.rslora),
                dora: settings.map_or(lora.dora.unwrap_or(false), |s| s.dora),
                init: lora.init,
                dropout: lora.dropout,
                lr_ratio: lr_ratio.unwrap_or(1.0),
            },
            modules: arch::targets::select(arch, &targets)?.into_iter().map(|l| l.name).collect(),
            modules_to_save: arch::targets::modules_to_save(arch, saved)?.into_iter().collect(),
            targets,
            start: BTreeMap::new(),
            seed,
        };
        adapter.refuse_idle_patterns()?;
        if adapter.spec.init != config::LoraInit::Zero {
            adapter.refuse_more_than_there_is(arch)?;
        }
        if let Some(found) = found {
            adapter.start = found.tensors(&adapter.expected(arch))?;
        }
        Ok(adapter)
    }

    /// A pattern that no adapted module matches is a slip of the pen.
    fn refuse_idle_patterns(&self) -> Result<(), Error> {
        let ranks = self.spec.rank_pattern.iter().map(|(pattern, _)| ("rank_pattern", pattern));
        let alphas = self.spec.alpha_pattern.iter().map(|(pattern, _)| ("alpha_pattern", pattern));
        for (key, pattern) in ranks.chain(alphas) {
            let one = [(pattern.clone(), ())];
            if !self.modules.iter().any(|module| arch::targets::matching(&one, module).is_some()) {
                return Err(Error::IdlePattern { key, pattern: pattern.clone() });
            }
        }
        Ok(())
    }

    /// A weight has as many singular values as its smaller side.
    fn refuse_more_than_there_is(&self, arch: &Arch) -> Result<(), Error> {
        for linear in arch.linears().filter(|l| self.adapts(&l.name)) {
            let (rank, most) = (self.spec.rank(&linear.name), linear.inputs.min(linear.outputs));
            if rank > most {
                return Err(Error::TooFewValues { module: linear.name, rank, most });
            }
        }
        Ok(())
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
        let rank = self.spec.rank(&linear.name);
        #[allow(clippy::cast_possible_truncation)]
        let values =
            (0..rank * linear.inputs).map(|_| ((2.0 * noise.uniform_f64() - 1.0) * bound) as f32).collect();
        host::tensor(values, (rank, linear.inputs))
    }

    /// A and B from the principal part of a frozen weight, and what is left of it in its own type; `None` where
    /// they start otherwise.
    pub fn taken_from(
        &self,
        weight: &Matrix,
        linear: &arch::Linear,
    ) -> Result<Option<(Tensor, Tensor, Tensor)>> {
        // The config refuses it for a base in blocks.
        let (config::LoraInit::Pissa { rounds }, Matrix::Dense(weight)) = (self.spec.init, weight) else {
            return Ok(None);
        };
        let (rank, scale) = (self.spec.rank(&linear.name), self.spec.scale(&linear.name));
        let how = pissa::How { rank, scale, rounds, seed: self.seed, module: &linear.name };
        let (a, b, rest) = pissa::start(&weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?, &how)?;
        Ok(Some((a, b, rest.to_dtype(weight.dtype())?)))
    }

    /// Every tensor of the adapter's file, with its shape.
    pub fn expected(&self, arch: &Arch) -> BTreeMap<String, Vec<usize>> {
        let low_rank = arch.linears().filter(|l| self.adapts(&l.name)).flat_map(|l| {
            let (at, rank) = (format!("base_model.model.{}", l.name), self.spec.rank(&l.name));
            let lengths = self.spec.dora.then(|| (format!("{at}.{MAGNITUDE}"), vec![l.outputs]));
            let pair = [
                (format!("{at}.lora_A.weight"), vec![rank, l.inputs]),
                (format!("{at}.lora_B.weight"), vec![l.outputs, rank]),
            ];
            pair.into_iter().chain(lengths)
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
