//! What RUN, MODEL or ADAPTER on the command line names: a base, an adapter on it, and the run that made it.

use super::folder;
use super::ground::start_threads;
use super::session;
use crate::arch::Arch;
use crate::arch::source::Source;
use crate::config::{Base, Config, Lora};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Kind, Result};
use crate::fs;
use crate::ledger::Ledger;
use crate::model::adapter::Adapter;
use crate::model::build::{self, Trained};
use crate::model::weights::Loader;
use crate::model::{Decoder, Frozen};
use candle_core::DType;
use std::path::{Path, PathBuf};

/// A model that was found and understood; its weights are not read yet.
pub struct Subject {
    /// What was named, where it is a folder or a file.
    pub place: PathBuf,
    /// The base's files.
    pub source: Source,
    /// The base's shapes.
    pub arch: Arch,
    /// The adapter, where there is one.
    pub adapter: Option<Adapter>,
    /// The base's tokenizer, with the run's chat template.
    pub tokenizer: Tokenizer,
    /// The run that the folder is of: it says how a prompt becomes a conversation.
    pub run: Option<Config>,
    adapter_folder: Option<PathBuf>,
    seed: u64,
}

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Named<'a> {
    /// A run's id or folder, an adapter's folder, or a base model.
    pub model: &'a str,
    /// An adapter for a base model.
    pub adapter: Option<&'a Path>,
    /// The base of an adapter that does not say it.
    pub base: Option<&'a str>,
    /// A chat template in place of the run's or the base's own, as a config names it.
    pub template: Option<&'a str>,
}

impl Subject {
    /// Finds and opens what is named, on this many threads, with the kernels that the environment asks for.
    ///
    /// # Errors
    /// Nothing is there, an adapter's base is not known (2), or files are broken (4).
    pub fn open(named: &Named, threads: Option<usize>) -> Result<Self> {
        start_threads(threads)?;
        let place = place_of(named.model);
        let run = config_of(&place)?;
        let (base, adapter) = base_and_adapter(named, &place, run.as_ref())?;
        let source = Source::locate(&base)?;
        let arch = source.arch()?;
        let seed = run.as_ref().map_or(42, |run| run.train.seed);
        let adapter_folder = adapter;
        let adapter = match &adapter_folder {
            Some(folder) => Some(Adapter::resolve(&arch, &as_it_is(folder.clone()), None, seed)?),
            None => None,
        };
        let template = named.template.or(run.as_ref().and_then(|run| run.data.chat_template.as_deref()));
        let tokenizer = Tokenizer::open(&source.tokenizer()?, &arch, template)?;
        Ok(Self { place, source, arch, adapter, tokenizer, run, adapter_folder, seed })
    }

    /// SHA-256 of what training made, in hexadecimal: of the adapter's files, or of a run's own weights. `None` where
    /// nothing was trained, or where it cannot be read.
    pub fn trained_sha256(&self) -> Option<String> {
        let Some(folder) = &self.adapter_folder else {
            return self.run.as_ref().and_then(|_| self.source.fingerprint().ok());
        };
        // What links to a file is the file.
        let digest = |name: &&str| fs::sha256_file(&folder.join(name).canonicalize().ok()?).ok();
        let names = ["adapter_config.json", "adapter_model.safetensors"];
        let digests: Option<Vec<String>> = names.iter().map(digest).collect();
        Some(fs::sha256_bytes(digests?.concat().as_bytes()))
    }

    /// The base's weights.
    pub fn loader(&self) -> Result<Loader> {
        Loader::open(&self.source.weights()?, &self.arch, self.seed, self.source.name())
    }

    /// As a run on this machine keeps the base: in bf16 where the CPU multiplies in it, unless the run's config says
    /// otherwise; without a run, in f32.
    pub fn frozen(&self) -> Frozen {
        let of = |run| session::frozen(run, &self.source, fttrain_kernels::cpu::path().has_bf16());
        self.run.as_ref().map_or(Frozen::Dense(DType::F32), of)
    }

    /// The model, for `longest` positions at most: with its adapter, or the base alone.
    pub fn decoder(&self, adapted: bool, frozen: Frozen, longest: usize) -> Result<Decoder> {
        let trained = self.adapter.as_ref().filter(|_| adapted).map_or(Trained::Nothing, Trained::Adapter);
        Ok(build::decoder(&self.arch, trained, frozen, longest, &self.loader()?)?.0)
    }
}

/// A path as it is, or the folder of the run with this id.
fn place_of(model: &str) -> PathBuf {
    let path = PathBuf::from(model);
    if path.exists() || model.contains(['/', '\\', '.']) {
        return path;
    }
    let known = || Ledger::open(&fs::home().ok()?).ok()?.find(model).ok();
    known().map_or(path, |run| PathBuf::from(run.output_dir))
}

fn base_and_adapter(named: &Named, place: &Path, run: Option<&Config>) -> Result<(Base, Option<PathBuf>)> {
    let plain = |model: &str| Base {
        model: model.to_owned(),
        revision: None,
        reinit_weights: false,
        bf16: Some(false),
    };
    let adapter = named.adapter.map(Path::to_owned);
    if !place.join("adapter_config.json").is_file() {
        return Ok((plain(&place.to_string_lossy()), adapter));
    }
    let adapter = Some(adapter.unwrap_or_else(|| place.to_owned()));
    match (named.base, run) {
        (Some(base), _) => Ok((plain(base), adapter)),
        (None, Some(run)) => Ok((run.base.clone(), adapter)),
        (None, None) => {
            let fact = format!("{}: an adapter whose base model is not known", place.display());
            Err(Error::new(Kind::Usage, fact).hint("name it with `--base`"))
        }
    }
}

/// The config of the run that left this folder, or this checkpoint.
fn config_of(place: &Path) -> Result<Option<Config>> {
    let run = place.parent().and_then(Path::parent);
    let places = [Some(place), run.filter(|_| place.join("manifest.json").is_file())];
    let found =
        places.into_iter().flatten().map(|place| place.join(folder::CONFIG)).find(|path| path.is_file());
    found.map(|path| Ok(crate::config::load(&path, None, &[])?.config)).transpose()
}

/// An adapter that nothing of a config is asked of.
fn as_it_is(folder: PathBuf) -> Lora {
    Lora { model_dir: Some(folder), ..Lora::default() }
}
