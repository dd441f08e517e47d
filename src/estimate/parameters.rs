//! How many parameters a model has, and how many of them a method trains.

use super::{product, sum, wide};
use crate::arch::{Arch, Linear, Parameter, Proj, targets};
use crate::config::{Lora, Method};
use serde::{Deserialize, Serialize};

/// PEFT's default rank: holds where the config leaves `lora_r` to an adapter that has not been read.
const DEFAULT_RANK: usize = 16;

/// Counts of parameters, in numbers, not bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parameters {
    /// Of the base model; a tied head counts once.
    pub total: u64,
    /// That get a gradient: adapter and `lora_modules_to_save`, or everything.
    pub trainable: u64,
    /// Of the base that stay as they are.
    pub frozen: u64,
    /// Of the frozen ones, those in the blocks' linears: what 4-bit loading quantises.
    pub frozen_linear: u64,
    /// The largest trainable tensor.
    pub largest_trainable: u64,
    /// The largest tensor of the base.
    pub largest: u64,
    /// The largest that is read behind the embedding.
    pub largest_behind: u64,
}

/// The adapter's rank on a module.
pub(crate) fn rank(lora: &Lora, module: &str) -> u64 {
    wide(targets::matching(&lora.rank_pattern, module).copied().or(lora.r).unwrap_or(DEFAULT_RANK))
}

/// Weights of all linears of one block.
pub(crate) fn block_linears(arch: &Arch) -> u64 {
    Proj::ALL
        .into_iter()
        .map(|p| arch.linear(0, p))
        .map(|l| product(&[wide(l.inputs), wide(l.outputs)]))
        .fold(0, u64::saturating_add)
}

/// Whether `lora_modules_to_save` names the module that a parameter belongs to, by the end of its name.
pub(crate) fn saved_whole(name: &str, modules: &[String]) -> bool {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    modules.iter().any(|wanted| module.ends_with(wanted.as_str()))
}

/// Whether the output head is trained, as a copy of its own where it is tied.
pub(crate) fn trains_head(method: &Method) -> bool {
    match method {
        Method::Full => true,
        Method::Lora(lora) | Method::Qlora { lora, .. } => {
            saved_whole("lm_head.weight", &lora.modules_to_save)
        }
    }
}

fn size(parameter: &Parameter) -> u64 {
    parameter.shape.iter().fold(1, |all: u64, &n| all.saturating_mul(wide(n)))
}

impl Parameters {
    /// Counts `arch` under `method`, with `adapted` the linears that get an adapter (ignored in full fine-tuning).
    ///
    /// LoRA adds r·(in + out) to each adapted linear (Hu et al. 2021, A of `[r, in]` and B of `[out, r]`), `DoRA` a
    /// length for each of its rows.
    pub fn count(arch: &Arch, method: &Method, adapted: &[Linear]) -> Self {
        let all = arch.parameters();
        let total = all.iter().map(size).fold(0, u64::saturating_add);
        let largest = all.iter().map(size).max().unwrap_or(0);
        let behind = all.iter().filter(|p| p.name != "model.embed_tokens.weight");
        let largest_behind = behind.map(size).max().unwrap_or(0);
        let lora = match method {
            Method::Full => {
                return Self {
                    total,
                    trainable: total,
                    frozen: 0,
                    frozen_linear: 0,
                    largest_trainable: largest,
                    largest,
                    largest_behind,
                };
            }
            Method::Lora(lora) | Method::Qlora { lora, .. } => lora,
        };
        let whole = &lora.modules_to_save;
        let lengths = |l: &Linear| if lora.dora == Some(true) { wide(l.outputs) } else { 0 };
        let pair =
            |l: &Linear| product(&[rank(lora, &l.name), wide(l.inputs).saturating_add(wide(l.outputs))]);
        let adapter = adapted.iter().map(|l| pair(l).saturating_add(lengths(l))).fold(0, u64::saturating_add);
        let saved: Vec<&Parameter> = all.iter().filter(|p| saved_whole(&p.name, whole)).collect();
        let saved_total = saved.iter().map(|p| size(p)).fold(0, u64::saturating_add);
        let saved_linear =
            saved.iter().filter(|p| p.name.contains("_proj.")).map(|p| size(p)).fold(0, u64::saturating_add);
        // A tied head that is trained becomes a copy of its own, and the embedding stays; where the embedding alone is
        // trained, the head stays.
        let table = product(&[wide(arch.vocab_size), wide(arch.hidden_size)]);
        let untied_head = if arch.tie_word_embeddings && trains_head(method) { table } else { 0 };
        let trains_embedding = saved.iter().any(|p| p.name == "model.embed_tokens.weight");
        let left_head =
            if arch.tie_word_embeddings && trains_embedding && !trains_head(method) { table } else { 0 };
        let widest = adapted.iter().map(|l| product(&[rank(lora, &l.name), wide(l.inputs.max(l.outputs))]));
        Self {
            total,
            trainable: sum(&[adapter, saved_total, untied_head]),
            frozen: total.saturating_sub(saved_total).saturating_add(left_head),
            frozen_linear: product(&[block_linears(arch), wide(arch.layers.len())])
                .saturating_sub(saved_linear),
            largest_trainable: saved
                .iter()
                .map(|p| size(p))
                .max()
                .unwrap_or(0)
                .max(untied_head)
                .max(widest.max().unwrap_or(0)),
            largest,
            largest_behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{lora, smollm2};

    #[test]
    fn smollm2_has_the_parameters_that_its_card_states() {
        let arch = smollm2();
        let all: Vec<Linear> = arch.linears().collect();
        let p = Parameters::count(&arch, &Method::Lora(lora(16)), &all);
        assert_eq!(p.total, 134_515_008);
        // 30 layers × 16 × (2·(576+576) + 2·(576+192) + 3·(576+1536)), as PEFT prints it.
        assert_eq!(p.trainable, 4_884_480);
        assert_eq!(p.frozen, 134_515_008);
        assert_eq!(p.frozen_linear, 106_168_320);
        assert_eq!(p.largest, 49_152 * 576);
    }

    #[test]
    fn full_fine_tuning_trains_everything() {
        let arch = smollm2();
        let p = Parameters::count(&arch, &Method::Full, &[]);
        assert_eq!((p.trainable, p.frozen), (134_515_008, 0));
    }

    #[test]
    fn of_a_tied_table_what_is_saved_is_trained_and_the_other_use_stays_frozen() {
        let arch = smollm2();
        let with = |module: &str| {
            let mut lora = lora(16);
            lora.modules_to_save = vec![module.into()];
            Parameters::count(&arch, &Method::Lora(lora), &[])
        };
        let table = 49_152 * 576;
        assert_eq!(with("lm_head").trainable, table);
        assert_eq!(with("lm_head").frozen, 134_515_008);
        assert_eq!(with("embed_tokens").trainable, table);
        assert_eq!(with("embed_tokens").frozen, 134_515_008);
        let mut both = lora(16);
        both.modules_to_save = vec!["lm_head".into(), "embed_tokens".into()];
        let both = Parameters::count(&arch, &Method::Lora(both), &[]);
        assert_eq!((both.trainable, both.frozen), (2 * table, 134_515_008 - table));
        assert_eq!(with("wte").trainable, 0);
    }
}
