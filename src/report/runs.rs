//! The table of all runs: what each cost and where it lies.

use super::Error;
use super::table::{Table, wrap};
use super::words::{self, NOT_MEASURED, UNKNOWN, or_word};
use crate::error::Result;
use crate::train::screen::{Screen, visible};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// One run of the ledger; these are the pinned fields of `fttrain runs --json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Row {
    /// Of the ledger.
    pub run_id: String,
    /// `running`, `done`, `stopped`, `failed`, `diverged`.
    pub status: String,
    /// `None` = not measured.
    pub wall_s: Option<f64>,
    /// `None` without a price.
    pub cost_usd: Option<f64>,
    /// The last one.
    pub loss: Option<f64>,
    /// The run's folder.
    pub output_dir: String,
    /// RFC 3339.
    pub started_at: String,
}

/// The list as JSON, every digit.
pub fn json(rows: &[Row]) -> Result<String> {
    Ok(serde_json::to_string_pretty(rows).map_err(Error::Unwritable)? + "\n")
}

/// The table, with what was spent in all.
pub fn terminal(rows: &[Row], screen: Screen) -> String {
    if rows.is_empty() {
        return "no runs yet\n".to_owned();
    }
    let mut table = Table::new()
        .left("run")
        .left("status")
        .extra("time", 2)
        .right("cost")
        .extra("loss", 3)
        .extra("started", 4)
        .left("folder");
    let finite = |v: Option<f64>| v.filter(|v| v.is_finite());
    for row in rows {
        table.row([
            visible(&row.run_id),
            visible(&row.status),
            or_word(finite(row.wall_s), words::seconds, NOT_MEASURED),
            or_word(finite(row.cost_usd), words::money, UNKNOWN),
            or_word(finite(row.loss), words::loss, "–"),
            minute(&row.started_at),
            visible(&row.output_dir),
        ]);
    }
    let mut out = table.render(screen);
    let spent: Vec<f64> = rows.iter().filter_map(|r| finite(r.cost_usd)).collect();
    let unknown = rows.len() - spent.len();
    let mut total = if spent.is_empty() {
        "spent: unknown".to_owned()
    } else {
        format!("spent: {}", words::money(spent.iter().sum()))
    };
    if unknown > 0 && !spent.is_empty() {
        let _ = write!(total, ", and {unknown} of {} runs have no known cost", rows.len());
    }
    out += &wrap(&total, "  ", screen.columns);
    screen.fit(out)
}

/// RFC 3339 down to the minute.
fn minute(started_at: &str) -> String {
    let shown: String = visible(started_at).chars().take(16).collect();
    shown.replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        vec![
            Row {
                run_id: "7f3a2c".into(),
                status: "done".into(),
                wall_s: Some(760.0),
                cost_usd: Some(0.52),
                loss: Some(1.2),
                output_dir: "runs/7f3a2c".into(),
                started_at: "2025-11-02T10:11:12Z".into(),
            },
            Row {
                run_id: "9b".into(),
                status: "failed".into(),
                output_dir: "runs/9b".into(),
                started_at: "2025-11-02T11:00:00Z".into(),
                ..Row::default()
            },
        ]
    }

    #[test]
    fn a_run_without_figures_says_so_and_the_sum_names_it() {
        let text = terminal(&rows(), Screen::plain(100));
        assert!(text.contains("not measured") && text.contains("unknown"), "{text}");
        assert!(text.contains("spent: $0.52, and 1 of 2 runs have no known cost"), "{text}");
        assert!(text.contains("2025-11-02 10:11"), "{text}");
        assert_eq!(terminal(&[], Screen::plain(80)), "no runs yet\n");
    }

    #[test]
    fn the_json_has_the_pinned_fields_with_null_for_what_is_missing() {
        let text = json(&rows()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<_> = value[1].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["run_id", "status", "wall_s", "cost_usd", "loss", "output_dir", "started_at"]);
        assert!(value[1]["cost_usd"].is_null());
        assert_eq!(value[0]["wall_s"], 760.0);
    }

    #[test]
    fn narrow_terminals_keep_the_run_its_cost_and_its_folder() {
        for columns in [20, 30, 50] {
            let text = terminal(&rows(), Screen::plain(columns));
            for line in text.lines() {
                assert!(console::measure_text_width(line) <= columns, "{line:?}");
            }
            assert!(text.contains("7f3a2c") && text.contains("$0.52"), "{text}");
        }
    }
}
