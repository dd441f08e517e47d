//! Shapes and configs for the tests of this room.

use super::history::Learned;
use super::machine::{Limits, Machine};
use super::money::PriceUsed;
use super::{Counts, Inputs, Prediction, predict};
use crate::arch::{Arch, Family, Layer, Linear, Rope, RopeScaling};
use crate::config::{Config, Lora, Method, Targets};

pub(crate) fn llama(
    layers: usize,
    vocab: usize,
    d: usize,
    f: usize,
    heads: usize,
    kv_heads: usize,
    tied: bool,
) -> Arch {
    let layer = Layer { rope: 0, window: None };
    Arch {
        family: Family::Llama,
        vocab_size: vocab,
        hidden_size: d,
        intermediate_size: f,
        heads,
        kv_heads,
        head_dim: d / heads,
        norm_eps: 1e-5,
        tie_word_embeddings: tied,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_position: 8192,
        ropes: vec![Rope { theta: 1e5, scaling: RopeScaling::None }],
        layers: vec![layer; layers],
        init_std: 0.02,
        bos_ids: vec![1],
        eos_ids: vec![2],
    }
}

/// `SmolLM2`-135M.
pub(crate) fn smollm2() -> Arch {
    llama(30, 49_152, 576, 1536, 9, 3, true)
}

/// Llama 3 70B.
pub(crate) fn llama_70b() -> Arch {
    llama(80, 128_256, 8192, 28_672, 64, 8, false)
}

pub(crate) fn lora(r: usize) -> Lora {
    Lora {
        r: Some(r),
        alpha: Some(32.0),
        targets: Some(Targets::AllLinear),
        rslora: Some(false),
        dora: Some(false),
        ..Lora::default()
    }
}

/// LoRA r 16, batch 1 × 2048, one epoch, everything else by default.
pub(crate) fn config() -> Config {
    let text = "base_model = \"model\"\nadapter = \"lora\"\noutput_dir = \"out\"\n\
                [[datasets]]\npath = \"rows.jsonl\"\ntype = \"completion\"\n";
    crate::config::parse("fixture", text, None, &[]).unwrap().config
}

pub(crate) fn limits(memory_bytes: u64) -> Limits {
    Limits { cores: 2, memory_bytes, memory_source: "test".into() }
}

/// Two typical cores, as if they had been measured.
pub(crate) fn machine() -> Machine {
    let mut machine = Machine::assumed("test", 2);
    machine.evidence = super::machine::Evidence::Calibrated;
    machine
}

pub(crate) fn price(usd_per_hour: Option<f64>) -> PriceUsed {
    PriceUsed { usd_per_hour, source: "test".into(), ..PriceUsed::default() }
}

/// A run to predict: 1,000 rows of 256 tokens on [`machine`] with 64 GiB, without a price.
pub(crate) struct Case {
    pub(crate) arch: Arch,
    pub(crate) config: Config,
    pub(crate) counts: Counts,
    pub(crate) machine: Machine,
    pub(crate) limits: Limits,
    pub(crate) price: PriceUsed,
    pub(crate) learned: Learned,
}

impl Case {
    pub(crate) fn new(arch: Arch, config: Config) -> Self {
        Self {
            counts: Counts::uniform(1000, 256, &config),
            arch,
            config,
            machine: machine(),
            limits: limits(64 << 30),
            price: price(None),
            learned: Learned::default(),
        }
    }

    /// The prediction; adapters are on every linear.
    pub(crate) fn predict(&self) -> Prediction {
        let adapted: Vec<Linear> = match self.config.method {
            Method::Full => Vec::new(),
            _ => self.arch.linears().collect(),
        };
        predict(&Inputs {
            arch: &self.arch,
            config: &self.config,
            adapted: &adapted,
            counts: &self.counts,
            machine: &self.machine,
            limits: &self.limits,
            price: &self.price,
            learned: &self.learned,
            taken: &[],
            logits_rows: 256,
            file_bytes: None,
            resident_bytes: 0,
        })
    }
}
