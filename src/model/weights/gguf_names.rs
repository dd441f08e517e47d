//! GGUF's names, dimensions and row order in Hugging Face's terms, and back.

use super::{Slot, Stored};
use crate::arch::gguf::{Header, TensorEntry};
use crate::arch::{Arch, Family};

/// Parts of a block: GGUF's name, Hugging Face's.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Every tensor of the file under its Hugging Face name; one that has none keeps its own, and is then refused as not
/// expected.
pub(super) fn slots(header: &Header, arch: &Arch) -> Vec<(String, Slot)> {
    header
        .tensors
        .iter()
        // The stretch of the rope; the shapes were read from it.
        .filter(|tensor| tensor.name != "rope_freqs.weight")
        .map(|tensor| {
            let name = hf_name(&tensor.name).unwrap_or_else(|| tensor.name.clone());
            (name, slot(tensor, arch))
        })
        .collect()
}

/// Heads by which the rows of a tensor (GGUF's name) are interleaved in the file, if they are.
pub fn interleaved_heads(name: &str, arch: &Arch) -> Option<usize> {
    // llama.cpp ropes pairs (i, i+1) for llama only; the other families' files keep halves.
    match (arch.family, name.split('.').nth(2).unwrap_or_default()) {
        (Family::Llama, "attn_q") => Some(arch.heads),
        (Family::Llama, "attn_k") => Some(arch.kv_heads),
        _ => None,
    }
}

/// GGUF's name of a tensor or a module (`model.layers.3.self_attn.q_proj`), by Hugging Face's.
pub fn gguf_name(name: &str) -> Option<String> {
    const WHOLE: [(&str, &str); 3] =
        [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
    let (module, kind) = match name.rsplit_once('.') {
        Some((module, "weight" | "bias")) => (module, name.get(module.len()..).unwrap_or_default()),
        _ => (name, ""),
    };
    if let Some((_, gguf)) = WHOLE.into_iter().find(|(hf, _)| *hf == module) {
        return Some(format!("{gguf}{kind}"));
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let (gguf, _) = BLOCK.into_iter().find(|(_, hf)| *hf == part)?;
    Some(format!("blk.{layer}.{gguf}{kind}"))
}

fn slot(tensor: &TensorEntry, arch: &Arch) -> Slot {
    Slot {
        file: 0,
        offset: tensor.offset,
        len: tensor.len,
        shape: tensor.dims.iter().rev().copied().collect(),
        stored: Stored::Ggml(tensor.kind),
        interleaved: interleaved_heads(&tensor.name, arch),
    }
}

fn hf_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let mut parts = name.strip_prefix("blk.")?.split('.');
    let (layer, part, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let (_, module) = BLOCK.into_iter().find(|(gguf, _)| *gguf == part)?;
    let plain = layer.parse::<usize>().is_ok_and(|n| n.to_string() == layer);
    let known = ["weight", "bias"].contains(&kind) && parts.next().is_none();
    (plain && known).then(|| format!("model.layers.{layer}.{module}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated_or_left_alone() {
        for (gguf, hf) in [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.12.attn_q.bias", Some("model.layers.12.self_attn.q_proj.bias")),
            ("blk.0.ffn_norm.weight", Some("model.layers.0.post_attention_layernorm.weight")),
            ("blk.0.ffn_gate_inp.weight", None),
            ("blk.+1.attn_q.weight", None),
            ("blk.01.attn_q.weight", None),
            ("blk.0.attn_q.weight.x", None),
            ("blk.0.attn_q", None),
        ] {
            assert_eq!(hf_name(gguf).as_deref(), hf);
            if let Some(hf) = hf {
                assert_eq!(gguf_name(hf).as_deref(), Some(gguf));
            }
        }
        assert_eq!(gguf_name("model.layers.7.mlp.down_proj").as_deref(), Some("blk.7.ffn_down"));
        assert_eq!(gguf_name("model.layers.7.mlp.router.weight"), None);
    }
}
