//! One run on many machines: ranked by cost and by time, with what would make it fit where it does not.

use super::json;
use super::table::{Table, section, wrap};
use super::words::{self, UNKNOWN, or_word};
use crate::estimate::Prediction;
use crate::train::screen::{Screen, visible};
use serde::Serialize;

/// A machine with what is predicted on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachineRow {
    /// As it was asked for, or the row of the price table.
    pub name: String,
    /// Whether the run fits into its memory.
    pub fits: bool,
    /// Why the program does not compute there; `None` = it does, and the prediction is of it, not of its like.
    pub lacks: Option<String>,
    /// Place by cost among those that can take the run and have a price, from 1.
    pub rank_by_cost: Option<usize>,
    /// Place by time among those that can take the run, from 1.
    pub rank_by_time: Option<usize>,
    /// What to say about it.
    pub note: Option<String>,
    /// Everything that is predicted.
    #[serde(flatten)]
    pub prediction: Prediction,
}

impl MachineRow {
    /// A row without a rank.
    pub fn new(name: String, note: Option<String>, lacks: Option<String>, prediction: Prediction) -> Self {
        let peak = prediction.predicted.peak_memory_bytes;
        let fits = peak.is_none_or(|peak| peak <= prediction.limits.memory_bytes);
        Self { name, fits, lacks, rank_by_cost: None, rank_by_time: None, note, prediction }
    }

    fn can_run(&self) -> bool {
        self.fits && self.lacks.is_none()
    }

    fn wall_s(&self) -> f64 {
        self.prediction.predicted.wall_s.unwrap_or(f64::INFINITY)
    }

    fn cost(&self) -> f64 {
        self.prediction.predicted.cost_usd.unwrap_or(f64::INFINITY)
    }
}

/// Ranks the rows that can take the run, and puts the cheapest first; then those without a price, then those that cannot.
pub fn rank(rows: &mut [MachineRow]) {
    rows.sort_by(|a, b| b.can_run().cmp(&a.can_run()).then(a.wall_s().total_cmp(&b.wall_s())));
    for (place, row) in rows.iter_mut().filter(|r| r.can_run()).enumerate() {
        row.rank_by_time = Some(place + 1);
    }
    rows.sort_by(|a, b| b.can_run().cmp(&a.can_run()).then(a.cost().total_cmp(&b.cost())));
    for (place, row) in rows.iter_mut().filter(|r| r.can_run() && r.cost().is_finite()).enumerate() {
        row.rank_by_cost = Some(place + 1);
    }
}

/// The rows as JSON.
///
/// # Errors
/// A value that JSON cannot hold.
pub fn json(rows: &[MachineRow]) -> crate::error::Result<String> {
    json::to_text(&serde_json::json!({ "machines": rows }))
}

/// The rows as a table, and beneath it what would make the run fit.
pub fn machines_table(rows: &[MachineRow], screen: Screen) -> String {
    let mut table = Table::new()
        .left("machine")
        .right("cost")
        .extra("interval", 3)
        .right("time")
        .right("by time")
        .extra("one step", 2)
        .right("peak")
        .extra("of", 1);
    for row in rows {
        let p = &row.prediction;
        let interval = p
            .interval
            .get("cost_usd")
            .map_or_else(String::new, |i| format!("{} – {}", words::money(i.low), words::money(i.high)));
        let time = |s: Option<f64>| or_word(s, words::seconds, UNKNOWN);
        let peak = or_word(p.predicted.peak_memory_bytes, |b| words::bytes(b as f64), UNKNOWN);
        table.row([
            visible(&row.name),
            or_word(p.predicted.cost_usd, words::money, UNKNOWN),
            interval,
            time(p.predicted.wall_s),
            match (row.rank_by_time, row.fits) {
                (Some(place), _) => place.to_string(),
                (None, false) => "does not fit".into(),
                (None, true) => "does not run".into(),
            },
            time(p.predicted.step_s),
            peak,
            words::bytes(p.limits.memory_bytes as f64),
        ]);
    }
    let mut body = table.render(screen);
    for line in remarks(rows) {
        body += &wrap(&visible(&line), "  ", screen.columns);
    }
    screen.fit(section(screen, "On these machines", &body))
}

/// What would make the run fit, once for each accelerator, and on what each rate rests.
fn remarks(rows: &[MachineRow]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut say = |line: String| {
        if !all.contains(&line) {
            all.push(line);
        }
    };
    for row in rows.iter().filter(|row| !row.fits) {
        let p = &row.prediction;
        let levers: Vec<String> = p.levers.iter().map(|l| l.setting.clone()).collect();
        let what = if levers.is_empty() { "nothing here".to_owned() } else { levers.join(", or ") };
        say(format!("fits on {} with: {what}", p.machine));
    }
    for row in rows {
        if let Some(what) = &row.lacks {
            say(format!(
                "fttrain does not run it on {}, another program might: {what}",
                row.prediction.machine
            ));
        }
    }
    for row in rows {
        if let Some(basis) = row.prediction.basis.get("step_s") {
            say(basis.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{Case, config, limits, price, smollm2};

    fn row(name: &str, usd: Option<f64>, memory: u64) -> MachineRow {
        let case = Case::new(smollm2(), config());
        let prediction = Case { limits: limits(memory), price: price(usd), ..case }.predict();
        MachineRow::new(name.into(), None, None, prediction)
    }

    #[test]
    fn what_the_program_does_not_run_on_is_shown_without_a_rank() {
        let mut rows = [row("old", Some(0.1), 64 << 30), row("new", Some(9.0), 64 << 30)];
        rows[0].lacks = Some("it is too old".into());
        rank(&mut rows);
        assert_eq!(
            rows.each_ref().map(|r| (r.name.as_str(), r.rank_by_cost)),
            [("new", Some(1)), ("old", None)]
        );
        let text = machines_table(&rows, Screen::plain(120));
        assert!(text.contains("does not run") && text.contains("it is too old"), "{text}");
    }

    #[test]
    fn the_cheapest_that_fits_comes_first_and_what_does_not_fit_last() {
        let mut rows = [
            row("small", Some(0.1), 1 << 29),
            row("dear", Some(9.0), 64 << 30),
            row("free", None, 64 << 30),
            row("good", Some(1.0), 64 << 30),
        ];
        rank(&mut rows);
        assert_eq!(rows.each_ref().map(|r| r.name.as_str()), ["good", "dear", "free", "small"]);
        assert_eq!(rows[0].rank_by_cost, Some(1));
        assert_eq!((rows[2].rank_by_cost, rows[3].rank_by_time), (None, None));
        let text = machines_table(&rows, Screen::plain(120));
        assert!(text.contains("does not fit") && text.contains("fits on test with: "), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json(&rows).unwrap()).unwrap();
        assert!(json["machines"][0]["predicted"]["wall_s"].is_number());
    }
}
