//! Axolotl's and LLaMA-Factory's YAML as a config of ours: keys keep their names, what has no counterpart is left out and
//! said with its line, what is not said keeps its meaning, and what would change the data is refused.

mod datasets;
mod defaults;
mod yaml;

use super::keys::{self, Table};
use super::{Resolved, foreign, parse};
use crate::error::{Error, Kind, Problem, Result};
use datasets::Lifted;
use std::fmt::Write;
use yaml::{Entry, Yaml};

/// A config made from another trainer's.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The text of the config.
    pub toml: String,
    /// What it means here.
    pub resolved: Resolved,
    /// What was left out, each with its line and the reason, and what was added.
    pub notes: Vec<String>,
}

/// Datasets in place of those of the file.
#[derive(Debug, Clone, Default)]
pub struct Instead<'a> {
    /// A JSON Lines file.
    pub path: Option<&'a str>,
    /// What its rows are.
    pub kind: Option<&'a str>,
}

/// A line of the config that is being written.
struct Line {
    /// Of the YAML; 0 where it has none.
    from: usize,
    key: String,
    text: String,
    /// Without it this would be another run: its faults are the file's.
    kept: bool,
}

/// Keys whose lines are kept.
const KEPT: [&str; 4] = ["base_model", "datasets", "output_dir", "adapter"];

impl Line {
    fn new(from: usize, key: &str, text: String) -> Self {
        Self { from, key: key.to_owned(), text, kept: KEPT.contains(&key) }
    }
}

/// Imports a YAML text; `name` stands in front of its lines.
///
/// # Errors
/// Not YAML, datasets that are not files of rows, or a key that the run cannot do without and that is wrong (2).
pub fn import(name: &str, text: &str, instead: &Instead) -> Result<Imported> {
    let refuse = |(line, fact): (usize, String)| Error::new(Kind::Usage, format!("{name}:{line}: {fact}"));
    let refuse_with = |(line, problem): (usize, Problem)| {
        refuse((line, problem.message)).hint(problem.hint.unwrap_or_default())
    };
    let entries = yaml::parse(text).map_err(refuse)?;
    let missing = defaults::missing(name, &entries);
    let warms_up = !defaults::is_constant(&entries);
    let template = datasets::template(&entries).map(|(_, template)| template.to_owned());
    let mut notes = Vec::new();
    let mut lines = Vec::new();
    let mut tables = String::new();
    let mut lifted = Lifted::default();
    for entry in entries {
        match (&*entry.key, &entry.value) {
            // Axolotl's examples write every key they know, most of them empty.
            (_, Yaml::Null) => {}
            ("datasets" | "test_datasets" | "dataset", _) if instead.path.is_some() => {
                replaced(name, &entry, &mut notes);
            }
            ("datasets" | "test_datasets", Yaml::List(all)) => {
                datasets::write(&entry.key, all, &mut lifted, &mut tables)
                    .map_err(|problem| refuse_with((entry.line, problem)))?;
            }
            (key, value) if !warms_up && defaults::is_warm_up(key) && *value != Yaml::Int(0) => {
                let why = "transformers' constant schedule has no warm-up";
                notes.push(format!("{name}:{}: `{key}` left out: {why}", entry.line));
            }
            _ => line(name, entry, &mut lines, &mut notes),
        }
    }
    for (key, value) in lifted.keys() {
        if !lines.iter().any(|line| line.key == key) {
            lines.push(Line::new(0, key, format!("{key} = {}", value.toml())));
        }
    }
    if let Some((from, template)) = lifted.template(template.as_deref()).map_err(refuse_with)? {
        // The run itself names none but the tokenizer's.
        lines.retain(|line| line.key != "chat_template");
        let text = format!("chat_template = {}", yaml::quoted(template));
        lines.push(Line { kept: true, ..Line::new(from, "chat_template", text) });
    }
    notes.extend(lifted.notes().map(|note| format!("{name}: {note}")));
    for (line, note) in missing {
        lines.push(line);
        notes.push(note);
    }
    if let Some(path) = instead.path {
        let _ = writeln!(tables, "\n[[datasets]]\npath = {}", yaml::quoted(path));
        if let Some(kind) = instead.kind {
            let _ = writeln!(tables, "type = {}", yaml::quoted(kind));
        }
    }
    if !lines.iter().any(|line| line.key == "output_dir") {
        lines.push(Line::new(0, "output_dir", "output_dir = \"runs/{run}\"".into()));
    }
    settle(name, lines, &tables, notes)
}

