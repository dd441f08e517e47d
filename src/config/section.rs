//! One table of a config with every key settled: aliases resolved, values accepted, defaults filled in, and for each
//! where it came from.

use super::error::Problems;
use super::keys::{self, Key, Means, Preset, Table};
use super::place::Place;
use super::raw::{self, Entry, Node, Value};
use super::table::KEYS;
use super::{Error, MethodFlag, alias, resolved};
use std::collections::HashSet;
use std::fmt;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The file, by this name.
    File(String),
    /// `--set`, by this name.
    Set(String),
    /// The method's flag.
    Flag(MethodFlag),
    /// It follows from another key.
    From(&'static str),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(_) => write!(f, "file"),
            Self::Set(_) => write!(f, "--set"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::From(key) => write!(f, "from {key}"),
            Self::Default => write!(f, "default"),
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) key: &'static Key,
    /// The name by which it was written.
    pub(super) written: String,
    pub(super) node: Node,
    pub(super) origin: Origin,
    /// Accepted; what is not is known to be wrong already, and rules pass over it.
    valid: bool,
}

impl Setting {
    /// Whether a person wrote it.
    pub(super) fn is_written(&self) -> bool {
        matches!(self.origin, Origin::File(_) | Origin::Set(_))
    }

    /// Whether its value is the one that holds where nobody writes the key.
    fn is_preset(&self) -> bool {
        let Preset::Is(preset) = self.key.preset else { return false };
        let node = raw::value_of(preset, &Place::File);
        let preset = self.key.kind.accept(self.key, self.key.name, node).ok().flatten();
        preset.is_some_and(|preset| resolved::toml(&preset.value) == resolved::toml(&self.node.value))
    }
}

/// The settings of one table.
#[derive(Debug, Clone)]
pub(super) struct Section {
    table: Table,
    settings: Vec<Setting>,
}

impl Section {
    /// Settles what is written, then the defaults. `place` is where missing keys are missing.
    pub(super) fn settle(table: Table, entries: Vec<Entry>, place: &Place, problems: &mut Problems) -> Self {
        let mut section = Self { table, settings: Vec::new() };
        for entry in entries {
            section.take(entry, problems);
        }
        for key in KEYS.iter().filter(|key| key.table == table) {
            if section.any(key.name).is_some() {
                continue;
            }
            match key.preset {
                Preset::Required(example) => problems.push(place, Error::Missing { key: key.name, example }),
                Preset::Is(toml) | Preset::ByMethod { adapter: toml, .. } => {
                    section.put(key.name, toml, Origin::Default);
                }
                Preset::Unset(_) => {}
            }
        }
        section
    }

    fn take(&mut self, entry: Entry, problems: &mut Problems) {
        let Some((key, means)) = keys::find(self.table, &entry.name) else {
            return problems.push(
                &entry.place,
                Error::UnknownKey { key: self.table.path(&entry.name), table: self.table },
            );
        };
        let written = self.table.path(&entry.name);
        let place = entry.node.place.clone();
        let kept = entry.node.clone();
        let verdict = alias::translate(means, &written, entry.node).and_then(|node| match node {
            Some(node) => key.kind.accept(key, &written, node),
            None => Ok(None),
        });
        let (node, valid) = match verdict {
            Ok(Some(node)) => (node, true),
            Ok(None) => return,
            Err((place, error)) => {
                problems.push(&place, error);
                (kept, false)
            }
        };
        if let Some(other) = self.settings.iter().find(|s| s.key.name == key.name) {
            let error = Error::Twice { first: other.written.clone(), second: written };
            return problems.push(&entry.place, error);
        }
        let origin = match place {
            Place::Set { .. } => Origin::Set(written.clone()),
            _ => Origin::File(written.clone()),
        };
        self.settings.push(Setting { key, written, node, origin, valid });
    }

    /// Settles a key by a value of our own, in place of whatever it has.
    pub(super) fn put(&mut self, name: &str, toml: &str, origin: Origin) {
        let found = keys::find(self.table, name);
        debug_assert!(found.is_some(), "no key `{name}` in {:?}", self.table);
        let Some((key, Means::Same)) = found else {
            return;
        };
        let node = raw::value_of(toml, &Place::File);
        let accepted = key.kind.accept(key, name, node).ok().flatten();
        debug_assert!(accepted.is_some(), "`{toml}` is no value of `{name}`");
        self.remove(name);
        if let Some(node) = accepted {
            self.settings.push(Setting { key, written: self.table.path(name), node, origin, valid: true });
        }
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, name: &str) {
        self.settings.retain(|s| s.key.name != name);
    }

