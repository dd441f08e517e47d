//! [`Arch`] from a GGUF file: counts from its metadata; biases, head norms and a tied head from which tensors exist.

use super::{Header, Type, Value};
use crate::arch::conventions::{self, Conventions};
use crate::arch::fields::{Fields, Scalar};
use crate::arch::{Arch, Error, Layer, Rope, RopeScaling, bounds, rope};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

impl Fields for Header {
    fn file(&self) -> String {
        self.path.display().to_string()
    }

    fn scalar(&self, field: &str) -> Option<Scalar<'_>> {
        Some(match self.metadata.get(field)? {
            Value::Unsigned(n) => Scalar::Whole((*n).into()),
            Value::Signed(n) => Scalar::Whole((*n).into()),
            Value::Float(x) => Scalar::Float(*x),
            Value::Flag(flag) => Scalar::Flag(*flag),
            Value::Text(text) => Scalar::Text(text),
            _ => Scalar::Other("an array"),
        })
    }
}

pub(super) fn arch(header: &Header) -> Result<Arch, Error> {
    let family = family(header)?;
    let name = family.gguf.unwrap_or_default();
    let key = |key: &str| format!("{name}.{key}");
    let (head_dim_key, value_dim_key) = (key("attention.key_length"), key("attention.value_length"));
    let (hidden_key, heads_key) = (key("embedding_length"), key("attention.head_count"));
    let kv_heads_key = key("attention.head_count_kv");
    let names = bounds::Names {
        hidden: &hidden_key,
        heads: &heads_key,
        kv_heads: &kv_heads_key,
        head_dim: &head_dim_key,
    };
    let layers = header.required(&key("block_count"), bounds::LAYERS)?;
    let hidden = header.required(&hidden_key, bounds::HIDDEN)?;
    let heads = header.required(&heads_key, bounds::HEADS)?;
    let given = header.whole(&head_dim_key, bounds::HEAD_DIM)?;
    let head_dim = bounds::head_dim(header, &names, given, hidden, heads)?;
    for (other, what) in [
        (value_dim_key, "values of another width than keys"),
        (key("rope.dimension_count"), "a rope over a part of the head"),
    ] {
        if header.whole(&other, bounds::HEAD_DIM)?.is_some_and(|size| size != head_dim) {
            return Err(header.unsupported(&other, what, &format!("{head_dim}")));
        }
    }
    let experts = key("expert_count");
    if header.whole(&experts, 0..=usize::MAX)?.is_some_and(|n| n > 0) {
        return Err(header.unsupported(&experts, "a mixture of experts", "dense models"));
    }
    let window = header
        .whole(&key("attention.sliding_window"), 0..=*bounds::POSITIONS.end())?
        .filter(|&window| window > 0);
    let has = |tensor: &str| header.tensor(tensor).is_some();
    let arch = Arch {
        family: family.family,
        vocab_size: vocab_size(header)?,
        hidden_size: hidden,
        intermediate_size: header.required(&key("feed_forward_length"), bounds::INTERMEDIATE)?,
        heads,
        kv_heads: header.whole(&kv_heads_key, bounds::HEADS)?.unwrap_or(heads),
        head_dim,
        norm_eps: header.required_float(&key("attention.layer_norm_rms_epsilon"), bounds::NORM_EPS)?,
        tie_word_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: family.qk_norm,
        max_position: header.required(&key("context_length"), bounds::POSITIONS)?,
        ropes: vec![rope_of(header, name, head_dim)?],
        layers: vec![Layer { rope: 0, window }; layers],
        init_std: 0.02,
        bos_ids: ids(header, &["tokenizer.ggml.bos_token_id"])?,
        eos_ids: ids(header, &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"])?,
    };
    bounds::check(header, &names, arch)
}

fn family(header: &Header) -> Result<&'static Conventions, Error> {
    const KEY: &str = "general.architecture";
    let name = header.text(KEY).ok_or_else(|| Error::Missing { file: header.file(), field: KEY.into() })?;
    conventions::ALL.into_iter().find(|family| family.gguf == Some(name)).ok_or_else(|| {
        let shown: String = name.chars().take(80).collect();
        let supported = conventions::supported(|family| family.gguf);
        header.unsupported(KEY, format!("{shown:?}"), &supported)
    })
}

