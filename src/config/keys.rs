//! What a key is: type, range, default, unit, meaning and its other names, each said once in [`super::table`]; the
//! check, the resolved config and the reference are all made from it.

use super::kinds::Kind;
use super::table::KEYS;
use super::{foreign, place};

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Above all tables.
    Top,
    /// In `[[datasets]]`, `[[test_datasets]]` and `[[retention_datasets]]`.
    Dataset,
    /// In `[cost]`.
    Cost,
    /// In `[budget]`.
    Budget,
    /// In `[meter]`.
    Meter,
}

impl Table {
    /// The tables that are written once, by name.
    pub(super) const SECTIONS: [(&'static str, Self); 3] =
        [("cost", Self::Cost), ("budget", Self::Budget), ("meter", Self::Meter)];

    /// A table by the name in its header.
    pub(super) fn section(name: &str) -> Option<Self> {
        Self::SECTIONS.into_iter().find_map(|(n, table)| (n == name).then_some(table))
    }

    /// The header under which the table's keys stand.
    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Top => "the top level",
            Self::Dataset => "[[datasets]]",
            Self::Cost => "[cost]",
            Self::Budget => "[budget]",
            Self::Meter => "[meter]",
        }
    }

    /// The key's full name: `cost.machine`; top-level and dataset keys go without.
    pub(super) fn path(self, name: &str) -> String {
        Self::SECTIONS
            .into_iter()
            .find(|(_, table)| *table == self)
            .map_or_else(|| name.to_owned(), |(section, _)| format!("{section}.{name}"))
    }
}

/// What holds where a key is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preset {
    /// It must be written; this is how.
    Required(&'static str),
    /// A value, as TOML.
    Is(&'static str),
    /// With an adapter, and without.
    ByMethod { adapter: &'static str, full: &'static str },
    /// No value; this is what then happens.
    Unset(&'static str),
}

/// How a foreign name's value becomes the key's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// It is the same.
    Same,
    /// `true` is `false`.
    Not,
    /// LLaMA-Factory's `all`, or names with commas between them.
    LoraTarget,
    /// `true` is `"all-linear"`, `false` says nothing.
    TargetLinear,
    /// Names with commas between them.
    Commas,
    /// 4 is `true`.
    FourBits,
    /// `true`, `"true"` or `"auto"`.
    Resume,
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Key {
    pub(super) table: Table,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) preset: Preset,
    pub(super) unit: &'static str,
    pub(super) meaning: &'static str,
    /// Usual values, or what to do about a wrong one.
    pub(super) tip: &'static str,
    pub(super) aliases: &'static [(&'static str, Means)],
    /// A resumed run may have another value.
    pub(super) may_change: bool,
}

impl Key {
    pub(super) const fn new(
        table: Table,
        name: &'static str,
        kind: Kind,
        preset: Preset,
        meaning: &'static str,
    ) -> Self {
        Self { table, name, kind, preset, unit: "", meaning, tip: "", aliases: &[], may_change: false }
    }

    pub(super) const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    pub(super) const fn tip(mut self, tip: &'static str) -> Self {
        self.tip = tip;
        self
    }

    pub(super) const fn aka(mut self, aliases: &'static [(&'static str, Means)]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(super) const fn may_change(mut self) -> Self {
        self.may_change = true;
        self
    }
}

/// The key behind a name, and how the name's value is meant.
pub(super) fn find(table: Table, name: &str) -> Option<(&'static Key, Means)> {
    KEYS.iter().filter(|key| key.table == table).find_map(|key| {
        if key.name == name {
            return Some((key, Means::Same));
        }
        let (_, means) = key.aliases.iter().find(|(alias, _)| *alias == name)?;
        Some((key, *means))
    })
}

/// The key's own name behind any of its names.
pub(super) fn canonical(table: Table, name: &str) -> Option<&'static str> {
    find(table, name).map(|(key, _)| key.name)
}

/// What helps someone who wrote a key that does not exist in this table.
pub(super) fn advice(table: Table, name: &str) -> String {
    // `--set cost.machin=…` is judged in its table.
    let (table, name) = match name.split_once('.') {
        Some((section, rest)) => (Table::section(section).unwrap_or(table), rest),
        None => (table, name),
    };
    let elsewhere = KEYS
        .iter()
        .find(|key| key.table != table && (key.name == name || key.aliases.iter().any(|(a, _)| *a == name)));
    if let Some(key) = elsewhere {
        return belongs(key.table, key.name);
    }
    if let Some(hint) = foreign::hint(name) {
        return hint.to_owned();
    }
    match nearest(table, name) {
        Some((place, near)) if place == table => format!("did you mean `{near}`?"),
        Some((place, near)) => format!("did you mean `{near}`? {}", belongs(place, near)),
        None => format!(
            "remove `{}` or comment it out; the key reference lists all that exist",
            place::shown(name)
        ),
    }
}

fn belongs(table: Table, name: &str) -> String {
    match table {
        Table::Top => {
            format!("`{name}` stands above all tables: move it up, before the first line that begins with [")
        }
        _ => format!("`{name}` belongs under {}", table.header()),
    }
}

/// The name closest to what was written, of this table before others.
fn nearest(table: Table, written: &str) -> Option<(Table, &'static str)> {
    // A name this long is not a slip of the finger, and the distance is quadratic.
    if written.len() > 60 {
        return None;
    }
    let written = written.to_ascii_lowercase().replace('-', "_");
    let names = KEYS.iter().flat_map(|key| {
        let aliases = key.aliases.iter().map(|(alias, _)| *alias);
        aliases.chain([key.name]).map(|name| (key.table, name))
    });
    let sections = Table::SECTIONS.into_iter().map(|(name, _)| (Table::Top, name));
    names
        .chain(sections)
        .map(|(place, name)| (strsim::damerau_levenshtein(&written, name), place, name))
        .filter(|(distance, _, name)| *distance <= name.len().max(3) / 3)
        .min_by_key(|(distance, place, _)| (*distance, *place != table))
        .map(|(_, place, name)| (place, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_name_means_two_things_in_one_table() {
        for table in [Table::Top, Table::Dataset, Table::Cost, Table::Budget, Table::Meter] {
            let mut seen = HashSet::new();
            for key in KEYS.iter().filter(|key| key.table == table) {
                for name in key.aliases.iter().map(|(a, _)| *a).chain([key.name]) {
                    assert!(seen.insert(name), "`{name}` stands twice in {table:?}");
                    assert_eq!(foreign::hint(name), None, "`{name}` is refused and known");
                }
            }
        }
    }

    #[test]
    fn slips_find_their_key() {
        assert_eq!(advice(Table::Top, "learning_rat"), "did you mean `learning_rate`?");
        assert_eq!(advice(Table::Top, "Lora-R"), "did you mean `lora_r`?");
        assert_eq!(advice(Table::Top, "usd_per_hour"), "`usd_per_hour` belongs under [cost]");
        assert!(advice(Table::Cost, "lora_r").contains("above all tables"));
        assert_eq!(advice(Table::Top, "cost.machin"), "did you mean `machine`?");
        assert!(advice(Table::Top, "qwertyuiop").contains("remove"));
    }
}
