//! What a pilot says of the whole run: before it, by it, and within which bounds.

use super::record::{Interval, Price};
use super::table::{Table, hanging, section, wrap};
use super::terminal::warnings;
use super::words::{self, UNKNOWN, or_word};
use super::{Inputs, Status, build};
use crate::estimate::Quantities;
use crate::train::screen::{Screen, visible};
use std::collections::BTreeMap;

/// A pilot with what it foretells.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Foretold {
    /// What was run, fact by fact.
    pub ran: Vec<(&'static str, String)>,
    /// The whole run as it was predicted before.
    pub cold: Quantities,
    /// The whole run by the pilot.
    pub predicted: Quantities,
    /// The loss at its end.
    pub eval_loss: Option<f64>,
    /// By the quantity's key.
    pub interval: BTreeMap<String, Interval>,
    /// What an hour costs.
    pub price: Price,
    /// What the reader must know.
    pub warnings: Vec<String>,
}

/// The pilot in tables.
pub fn pilot_table(foretold: &Foretold, screen: Screen) -> String {
    let ran = foretold.ran.iter();
    let ran: String = ran.map(|(title, text)| hanging(title, 10, &visible(text), screen.columns)).collect();
    let sections = [
        section(screen, "The pilot", &ran),
        section(screen, "The whole run", &whole(foretold, screen)),
        warnings(&foretold.warnings, screen),
    ];
    let shown: Vec<String> = sections.into_iter().filter(|s| !s.is_empty()).collect();
    screen.fit(shown.join("\n"))
}

fn whole(foretold: &Foretold, screen: Screen) -> String {
    let report = |predicted| {
        build(Inputs {
            status: Status::Done,
            predicted,
            interval: foretold.interval.clone(),
            price: foretold.price.clone(),
            ..Inputs::default()
        })
    };
    let (cold, now) = (report(foretold.cold), report(foretold.predicted));
    let mut table =
        Table::new().left("").extra("before the pilot", 2).right("predicted").extra("interval", 1);
    for (before, after) in words::quantities(&cold).iter().zip(&words::quantities(&now)) {
        table.row([
            after.title.to_owned(),
            before.predicted_text(),
            after.predicted_text(),
            after.interval_text(),
        ]);
    }
    let range = foretold.interval.get("eval_loss");
    table.row([
        "final evaluation loss".to_owned(),
        String::new(),
        or_word(foretold.eval_loss, words::loss, UNKNOWN),
        range.map_or_else(String::new, |r| format!("{} – {}", words::loss(r.low), words::loss(r.high))),
    ]);
    let price = format!("price: {}", visible(&words::price(&foretold.price)));
    table.render(screen) + &wrap(&price, "  ", screen.columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_run_stands_before_and_after_the_pilot_with_its_bounds() {
        let at = |wall_s| Quantities { wall_s: Some(wall_s), ..Quantities::default() };
        let foretold = Foretold {
            ran: vec![("run", "7f3a2c, 12 steps".into())],
            cold: at(7200.0),
            predicted: at(3600.0),
            eval_loss: Some(1.25),
            interval: BTreeMap::from([("eval_loss".to_owned(), Interval { low: 1.125, high: 1.5 })]),
            warnings: vec!["rows come again".into()],
            ..Foretold::default()
        };
        let text = pilot_table(&foretold, Screen::plain(100));
        let lines =
            ["7f3a2c, 12 steps", "2 h", "1 h", "1.2500", "1.1250 – 1.5000", "rows come again", "unknown"];
        for line in lines {
            assert!(text.contains(line), "{line}\n{text}");
        }
        for columns in [20, 40, 60] {
            let text = pilot_table(&foretold, Screen::plain(columns));
            assert!(text.contains("1.2500"), "{text}");
        }
    }
}
