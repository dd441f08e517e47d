//! Shapes only, no tensors: what a model is, read from `config.json` or GGUF metadata, and which files it lies in.
//! One file per family; everything counted or built later follows from [`Arch`].

mod bounds;
pub mod config_json;
mod conventions;
mod error;
mod fields;
mod file;
pub mod gguf;
pub mod hub;
mod llama;
mod qwen2;
mod qwen3;
mod rope;
pub mod safetensors;
pub mod source;
pub mod targets;

pub use error::Error;
pub use file::Stamp;

use serde::Serialize;

/// The shapes of one decoder-only model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arch {
    /// Which family's conventions hold.
    pub family: Family,
    /// V: rows of the embedding.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// F: width of the gated MLP.
    pub intermediate_size: usize,
    /// H: query heads.
    pub heads: usize,
    /// K: key/value heads; divides H.
    pub kv_heads: usize,
    /// Size of one head; even. Not always D/H.
    pub head_dim: usize,
    /// Added to the mean square in `RMSNorm`.
    pub norm_eps: f64,
    /// The output head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// `RMSNorm` on each head of q and k before the rope (Qwen 3).
    pub qk_norm: bool,
    /// Longest sequence that the model was made for.
    pub max_position: usize,
    /// The distinct ropes; a layer names one by index.
    pub ropes: Vec<Rope>,
    /// One entry a layer.
    pub layers: Vec<Layer>,
    /// Standard deviation of fresh weights (`initializer_range`).
    pub init_std: f64,
    /// Ids that `config.json` or the GGUF file calls BOS.
    pub bos_ids: Vec<u32>,
    /// Ids that end a text.
    pub eos_ids: Vec<u32>,
}

/// A family of models that share one file of conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2, 3, `SmolLM` and all that say `"model_type": "llama"`.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Index into [`Arch::ropes`].
    pub rope: usize,
    /// Sliding window in tokens; `None` = full attention.
    pub window: Option<usize>,
}

/// Rotary position embedding in halves (pairs i, i + `head_dim`/2), as Hugging Face keeps it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching for longer contexts.
    pub scaling: RopeScaling,
}

/// `rope_scaling` (or `rope_parameters`) of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above context / this are divided.
        low_freq_factor: f64,
        /// Wavelengths below context / this are kept.
        high_freq_factor: f64,
        /// The context the model was pretrained with.
        original_context: f64,
    },
}

/// Role of a linear layer inside a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proj {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Proj {
    /// All, in the order in which a block uses them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name inside its block, as Hugging Face writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// One linear of a block: `y = x·Wᵀ + bias`, W of `[out, in]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Linear {
    /// Full module name: `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Index of its block.
    pub layer: usize,
    /// Its role.
    pub proj: Proj,
    /// Input features.
    pub inputs: usize,
    /// Output features.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// A parameter tensor by its Hugging Face name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// `model.layers.3.self_attn.q_proj.weight`
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl Arch {
    /// The linear at a place.
    pub fn linear(&self, layer: usize, proj: Proj) -> Linear {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (inputs, outputs, bias) = match proj {
            Proj::Q => (d, q, self.qkv_bias),
            Proj::K | Proj::V => (d, kv, self.qkv_bias),
            Proj::O => (q, d, self.o_bias),
            Proj::Gate | Proj::Up => (d, f, self.mlp_bias),
            Proj::Down => (f, d, self.mlp_bias),
        };
        Linear { name: format!("model.layers.{layer}.{}", proj.name()), layer, proj, inputs, outputs, bias }
    }

    /// All linears of all blocks; the output head is not among them.
    pub fn linears(&self) -> impl Iterator<Item = Linear> + '_ {
        (0..self.layers.len())
            .flat_map(move |layer| Proj::ALL.into_iter().map(move |proj| self.linear(layer, proj)))
    }

    /// Every tensor that a checkpoint of this model holds, in the order of the model; a tied head is not among them.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |name: String, shape: &[usize]| Parameter { name, shape: shape.to_vec() };
        let mut all =
            vec![parameter("model.embed_tokens.weight".into(), &[self.vocab_size, self.hidden_size])];
        for layer in 0..self.layers.len() {
            let at = format!("model.layers.{layer}");
            all.push(parameter(format!("{at}.input_layernorm.weight"), &[self.hidden_size]));
            for proj in Proj::ALL {
                let linear = self.linear(layer, proj);
                all.push(parameter(format!("{}.weight", linear.name), &[linear.outputs, linear.inputs]));
                if linear.bias {
                    all.push(parameter(format!("{}.bias", linear.name), &[linear.outputs]));
                }
            }
            if self.qk_norm {
                all.push(parameter(format!("{at}.self_attn.q_norm.weight"), &[self.head_dim]));
                all.push(parameter(format!("{at}.self_attn.k_norm.weight"), &[self.head_dim]));
            }
            all.push(parameter(format!("{at}.post_attention_layernorm.weight"), &[self.hidden_size]));
        }
        all.push(parameter("model.norm.weight".into(), &[self.hidden_size]));
        if !self.tie_word_embeddings {
            all.push(parameter("lm_head.weight".into(), &[self.vocab_size, self.hidden_size]));
        }
        all
    }

    /// `general.architecture` of this family's GGUF files, where it has them.
    pub fn gguf_architecture(&self) -> Option<&'static str> {
        conventions::ALL.into_iter().find(|of| of.family == self.family).and_then(|of| of.gguf)
    }

    /// Number of parameters; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        self.parameters().iter().map(|p| p.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }
}
