//! The price table as a list: the cheapest first, each row with its age; where it was read stands in the JSON.

use super::json;
use super::table::{Table, wrap};
use super::words;
use crate::error::Result;
use crate::estimate::prices::Row;
use crate::train::screen::{Screen, visible};
use jiff::civil::Date;
use serde::Serialize;

/// A row with its age.
#[derive(Serialize)]
struct Aged<'a> {
    machine: String,
    #[serde(flatten)]
    row: &'a Row,
    /// `None` = the row has no day.
    age_days: Option<i32>,
    is_old: bool,
}

/// The list as JSON, every digit.
pub fn json(rows: &[&Row], today: Date) -> Result<String> {
    let aged: Vec<Aged<'_>> = rows
        .iter()
        .map(|row| Aged { machine: row.key(), row, age_days: row.age_days(today), is_old: row.is_old(today) })
        .collect();
    json::to_text(&aged)
}

/// The list as a table, with a word about rows that are too old to be trusted.
pub fn terminal(rows: &[&Row], is_spot: bool, today: Date, screen: Screen) -> String {
    let price = if is_spot { "spot USD/h" } else { "USD/h" };
    let mut table = Table::new()
        .left("machine")
        .extra("accelerator", 2)
        .right(price)
        .extra("billed by", 4)
        .right("days old");
    for row in rows {
        let usd = row.usd_per_hour_spot.filter(|_| is_spot).unwrap_or(row.usd_per_hour);
        table.row([
            visible(&row.key()),
            accelerators(row),
            format!("{usd:.4}"),
            row.billing_granularity_s.map_or_else(|| "–".to_owned(), |s| words::seconds(s as f64)),
            row.age_days(today).map_or_else(|| "no date".to_owned(), |days| days.to_string()),
        ]);
    }
    let mut out = table.render(screen);
    let old = rows.iter().filter(|row| row.is_old(today)).count();
    if old > 0 {
        let text =
            format!("{old} of {} prices are older than 180 days or have no date: check them", rows.len());
        out += &wrap(&text, "  ", screen.columns);
    }
    screen.fit(out)
}

fn accelerators(row: &Row) -> String {
    let Some(name) = &row.accelerator else { return "–".to_owned() };
    let memory = row.vram_gib.map_or_else(String::new, |gib| format!(" {gib:.0} GiB"));
    format!("{} × {}{memory}", row.count.max(1), visible(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::prices::{Filter, Table};

    #[test]
    fn a_list_shows_price_and_age_and_points_at_old_rows() {
        let table = Table::shipped().unwrap();
        let filter = Filter { gpu: Some("H100".into()), ..Filter::default() };
        let rows = table.select(&filter);
        let today = "2030-01-01".parse().unwrap();
        let text = terminal(&rows, false, today, Screen::plain(100));
        assert!(text.contains("1 × H100 80 GiB") && text.contains("are older than 180 days"), "{text}");
        assert!(terminal(&rows, false, today, Screen::plain(50)).contains("days old"));
        let json: serde_json::Value = serde_json::from_str(&json(&rows, today).unwrap()).unwrap();
        assert_eq!(json[0]["is_old"], true);
        assert!(json[0]["usd_per_hour"].as_f64().unwrap() <= json[1]["usd_per_hour"].as_f64().unwrap());
        assert!(json[0]["machine"].as_str().unwrap().contains('/'));
    }
}
