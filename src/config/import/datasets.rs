//! Axolotl's `datasets` as `[[datasets]]`: types and fields by their meaning; what stands there but holds for a whole run
//! here is lifted out, and what would change the rows' text or what is learned of it is refused.

use super::yaml::{Entry, Yaml, quoted};
use crate::error::Problem;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// Keys of a dataset that are keys of the run here.
const LIFTED: [&str; 4] = ["roles_to_train", "train_on_eos", "chat_template", "chat_template_jinja"];

/// Keys that only a dataset of conversations has.
const OF_CHATS: [&str; 9] = [
    "field_messages",
    "field_system",
    "message_property_mappings",
    "message_field_role",
    "message_field_content",
    "roles_to_train",
    "train_on_eos",
    "chat_template",
    "chat_template_jinja",
];

/// Keys of a dataset of conversations that change what is learned of its rows, each with the way out.
const REFUSED: [(&str, &str); 8] = [
    ("conversation", "name a template for the whole run with `chat_template`, and remove the key"),
    ("roles", "rename the roles in the rows to user, assistant and system, and remove the key"),
    ("drop_system_message", "take the system messages out of the rows, and remove the key"),
    ("split_thinking", THOUGHT),
    ("message_field_training", MARKED),
    ("message_field_training_detail", MARKED),
    ("field_tools", "rows with tools are not read: where they have none, remove the key"),
    ("field_thinking", THOUGHT),
];
const THOUGHT: &str = "write reasoning as <think>…</think> in front of the answer, and remove the key";
const MARKED: &str = "write \"weight\": 0 into the messages that are not to be learned, and remove the key";

/// What was found of [`LIFTED`].
#[derive(Default)]
pub(super) struct Lifted {
    keys: Vec<(&'static str, Yaml)>,
    notes: BTreeSet<String>,
    /// One a dataset of conversations: line and name of its own chat template, where it has one.
    templates: Vec<Option<(usize, String)>>,
}

impl Lifted {
    /// Each key with its value; the first dataset's holds.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'static str, &Yaml)> {
        self.keys.iter().map(|(key, value)| (*key, value))
    }

    /// What was left out of the datasets.
    pub(super) fn notes(&self) -> impl Iterator<Item = &String> {
        self.notes.iter()
    }

    /// The chat template of the datasets with its line, where it is not the run's.
    ///
    /// # Errors
    /// Line and problem: it is not the same for all conversations, or not known here.
    pub(super) fn template(&self, run: Option<&str>) -> Result<Option<(usize, &str)>, (usize, Problem)> {
        let mut own = self.templates.iter().flatten();
        let Some((line, name)) = own.find(|(_, name)| Some(name.as_str()) != run) else {
            return Ok(None);
        };
        let refuse = |fact: String, hint: &str| Err((*line, problem(fact, hint)));
        let is_same = |other: &(usize, String)| other.1 == *name;
        if run.is_some() || !self.templates.iter().all(|other| other.as_ref().is_some_and(is_same)) {
            return refuse(
                "`chat_template` of a dataset is another than that of the run or of other datasets".into(),
                "a run has one: give the same to all, or make a config of each dataset",
            );
        }
        if !is_template(name) {
            return refuse(
                format!("`chat_template: {name}` of a dataset is not known"),
                "save that template in a .jinja file and name it, or remove the key for the model's own",
            );
        }
        Ok(Some((*line, name.as_str())))
    }

    fn lift(&mut self, key: &'static str, value: Yaml) {
        match self.keys.iter().find(|(known, _)| *known == key) {
            None => self.keys.push((key, value)),
            Some((_, same)) if *same == value => {}
            Some(_) => {
                self.notes.insert(format!("`{key}` differs between datasets: the first one's holds for all"));
            }
        }
    }
}

fn problem(message: String, hint: &str) -> Problem {
    Problem { message, hint: Some(hint.to_owned()) }
}

/// The value of a key that says something.
fn get<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Yaml> {
    let says = |value: &&Yaml| **value != Yaml::Null && value.text() != Some("");
    entries.iter().find(|e| e.key == key).map(|e| &e.value).filter(says)
}

