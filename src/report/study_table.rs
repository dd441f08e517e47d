//! What the estimate is worth: errors by quantity, as columns of text for terminal and page.

use super::html::study;
use super::table::{Table, section};
use super::words;
use crate::train::screen::Screen;

/// How well one quantity was foretold.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRow {
    /// Which quantity, by which forecast.
    pub what: String,
    /// Runs.
    pub rows: usize,
    /// Mean absolute error, %.
    pub mean_pct: f64,
    /// Lowest and highest error, %.
    pub worst_pct: [f64; 2],
    /// Share inside the interval; `None` = no interval was stated.
    pub coverage: Option<f64>,
    /// Interval score over the measurement, %.
    pub interval_score_pct: Option<f64>,
}

const COLUMNS: [&str; 6] = [
    "quantity",
    "runs",
    "mean absolute error",
    "worst under … over",
    "inside the interval",
    "interval score",
];

fn cells(row: &ScoreRow) -> [String; 6] {
    let dash = || "–".to_owned();
    [
        row.what.clone(),
        row.rows.to_string(),
        format!("{:.1} %", row.mean_pct),
        format!("{} … {}", words::percent_error(row.worst_pct[0]), words::percent_error(row.worst_pct[1])),
        row.coverage.map_or_else(dash, words::share),
        row.interval_score_pct.map_or_else(dash, |score| format!("{score:.0} %")),
    ]
}

/// The scores on the terminal.
pub fn terminal(rows: &[ScoreRow], screen: Screen) -> String {
    let [what, runs, mean, worst, inside, score] = COLUMNS;
    let mut table =
        Table::new().left(what).extra(runs, 1).right(mean).right(worst).extra(inside, 2).extra(score, 3);
    for row in rows {
        table.row(cells(row));
    }
    screen.fit(section(screen, "What the estimate is worth here", &table.render(screen)))
}

/// The scores, and every run beneath them, as a page.
pub fn page(lead: &str, rows: &[ScoreRow], runs: (Vec<String>, Vec<Vec<String>>)) -> String {
    let columns = COLUMNS.map(str::to_owned).to_vec();
    let scores = rows.iter().map(|row| cells(row).to_vec()).collect();
    let note = "Error = (predicted − measured) / measured. Every prediction was written and hashed before its run \
                started; no run learned from another.";
    study(
        "What the estimate is worth",
        lead,
        &[("Scores", columns, scores, note), ("Runs", runs.0, runs.1, "")],
    )
}
