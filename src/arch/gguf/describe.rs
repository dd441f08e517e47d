//! [`Arch`] as GGUF metadata: what [`super::Header::arch`] reads back, under the keys that llama.cpp's converter writes.

use super::Value;
use crate::arch::{Arch, Error, Family, Rope, RopeScaling, conventions, rope};
use crate::error::Result;

impl Arch {
    /// The keys of this model's shapes; `name` is what people call it.
    ///
    /// # Errors
    /// A model that the format cannot say: windows that differ between layers, or biases that llama.cpp does not know.
    pub fn gguf_metadata(&self, name: &str) -> Result<Vec<(String, Value)>> {
        let family = conventions::ALL.into_iter().find(|c| c.family == self.family).and_then(|c| c.gguf);
        let family = family.ok_or_else(|| self.inexpressible("the family", "has no name in GGUF"))?;
        let key = |key: &str| format!("{family}.{key}");
        let count = |n: usize| Value::Unsigned(n as u64);
        let text = |text: &str| Value::Text(text.to_owned());
        let mut all = vec![
            ("general.architecture".into(), text(family)),
            ("general.type".into(), text("model")),
            ("general.name".into(), text(name)),
            (key("vocab_size"), count(self.vocab_size)),
            (key("context_length"), count(self.max_position)),
            (key("embedding_length"), count(self.hidden_size)),
            (key("block_count"), count(self.layers.len())),
            (key("feed_forward_length"), count(self.intermediate_size)),
            (key("attention.head_count"), count(self.heads)),
            (key("attention.head_count_kv"), count(self.kv_heads)),
            (key("attention.key_length"), count(self.head_dim)),
            (key("attention.value_length"), count(self.head_dim)),
            (key("rope.dimension_count"), count(self.head_dim)),
            (key("attention.layer_norm_rms_epsilon"), Value::Float(self.norm_eps)),
        ];
        let rope = self.gguf_rope()?;
        all.push((key("rope.freq_base"), Value::Float(rope.theta)));
        if let RopeScaling::Linear { factor } = rope.scaling {
            all.push((key("rope.scaling.type"), text("linear")));
            all.push((key("rope.scaling.factor"), Value::Float(factor)));
        }
        if let Some(window) = self.gguf_window()? {
            all.push((key("attention.sliding_window"), count(window)));
        }
        Ok(all)
    }

    /// The values of `rope_freqs.weight`, where the rope needs that tensor: Llama 3's.
    pub fn gguf_rope_freqs(&self) -> Option<Vec<f32>> {
        let rope = self.ropes.first().filter(|rope| matches!(rope.scaling, RopeScaling::Llama3 { .. }))?;
        let divisors = rope::divisors_of(&rope.scaling, rope.theta, self.head_dim / 2);
        #[expect(clippy::cast_possible_truncation, reason = "GGUF keeps them in f32")]
        Some(divisors.into_iter().map(|d| d as f32).collect())
    }

    fn gguf_rope(&self) -> Result<&Rope> {
        match &*self.ropes {
            [one] => Ok(one),
            _ => Err(self.inexpressible("the rope", "differs between layers").into()),
        }
    }

    fn gguf_window(&self) -> Result<Option<usize>> {
        let window = self.layers.first().and_then(|layer| layer.window);
        if self.layers.iter().any(|layer| layer.window != window) {
            return Err(self.inexpressible("the sliding window", "differs between layers").into());
        }
        if self.family == Family::Qwen3 && (self.qkv_bias || self.o_bias) {
            return Err(self
                .inexpressible("the attention", "has biases, which Qwen 3 has none of there")
                .into());
        }
        Ok(window)
    }

    fn inexpressible(&self, what: &'static str, why: &'static str) -> Error {
        Error::NotGguf { family: format!("{:?}", self.family), what, why }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Header, NewTensor, Type, write};
    use super::*;
    use std::path::Path;

    fn golden(case: &str) -> Arch {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        crate::arch::config_json::read(&folder.join(case).join("config.json")).unwrap()
    }

    /// Tensors that decide what a reader makes of the file.
    fn written(arch: &Arch, path: &Path) -> Arch {
        let metadata = arch.gguf_metadata("x").unwrap();
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let mut tensors = vec![("token_embd.weight", vec![arch.hidden_size, arch.vocab_size])];
        if !arch.tie_word_embeddings {
            tensors.push(("output.weight", vec![arch.hidden_size, arch.vocab_size]));
        }
        for (has, name) in [
            (arch.qkv_bias, "blk.0.attn_q.bias"),
            (arch.o_bias, "blk.0.attn_output.bias"),
            (arch.mlp_bias, "blk.0.ffn_gate.bias"),
        ] {
            if has {
                tensors.push((name, vec![1]));
            }
        }
        let freqs = arch.gguf_rope_freqs();
        if let Some(freqs) = &freqs {
            tensors.push(("rope_freqs.weight", vec![freqs.len()]));
        }
        let new = |(name, dims): (&str, Vec<usize>)| NewTensor { name: name.into(), dims, kind: Type::F32 };
        let tensors: Vec<_> = tensors.into_iter().map(new).collect();
        write(path, &metadata, &tensors, &mut |i, out| {
            if tensors[i].name == "rope_freqs.weight" {
                return freqs.iter().flatten().try_for_each(|f| out.write_all(&f.to_le_bytes()));
            }
            out.write_all(&vec![0; tensors[i].dims.iter().product::<usize>() * 4])
        })
        .unwrap();
        Header::read(path).unwrap().arch().unwrap()
    }

    #[test]
    fn shapes_are_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        for case in ["llama", "llama-bias", "qwen2", "qwen3"] {
            let mut arch = golden(case);
            let found = written(&arch, &folder.path().join(case));
            // Ids of special tokens are the tokenizer's; f32 keeps seven digits of ε.
            (arch.bos_ids, arch.eos_ids, arch.init_std) = (Vec::new(), Vec::new(), 0.02);
            assert!((arch.norm_eps - found.norm_eps).abs() < 1e-7 * arch.norm_eps, "{case}");
            arch.norm_eps = found.norm_eps;
            assert_eq!(found, arch, "{case}");
        }
    }

    #[test]
    fn a_llama_3_rope_is_kept_in_its_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let mut arch = golden("llama3-rope");
        let published = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        arch.ropes[0] = Rope { theta: 5e5, scaling: published };
        assert_eq!(written(&arch, &folder.path().join("x.gguf")).ropes, arch.ropes);
    }

    #[test]
    fn what_the_format_cannot_say_is_refused() {
        let mut arch = golden("qwen2");
        arch.layers[0].window = Some(4);
        let error = arch.gguf_metadata("x").unwrap_err();
        assert!(error.to_string().contains("the sliding window of this Qwen2 model differs"), "{error}");
        assert_eq!(error.kind as i32, 4);
    }
}