/// Rows of the embedding, which may be more than the tokenizer has tokens.
fn vocab_size(header: &Header) -> Result<usize, Error> {
    const TENSOR: &str = "token_embd.weight";
    let missing = || Error::Missing { file: header.file(), field: TENSOR.into() };
    let tensor = header.tensor(TENSOR).ok_or_else(missing)?;
    let rows = tensor.dims.get(1).copied().ok_or_else(missing)?;
    if bounds::VOCAB.contains(&rows) {
        Ok(rows)
    } else {
        let rule = format!("must have at most {} rows", bounds::VOCAB.end());
        Err(header.refuse(TENSOR, rule, rows.to_string()))
    }
}

fn ids(header: &Header, keys: &[&str]) -> Result<Vec<u32>, Error> {
    let mut ids = Vec::new();
    for key in keys {
        if let Some(id) = header.whole(key, 0..=u32::MAX as usize)?
            && let Ok(id) = u32::try_from(id)
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn rope_of(header: &Header, name: &str, head_dim: usize) -> Result<Rope, Error> {
    let theta =
        header.float(&format!("{name}.rope.freq_base"), bounds::THETA)?.unwrap_or(rope::DEFAULT_THETA);
    let kind_key = format!("{name}.rope.scaling.type");
    let factor_key = format!("{name}.rope.scaling.factor");
    // A factor without a kind is a linear one to llama.cpp.
    let factor = header.float(&factor_key, bounds::FACTOR)?;
    let unsaid = if factor.is_some_and(|factor| factor > 1.0) { "linear" } else { "none" };
    let scaling = match Fields::text(header, &kind_key)?.unwrap_or(unsaid) {
        "none" => match header.float(&format!("{name}.rope.scale_linear"), bounds::FACTOR)? {
            Some(factor) if factor > 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        "linear" => RopeScaling::Linear { factor: header.required_float(&factor_key, bounds::FACTOR)? },
        other => {
            let shown: String = other.chars().take(80).collect();
            return Err(header.unsupported(&kind_key, format!("{shown:?}"), "none, linear"));
        }
    };
    let scaling = match divisors(header, head_dim)? {
        None => scaling,
        Some(divisors) => rope::from_divisors(&divisors, theta)
            .filter(|_| scaling == RopeScaling::None)
            .ok_or_else(|| {
                header.unsupported(
                    "rope_freqs.weight",
                    "a stretch of its own",
                    "Llama 3's (factors 1 and 4 over 8192 positions)",
                )
            })?,
    };
    Ok(Rope { theta, scaling })
}

/// What each of the head's frequencies is divided by, where the file says so in a tensor.
fn divisors(header: &Header, head_dim: usize) -> Result<Option<Vec<f32>>, Error> {
    const TENSOR: &str = "rope_freqs.weight";
    let Some(tensor) = header.tensor(TENSOR) else {
        return Ok(None);
    };
    if tensor.kind != Type::F32 || tensor.dims != [head_dim / 2] {
        return Err(header.refuse(
            TENSOR,
            format!("must be {} values of F32", head_dim / 2),
            format!("{:?} of {}", tensor.dims, tensor.kind.name()),
        ));
    }
    let io = |cause| Error::Io { path: header.path.clone(), doing: "read", cause };
    // At most half of the largest head: a few KiB.
    let mut bytes = vec![0; head_dim / 2 * 4];
    let mut file = File::open(&header.path).map_err(io)?;
    file.seek(SeekFrom::Start(tensor.offset)).map_err(io)?;
    file.read_exact(&mut bytes).map_err(io)?;
    let (values, _) = bytes.as_chunks::<4>();
    Ok(Some(values.iter().map(|v| f32::from_le_bytes(*v)).collect()))
}