    /// The key if it has a value, right or wrong.
    pub(super) fn any(&self, name: &str) -> Option<&Setting> {
        debug_assert!(keys::canonical(self.table, name) == Some(name), "no key `{name}` in {:?}", self.table);
        self.settings.iter().find(|s| s.key.name == name)
    }

    /// The key if it has an accepted value.
    pub(super) fn get(&self, name: &str) -> Option<&Setting> {
        self.any(name).filter(|s| s.valid)
    }

    /// The key if a person wrote it and it was accepted.
    pub(super) fn written(&self, name: &str) -> Option<&Setting> {
        self.get(name).filter(|s| s.is_written())
    }

    /// The key if a person wrote it and wanted something else than its preset: a resolved config writes presets, too.
    pub(super) fn changed(&self, name: &str) -> Option<&Setting> {
        self.written(name).filter(|s| !s.is_preset())
    }

    /// An integer, `None` where there is none.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        match self.get(name)?.node.value {
            Value::Int(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// An integer that sizes something in memory.
    pub(super) fn size(&self, name: &str) -> Option<usize> {
        self.count(name).and_then(|n| usize::try_from(n).ok())
    }

    /// A number.
    pub(super) fn real(&self, name: &str) -> Option<f64> {
        match self.get(name)?.node.value {
            Value::Real(x) => Some(x),
            _ => None,
        }
    }

    /// A boolean; `None` is "auto".
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)?.node.value {
            Value::Flag(b) => Some(b),
            _ => None,
        }
    }

    /// A text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, name: &str) -> Option<Vec<String>> {
        let Value::List(all) = &self.get(name)?.node.value else {
            return None;
        };
        let texts = all.iter().filter_map(|node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        });
        Some(texts.collect())
    }

    /// The members of an inline table, each with what `value` makes of it.
    pub(super) fn members<T>(&self, name: &str, value: impl Fn(&Value) -> Option<T>) -> Vec<(String, T)> {
        let Some(Value::Table(entries)) = self.get(name).map(|s| &s.node.value) else {
            return Vec::new();
        };
        entries.iter().filter_map(|entry| Some((entry.name.clone(), value(&entry.node.value)?))).collect()
    }

    /// Takes the rows of a list of tables out, each with its place.
    pub(super) fn rows(&self, name: &str) -> Vec<(Place, Vec<Entry>)> {
        let Some(Value::List(rows)) = self.get(name).map(|s| &s.node.value) else {
            return Vec::new();
        };
        rows.iter()
            .filter_map(|row| match &row.value {
                Value::Table(entries) => Some((row.place.clone(), entries.clone())),
                _ => None,
            })
            .collect()
    }

    /// Puts other names in the place of some in a list, each name once.
    pub(super) fn rename(&mut self, name: &str, names: &[(&str, &str)]) {
        let setting = self.settings.iter_mut().find(|s| s.key.name == name && s.valid);
        let Some(Value::List(all)) = setting.map(|s| &mut s.node.value) else {
            return;
        };
        let mut seen = HashSet::new();
        all.retain_mut(|node| {
            let Value::Text(text) = &mut node.value else {
                return true;
            };
            if let Some((_, own)) = names.iter().find(|(other, _)| *other == text.as_str()) {
                (*own).clone_into(text);
            }
            seen.insert(text.clone())
        });
    }

    /// Settles that two keys exclude each other: the command line wins over the file, else it is an error.
    pub(super) fn exclude(
        &mut self,
        first: &'static str,
        second: &'static str,
        why: &'static str,
        problems: &mut Problems,
    ) {
        let (Some(a), Some(b)) = (self.any(first), self.any(second)) else {
            return;
        };
        let set = |s: &Setting| matches!(s.origin, Origin::Set(_));
        match (set(a), set(b)) {
            (true, false) => self.remove(second),
            (false, true) => self.remove(first),
            _ => {
                let later = if a.node.place > b.node.place { a } else { b };
                let error = Error::Contradiction {
                    first: format!("`{}`", a.written),
                    second: format!("`{}`", b.written),
                    why,
                    way_out: "keep one of them",
                };
                problems.push(&later.node.place.clone(), error);
            }
        }
    }
}
