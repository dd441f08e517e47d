//! [`Arch`] from a Hugging Face `config.json`, and back to one for a base that had none. Every shape is bounded
//! before anything is counted from it; what the program cannot compute is refused by field, never ignored.

use super::conventions::{self, Conventions};
use super::fields::{Fields, Json};
use super::{Arch, Error, Family, Layer, Rope, RopeScaling, bounds, file, rope};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A config larger than this is not one.
const MAX_BYTES: u64 = 16 << 20;

const NAMES: bounds::Names = bounds::Names {
    hidden: "hidden_size",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
};

/// Reads the shapes from a file.
///
/// # Errors
/// File, field and rule, where a field is missing, of the wrong type, out of bounds or not supported.
pub fn read(path: &Path) -> crate::error::Result<Arch> {
    let bytes = file::read_small(path, MAX_BYTES)?;
    parse(&bytes, &path.display().to_string())
}

/// Reads the shapes from the text of a `config.json`; `file` is what messages call it.
pub fn parse(bytes: &[u8], file: &str) -> crate::error::Result<Arch> {
    let map: Map<String, Value> = serde_json::from_slice(bytes).map_err(|cause| Error::Json {
        file: file.into(),
        line: cause.line(),
        column: cause.column(),
        cause: format!("not a JSON object: {cause}"),
    })?;
    let config = Json { file, prefix: "", map: &map };
    let model_type = config
        .text("model_type")?
        .ok_or_else(|| Error::Missing { file: file.into(), field: "model_type".into() })?;
    let family =
        conventions::ALL.into_iter().find(|family| family.model_type == model_type).ok_or_else(|| {
            let supported = conventions::supported(|family| Some(family.model_type));
            config.unsupported("model_type", format!("{model_type:?}"), &supported)
        })?;
    Ok(decoder(&config, family)?)
}

fn decoder(config: &Json, family: &Conventions) -> Result<Arch, Error> {
    refuse_what_is_not_computed(config)?;
    let layers = config.required("num_hidden_layers", bounds::LAYERS)?;
    let hidden = config.required("hidden_size", bounds::HIDDEN)?;
    let heads = config.required("num_attention_heads", bounds::HEADS)?;
    let head_dim = config.whole("head_dim", bounds::HEAD_DIM)?.or(family.head_dim);
    let biases = (family.biases)(config)?;
    let windows = (family.windows)(config, layers)?;
    let arch = Arch {
        family: family.family,
        vocab_size: config.required("vocab_size", bounds::VOCAB)?,
        hidden_size: hidden,
        intermediate_size: config.required("intermediate_size", bounds::INTERMEDIATE)?,
        heads,
        kv_heads: config.whole("num_key_value_heads", bounds::HEADS)?.unwrap_or(heads),
        head_dim: bounds::head_dim(config, &NAMES, head_dim, hidden, heads)?,
        norm_eps: config.float("rms_norm_eps", bounds::NORM_EPS)?.unwrap_or(1e-6),
        tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: biases.qkv,
        o_bias: biases.o,
        mlp_bias: biases.mlp,
        qk_norm: family.qk_norm,
        max_position: config
            .whole("max_position_embeddings", bounds::POSITIONS)?
            .unwrap_or(family.max_position),
        ropes: vec![rope::from_config(config)?],
        layers: windows.into_iter().map(|window| Layer { rope: 0, window }).collect(),
        init_std: config.float("initializer_range", bounds::INIT_STD)?.unwrap_or(0.02),
        bos_ids: config.ids("bos_token_id", family.bos)?,
        eos_ids: config.ids("eos_token_id", family.eos)?,
    };
    bounds::check(config, &NAMES, arch)
}

fn refuse_what_is_not_computed(config: &Json) -> Result<(), Error> {
    let activation = config.text("hidden_act")?.unwrap_or("silu");
    if !["silu", "swish"].contains(&activation) {
        return Err(config.unsupported("hidden_act", format!("{activation:?}"), "silu"));
    }
    if let Some(method) = config.map.get("quantization_config").filter(|v| !v.is_null()) {
        let got = method.get("quant_method").unwrap_or(method).to_string();
        let got: String = got.chars().take(80).collect();
        return Err(config.unsupported(
            "quantization_config",
            got,
            "weights in F32, F16 or BF16, and GGUF files",
        ));
    }
    Ok(())
}