/// Line and name of the chat template that the keys of a run or a dataset give; none for the tokenizer's.
pub(super) fn template(entries: &[Entry]) -> Option<(usize, &str)> {
    let given = |key: &str| {
        let entry = entries.iter().find(|e| e.key == key)?;
        entry.value.text().filter(|name| !name.is_empty()).map(|name| (entry.line, name))
    };
    let named = given("chat_template").filter(|(_, name)| *name != "jinja");
    let named = named.or_else(|| given("chat_template_jinja"));
    named.filter(|(_, name)| !name.starts_with("tokenizer_default"))
}

/// Whether a chat template is one that can be used here.
fn is_template(name: &str) -> bool {
    let is_file = Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jinja"));
    name == "chatml" || name.contains('{') || is_file
}

/// Keys of the run that go with these datasets, with a line of each.
pub(super) fn lost(all: &[Yaml]) -> impl Iterator<Item = (usize, &'static str)> {
    let entries = all.iter().filter_map(|dataset| match dataset {
        Yaml::Map(entries) => Some(entries),
        _ => None,
    });
    LIFTED.into_iter().filter_map(move |key| {
        let mut entries = entries.clone().flatten();
        entries.find(|e| e.key == key && e.value != Yaml::Null).map(|e| (e.line, key))
    })
}

/// Writes the tables of `name`.
///
/// # Errors
/// A dataset that is no file of rows, or of rows that are not known here.
pub(super) fn write(name: &str, all: &[Yaml], lifted: &mut Lifted, out: &mut String) -> Result<(), Problem> {
    for dataset in all {
        let Yaml::Map(entries) = dataset else {
            return Err(problem(
                format!("`{name}` holds something else than mappings"),
                "write `- path: rows.jsonl`",
            ));
        };
        let given = |key: &str| get(entries, key);
        let path = path(name, given("path"), given("data_files"), given("ds_type"))?;
        let _ = writeln!(out, "\n[[{name}]]\npath = {}", quoted(&path));
        let kind = kind(entries)?;
        let _ = writeln!(out, "type = {}", quoted(kind));
        let is_chat = matches!(kind, "chat_template" | "sharegpt");
        let is_named = given("type").and_then(Yaml::text).is_some_and(|text| text.starts_with("sharegpt"));
        // Axolotl's defaults for its chat_template; its sharegpt of old read conversations alone.
        if kind == "sharegpt" && !is_named && given("field_messages").is_none() {
            out.push_str("field_messages = \"messages\"\n");
        }
        if is_chat && !is_named && given("field_system").is_none() {
            out.push_str("field_system = \"system\"\n");
        }
        if is_chat {
            lifted.templates.push(template(entries).map(|(line, name)| (line, name.to_owned())));
        }
        fields(entries, is_chat, lifted, out)?;
    }
    Ok(())
}

/// The file of rows.
fn path(
    name: &str,
    path: Option<&Yaml>,
    data_files: Option<&Yaml>,
    ds_type: Option<&Yaml>,
) -> Result<String, Problem> {
    let files = match data_files {
        Some(Yaml::List(all)) if all.len() == 1 => all.first(),
        other => other,
    };
    let found = files.and_then(Yaml::text).or(path.and_then(Yaml::text));
    let found = found.ok_or_else(|| {
        problem(format!("a dataset of `{name}` names no file"), "give `path`, or one file under `data_files`")
    })?;
    let ending = Path::new(found).extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match (ending.as_deref(), ds_type.and_then(Yaml::text)) {
        (Some("json" | "jsonl"), _) | (_, Some("json")) => Ok(found.to_owned()),
        (Some("parquet" | "csv" | "arrow" | "txt"), _) | (_, Some(_)) => Err(problem(
            format!("`{found}` is not a file of JSON Lines"),
            "convert it: python -c \"import datasets; datasets.load_dataset(...)['train'].to_json('rows.jsonl')\"",
        )),
        _ => Err(problem(
            format!("`{found}` is a dataset on the hub, and rows are read from local JSON Lines files"),
            "save it with python -c \"import datasets; datasets.load_dataset(...)['train'].to_json('rows.jsonl')\" and \
             import again with `--data rows.jsonl --type TYPE`",
        )),
    }
}

