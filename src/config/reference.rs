//! The reference of all keys, made from the table that the check itself uses.

use super::keys::{Key, Preset, Table};
use super::table::KEYS;
use std::fmt::Write;

/// Every key as Markdown: one table for each table of the config.
pub fn reference() -> String {
    let mut out = String::from(
        "A key marked ° may have another value when a run is resumed. Other names of a key are accepted in its \
         place, never beside it.\n",
    );
    for table in [Table::Top, Table::Dataset, Table::Cost, Table::Budget, Table::Meter] {
        let title = match table {
            Table::Top => "Top level".to_owned(),
            Table::Dataset => "`[[datasets]]`, `[[test_datasets]]` and `[[retention_datasets]]`".to_owned(),
            _ => format!("`{}`", table.header()),
        };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "\n### {title}\n\n| Key | Meaning | Type and range | Unit | Default | Other names |\n|---|---|---|---|---|---|\n"
        );
        for key in KEYS.iter().filter(|key| key.table == table) {
            out.push_str(&row(key));
        }
    }
    out
}

fn row(key: &Key) -> String {
    let mark = if key.may_change { " °" } else { "" };
    let aliases: Vec<String> = key.aliases.iter().map(|(name, _)| format!("`{name}`")).collect();
    format!(
        "| `{}`{mark} | {} | {} | {} | {} | {} |\n",
        key.name,
        key.meaning,
        key.kind.say(),
        key.unit,
        default(key.preset),
        aliases.join(", ")
    )
}

fn default(preset: Preset) -> String {
    match preset {
        Preset::Required(_) => "required".to_owned(),
        Preset::Is(value) => format!("`{value}`"),
        Preset::ByMethod { adapter, full } => format!("`{adapter}`, full `{full}`"),
        Preset::Unset(then) => format!("not set: {then}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_lists_every_key_once_in_a_table_of_six_columns() {
        let text = reference();
        for key in KEYS {
            let start = format!("| `{}`", key.name);
            assert!(text.lines().any(|l| l.starts_with(&start)), "{}", key.name);
        }
        let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| `")).collect();
        assert_eq!(rows.len(), KEYS.len());
        for row in rows {
            assert_eq!(row.matches('|').count(), 7, "{row}");
        }
    }
}
