//! The runs of the ledger: the list with what each cost, one of them in full, two side by side, and where the money
//! went.

pub mod accuracy;
pub mod compare;
pub mod show;
pub mod spend;

use super::Error;
use super::table::{Table, wrap};
use super::words::{self, NOT_MEASURED, UNKNOWN, or_word};
use crate::error::Result;
use crate::ledger::{RunRow, Status};
use crate::train::screen::{Screen, visible};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::fmt::Write;

/// Which runs are meant; what is not said keeps all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these.
    pub status: Vec<Status>,
    /// Started then or later.
    pub since: Option<Timestamp>,
    /// Of this project.
    pub project: Option<String>,
    /// Of this purpose.
    pub purpose: Option<String>,
    /// `lora`, `qlora`, `full`, …
    pub method: Option<String>,
}

impl Filter {
    /// Whether a run is meant.
    pub fn keeps(&self, run: &RunRow) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let started = || run.started_at.parse::<Timestamp>().ok();
        (self.status.is_empty() || self.status.contains(&run.status))
            && self.since.is_none_or(|since| started().is_some_and(|at| at >= since))
            && is(&self.project, &run.project)
            && is(&self.purpose, &run.purpose)
            && is(&self.method, &run.method)
    }
}

/// The status of this name.
///
/// # Errors
/// There is none; usage.
pub fn status(word: &str) -> Result<Status> {
    let known = || Status::ALL.map(Status::as_str).join(", ");
    let found = Status::ALL.into_iter().find(|status| status.as_str() == word);
    Ok(found.ok_or_else(|| Error::Unheard { what: "status", word: word.to_owned(), known: known() })?)
}

/// A moment: a date, a time of RFC 3339, or so many days or hours before `now` (`7d`, `12h`).
///
/// # Errors
/// It is none of these; usage.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp> {
    let ago = |unit: char, hours: i64| {
        let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
        now.checked_sub(SignedDuration::from_hours(i64::from(count).checked_mul(hours)?)).ok()
    };
    let day = || Some(text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp());
    let found = text.parse().ok().or_else(day).or_else(|| ago('d', 24)).or_else(|| ago('h', 1));
    Ok(found.ok_or_else(|| Error::Unheard {
        what: "moment",
        word: text.to_owned(),
        known: "2025-11-02, 2025-11-02T10:11:12Z, 7d, 12h".to_owned(),
    })?)
}

/// The table, with what was spent in all.
pub fn terminal(rows: &[RunRow], screen: Screen) -> String {
    if rows.is_empty() {
        return "no runs\n".to_owned();
    }
    let mut table = Table::new()
        .left("run")
        .left("status")
        .extra("time", 2)
        .right("cost")
        .extra("loss", 3)
        .extra("purpose", 5)
        .extra("started", 4)
        .left("folder");
    for row in rows {
        table.row([
            visible(&row.run_id),
            row.status.as_str().to_owned(),
            or_word(row.wall_s, words::seconds, NOT_MEASURED),
            or_word(row.cost_usd, words::money, UNKNOWN),
            or_word(row.loss, words::loss, "–"),
            visible(&row.purpose),
            minute(&row.started_at),
            visible(&row.output_dir),
        ]);
    }
    let mut out = table.render(screen);
    let sum = spend::Sum::of(rows);
    let mut total = format!("spent: {}", or_word(sum.cost_usd, words::money, UNKNOWN));
    if sum.unknown > 0 && sum.cost_usd.is_some() {
        let _ = write!(total, ", and {} of {} runs have no known cost", sum.unknown, sum.runs);
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
pub(in crate::report) mod tests {
    use super::*;

    pub(in crate::report) fn row(run_id: &str, status: Status, cost_usd: Option<f64>) -> RunRow {
        RunRow {
            run_id: run_id.into(),
            status,
            wall_s: cost_usd.map(|usd| usd * 1000.0),
            cost_usd,
            loss: cost_usd.map(|_| 1.2),
            output_dir: format!("runs/{run_id}"),
            started_at: "2025-11-02T10:11:12Z".into(),
            step: 10,
            project: "support".into(),
            purpose: "experiment".into(),
            method: "lora".into(),
            base: "org/x".into(),
            energy_j: None,
            config_hash: "c".into(),
            data_hash: "d".into(),
            base_hash: "b".into(),
        }
    }

    fn rows() -> Vec<RunRow> {
        vec![row("7f3a2c", Status::Done, Some(0.52)), row("9b", Status::Failed, None)]
    }

    #[test]
    fn a_run_without_figures_says_so_and_the_sum_names_it() {
        let text = terminal(&rows(), Screen::plain(110));
        assert!(text.contains("not measured") && text.contains("unknown"), "{text}");
        assert!(text.contains("spent: $0.52, and 1 of 2 runs have no known cost"), "{text}");
        assert!(text.contains("2025-11-02 10:11"), "{text}");
        assert_eq!(terminal(&[], Screen::plain(80)), "no runs\n");
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

    #[test]
    fn a_filter_keeps_what_it_names() {
        let now: Timestamp = "2025-11-03T10:11:12Z".parse().unwrap();
        let kept = |filter: Filter| rows().iter().filter(|run| filter.keeps(run)).count();
        assert_eq!(kept(Filter::default()), 2);
        assert_eq!(kept(Filter { status: vec![status("failed").unwrap()], ..Filter::default() }), 1);
        assert_eq!(kept(Filter { project: Some("other".into()), ..Filter::default() }), 0);
        for (since, left) in [("2d", 2), ("23h", 0), ("2025-11-02", 2), ("2025-11-02T10:11:13Z", 0)] {
            let since = Some(moment(since, now).unwrap());
            assert_eq!(kept(Filter { since, ..Filter::default() }), left, "{since:?}");
        }
        for wrong in ["", "d", "-1d", "yesterday", "99999999999d"] {
            assert!(moment(wrong, now).unwrap_err().to_string().contains("7d"), "{wrong}");
        }
        assert!(status("finished").unwrap_err().to_string().contains("diverged"));
    }
}