/// Notes what is lost with datasets of the file in whose place other rows stand.
fn replaced(name: &str, entry: &Entry, notes: &mut Vec<String>) {
    let why = "`--data` stands in place of the file's datasets";
    match (&*entry.key, &entry.value) {
        ("test_datasets", _) => {
            notes.push(format!("{name}:{}: `test_datasets` left out: {why}", entry.line));
        }
        (_, Yaml::List(all)) => {
            for (line, key) in datasets::lost(all) {
                notes.push(format!("{name}:{line}: `{key}` of a dataset left out: {why}"));
            }
        }
        _ => {}
    }
}

/// A top-level key as a line, or as a note that says why it is left out.
fn line(name: &str, entry: Entry, lines: &mut Vec<Line>, notes: &mut Vec<String>) {
    let Entry { line, key, value } = entry;
    let place = format!("{name}:{line}: `{key}`");
    let known = keys::canonical(Table::Top, &key);
    match (known, &value) {
        // What the program does anyway.
        (None, Yaml::Flag(false)) => {}
        (None, Yaml::Text(text)) if key == "stage" && text == "sft" => {}
        (None, Yaml::Flag(true)) if key == "do_train" => {}
        (None, _) => {
            let why =
                foreign::hint(&key).unwrap_or("no counterpart here").trim_end_matches(": remove the key");
            notes.push(format!("{place} left out: {why}"));
        }
        (Some("output_dir"), Yaml::Text(text)) => {
            let text = format!("output_dir = {}", yaml::quoted(text.trim_end_matches('/')));
            lines.push(Line::new(line, "output_dir", text));
        }
        (Some(own), value) => lines.push(Line::new(line, own, format!("{key} = {}", value.toml()))),
    }
}

/// The text as it parses: lines whose values are not known here go, one after the other, into the notes.
fn settle(name: &str, mut lines: Vec<Line>, tables: &str, mut notes: Vec<String>) -> Result<Imported> {
    loop {
        let mut toml = format!("# Made from {name} by `fttrain import`.\n");
        for line in &lines {
            toml.push_str(&line.text);
            toml.push('\n');
        }
        toml.push_str(tables);
        let error = match parse("config", &toml, None, &[]) {
            Ok(resolved) => return Ok(Imported { toml, resolved, notes }),
            Err(error) => error,
        };
        let bad = error.problems.iter().find_map(|problem| Some((line_of(problem, &lines)?, problem)));
        let Some((at, problem)) = bad else { return Err(error) };
        let line = lines.remove(at);
        let fact = problem.message.splitn(4, ':').last().unwrap_or_default().trim();
        let hint = problem.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        notes.push(format!("{name}:{}: `{}` left out: {fact}{hint}", line.from, line.key));
    }
}

/// The line that a problem names (`config:LINE:COLUMN: …`), where it may go. The first line of the text is a comment.
fn line_of(problem: &Problem, lines: &[Line]) -> Option<usize> {
    let number: usize = problem.message.strip_prefix("config:")?.split(':').next()?.parse().ok()?;
    let at = number.checked_sub(2)?;
    lines.get(at).filter(|line| !line.kept).map(|_| at)
}

#[cfg(test)]
mod tests {
    use super::super::{ExcessLength, Format, LrScheduler, Method, Targets, ValSet, Warmup};
    use super::*;

