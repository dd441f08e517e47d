//! What the estimates were worth: errors of the ledger's runs by quantity, machine and method, and how they developed as
//! runs taught. Middles in place of means: one throttled run does not decide.

use super::super::table::{Table, section, wrap};
use super::super::words;
use crate::estimate::history::median;
use crate::estimate::{Prediction, Quantities};
use crate::ledger::Outcome;
use crate::report::build::error_pct;
use crate::train::history::{is_disturbed, is_where};
use crate::train::screen::{Screen, visible};
use serde::Serialize;
use std::collections::BTreeMap;

/// Errors of many runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Accuracy {
    /// Every run that was judged, the oldest first.
    pub runs: Vec<Judged>,
    /// By machine, method and quantity.
    pub groups: Vec<Group>,
    /// By quantity: how the error developed.
    pub course: Vec<Course>,
    /// Runs that others on the device, or heat, disturbed: left out.
    pub disturbed: usize,
}

/// One run's errors, (predicted − measured) / measured in percent, by the quantity's key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// Of the ledger.
    pub run_id: String,
    /// RFC 3339.
    pub started_at: String,
    /// Where it ran.
    pub machine: String,
    /// `lora`, `qlora` or `full`.
    pub method: String,
    /// As it was predicted.
    pub error_pct: BTreeMap<&'static str, f64>,
    /// As it would have been without what earlier runs taught.
    pub unlearned_pct: BTreeMap<&'static str, f64>,
    /// Whether the measurement lay inside the interval.
    pub inside: BTreeMap<&'static str, bool>,
}

/// One quantity of the runs of one method on one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// Where.
    pub machine: String,
    /// How.
    pub method: String,
    /// The quantity's key.
    pub quantity: &'static str,
    /// Runs.
    pub runs: usize,
    /// Middle error with its sign, %.
    pub bias_pct: f64,
    /// Middle of the errors without signs, %.
    pub typical_pct: f64,
    /// The same without what earlier runs taught.
    pub unlearned_pct: f64,
    /// The lowest error, %.
    pub worst_under_pct: f64,
    /// The highest error, %.
    pub worst_over_pct: f64,
    /// Share of the runs inside the interval; `None` = none was stated.
    pub inside: Option<f64>,
}

/// One quantity over time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Course {
    /// The quantity's key.
    pub quantity: &'static str,
    /// Runs of each stretch, the oldest first.
    pub runs: Vec<usize>,
    /// Middle error without sign in each stretch, %.
    pub typical_pct: Vec<f64>,
    /// The same without what earlier runs taught.
    pub unlearned_pct: Vec<f64>,
}

type Read = fn(&Quantities) -> Option<f64>;

const QUANTITIES: [(&str, Read); 5] = [
    ("step_s", |q| q.step_s),
    ("wall_s", |q| q.wall_s),
    ("peak_memory_bytes", |q| q.peak_memory_bytes.map(|b| b as f64)),
    ("energy_j", |q| q.energy_j),
    ("cost_usd", |q| q.cost_usd),
];
/// Stretches that the runs are cut into, of as many runs each.
const STRETCHES: usize = 6;
/// Runs of a stretch at least: the middle of fewer is no middle.
const LEAST_RUNS: usize = 3;

impl Judged {
    fn of(outcome: &Outcome) -> Option<(Self, bool)> {
        let prediction: Prediction = serde_json::from_str(&outcome.prediction_json).ok()?;
        let report: serde_json::Value = serde_json::from_str(&outcome.report_json).ok()?;
        let measured: Quantities = serde_json::from_value(report["measured"].clone()).ok()?;
        if !is_where(&prediction, &report) {
            return None;
        }
        let errors = |predicted: &Quantities| {
            let one = |(key, read): &(&'static str, Read)| {
                Some((*key, error_pct(read(predicted), read(&measured))?))
            };
            QUANTITIES.iter().filter_map(one).collect()
        };
        let inside = |(key, read): &(&'static str, Read)| {
            let (range, measured) = (prediction.interval.get(*key)?, read(&measured)?);
            Some((*key, range.low <= measured && measured <= range.high))
        };
        let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
        let judged = Self {
            run_id: outcome.run_id.clone(),
            started_at: text("started_at"),
            machine: prediction.machine.clone(),
            method: text("method"),
            error_pct: errors(&prediction.predicted),
            unlearned_pct: errors(&prediction.uncorrected),
            inside: QUANTITIES.iter().filter_map(inside).collect(),
        };
        Some((judged, is_disturbed(&report)))
    }
}

