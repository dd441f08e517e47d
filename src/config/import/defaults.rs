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
        let bound = if own == "warmup_ratio" { ", 100 steps at most" } else { "" };
        let note = format!("{name}: `{theirs} = {value}` added: what {program} takes without the key{bound}");
        let text = format!("{theirs} = {value}  # {program}'s default");
        (Line { from: 0, key: own.to_owned(), text }, note)
    };
    let says_more = |(own, _, value): &Taken| given(entries, own).is_none() && !is_ours(own, value);
    all.into_iter().filter(says_more).map(line).collect()
}

fn axolotl(entries: &[Entry]) -> Vec<Taken> {
    let warms_up = given(entries, "warmup_steps").is_some();
    taken(&AXOLOTL).filter(|(own, ..)| *own != "warmup_ratio" || !warms_up).collect()
}

fn llama_factory(entries: &[Entry]) -> Vec<Taken> {
    // Its other stages pack, or are no fine-tuning at all.
    let tunes = given_as(entries, "stage").and_then(Yaml::text).is_none_or(|stage| stage == "sft");
    let mut all: Vec<Taken> =
        taken(&LLAMA_FACTORY).filter(|(own, ..)| *own != "sample_packing" || tunes).collect();
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
