//! What the other program takes where its file leaves a key out: written down where it is something else than here, so that
//! what is not said keeps its meaning.

use super::super::keys::{self, Preset, Table};
use super::Line;
use super::yaml::{Entry, Yaml};

/// Our name of a key, theirs, and their value as TOML.
type Taken = (&'static str, &'static str, String);

/// `HyperparametersConfig` and `AxolotlInputConfig` of Axolotl's schemas. The warm-up is its trainer builder's.
const AXOLOTL: [(&str, &str, &str); 10] = [
    ("sequence_len", "sequence_len", "512"),
    ("sample_packing", "sample_packing", "false"),
    ("val_set_size", "val_set_size", "0"),
    ("micro_batch_size", "micro_batch_size", "1"),
    ("gradient_accumulation_steps", "gradient_accumulation_steps", "1"),
    ("num_epochs", "num_epochs", "1"),
    ("lr_scheduler", "lr_scheduler", "\"cosine\""),
    ("warmup_ratio", "warmup_ratio", "0.03"),
    ("optimizer", "optimizer", "\"adamw\""),
    ("weight_decay", "weight_decay", "0"),
];

/// `FinetuningArguments` and `DataArguments` of LLaMA-Factory, and below them transformers' `TrainingArguments`.
const LLAMA_FACTORY: [(&str, &str, &str); 10] = [
    ("adapter", "finetuning_type", "\"lora\""),
    ("sequence_len", "cutoff_len", "2048"),
    ("sample_packing", "packing", "false"),
    ("val_set_size", "val_size", "0"),
    ("micro_batch_size", "per_device_train_batch_size", "8"),
    ("gradient_accumulation_steps", "gradient_accumulation_steps", "1"),
    ("num_epochs", "num_train_epochs", "3"),
    ("learning_rate", "learning_rate", "5e-5"),
    ("lr_scheduler", "lr_scheduler_type", "\"linear\""),
    ("weight_decay", "weight_decay", "0"),
];

/// LLaMA-Factory's rank; its alpha is twice that.
const RANK: i64 = 8;

/// Keys that are LLaMA-Factory's alone, and in each of its files.
const LLAMA_FACTORYS: [&str; 2] = ["model_name_or_path", "finetuning_type"];

/// The lines that a file leaves out and that say something else here, each with a note.
pub(super) fn missing(name: &str, entries: &[Entry]) -> Vec<(Line, String)> {
    let (program, all) = if entries.iter().any(|entry| LLAMA_FACTORYS.contains(&&*entry.key)) {
        ("LLaMA-Factory", llama_factory(entries))
    } else {
        ("Axolotl", axolotl(entries))
    };
    let line = |(own, theirs, value): Taken| {
        let usual = format!("what {program} takes without the key");
        let (why, remark) = match own {
            "warmup_ratio" => (format!("{usual}, 100 steps at most"), format!("{program}'s default")),
            "excess_length_strategy" => (
                format!("{program} cuts longer rows, prompt and answer each, and here their end is cut"),
                format!("{program} cuts them, too"),
            ),
            _ => (usual, format!("{program}'s default")),
        };
        let note = format!("{name}: `{theirs} = {value}` added: {why}");
        (Line::new(0, own, format!("{theirs} = {value}  # {remark}")), note)
    };
    let says_more = |(own, _, value): &Taken| given(entries, own).is_none() && !is_ours(own, value);
    all.into_iter().filter(says_more).map(line).collect()
}

fn axolotl(entries: &[Entry]) -> Vec<Taken> {
    let is_said = given(entries, "warmup_steps").is_some() || is_constant(entries);
    taken(&AXOLOTL).filter(|(own, ..)| *own != "warmup_ratio" || !is_said).collect()
}

/// Whether the learning rate is constant from the first step on, whatever the file says of a warm-up: so transformers
/// takes `constant`, and has `constant_with_warmup` beside it.
pub(super) fn is_constant(entries: &[Entry]) -> bool {
    given(entries, "lr_scheduler").and_then(Yaml::text) == Some("constant")
}

/// Whether a key is the length of a warm-up.
pub(super) fn is_warm_up(key: &str) -> bool {
    matches!(keys::canonical(Table::Top, key), Some("warmup_steps" | "warmup_ratio"))
}

fn llama_factory(entries: &[Entry]) -> Vec<Taken> {
    // Its other stages pack, or are no fine-tuning at all. Where it packs it leaves out what is too long.
    let tunes = given_as(entries, "stage").and_then(Yaml::text).is_none_or(|stage| stage == "sft");
    let is_on = |key: &str| given_as(entries, key) == Some(&Yaml::Flag(true));
    let pads = tunes && !is_on("packing") && !is_on("neat_packing");
    let mut all: Vec<Taken> =
        taken(&LLAMA_FACTORY).filter(|(own, ..)| *own != "sample_packing" || pads).collect();
    if pads {
        // No key of its own says so.
        let key = "excess_length_strategy";
        all.push((key, key, "\"truncate\"".to_owned()));
    }
    let is_lora = given(entries, "adapter").and_then(Yaml::text).is_none_or(|method| method == "lora");
    // An adapter that is continued has its own.
    if is_lora && given(entries, "lora_model_dir").is_none() {
        let rank = match given(entries, "lora_r") {
            Some(Yaml::Int(rank)) if *rank > 0 => *rank,
            _ => RANK,
        };
        all.push(("lora_r", "lora_rank", RANK.to_string()));
        all.push(("lora_alpha", "lora_alpha", rank.saturating_mul(2).to_string()));
    }
    all
}

fn taken(all: &'static [(&'static str, &'static str, &'static str)]) -> impl Iterator<Item = Taken> {
    all.iter().map(|(own, theirs, value)| (*own, *theirs, (*value).to_owned()))
}

/// The value under any name of a key of ours; one that is empty says nothing.
fn given<'a>(entries: &'a [Entry], own: &str) -> Option<&'a Yaml> {
    let is_own = |entry: &&Entry| keys::canonical(Table::Top, &entry.key) == Some(own);
    entries.iter().filter(is_own).map(|entry| &entry.value).find(|value| **value != Yaml::Null)
}

/// The value under this very name.
fn given_as<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Yaml> {
    entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
}

/// Whether the value is what is taken here, too.
fn is_ours(own: &str, value: &str) -> bool {
    keys::find(Table::Top, own)
        .is_some_and(|(key, _)| matches!(key.preset, Preset::Is(ours) if ours == value))
}
