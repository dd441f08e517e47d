//! Shapes and configs for the tests of this room.

use super::machine::{Limits, Machine};
use super::money::PriceUsed;
use crate::arch::{Arch, Family, Layer, Rope, RopeScaling};
use crate::config::{
    Base, Budget, Config, Cost, Data, Device, ExcessLength, Lora, LrScheduler, Method, OnBadRow, Output,
    Schedule, Targets, Train, TrainOnEos, ValSet, Warmup,
};

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
    Config {
        meter: crate::config::Meter { interval_ms: 100 },
        base: Base { model: "model".into(), revision: None, reinit_weights: false, bf16: None },
        method: Method::Lora(lora(16)),
        data: Data {
            datasets: Vec::new(),
            test_datasets: Vec::new(),
            val_set: ValSet::None,
            sequence_len: 2048,
            excess_length: ExcessLength::Drop,
            sample_packing: true,
            train_on_inputs: false,
            roles_to_train: vec!["assistant".into()],
            train_on_eos: TrainOnEos::Turn,
            chat_template: None,
            shuffle: true,
            on_bad_row: OnBadRow::Fail,
            max_line_bytes: 32 << 20,
        },
        train: Train {
            micro_batch_size: 1,
            gradient_accumulation_steps: 1,
            num_epochs: 1,
            max_steps: None,
            learning_rate: 2e-4,
            lr_scheduler: LrScheduler::Cosine,
            warmup: Warmup::Steps(0),
            cosine_min_lr_ratio: 0.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            loraplus_lr_ratio: None,
            gradient_checkpointing: None,
            device: Device::Auto,
            threads: None,
            seed: 42,
        },
        schedule: Schedule {
            eval_steps: None,
            early_stopping_patience: None,
            load_best_model_at_end: false,
            save_steps: None,
            save_total_limit: None,
            logging_steps: 1,
        },
        output: Output {
            dir: "out".into(),
            auto_resume: false,
            project: String::new(),
            purpose: "experiment".into(),
            samples: Vec::new(),
            report_to: Vec::new(),
            mlflow_tracking_uri: None,
            mlflow_experiment_name: None,
        },
        cost: Cost::default(),
        budget: Budget::default(),
    }
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