    /// A config as Axolotl's examples are written, with a local file.
    const AXOLOTL: &str = "\
base_model: NousResearch/Llama-3.2-1B
# a comment
load_in_8bit: false
load_in_4bit: false
strict: false

datasets:
  - path: data/alpaca.jsonl
    ds_type: json
    type: alpaca
    split: train
  - path: json
    data_files: data/chat.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
    roles_to_train: [\"assistant\"]
    train_on_eos: turn
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/lora-out/

adapter: lora
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules:
  - gate_proj
  - q_proj
wandb_project: mine
wandb_entity:
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: paged_ademamix_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
special_tokens:
  pad_token: \"<|end_of_text|>\"
";

    fn imported(text: &str) -> Result<Imported> {
        import("x.yml", text, &Instead::default())
    }

    #[test]
    fn an_axolotl_config_means_the_same_here() {
        let found = imported(AXOLOTL).unwrap();
        let config = &found.resolved.config;
        assert_eq!(config.base.model, "NousResearch/Llama-3.2-1B");
        let Method::Lora(lora) = &config.method else { panic!("{:?}", config.method) };
        assert_eq!((lora.r, lora.alpha), (Some(16), Some(32.0)));
        assert!((lora.dropout - 0.05).abs() < 1e-12);
        assert_eq!(lora.targets, Some(Targets::Names(vec!["gate_proj".into(), "q_proj".into()])));
        assert_eq!(config.data.val_set, ValSet::Share(0.1));
        assert_eq!((config.data.sequence_len, config.train.micro_batch_size), (2048, 2));
        assert_eq!((config.train.gradient_accumulation_steps, config.train.warmup), (2, Warmup::Steps(10)));
        assert!((config.train.learning_rate - 2e-4).abs() < 1e-12);
        assert_eq!(config.train.gradient_checkpointing, Some(true));
        assert_eq!(config.output.dir.to_str(), Some("./outputs/lora-out"));
        let formats: Vec<_> =
            config.data.datasets.iter().map(|s| (s.path.to_str().unwrap(), s.format)).collect();
        assert_eq!(formats, [("data/alpaca.jsonl", Format::Alpaca), ("data/chat.jsonl", Format::Sharegpt)]);
        assert_eq!(config.data.datasets[1].field_messages, "conversations");
        let notes = found.notes.join("\n");
        for (line, key) in [
            (21, "dataset_prepared_path"),
            (37, "wandb_project"),
            (42, "optimizer"),
            (50, "flash_attention"),
            (52, "evals_per_epoch"),
            (54, "special_tokens"),
        ] {
            assert!(notes.contains(&format!("x.yml:{line}: `{key}` left out: ")), "{key}:\n{notes}");
        }
        assert!(!notes.contains("strict") && !notes.contains("lora_model_dir"), "{notes}");
        // The text alone says the same.
        assert_eq!(parse("again", &found.toml, None, &[]).unwrap().config, *config);
    }

    #[test]
    fn a_llama_factory_config_is_read_through_its_names() {
        let text = "model_name_or_path: org/model\nstage: sft\ndo_train: true\nfinetuning_type: lora\n\
                    lora_target: all\nlora_rank: 8\ndataset: alpaca_en_demo\ntemplate: llama3\ncutoff_len: 1024\n\
                    per_device_train_batch_size: 4\nnum_train_epochs: 3.0\nlearning_rate: 1.0e-4\nval_size: 0.1\n\
                    output_dir: saves/lora\n";
        let instead = Instead { path: Some("rows.jsonl"), kind: Some("alpaca") };
        let found = import("x.yaml", text, &instead).unwrap();
        let config = &found.resolved.config;
        let Method::Lora(lora) = &config.method else { panic!("{:?}", config.method) };
        assert_eq!((lora.r, lora.alpha, &lora.targets), (Some(8), Some(16.0), &Some(Targets::AllLinear)));
        assert_eq!(
            (config.data.sequence_len, config.train.micro_batch_size, config.train.num_epochs),
            (1024, 4, 3)
        );
        assert_eq!(config.data.datasets[0].format, Format::Alpaca);
        assert!(found.notes.join("\n").contains("`template` left out"), "{:?}", found.notes);
        // Without a file of rows there is nothing to train on.
        let error = imported(text).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.to_string().contains("datasets"), "{error}");
    }

