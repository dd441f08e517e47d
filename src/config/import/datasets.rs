//! Axolotl's `datasets` as `[[datasets]]`: types and fields by their meaning; what stands there but holds for a whole run
//! here is lifted out.

use super::yaml::{Entry, Yaml, quoted};
use crate::error::Problem;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// Keys of a dataset that are keys of the run here.
#[derive(Default)]
pub(super) struct Lifted {
    keys: Vec<(&'static str, Yaml)>,
    notes: BTreeSet<String>,
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
        let get = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &e.value);
        let path = path(name, get("path"), get("data_files"), get("ds_type"))?;
        let _ = writeln!(out, "\n[[{name}]]\npath = {}", quoted(&path));
        let kind = kind(entries)?;
        let _ = writeln!(out, "type = {}", quoted(kind));
        let is_named = matches!(get("type"), Some(Yaml::Text(text)) if text.starts_with("sharegpt"));
        // Axolotl's default where only the turns' own fields are named as ShareGPT names them.
        if kind == "sharegpt" && !is_named && matches!(get("field_messages"), None | Some(Yaml::Null)) {
            out.push_str("field_messages = \"messages\"\n");
        }
        fields(entries, lifted, out);
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
    let get = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &e.value);
    let kind = match get("type") {
        None | Some(Yaml::Null) => "chat_template",
        Some(Yaml::Text(text)) => text,
        Some(_) => {
            return Err(problem(
                "a dataset's `type` describes a prompt of its own".into(),
                "write prompts and answers into two fields and use type = \"prompt_completion\"",
            ));
        }
    };
    let base = kind.split(['.', ':']).next().unwrap_or_default();
    match base {
        "alpaca" => Ok("alpaca"),
        "completion" | "pretrain" => Ok("completion"),
        "sharegpt" => Ok("sharegpt"),
        "chat_template" => roles(entries),
        _ => Err(problem(
            format!("a dataset's type `{kind}` is not known"),
            "known are chat_template, sharegpt, alpaca and completion: bring the rows into one of them",
        )),
    }
}

/// A conversation's type by the names of its fields.
fn roles(entries: &[Entry]) -> Result<&'static str, Problem> {
    let get = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &e.value);
    let mapped = |wanted: &str| match get("message_property_mappings") {
        Some(Yaml::Map(all)) => all.iter().find(|e| e.key == wanted).and_then(|e| e.value.text()),
        _ => None,
    };
    let role = mapped("role").or(get("message_field_role").and_then(Yaml::text)).unwrap_or("role");
    let content =
        mapped("content").or(get("message_field_content").and_then(Yaml::text)).unwrap_or("content");
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
fn fields(entries: &[Entry], lifted: &mut Lifted, out: &mut String) {
    for entry in entries.iter().filter(|entry| entry.value != Yaml::Null) {
        let value = &entry.value;
        match &*entry.key {
            "path"
            | "data_files"
            | "ds_type"
            | "type"
            | "message_property_mappings"
            | "message_field_role"
            | "message_field_content" => {}
            "field_messages" | "field_system" | "field" => {
                let _ = writeln!(out, "{} = {}", entry.key, value.toml());
            }
            "split" if value.text() == Some("train") => {}
            "split" => {
                let _ = writeln!(out, "split = {}", value.toml());
            }
            "roles_to_train" => lifted.lift("roles_to_train", value.clone()),
            "train_on_eos" => lifted.lift("train_on_eos", value.clone()),
            _ if *value == Yaml::Flag(false) => {}
            other => {
                lifted.notes.insert(format!("`{other}` of a dataset left out: no counterpart here"));
            }
        }
    }
}