impl Accuracy {
    /// Of finished runs, the newest first, as the ledger gives them.
    pub fn of(outcomes: &[Outcome]) -> Self {
        let (disturbed, own): (Vec<_>, Vec<_>) =
            outcomes.iter().rev().filter_map(Judged::of).partition(|(_, disturbed)| *disturbed);
        let runs: Vec<Judged> = own.into_iter().map(|(judged, _)| judged).collect();
        let mut places: Vec<(&str, &str)> =
            runs.iter().map(|r| (r.machine.as_str(), r.method.as_str())).collect();
        places.sort_unstable();
        places.dedup();
        let group = |(machine, method): &(&str, &str)| {
            let own: Vec<&Judged> = runs
                .iter()
                .filter(|r| (r.machine.as_str(), r.method.as_str()) == (*machine, *method))
                .collect();
            QUANTITIES.iter().filter_map(|(key, _)| Group::of(&own, key)).collect::<Vec<_>>()
        };
        Self {
            groups: places.iter().flat_map(group).collect(),
            course: QUANTITIES.iter().filter_map(|(key, _)| Course::of(&runs, key)).collect(),
            disturbed: disturbed.len(),
            runs,
        }
    }

    /// The tables.
    pub fn terminal(&self, screen: Screen) -> String {
        if self.runs.is_empty() {
            return "no finished runs with a prediction\n".to_owned();
        }
        let mut body = self.groups(screen);
        if self.disturbed > 0 {
            let text = format!("left out, for they were disturbed from outside: {}", self.disturbed);
            body += &wrap(&text, "  ", screen.columns);
        }
        let mut out = section(screen, "What the estimates were worth", &body);
        if self.course.iter().any(|course| course.runs.len() > 1) {
            out += "\n";
            out += &section(
                screen,
                "How the typical error developed, the oldest runs first",
                &self.over_time(screen),
            );
        }
        screen.fit(out)
    }

    fn groups(&self, screen: Screen) -> String {
        let mut table = Table::new()
            .left("quantity")
            .extra("machine", 4)
            .left("method")
            .right("runs")
            .right("typical")
            .right("bias")
            .extra("worst under … over", 2)
            .extra("inside the interval", 1)
            .extra("without learning", 3);
        for group in &self.groups {
            let [under, over] = [group.worst_under_pct, group.worst_over_pct].map(words::percent_error);
            table.row([
                title(group.quantity),
                visible(&group.machine),
                visible(&group.method),
                group.runs.to_string(),
                percent(group.typical_pct),
                words::percent_error(group.bias_pct),
                format!("{under} … {over}"),
                group.inside.map_or_else(|| "–".to_owned(), words::share),
                percent(group.unlearned_pct),
            ]);
        }
        table.render(screen)
    }

    fn over_time(&self, screen: Screen) -> String {
        let mut table =
            Table::new().left("quantity").right("runs").right("typical").extra("without learning", 1);
        let arrows = |all: &[f64]| all.iter().map(|pct| percent(*pct)).collect::<Vec<_>>().join(" → ");
        for course in &self.course {
            table.row([
                title(course.quantity),
                course.runs.iter().sum::<usize>().to_string(),
                arrows(&course.typical_pct),
                arrows(&course.unlearned_pct),
            ]);
        }
        table.render(screen)
    }
}

fn title(key: &str) -> String {
    words::title(key).unwrap_or(key).to_owned()
}

fn percent(pct: f64) -> String {
    format!("{pct:.1} %")
}

/// The middle of what a quantity's errors are without their signs; 0 of nothing.
fn typical<'a>(runs: impl Iterator<Item = &'a BTreeMap<&'static str, f64>>, key: &str) -> f64 {
    median(&mut runs.filter_map(|errors| Some(errors.get(key)?.abs())).collect::<Vec<_>>())
}

impl Group {
    fn of(runs: &[&Judged], key: &'static str) -> Option<Self> {
        let mut errors: Vec<f64> = runs.iter().filter_map(|r| r.error_pct.get(key).copied()).collect();
        let first = runs.first()?;
        if errors.is_empty() {
            return None;
        }
        let inside: Vec<bool> = runs.iter().filter_map(|r| r.inside.get(key).copied()).collect();
        let held = inside.iter().filter(|inside| **inside).count();
        Some(Self {
            machine: first.machine.clone(),
            method: first.method.clone(),
            quantity: key,
            runs: errors.len(),
            worst_under_pct: errors.iter().copied().fold(0.0, f64::min),
            worst_over_pct: errors.iter().copied().fold(0.0, f64::max),
            bias_pct: median(&mut errors),
            typical_pct: typical(runs.iter().map(|r| &r.error_pct), key),
            unlearned_pct: typical(runs.iter().map(|r| &r.unlearned_pct), key),
            inside: (!inside.is_empty()).then(|| held as f64 / inside.len() as f64),
        })
    }
}