    #[test]
    fn what_a_file_leaves_out_keeps_its_meaning() {
        let rows = Instead { path: Some("rows.jsonl"), kind: Some("alpaca") };
        let meant = |text: &str| import("x.yml", text, &rows).unwrap();
        let found = meant("base_model: x/y\nadapter: lora\nmicro_batch_size:\n");
        let (data, train) = (&found.resolved.config.data, &found.resolved.config.train);
        assert_eq!((data.sequence_len, data.sample_packing), (512, false));
        assert_eq!((train.warmup, train.micro_batch_size), (Warmup::Ratio(0.03), 1));
        assert_eq!(
            found.notes,
            [
                "x.yml: `sequence_len = 512` added: what Axolotl takes without the key",
                "x.yml: `sample_packing = false` added: what Axolotl takes without the key",
                "x.yml: `warmup_ratio = 0.03` added: what Axolotl takes without the key, 100 steps at most",
            ]
        );
        assert!(found.toml.contains("\nsequence_len = 512  # Axolotl's default\n"), "{}", found.toml);
        assert_eq!(meant("base_model: x/y\nwarmup_steps: 0\n").notes.len(), 2);

        let found = meant("model_name_or_path: x/y\nlora_rank: 16\n");
        let (config, notes) = (&found.resolved.config, found.notes.join("\n"));
        let Method::Lora(lora) = &config.method else { panic!("{:?}", config.method) };
        assert_eq!((lora.r, lora.alpha), (Some(16), Some(32.0)));
        assert!(!notes.contains("lora_alpha"), "it is the same here: {notes}");
        assert_eq!((config.data.sequence_len, config.data.sample_packing), (2048, false));
        assert_eq!(config.data.excess_length, ExcessLength::Truncate);
        let cut = "x.yml: `excess_length_strategy = \"truncate\"` added: LLaMA-Factory cuts longer rows";
        assert!(notes.contains(cut), "{notes}");
        assert_eq!((config.train.micro_batch_size, config.train.num_epochs), (8, 3));
        assert_eq!(config.train.lr_scheduler, LrScheduler::Linear);
        assert!((config.train.learning_rate - 5e-5).abs() < 1e-15);
        let method = "x.yml: `finetuning_type = \"lora\"` added: what LLaMA-Factory takes without the key";
        assert!(notes.contains(method), "{notes}");

        let found = meant("model_name_or_path: x/y\nfinetuning_type: lora\n");
        let Method::Lora(lora) = &found.resolved.config.method else { panic!("{}", found.toml) };
        assert_eq!((lora.r, lora.alpha), (Some(8), Some(16.0)));
        // Where it packs it leaves out what is too long.
        for packing in ["packing", "neat_packing"] {
            let found = meant(&format!("model_name_or_path: x/y\n{packing}: true\n"));
            let data = &found.resolved.config.data;
            assert_eq!((data.excess_length, data.sample_packing), (ExcessLength::Drop, true), "{packing}");
        }
        // What an adapter is made of has no part in the others.
        for text in ["finetuning_type: full", "finetuning_type: lora\nadapter_name_or_path: there"] {
            let toml = meant(&format!("model_name_or_path: x/y\n{text}\n")).toml;
            assert!(!toml.contains("lora_rank") && !toml.contains("lora_alpha"), "{toml}");
        }
    }

    #[test]
    fn a_conversation_named_as_sharegpts_keeps_its_field() {
        let dataset = |more: &str| {
            let text = format!("base_model: x/y\ndatasets:\n  - path: a.jsonl\n{more}");
            imported(&text).unwrap().resolved.config.data.datasets[0].clone()
        };
        let names = "    message_property_mappings: {role: from, content: value}\n";
        for (more, field) in [
            (format!("    type: chat_template\n{names}"), "messages"),
            (format!("    type: chat_template\n    field_messages:\n{names}"), "messages"),
            (format!("    type: chat_template\n    field_messages: turns\n{names}"), "turns"),
            ("    type: sharegpt\n".to_owned(), "conversations"),
        ] {
            let found = dataset(&more);
            assert_eq!((found.format, &*found.field_messages), (Format::Sharegpt, field), "{more}");
        }
    }

