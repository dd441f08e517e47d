//! The goldens' models as tests use them: `tests/golden/CASE` is a base, `tests/golden/CASE/RUN/run.toml` a run of it.

#![allow(dead_code)] // Each test file uses its part.

use candle_core::Tensor;
use fttrain::arch::Arch;
use fttrain::arch::source::Source;
use fttrain::config::{self, Config, Method};
use fttrain::data::Sample;
use fttrain::data::packing::{Epochs, Order};
use fttrain::model::adapter::Adapter;
use fttrain::model::build::{self, Trained};
use fttrain::model::weights::Loader;
use fttrain::model::{Decoder, Params};
use fttrain::ops::{device, host};
use fttrain::ranks::Ranks;
use fttrain::train::optimizer::Optimizer;
use fttrain::train::schedule::Schedule;
use fttrain::train::session;
use fttrain::train::step::accumulate;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of goldens.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The folders below `at` that hold a file of this name.
pub(crate) fn folders(at: &Path, file: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(at)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join(file).is_file())
        .collect();
    found.sort();
    found
}

/// Names of a folder's entries.
pub(crate) fn files(at: &Path) -> Vec<String> {
    std::fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every case.
pub(crate) fn cases() -> Vec<PathBuf> {
    let cases = folders(&golden(), "golden.json");
    assert!(cases.len() >= 6, "{cases:?}");
    cases
}

/// Every run, with its case.
pub(crate) fn runs() -> Vec<(PathBuf, PathBuf)> {
    let of = |case: PathBuf| folders(&case, "run.toml").into_iter().map(move |run| (case.clone(), run));
    let runs: Vec<_> = cases().into_iter().flat_map(of).collect();
    assert!(runs.len() >= 9, "{runs:?}");
    runs
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The objects of a JSON Lines file.
pub(crate) fn json_lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A golden's list of tokens.
pub(crate) fn tokens(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|x| u32::try_from(x.as_u64().unwrap()).unwrap()).collect()
}

/// A case's rows.
pub(crate) fn rows(case: &Path) -> Vec<Sample> {
    let text = std::fs::read_to_string(case.join("rows.jsonl")).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let labels = row["labels"].as_array().unwrap().iter();
        Sample {
            ids: tokens(&row["input_ids"]),
            labels: labels.map(|x| i32::try_from(x.as_i64().unwrap()).unwrap()).collect(),
        }
    };
    text.lines().map(row).collect()
}

/// The values of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    host::read(tensor).unwrap().to_vec()
}

/// The GPU that a test is to compute on.
pub(crate) fn gpu() -> String {
    std::env::var("FTTRAIN_GPU").expect("FTTRAIN_GPU is not set: give the GPU to compute on, like cuda:0")
}

/// A model with its config.
pub(crate) struct Made {
    pub(crate) config: Config,
    pub(crate) arch: Arch,
    pub(crate) decoder: Decoder,
    pub(crate) params: Params,
}

/// Keys over those of a config.
pub(crate) type Overrides<'a> = &'a [(&'a str, &'a str)];

/// A golden's run, or, without `trained`, its base alone.
pub(crate) fn make(run: &Path, trained: bool, overrides: Overrides<'_>) -> Made {
    let text = std::fs::read_to_string(run.join("run.toml")).unwrap();
    from_text(&text, trained, overrides)
}

/// A fresh adapter of rank 4 on a base, a step of 2 × 2 rows, without warm-up.
pub(crate) fn fresh(base: &Path, overrides: Overrides<'_>) -> Made {
    let base = base.to_str().unwrap();
    let text = format!(
        "base_model = '{base}'\noutput_dir = 'unused'\nadapter = 'lora'\nlora_r = 4\nlora_alpha = 8\nbf16 = false\n\
         device = 'cpu'\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\nnum_epochs = 4\nlearning_rate = 1e-2\n\
         sequence_len = 128\nsample_packing = false\nshuffle = false\n\
         [[datasets]]\npath = '{base}/rows.jsonl'\ntype = 'tokenized'\n"
    );
    from_text(&text, true, overrides)
}

/// A model with fresh weights from the `config.json` in this folder, trained whole or with an adapter, 6 rows a step.
pub(crate) fn reinit(folder: &Path, overrides: Overrides<'_>) -> Made {
    let base = folder.to_str().unwrap();
    let text = format!(
        "base_model = '{base}'\noutput_dir = 'unused'\nreinit_weights = true\nbf16 = false\ndevice = 'cpu'\n\
         micro_batch_size = 6\nlearning_rate = 1e-3\nsequence_len = 128\nsample_packing = false\n\
         [[datasets]]\npath = 'unused'\ntype = 'tokenized'\n"
    );
    from_text(&text, true, overrides)
}

/// A config, written out.
pub(crate) fn from_text(text: &str, trained: bool, overrides: Overrides<'_>) -> Made {
    let overrides: Vec<_> = overrides.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let config = config::parse("test", text, None, &overrides).unwrap_or_else(|e| panic!("{e}")).config;
    let source = Source::locate(&config.base).unwrap_or_else(|e| panic!("{e}"));
    let arch = source.arch().unwrap();
    let mut loader = Loader::open(&source.weights().unwrap(), &arch, 0, "golden").unwrap();
    if matches!(config.train.device, config::Device::Cuda(_)) {
        let gpu = device::chosen(config.train.device, 0).unwrap_or_else(|e| panic!("{e}"));
        loader = loader.on(&device::open(gpu).unwrap_or_else(|e| panic!("{e}")));
    }
    let adapter = match &config.method {
        Method::Lora(lora) | Method::Qlora { lora, .. } if trained => Some(
            Adapter::resolve(&arch, lora, config.train.loraplus_lr_ratio, 0)
                .unwrap_or_else(|e| panic!("{e}")),
        ),
        _ => None,
    };
    let kind = match (&adapter, trained) {
        (Some(adapter), _) => Trained::Adapter(adapter),
        (None, true) => Trained::Whole,
        (None, false) => Trained::Nothing,
    };
    let frozen = session::frozen(&config, &source, false);
    let (decoder, params) = build::decoder(&arch, kind, frozen, 512, &loader).unwrap();
    Made { config, arch, decoder, params }
}

/// What a run left behind: every bit of its losses, norms and trained tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trace {
    pub(crate) losses: Vec<f64>,
    pub(crate) norms: Vec<f64>,
    pub(crate) params: Vec<(String, Vec<f32>)>,
}

impl Made {
    /// Trains on `rows` for at most `steps` steps of the config.
    pub(crate) fn train(&self, rows: &[Sample], steps: u64, recompute: bool) -> Trace {
        let mut epochs = Epochs::new(rows.to_vec(), Order::from(&self.config));
        let mut optimizer = Optimizer::new(&self.params, &self.config.train).unwrap();
        let schedule = Schedule::new(&self.config.train, epochs.total_steps());
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for k in 0..steps.min(epochs.total_steps()) {
            let step = epochs.step(k).unwrap();
            let done =
                accumulate(&self.decoder, &self.params, &step, k, 0, recompute, &Ranks::alone()).unwrap();
            let norm = optimizer.norm(&done.grads).unwrap();
            optimizer.apply(&self.params, &done.grads, norm, schedule.lr_at(k)).unwrap();
            losses.push(done.loss);
            norms.push(norm);
        }
        let params = self.params.sorted().into_iter();
        Trace { losses, norms, params: params.map(|(_, p)| (p.name.clone(), values(&p.value))).collect() }
    }
}
