//! Where the money went: by project, by purpose, by how runs ended, and on what was done twice.

use super::super::table::{Table, section};
use super::super::words::{self, UNKNOWN, or_word};
use crate::ledger::{RunRow, Status};
use crate::train::screen::{Screen, visible};
use serde::Serialize;
use std::collections::BTreeMap;

/// What some runs took together.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Sum {
    /// What they have in common.
    pub name: String,
    /// How many there are.
    pub runs: usize,
    /// Seconds of those that measured any.
    pub wall_s: f64,
    /// USD of those whose cost is known; `None` where none is.
    pub cost_usd: Option<f64>,
    /// Runs whose cost is not known.
    pub unknown: usize,
}

/// The money of many runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spend {
    /// All of them.
    pub whole: Sum,
    /// By `project`.
    pub by_project: Vec<Sum>,
    /// By `purpose`.
    pub by_purpose: Vec<Sum>,
    /// By how they ended.
    pub by_status: Vec<Sum>,
    /// Runs that left no result.
    pub failed: Vec<Lost>,
    /// Runs of a config, data and base that had been done.
    pub repeats: Vec<Lost>,
}

/// A run whose money bought nothing new.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lost {
    /// The run.
    pub run_id: String,
    /// How it ended.
    pub status: &'static str,
    /// USD; `None` = unknown.
    pub cost_usd: Option<f64>,
    /// The run that had done it before.
    pub repeats: Option<String>,
    /// Its folder.
    pub output_dir: String,
}

impl Sum {
    /// What these runs took together.
    pub fn of<'a>(runs: impl IntoIterator<Item = &'a RunRow>) -> Self {
        let mut sum = Self::default();
        for run in runs {
            sum.add(run);
        }
        sum
    }

    fn add(&mut self, run: &RunRow) {
        self.runs += 1;
        self.wall_s += run.wall_s.unwrap_or(0.0);
        match run.cost_usd {
            Some(usd) => *self.cost_usd.get_or_insert(0.0) += usd,
            None => self.unknown += 1,
        }
    }
}

impl Spend {
    /// The money of `runs`, which come the newest first.
    pub fn of(runs: &[RunRow]) -> Self {
        let by = |of: &dyn Fn(&RunRow) -> String| {
            let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
            for run in runs {
                let name = of(run);
                sums.entry(name.clone()).or_insert_with(|| Sum { name, ..Sum::default() }).add(run);
            }
            let mut sums: Vec<Sum> = sums.into_values().collect();
            sums.sort_by(|a, b| b.cost_usd.unwrap_or(0.0).total_cmp(&a.cost_usd.unwrap_or(0.0)));
            sums
        };
        let named = |name: &str| if name.is_empty() { "(none)".to_owned() } else { name.to_owned() };
        Self {
            whole: Sum { name: "whole".into(), ..Sum::of(runs) },
            by_project: by(&|run| named(&run.project)),
            by_purpose: by(&|run| named(&run.purpose)),
            by_status: by(&|run| run.status.as_str().to_owned()),
            failed: runs.iter().filter(|run| failed(run)).map(|run| Lost::new(run, None)).collect(),
            repeats: repeats(runs),
        }
    }

    /// As tables.
    pub fn terminal(&self, screen: Screen) -> String {
        let mut out = Vec::new();
        for (title, sums) in [
            ("By project", &self.by_project),
            ("By purpose", &self.by_purpose),
            ("By status", &self.by_status),
        ] {
            out.push(section(screen, title, &self.sums(sums, screen)));
        }
        for (title, lost) in [("Without a result", &self.failed), ("Done before", &self.repeats)] {
            if !lost.is_empty() {
                out.push(section(screen, title, &table(lost, screen)));
            }
        }
        screen.fit(out.join("\n"))
    }