impl Course {
    fn of(runs: &[Judged], key: &'static str) -> Option<Self> {
        let own: Vec<&Judged> = runs.iter().filter(|r| r.error_pct.contains_key(key)).collect();
        if own.is_empty() {
            return None;
        }
        let each = own.len().div_ceil(STRETCHES).max(LEAST_RUNS);
        let stretches = || own.chunks(each);
        Some(Self {
            quantity: key,
            runs: stretches().map(<[_]>::len).collect(),
            typical_pct: stretches().map(|s| typical(s.iter().map(|r| &r.error_pct), key)).collect(),
            unlearned_pct: stretches().map(|s| typical(s.iter().map(|r| &r.unlearned_pct), key)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{Case, config, smollm2};

    /// The nth run, the newest first: predicted too much by `pct` percent of the measured step time.
    fn outcome(nth: usize, pct: f64, disturbed: bool) -> Outcome {
        let prediction = Case::new(smollm2(), config()).predict();
        let step_s = prediction.predicted.step_s.unwrap() / (1.0 + pct / 100.0);
        let report = serde_json::json!({
            "started_at": "2026-01-02T03:04:05Z", "method": "lora",
            "measured": Quantities { step_s: Some(step_s), ..Quantities::default() },
            "meter": { "devices": if disturbed { vec![crate::meter::DeviceTotal {
                others: 1, ..crate::meter::DeviceTotal::default() }] } else { Vec::new() } },
        });
        Outcome {
            run_id: format!("run{nth}"),
            prediction_json: serde_json::to_string(&prediction).unwrap(),
            report_json: report.to_string(),
        }
    }

    #[test]
    fn one_bad_run_moves_the_worst_and_not_the_middle() {
        let mut outcomes: Vec<Outcome> = (0..9).map(|n| outcome(n, 4.0, false)).collect();
        outcomes.insert(4, outcome(9, -80.0, false));
        let found = Accuracy::of(&outcomes);
        let group = &found.groups[0];
        assert_eq!((group.runs, group.quantity, group.method.as_str()), (10, "step_s", "lora"));
        assert!((group.typical_pct - 4.0).abs() < 1e-6 && (group.bias_pct - 4.0).abs() < 1e-6);
        assert!((group.worst_under_pct + 80.0).abs() < 1e-6);
        assert!((group.inside.unwrap() - 0.9).abs() < 1e-9, "15 % hold 4 % and not 80 %");
    }

    #[test]
    fn the_course_goes_from_the_oldest_to_the_newest() {
        // The ledger gives the newest first.
        let outcomes: Vec<Outcome> = (0..9).map(|n| outcome(n, 1.0 + n as f64, false)).collect();
        let found = Accuracy::of(&outcomes);
        let course = &found.course[0];
        assert_eq!(course.runs, [3, 3, 3]);
        assert!((course.typical_pct[0] - 8.0).abs() < 1e-6 && (course.typical_pct[2] - 2.0).abs() < 1e-6);
        let text = found.terminal(Screen::plain(120));
        assert!(text.contains("8.0 % → 5.0 % → 2.0 %"), "{text}");
        assert!(!text.contains("left out"), "{text}");
    }

    #[test]
    fn runs_on_a_gpu_do_not_judge_predictions_for_the_cpu() {
        let on = |device: &str, outcome: Outcome| {
            let mut report: serde_json::Value = serde_json::from_str(&outcome.report_json).unwrap();
            report["provenance"]["device"] = device.into();
            Outcome { report_json: report.to_string(), ..outcome }
        };
        let found = Accuracy::of(&[
            on("cpu", outcome(0, 3.0, false)),
            on(crate::ops::device::CUDA, outcome(1, 900.0, false)),
        ]);
        assert_eq!(found.runs.iter().map(|run| run.run_id.as_str()).collect::<Vec<_>>(), ["run0"]);
    }

    #[test]
    fn disturbed_runs_and_runs_without_figures_are_left_out() {
        let broken = Outcome { report_json: "{}".into(), ..outcome(0, 1.0, false) };
        let found = Accuracy::of(&[outcome(1, 3.0, false), outcome(2, 90.0, true), broken]);
        assert_eq!((found.runs.len(), found.disturbed), (1, 1));
        assert!(found.terminal(Screen::plain(80)).contains("from outside: 1"));
        assert!(Accuracy::of(&[]).terminal(Screen::plain(80)).contains("no finished runs"));
    }
}
