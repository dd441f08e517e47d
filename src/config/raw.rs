//! A config exactly as written: TOML with the place of every value, and the command line's `--set` put over it.

use super::error::Problems;
use super::keys::{self, Table};
use super::place::{Lines, Place, shown, without_secrets};
use super::{Error, alias};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
    /// A value of `--set` as it was typed: it needs no quotes where a text is wanted.
    pub(super) typed: Option<String>,
}

/// A TOML value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Int(i64),
    Real(f64),
    Flag(bool),
    List(Vec<Node>),
    Table(Vec<Entry>),
    Date(String),
    /// A number that 64 bits cannot hold.
    Overflow {
        kind: &'static str,
        text: String,
    },
}

/// One `key = value`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// The type's name in TOML's words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Int(_) => "integer",
            Self::Real(_) => "float",
            Self::Flag(_) => "boolean",
            Self::List(_) => "list",
            Self::Table(_) => "table",
            Self::Date(_) => "date",
            Self::Overflow { kind, .. } => kind,
        }
    }

    /// The value as a message quotes it.
    pub(super) fn quoted(&self) -> String {
        match self {
            Self::Text(text) => format!("\"{}\"", shown(text)),
            Self::Int(n) => n.to_string(),
            Self::Real(x) if x.is_nan() => "nan".to_owned(),
            Self::Real(x) => format!("{x:?}"),
            Self::Flag(b) => b.to_string(),
            Self::List(all) => format!("a list of {}", all.len()),
            Self::Table(_) => "a table".to_owned(),
            Self::Date(text) => shown(text),
            Self::Overflow { text, .. } => {
                format!("{}, which does not fit in 64 bits", shown(text))
            }
        }
    }

    /// Type and value: `string "4"`.
    pub(super) fn described(&self) -> String {
        match self {
            Self::List(_) | Self::Table(_) => self.quoted(),
            _ => format!("{} {}", self.kind(), self.quoted()),
        }
    }
}

/// Parses a whole file; its faults go to `problems`.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Vec<Entry> {
    let lines = Lines::of(text);
    let (document, faults) = DeTable::parse_recoverable(text);
    let yaml = reads_like_yaml(text);
    let mut last = 0;
    for fault in &faults {
        let span = fault.span().unwrap_or(0..0);
        let place = lines.place(span.start);
        // A second fault on the same line, and all but the first of YAML, are echoes.
        let Place::At { line, .. } = place else {
            continue;
        };
        if line == last || (yaml && last > 0) {
            continue;
        }
        last = line;
        let mut what = fault.message().trim_end_matches(", expected nothing").to_owned();
        if let ("duplicate key", Some(key)) = (fault.message(), text.get(span.clone())) {
            what = format!("duplicate key `{}`", shown(key));
        }
        let error = Error::Syntax { what: without_secrets(&what), excerpt: lines.excerpt(&span), yaml };
        problems.push(&place, error);
    }
    table(document.get_ref(), &|span| lines.place(span.start))
}

/// The first line that says something is `key: value` or `- item`, and not `key = value`.
fn reads_like_yaml(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#') && *line != "---")
        .is_some_and(|line| {
            let word = line
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .map_or("", |end| line.get(end..).unwrap_or(""));
            word.starts_with(':') || line.starts_with("- ")
        })
}

type Placer<'a> = dyn Fn(Range<usize>) -> Place + 'a;

fn table(all: &DeTable<'_>, place: &Placer<'_>) -> Vec<Entry> {
    all.iter()
        .map(|(key, value)| Entry {
            name: key.get_ref().to_string(),
            place: place(key.span()),
            node: node(value, place),
        })
        .collect()
}

fn list(all: &DeArray<'_>, place: &Placer<'_>) -> Vec<Node> {
    all.iter().map(|value| node(value, place)).collect()
}

fn node(value: &Spanned<DeValue<'_>>, place: &Placer<'_>) -> Node {
    let found = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Value::Int(n),
            Err(_) => Value::Overflow { kind: "integer", text: n.to_string() },
        },
        DeValue::Float(x) => real(x.as_str()),
        DeValue::Boolean(b) => Value::Flag(*b),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(all) => Value::List(list(all, place)),
        DeValue::Table(all) => Value::Table(table(all, place)),
    };
    Node { value: found, place: place(value.span()), typed: None }
}