/// A `config.json` that transformers reads as this model: for a full fine-tune of a GGUF file, which has none.
/// Windows that differ between layers are written as Qwen does.
pub fn render(arch: &Arch, dtype: &str) -> String {
    let (model_type, class) = match arch.family {
        Family::Llama => ("llama", "LlamaForCausalLM"),
        Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
    };
    let window = arch.layers.iter().find_map(|layer| layer.window);
    let (model_type, class) = match (arch.family, window) {
        (Family::Llama, Some(_)) => ("mistral", "MistralForCausalLM"),
        _ => (model_type, class),
    };
    let ids = |ids: &[u32]| match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    };
    let rope = arch.ropes.first();
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "dtype": dtype,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.intermediate_size,
        "num_hidden_layers": arch.layers.len(),
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tie_word_embeddings,
        "attention_bias": arch.o_bias || (arch.qkv_bias && arch.family != Family::Qwen2),
        "mlp_bias": arch.mlp_bias,
        "max_position_embeddings": arch.max_position,
        "initializer_range": arch.init_std,
        "rope_theta": rope.map_or(rope::DEFAULT_THETA, |rope| rope.theta),
        "rope_scaling": scaling(rope),
        "bos_token_id": ids(&arch.bos_ids),
        "eos_token_id": ids(&arch.eos_ids),
    });
    if let (Some(window), Value::Object(map)) = (window, &mut config) {
        map.insert("sliding_window".into(), json!(window));
        if arch.family != Family::Llama {
            let kind = |layer: &Layer| match layer.window {
                Some(_) => "sliding_attention",
                None => "full_attention",
            };
            let kinds: Vec<_> = arch.layers.iter().map(kind).collect();
            map.insert("use_sliding_window".into(), json!(true));
            map.insert("layer_types".into(), json!(kinds));
        }
    }
    format!("{config:#}\n")
}