    fn sums(&self, sums: &[Sum], screen: Screen) -> String {
        let mut table = Table::new().left("").right("runs").extra("time", 1).right("cost");
        if self.whole.unknown > 0 {
            table = table.extra("of unknown cost", 2);
        }
        let cells = |sum: &Sum| {
            [
                visible(&sum.name),
                sum.runs.to_string(),
                words::seconds(sum.wall_s),
                or_word(sum.cost_usd, words::money, UNKNOWN),
                if sum.unknown == 0 { String::new() } else { sum.unknown.to_string() },
            ]
        };
        for sum in sums {
            table.row(cells(sum));
        }
        table.total(cells(&self.whole));
        table.render(screen)
    }
}

fn failed(run: &RunRow) -> bool {
    matches!(run.status, Status::Failed | Status::Diverged | Status::Killed)
}

/// Runs of what had been done by an earlier one. A run without fingerprints repeats nothing.
fn repeats(runs: &[RunRow]) -> Vec<Lost> {
    let mut first: BTreeMap<[&str; 3], &RunRow> = BTreeMap::new();
    let mut found = Vec::new();
    for run in runs.iter().rev().filter(|run| run.status == Status::Done && !run.data_hash.is_empty()) {
        match first.get(&run.content()) {
            Some(earlier) => found.push(Lost::new(run, Some(earlier.run_id.clone()))),
            None => {
                first.insert(run.content(), run);
            }
        }
    }
    found.reverse();
    found
}

impl Lost {
    fn new(run: &RunRow, repeats: Option<String>) -> Self {
        Self {
            run_id: run.run_id.clone(),
            status: run.status.as_str(),
            cost_usd: run.cost_usd,
            repeats,
            output_dir: run.output_dir.clone(),
        }
    }
}

fn table(lost: &[Lost], screen: Screen) -> String {
    let mut table =
        Table::new().left("run").left("status").right("cost").extra("did again", 1).left("folder");
    for run in lost {
        table.row([
            visible(&run.run_id),
            run.status.to_owned(),
            or_word(run.cost_usd, words::money, UNKNOWN),
            run.repeats.as_deref().map_or_else(String::new, visible),
            visible(&run.output_dir),
        ]);
    }
    let known: Vec<f64> = lost.iter().filter_map(|run| run.cost_usd).collect();
    let whole = if known.is_empty() { UNKNOWN.to_owned() } else { words::money(known.iter().sum()) };
    table.total(["whole".to_owned(), String::new(), whole]);
    table.render(screen)
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;

    #[test]
    fn every_dollar_is_in_each_sum_and_what_bought_nothing_is_named() {
        let mut other = row("e", Status::Done, Some(8.0));
        other.project = String::new();
        other.config_hash = "c2".into();
        let mut bare = row("m", Status::Done, Some(16.0));
        bare.data_hash = String::new();
        let runs = [
            bare,
            other,
            row("d", Status::Running, None),
            row("c", Status::Done, Some(4.0)),
            row("b", Status::Killed, Some(2.0)),
            row("a", Status::Done, Some(1.0)),
        ];
        let spend = Spend::of(&runs);
        assert_eq!(spend.whole.cost_usd, Some(31.0));
        for sums in [&spend.by_project, &spend.by_purpose, &spend.by_status] {
            let whole: f64 = sums.iter().filter_map(|s| s.cost_usd).sum();
            assert!((whole - 31.0).abs() < 1e-9);
            assert_eq!(sums.iter().map(|s| s.runs).sum::<usize>(), runs.len());
        }
        assert_eq!(
            spend.by_project.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["support", "(none)"]
        );
        assert_eq!(spend.failed.iter().map(|r| r.run_id.as_str()).collect::<Vec<_>>(), ["b"]);
        let repeats: Vec<_> =
            spend.repeats.iter().map(|r| (r.run_id.as_str(), r.repeats.as_deref())).collect();
        assert_eq!(repeats, [("c", Some("a"))]);
        for columns in [30, 80] {
            let text = spend.terminal(Screen::plain(columns));
            assert!(text.contains("$31.00") && text.contains("Done before"), "{text}");
        }
    }
}
