//! fttrain against candle-transformers' Llama, and one base in its two forms against each other.

mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use fttrain::arch::Arch;
use fttrain::arch::source::Source;
use fttrain::config;
use fttrain::data::{Batch, Sample};
use fttrain::model::build::{self, Trained};
use fttrain::model::weights::Loader;
use fttrain::model::{Decoder, Frozen};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use support::{folders, golden, rows, values};

/// Largest |difference| of logits over the largest logit: f32 on both sides, thirty blocks at most.
const TOLERANCE: f32 = 1e-4;

/// "The capital of France is Paris, and the capital of Germany is" in SmolLM2's tokens, and some more of its tokens.
const TEXT: [u32; 24] = [
    504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 5024, 314, 8103, 30, 198, 788, 2988, 17, 216,
    34, 49151, 1, 9906,
];

fn open(base: &Path, dtype: DType) -> (Arch, Decoder) {
    let text = format!(
        "base_model = '{}'\noutput_dir = 'unused'\n[[datasets]]\npath = 'unused'\ntype = 'completion'\n",
        base.display()
    );
    let config = config::parse("test", &text, None, &[]).unwrap_or_else(|e| panic!("{e}")).config;
    let source = Source::locate(&config.base).unwrap_or_else(|e| panic!("{e}"));
    let arch = source.arch().unwrap();
    let loader = Loader::open(&source.weights().unwrap(), &arch, 0, source.name()).unwrap();
    let (decoder, _) = build::decoder(&arch, Trained::Nothing, Frozen::Dense(dtype), 128, &loader).unwrap();
    (arch, decoder)
}

/// candle-transformers' model of a folder of safetensors, in f32.
#[allow(clippy::cast_possible_truncation)] // Their θ is f32.
fn candles(folder: &Path, arch: &Arch) -> (Llama, Config) {
    assert_eq!(arch.ropes.len(), 1, "their Llama has one rope");
    let config = Config {
        hidden_size: arch.hidden_size,
        intermediate_size: arch.intermediate_size,
        vocab_size: arch.vocab_size,
        num_hidden_layers: arch.layers.len(),
        num_attention_heads: arch.heads,
        num_key_value_heads: arch.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: arch.norm_eps,
        rope_theta: arch.ropes[0].theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 128,
        tie_word_embeddings: arch.tie_word_embeddings,
    };
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") && !path.ends_with("golden.safetensors") {
            tensors.extend(candle_core::safetensors::load(&path, &Device::Cpu).unwrap());
        }
    }
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    (Llama::load(weights, &config).unwrap(), config)
}

/// Their forward pass returns the last position alone, so every prefix is a pass of its own.
fn compare(folder: &Path, texts: &[Vec<u32>]) {
    let (arch, decoder) = open(folder, DType::F32);
    let (model, config) = candles(folder, &arch);
    for ids in texts {
        let logits = values(&decoder.logits(&Batch::new([&counted(ids)], 0)).unwrap());
        for (t, ours) in logits.chunks(arch.vocab_size).enumerate() {
            let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            let prefix = Tensor::from_slice(&ids[..=t], (1, t + 1), &Device::Cpu).unwrap();
            let theirs = model.forward(&prefix, 0, &mut cache).unwrap().flatten_all().unwrap();
            let theirs: Vec<f32> = theirs.to_vec1().unwrap();
            let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = ours.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(
                off <= TOLERANCE * largest,
                "{}: position {t} is off by {off} of {largest}",
                folder.display()
            );
        }
    }
}

/// A row whose every token counts.
fn counted(ids: &[u32]) -> Sample {
    Sample { ids: ids.to_vec(), labels: ids.iter().map(|&id| i32::try_from(id).unwrap()).collect() }
}

/// What a variable names; a test that needs it and finds it unset fails.
fn named_by(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set")).into()
}

#[test]
fn logits_of_the_llama_case_equal_candle_transformers() {
    let case = golden().join("llama");
    let texts: Vec<Vec<u32>> = rows(&case).into_iter().map(|row| row.ids).collect();
    compare(&case, &texts);
}

#[test]
fn the_llama_case_is_the_one_golden_that_their_model_can_read() {
    // Biases, windows, norms on heads and linear scaling are not in their Llama: the goldens of transformers hold those.
    let plain = |case: &PathBuf| {
        let (arch, _) = open(case, DType::F32);
        let plain_rope = arch.ropes.iter().all(|rope| rope.scaling == fttrain::arch::RopeScaling::None);
        plain_rope
            && !arch.qkv_bias
            && !arch.qk_norm
            && arch.layers.iter().all(|layer| layer.window.is_none())
    };
    let readable: Vec<PathBuf> = folders(&golden(), "golden.json").into_iter().filter(plain).collect();
    assert_eq!(readable, [golden().join("llama")]);
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2_HF"]
fn logits_of_smollm2_equal_candle_transformers() {
    compare(&named_by("FTTRAIN_SMOLLM2_HF"), &[TEXT.to_vec()]);
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2 and FTTRAIN_SMOLLM2_HF"]
fn smollm2_has_one_loss_as_gguf_and_as_safetensors() {
    let batch = Batch::new([&counted(&TEXT), &counted(&TEXT[5..])], 0);
    let loss = |variable| open(&named_by(variable), DType::BF16).1.loss(&batch).unwrap();
    let (gguf, folder) = (loss("FTTRAIN_SMOLLM2"), loss("FTTRAIN_SMOLLM2_HF"));
    assert!((gguf - folder).abs() <= 1e-6 * folder, "{gguf} as GGUF, {folder} as safetensors");
    assert!(folder.is_finite() && folder / (batch.targets.len() as f64) < 12.0, "{folder}");
}