fn real(text: &str) -> Value {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() || !text.contains(|c: char| c.is_ascii_digit()) => Value::Real(x),
        _ => Value::Overflow { kind: "float", text: text.to_owned() },
    }
}

/// A TOML value from the command line, or the text itself where it is none.
pub(super) fn value_of(text: &str, place: &Place) -> Node {
    let mut found = match DeValue::parse(text) {
        Ok(value) => node(&value, &|_| place.clone()),
        Err(_) => Node { value: Value::Text(text.to_owned()), place: place.clone(), typed: None },
    };
    found.typed = Some(text.to_owned());
    found
}

/// Puts one `--set key=value` over what is written; the key may lead into a table (`cost.machine`) or a list
/// (`datasets.0.path`), and takes the place of its aliases.
pub(super) fn set(root: &mut Vec<Entry>, key: &str, value: &str, nth: usize) -> Result<(), Error> {
    let place = Place::set(nth, key, value);
    let node = value_of(value, &place);
    let unknown = || Error::UnknownKey { key: key.to_owned(), table: Table::Top };
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        [name] => put(root, Table::Top, name, node),
        [section, name] => {
            let table = Table::section(section).ok_or_else(unknown)?;
            let new = empty(Value::Table(Vec::new()), &place);
            let found = slot(root, section, new).ok_or_else(unknown)?;
            put(entries_of(found, section)?, table, name, node);
        }
        [list @ ("datasets" | "test_datasets" | "retention_datasets"), index, name] => {
            let new = empty(Value::List(Vec::new()), &place);
            let found = slot(root, list, new).ok_or_else(unknown)?;
            let row = row(found, list, index, &place)?;
            put(entries_of(row, list)?, Table::Dataset, name, node);
        }
        _ => return Err(unknown()),
    }
    Ok(())
}

/// Replaces the key, by whichever of its names it was written; a value that says nothing replaces its own name alone.
fn put(entries: &mut Vec<Entry>, table: Table, name: &str, node: Node) {
    let known = keys::find(table, name).filter(|(_, means)| !alias::is_silent(*means, &node.value));
    let meant = known.map(|(key, _)| key.name);
    entries.retain(|e| e.name != name && (meant.is_none() || keys::canonical(table, &e.name) != meant));
    entries.push(Entry { name: name.to_owned(), place: node.place.clone(), node });
}

fn empty(value: Value, place: &Place) -> Node {
    Node { value, place: place.clone(), typed: None }
}

/// The node of a key, `new` where there is none.
fn slot<'a>(root: &'a mut Vec<Entry>, name: &str, new: Node) -> Option<&'a mut Node> {
    if !root.iter().any(|e| e.name == name) {
        root.push(Entry { name: name.to_owned(), place: new.place.clone(), node: new });
    }
    let entry = root.iter_mut().find(|e| e.name == name)?;
    Some(&mut entry.node)
}

fn entries_of<'a>(node: &'a mut Node, key: &str) -> Result<&'a mut Vec<Entry>, Error> {
    match &mut node.value {
        Value::Table(entries) => Ok(entries),
        other => {
            Err(Error::Type { key: key.to_owned(), expected: "table".to_owned(), found: other.described() })
        }
    }
}

/// Row `index` of a list of tables; the first index behind the last row makes a new one.
fn row<'a>(list: &'a mut Node, key: &str, index: &str, place: &Place) -> Result<&'a mut Node, Error> {
    let rows = match &mut list.value {
        Value::List(rows) => rows,
        other => {
            return Err(Error::Type {
                key: key.to_owned(),
                expected: "table array".to_owned(),
                found: other.described(),
            });
        }
    };
    let count = rows.len();
    let out_of_range = || Error::Range {
        key: format!("{key}.{}", shown(index)),
        range: format!("a row from 0 to {count}"),
        found: shown(index),
        tip: "rows count from 0; the first free number adds a row",
    };
    let index: usize = index.parse().map_err(|_| out_of_range())?;
    if index == count {
        rows.push(empty(Value::Table(Vec::new()), place));
    }
    rows.get_mut(index).ok_or_else(out_of_range)
}