fn scaling(rope: Option<&Rope>) -> Value {
    match rope.map(|rope| &rope.scaling) {
        None | Some(RopeScaling::None) => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it was read as a whole number"
            )]
            let context = *original_context as u64;
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": context,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = r#"{"model_type": "llama", "vocab_size": 32, "hidden_size": 16,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}"#;

    fn with(key: &str, value: &str) -> String {
        let mut map: Map<String, Value> = serde_json::from_str(TINY).unwrap();
        map.insert(key.into(), serde_json::from_str(value).unwrap());
        serde_json::to_string(&map).unwrap()
    }

    fn arch(json: &str) -> crate::error::Result<Arch> {
        parse(json.as_bytes(), "config.json")
    }

    #[test]
    fn llama_defaults_are_those_of_transformers() {
        let arch = arch(TINY).unwrap();
        assert_eq!((arch.kv_heads, arch.head_dim, arch.max_position), (4, 4, 2048));
        assert!(!arch.tie_word_embeddings && !arch.qkv_bias && !arch.o_bias && !arch.mlp_bias);
        assert_eq!((&arch.bos_ids[..], &arch.eos_ids[..]), (&[1][..], &[2][..]));
        assert_eq!(
            (arch.norm_eps.to_bits(), arch.init_std.to_bits()),
            (1e-6_f64.to_bits(), 0.02_f64.to_bits())
        );
    }

    #[test]
    fn families_put_their_biases_where_transformers_does() {
        let bias = |family: &str| {
            let mut map: Map<String, Value> = serde_json::from_str(TINY).unwrap();
            map.insert("model_type".into(), family.into());
            map.insert("attention_bias".into(), true.into());
            let arch = arch(&serde_json::to_string(&map).unwrap()).unwrap();
            (arch.qkv_bias, arch.o_bias, arch.qk_norm, arch.head_dim)
        };
        assert_eq!(bias("llama"), (true, true, false, 4));
        assert_eq!(bias("mistral"), (false, false, false, 4));
        assert_eq!(bias("qwen2"), (true, false, false, 4));
        assert_eq!(bias("qwen3"), (true, true, true, 128));
    }

    #[test]
    fn windows_follow_the_family() {
        let windows = |family: &str, more: &str| {
            let text = TINY.replace("\"llama\"", &format!("\"{family}\"{more}"));
            let arch = arch(&text).unwrap();
            arch.layers.iter().map(|l| l.window).collect::<Vec<_>>()
        };
        assert_eq!(windows("mistral", ""), [Some(4096); 2]);
        assert_eq!(windows("mistral", ", \"sliding_window\": null"), [None; 2]);
        let off = ", \"sliding_window\": 8, \"max_window_layers\": 1";
        assert_eq!(windows("qwen2", off), [None; 2]);
        let on = format!("{off}, \"use_sliding_window\": true");
        assert_eq!(windows("qwen2", &on), [None, Some(8)]);
        let types = format!("{on}, \"layer_types\": [\"sliding_attention\", \"full_attention\"]");
        assert_eq!(windows("qwen3", &types), [Some(8), None]);
    }

    #[test]
    fn ids_may_be_one_or_many_or_none() {
        let eos = |value: &str| arch(&with("eos_token_id", value)).unwrap().eos_ids;
        assert_eq!(eos("7"), [7]);
        assert_eq!(eos("[128001, 128009]"), [128_001, 128_009]);
        assert!(eos("null").is_empty());
    }

    #[test]
    fn a_broken_config_is_refused_by_field_and_rule() {
        let missing = TINY.replace("\"hidden_size\": 16,", "");
        for (json, part) in [
            (
                with("num_hidden_layers", "1000000000"),
                "`num_hidden_layers` must be a whole number from 1 to 1000, got 1000000000",
            ),
            (with("num_hidden_layers", "0"), "got 0"),
            (with("num_hidden_layers", "-1"), "got -1"),
            (with("hidden_size", "9223372036854775808"), "from 1 to 1048576"),
            (with("hidden_size", "16.5"), "got 16.5"),
            (with("hidden_size", "\"16\""), "got \"16\""),
            (with("hidden_size", "[16]"), "got a list"),
            (
                with("num_attention_heads", "3"),
                "must divide `hidden_size` (16) where `head_dim` is absent, got 3",
            ),
            (
                with("num_key_value_heads", "3"),
                "`num_key_value_heads` must divide `num_attention_heads` (4), got 3",
            ),
            (with("num_key_value_heads", "0"), "got 0"),
            (with("head_dim", "3"), "`head_dim` must be an even number"),
            (with("num_attention_heads", "16"), "`head_dim` must be an even number"),
            (with("rope_theta", "0"), "`rope_theta` must be a number from 1e0 to 1e12, got 0"),
            (with("rms_norm_eps", "0"), "`rms_norm_eps`"),
            (
                with("model_type", "\"gpt2\""),
                "`model_type` is \"gpt2\", which is not supported; supported: llama, mistral, qwen2, qwen3",
            ),
            (with("model_type", "null"), "`model_type` is missing"),
            (with("hidden_act", "\"gelu\""), "`hidden_act` is \"gelu\""),
            (with("tie_word_embeddings", "1"), "must be true or false, got 1"),
            (with("eos_token_id", "-1"), "must be a token id"),
            (with("quantization_config", "{\"quant_method\": \"gptq\"}"), "\"gptq\""),
            (missing, "`hidden_size` is missing"),
            ("[]".into(), "config.json:1:"),
            ("{\"model_type\": ".into(), "not a JSON object"),
            (String::new(), "not a JSON object"),
            ("[".repeat(100_000), "not a JSON object"),
        ] {
            let error = arch(&json).unwrap_err();
            assert_eq!(error.kind as i32, 4, "{error}");
            let start: String = json.chars().take(99).collect();
            assert!(error.to_string().contains(part), "{start}: {error}");
        }
    }

    #[test]
    fn a_rendered_config_reads_back_as_the_same_model() {
        let llama3 = r#"{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
        let qwen =
            TINY.replace("\"llama\"", "\"qwen3\", \"use_sliding_window\": true, \"max_window_layers\": 1");
        let mistral = TINY.replace("\"llama\"", "\"mistral\"");
        for json in [TINY.into(), with("rope_scaling", llama3), qwen, mistral] {
            let arch = arch(&json).unwrap();
            assert_eq!(parse(render(&arch, "bfloat16").as_bytes(), "out").unwrap(), arch);
        }
    }
}
