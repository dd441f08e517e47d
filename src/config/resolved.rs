//! The resolved config: every key with its value and where the value came from, itself a config; and what differs
//! between two of them when a run is resumed.

use super::Config;
use super::check::Settled;
use super::keys::{self, Preset, Table};
use super::kinds::Kind;
use super::raw::Value;
use super::section::Section;
use super::table::KEYS;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A config with the text that says the same in full.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// What is meant.
    pub config: Config,
    /// Every key with its value and a comment that names the origin; loads back to an equal [`Config`].
    pub toml: String,
    /// Every key that has a value, by its full name (`cost.machine`, `datasets.0.path`), as TOML.
    pub settings: BTreeMap<String, String>,
    /// What is odd, but not wrong, with its place.
    pub warnings: Vec<String>,
}

/// A key whose value differs between two configs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Full name.
    pub key: String,
    /// TOML, or "not set".
    pub old: String,
    /// TOML, or "not set".
    pub new: String,
    /// A run may be resumed with it: it bounds, watches or places the run and does not change what is learned from
    /// what. (Another `device` or `bf16` resumes too, but not bit for bit.)
    pub harmless: bool,
}

/// Every key whose value differs, in the order of their names.
pub fn differences(old: &Resolved, new: &Resolved) -> Vec<Difference> {
    differing(&old.settings, &new.settings)
}

/// Every setting whose value differs, in the order of their names.
pub fn differing(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Difference> {
    let value = |of: &BTreeMap<String, String>, key: &str| {
        of.get(key).cloned().unwrap_or_else(|| "not set".to_owned())
    };
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .map(|key| Difference {
            key: key.clone(),
            old: value(old, key),
            new: value(new, key),
            harmless: may_change(key),
        })
        .filter(|difference| difference.old != difference.new)
        .collect()
}

/// The settings of a resolved config's text, as [`Resolved::settings`] has them; none where it is no TOML. It is not
/// checked again: what it was made for may be gone.
pub fn settings_of(text: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    if let Ok(table) = text.parse::<toml::Table>() {
        flatten("", &toml::Value::Table(table), &mut settings);
    }
    settings
}

fn flatten(path: &str, value: &toml::Value, settings: &mut BTreeMap<String, String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        toml::Value::Table(table) if !is_pattern(path) => {
            for (name, value) in table {
                flatten(&below(name), value, settings);
            }
        }
        toml::Value::Array(rows) if rows.iter().any(toml::Value::is_table) => {
            for (at, row) in rows.iter().enumerate() {
                flatten(&below(&at.to_string()), row, settings);
            }
        }
        value => {
            settings.insert(path.to_owned(), plain(value));
        }
    }
}

/// Whether the key holds a table of patterns, which is one value.
fn is_pattern(path: &str) -> bool {
    keys::find(Table::Top, path).is_some_and(|(key, _)| matches!(key.kind, Kind::Pattern { .. }))
}

/// A value in the words of [`toml`].
fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => quoted(text),
        toml::Value::Float(x) => format!("{x:?}"),
        toml::Value::Array(all) => {
            let all: Vec<String> = all.iter().map(plain).collect();
            format!("[{}]", all.join(", "))
        }
        toml::Value::Table(all) => {
            let all: Vec<String> =
                all.iter().map(|(name, value)| format!("{} = {}", quoted(name), plain(value))).collect();
            format!("{{{}}}", all.join(", "))
        }
        other => other.to_string(),
    }
}

/// The differences with which a run cannot be resumed.
pub fn resume_conflicts(old: &Resolved, new: &Resolved) -> Vec<Difference> {
    let mut all = differences(old, new);
    all.retain(|difference| !difference.harmless);
    all
}

fn may_change(path: &str) -> bool {
    KEYS.iter()
        .filter(|key| key.table != Table::Dataset)
        .any(|key| key.may_change && key.table.path(key.name) == path)
}

/// The text and the settings of a config.
pub(super) fn write(settled: &Settled) -> (String, BTreeMap<String, String>) {
    let mut out = Writer {
        toml: "# Every key of the run with its value and where the value came from; itself a config.\n"
            .to_owned(),
        settings: BTreeMap::new(),
    };
    out.section(Table::Top, &settled.top, "");
    let lists = [
        ("datasets", &settled.datasets),
        ("test_datasets", &settled.test_datasets),
        ("retention_datasets", &settled.retention_datasets),
    ];
    for (name, rows) in lists {
        for (i, row) in rows.iter().enumerate() {
            out.line(&format!("\n[[{name}]]"));
            out.section(Table::Dataset, row, &format!("{name}.{i}."));
        }
    }
    for (header, section) in
        [(Table::Cost, &settled.cost), (Table::Budget, &settled.budget), (Table::Meter, &settled.meter)]
    {
        out.line(&format!("\n{}", header.header()));
        out.section(header, section, "");
    }
    (out.toml, out.settings)
}

struct Writer {
    toml: String,
    settings: BTreeMap<String, String>,
}

impl Writer {
    fn line(&mut self, text: &str) {
        self.toml.push_str(text);
        self.toml.push('\n');
    }

    fn section(&mut self, table: Table, section: &Section, prefix: &str) {
        for key in KEYS.iter().filter(|key| key.table == table) {
            let setting = section.get(key.name);
            let tables = setting.is_some_and(|s| !section.rows(s.key.name).is_empty());
            if tables {
                continue;
            }
            let empty = matches!(key.kind, Kind::Sources { .. });
            if let Some(setting) = setting.filter(|_| !empty) {
                let value = toml(&setting.node.value);
                self.line(&format!("{} = {value}  # {}", key.name, setting.origin));
                let path = format!("{prefix}{}", table.path(key.name));
                self.settings.insert(path, value);
            } else {
                let then = match key.preset {
                    Preset::Unset(then) => then,
                    _ => "it has no part in this run",
                };
                self.line(&format!("# {} is not set: {then}", key.name));
            }
        }
    }
}

/// A value on one line.
pub(super) fn toml(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Int(n) => n.to_string(),
        Value::Real(x) => format!("{x:?}"),
        Value::Flag(b) => b.to_string(),
        Value::List(all) => {
            let all: Vec<String> = all.iter().map(|node| toml(&node.value)).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Table(all) => {
            let all: Vec<String> =
                all.iter().map(|e| format!("{} = {}", quoted(&e.name), toml(&e.node.value))).collect();
            format!("{{{}}}", all.join(", "))
        }
        // No key holds one once it is settled.
        Value::Date(_) | Value::Overflow { .. } => "\"\"".to_owned(),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a String cannot fail.
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