    #[test]
    fn a_constant_rate_has_no_warm_up() {
        let rows = Instead { path: Some("rows.jsonl"), kind: Some("alpaca") };
        let meant = |text: &str| import("x.yml", text, &rows).unwrap();
        for (text, said) in [
            ("base_model: x/y\nlr_scheduler: constant\n", None),
            ("base_model: x/y\nlr_scheduler: constant\nwarmup_steps: 0\n", None),
            (
                "lr_scheduler: constant\nwarmup_steps: 10\nbase_model: x/y\n",
                Some("x.yml:2: `warmup_steps` left out"),
            ),
            (
                "model_name_or_path: x/y\nwarmup_ratio: 0.1\nlr_scheduler_type: constant\n",
                Some("x.yml:2: `warmup_ratio` left out"),
            ),
        ] {
            let found = meant(text);
            assert_eq!(found.resolved.config.train.lr_scheduler, LrScheduler::Constant, "{text}");
            assert_eq!(found.resolved.config.train.warmup, Warmup::Steps(0), "{text}");
            let notes: Vec<&String> = found.notes.iter().filter(|note| note.contains("warm")).collect();
            assert_eq!(notes.len(), usize::from(said.is_some()), "{text}{notes:?}");
            assert!(notes.iter().all(|note| said.is_some_and(|said| note.starts_with(said))), "{notes:?}");
        }
        let found = meant("base_model: x/y\nlr_scheduler: constant_with_warmup\n");
        assert_eq!(found.resolved.config.train.lr_scheduler, LrScheduler::Constant);
        assert_eq!(found.resolved.config.train.warmup, Warmup::Ratio(0.03));
    }