/// Our type of Axolotl's.
fn kind(entries: &[Entry]) -> Result<&'static str, Problem> {
    let kind = match get(entries, "type") {
        None if OF_CHATS.iter().any(|key| get(entries, key).is_some()) => "chat_template",
        // Without a type Axolotl takes rows of token ids and nothing else.
        None => return Ok("tokenized"),
        Some(Yaml::Text(text)) => text,
        Some(_) => {
            return Err(problem(
                "a dataset's `type` describes a prompt of its own".into(),
                "write prompts and answers into two fields and use type = \"prompt_completion\"",
            ));
        }
    };
    // What stands behind a point or a colon makes other prompts, or reads other rows, but for these.
    match kind {
        "alpaca" | "alpaca:instruct" => Ok("alpaca"),
        "completion" | "pretrain" => Ok("completion"),
        "sharegpt" | "sharegpt:chat" => Ok("sharegpt"),
        "chat_template" => roles(entries),
        _ => Err(problem(
            format!("a dataset's type `{kind}` is not known"),
            "known are chat_template, sharegpt, alpaca and completion: bring the rows into one of them",
        )),
    }
}

/// A conversation's type by the names of its fields.
fn roles(entries: &[Entry]) -> Result<&'static str, Problem> {
    let mapped = |wanted: &str| match get(entries, "message_property_mappings") {
        Some(Yaml::Map(all)) => all.iter().find(|e| e.key == wanted).and_then(|e| e.value.text()),
        _ => None,
    };
    let old = |key: &str| get(entries, key).and_then(Yaml::text);
    let role = mapped("role").or(old("message_field_role")).unwrap_or("role");
    let content = mapped("content").or(old("message_field_content")).unwrap_or("content");
    match (role, content) {
        ("role", "content") => Ok("chat_template"),
        ("from", "value") => Ok("sharegpt"),
        _ => Err(problem(
            format!("messages with `{role}` and `{content}` are not read"),
            "rename the fields of the messages to role and content, or to from and value",
        )),
    }
}

/// Fields that have a counterpart, keys that hold for the run, and notes of the rest.
///
/// # Errors
/// A key that changes what is learned.
fn fields(entries: &[Entry], is_chat: bool, lifted: &mut Lifted, out: &mut String) -> Result<(), Problem> {
    for entry in entries.iter().filter(|entry| entry.value != Yaml::Null) {
        let value = &entry.value;
        match &*entry.key {
            "path"
            | "data_files"
            | "ds_type"
            | "type"
            | "message_property_mappings"
            | "message_field_role"
            | "message_field_content"
            | "chat_template"
            | "chat_template_jinja" => {}
            "field_messages" | "field_system" | "field" => {
                let _ = writeln!(out, "{} = {}", entry.key, value.toml());
            }
            "split" if value.text() == Some("train") => {}
            "split" => {
                let _ = writeln!(out, "split = {}", value.toml());
            }
            "roles_to_train" => lifted.lift("roles_to_train", value.clone()),
            "train_on_eos" => lifted.lift("train_on_eos", value.clone()),
            // What is read anyway, or refused where a row has it.
            "field_tools" if value.text() == Some("tools") => {}
            "field_thinking" if value.text() == Some("reasoning_content") => {}
            _ if *value == Yaml::Flag(false) => {}
            other => {
                let refused = REFUSED.iter().find(|(key, _)| is_chat && *key == other);
                if let Some((key, way_out)) = refused {
                    let fact = format!("`{key}` of a dataset changes what is learned and has no counterpart");
                    return Err(problem(fact, way_out));
                }
                lifted.notes.insert(format!("`{other}` of a dataset left out: no counterpart here"));
            }
        }
    }
    Ok(())
}
