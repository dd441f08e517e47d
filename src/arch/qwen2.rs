//! Qwen 2 and 2.5: biases on q, k, v whatever the config says, and an optional sliding window on the upper layers.
//! Defaults are those of transformers' `Qwen2Config`.

use super::conventions::{Biases, Conventions, Windows};
use super::fields::{Fields, Json};
use super::{Error, Family, bounds};
use serde_json::Value;

pub(super) const QWEN2: Conventions = Conventions {
    family: Family::Qwen2,
    model_type: "qwen2",
    gguf: Some("qwen2"),
    head_dim: None,
    max_position: 32_768,
    bos: &[],
    eos: &[],
    qk_norm: false,
    biases: |_| Ok(Biases { qkv: true, o: false, mlp: false }),
    windows,
};

/// The window of each layer: those from `max_window_layers` on slide, unless `layer_types` says which.
pub(super) fn windows(config: &Json, layers: usize) -> Result<Windows, Error> {
    if !config.flag("use_sliding_window")?.unwrap_or(false) {
        return Ok(vec![None; layers]);
    }
    let window = if config.map.contains_key("sliding_window") {
        config.whole("sliding_window", bounds::POSITIONS)?
    } else {
        Some(4096)
    };
    if let Some(Value::Array(types)) = config.map.get("layer_types") {
        return by_type(config, types, window, layers);
    }
    let first = config.whole("max_window_layers", 0..=*bounds::LAYERS.end())?.unwrap_or(28);
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

fn by_type(config: &Json, types: &[Value], window: Option<usize>, layers: usize) -> Result<Windows, Error> {
    if types.len() != layers {
        return Err(config.refuse(
            "layer_types",
            format!("must have one entry for each of the {layers} layers"),
            format!("{} entries", types.len()),
        ));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(window),
            _ => Err(config.unsupported(
                "layer_types",
                kind.to_string().chars().take(80).collect::<String>(),
                "full_attention, sliding_attention",
            )),
        })
        .collect()
}