    #[test]
    fn what_goes_with_datasets_that_are_replaced_is_said() {
        let text = "base_model: x/y\ndatasets:\n  - path: org/a\n    type: chat_template\n\
                    \x20   roles_to_train: [user]\n  - path: org/b\n    roles_to_train: [user]\n\
                    \x20   train_on_eos: last\ntest_datasets:\n  - path: org/c\n";
        let rows = Instead { path: Some("rows.jsonl"), kind: Some("alpaca") };
        let notes = import("x.yml", text, &rows).unwrap().notes;
        let lost: Vec<&String> = notes.iter().filter(|note| note.contains("`--data`")).collect();
        let why = "left out: `--data` stands in place of the file's datasets";
        let wanted = [
            format!("x.yml:5: `roles_to_train` of a dataset {why}"),
            format!("x.yml:8: `train_on_eos` of a dataset {why}"),
            format!("x.yml:9: `test_datasets` {why}"),
        ];
        assert_eq!(lost, wanted.iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_datasets_type_and_fields_are_axolotls() {
        let names = "message_property_mappings: {role: from, content: value}";
        let renamed = format!("type: chat_template\n    {names}");
        for (dataset, format, system) in [
            ("type: chat_template", Format::ChatTemplate, Some("system")),
            ("type: chat_template\n    field_system: rules", Format::ChatTemplate, Some("rules")),
            ("type: chat_template\n    field_tools: tools", Format::ChatTemplate, Some("system")),
            ("type: chat_template\n    roles:\n    split_thinking: no", Format::ChatTemplate, Some("system")),
            (renamed.as_str(), Format::Sharegpt, Some("system")),
            ("type: sharegpt", Format::Sharegpt, None),
            ("type: sharegpt:chat", Format::Sharegpt, None),
            ("type: alpaca:instruct", Format::Alpaca, None),
            ("type: completion", Format::Completion, None),
            ("ds_type: json\n    type:", Format::Tokenized, None),
            ("type: \"\"", Format::Tokenized, None),
            ("split: train", Format::Tokenized, None),
            ("ds_type: json\n    type:\n    field_messages: turns", Format::ChatTemplate, Some("system")),
            (names, Format::Sharegpt, Some("system")),
        ] {
            let text = format!("base_model: x/y\ndatasets:\n  - path: a.jsonl\n    {dataset}\n");
            let found = imported(&text).unwrap();
            let source = &found.resolved.config.data.datasets[0];
            assert_eq!((source.format, source.field_system.as_deref()), (format, system), "{dataset}");
            assert!(found.notes.iter().all(|note| !note.contains("of a dataset")), "{:?}", found.notes);
        }
    }

    #[test]
    fn a_chat_template_of_all_conversations_is_the_runs() {
        let with = |top: &str, first: &str, second: &str| {
            let first = format!("  - path: a.jsonl\n    type: chat_template\n    {first}\n");
            let second = format!("  - path: b.jsonl\n    type: {second}\n");
            imported(&format!("base_model: x/y\n{top}datasets:\n{first}{second}"))
        };
        let jinja = "chat_template: jinja\n    chat_template_jinja: \"{{ messages }}\"";
        for (top, first, second, wanted) in [
            ("", "chat_template: chatml", "alpaca", Some("chatml")),
            ("", "chat_template: chatml", "chat_template\n    chat_template: chatml", Some("chatml")),
            ("chat_template: tokenizer_default\n", "chat_template: chatml", "alpaca", Some("chatml")),
            ("chat_template: chatml\n", "chat_template: chatml", "chat_template", Some("chatml")),
            ("", "chat_template: tokenizer_default", "chat_template", None),
            ("", jinja, "alpaca", Some("{{ messages }}")),
        ] {
            let found = with(top, first, second).unwrap();
            assert_eq!(found.resolved.config.data.chat_template.as_deref(), wanted, "{}", found.toml);
        }
        let another = "`chat_template` of a dataset is another than that of the run or of other datasets";
        let unknown = "`chat_template: llama3` of a dataset is not known";
        let own = "chat_template: \"{{ messages }}\"\n";
        for (top, first, second, line, fact) in [
            ("", "chat_template: chatml", "chat_template", "x.yml:5: ", another),
            (own, "chat_template: chatml", "alpaca", "x.yml:6: ", another),
            ("", "chat_template: llama3", "alpaca", "x.yml:5: ", unknown),
            ("", "chat_template: none.jinja", "alpaca", "config:", "none.jinja, which cannot be read"),
        ] {
            let error = with(top, first, second).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(fact), "{error}");
        }
    }

    #[test]
    fn what_changes_what_is_learned_of_a_row_is_refused_with_the_way_out() {
        for (dataset, fact, way_out) in [
            ("alpaca:chat", "`alpaca:chat`", "bring the rows"),
            ("sharegpt.load_role", "`sharegpt.load_role`", "bring the rows"),
            ("chat_template.default", "`chat_template.default`", "bring the rows"),
            ("sharegpt\n    conversation: chatml", "`conversation` of a dataset", "`chat_template`"),
            ("chat_template\n    roles: {user: [asker]}", "`roles` of a dataset", "rename"),
            ("chat_template\n    drop_system_message: yes", "`drop_system_message` of a dataset", "take"),
            ("chat_template\n    split_thinking: true", "`split_thinking` of a dataset", "<think>"),
            ("chat_template\n    message_field_training: train", "`message_field_training`", "weight"),
            ("chat_template\n    message_field_training_detail: x", "_training_detail`", "weight"),
            ("chat_template\n    field_thinking: why", "`field_thinking` of a dataset", "<think>"),
            ("chat_template\n    field_tools: functions", "`field_tools` of a dataset", "remove the key"),
        ] {
            let text = format!("base_model: x/y\ndatasets:\n  - path: a.jsonl\n    type: {dataset}\n");
            let error = imported(&text).unwrap_err().to_string();
            assert!(error.contains("x.yml:2: ") && error.contains(fact), "{error}");
            assert!(error.contains(way_out), "{error}");
        }
    }

    #[test]
    fn what_would_change_the_data_is_refused_with_the_way_out() {
        for (dataset, fact, way_out) in [
            ("path: tatsu-lab/alpaca\n    type: alpaca", "on the hub", "--data"),
            ("path: a.jsonl\n    type: pygmalion", "`pygmalion`", "chat_template"),
            ("path: a.jsonl\n    type: input_output", "`input_output`", "chat_template"),
            ("path: a.jsonl\n    type: chat_template\n    message_field_role: speaker", "speaker", "rename"),
            ("path: a.parquet\n    type: alpaca", "JSON Lines", "convert"),
        ] {
            let text = format!("base_model: x/y\ndatasets:\n  - {dataset}\n");
            let error = imported(&text).unwrap_err().to_string();
            assert!(error.contains("x.yml:2") && error.contains(fact), "{error}");
            assert!(error.contains(way_out), "{error}");
        }
        let error = imported("datasets:\n  - path: a.jsonl\n    type: alpaca\n").unwrap_err().to_string();
        assert!(error.contains("`base_model` is missing"), "{error}");
        assert_eq!(imported("a: [").unwrap_err().kind, Kind::Usage);
    }
}
