//! Two runs side by side: settings that differ, what each took, and how their losses fell.

use super::super::record::Report;
use super::super::table::{Table, section, wrap};
use super::super::words::{self, NOT_MEASURED, or_word};
use super::show::Shown;
use crate::config::{Difference, differing};
use crate::ledger::Ledger;
use crate::train::metrics::{self, StepRecord};
use crate::train::screen::{Screen, visible};
use serde::Serialize;
use std::path::Path;

/// Steps at which the terminal shows both losses.
const SHOWN_STEPS: usize = 12;

/// Two runs.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// As given.
    pub runs: [Shown; 2],
    /// Settings whose values differ.
    pub settings: Vec<Setting>,
    /// What the runs share beside their settings.
    pub same: Same,
    /// Costs, times and results.
    pub quantities: Vec<Quantity>,
    /// Loss by step.
    pub loss: [Vec<(u64, f64)>; 2],
}

/// A setting that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Full name.
    pub key: String,
    /// TOML, or "not set", in each run.
    pub values: [String; 2],
}

/// Which fingerprints agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Same {
    /// Settings that decide the result.
    pub config: bool,
    /// The data.
    pub data: bool,
    /// The base model.
    pub base: bool,
}

/// One quantity of both; `None` = not measured or not known.
#[derive(Debug, Clone, Serialize)]
pub struct Quantity {
    /// As in report.json.
    pub name: &'static str,
    /// In its unit.
    pub values: [Option<f64>; 2],
    /// The second against the first, %.
    pub change_pct: Option<f64>,
    #[serde(skip)]
    title: &'static str,
    #[serde(skip)]
    show: fn(f64) -> String,
}

impl Comparison {
    /// Compares two runs of the ledger.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn of(ledger: &Ledger, runs: [Shown; 2]) -> crate::error::Result<Self> {
        let [a, b] = &runs;
        let reports = [report(a), report(b)];
        let loss = [losses(ledger, a)?, losses(ledger, b)?];
        let setting = |d: Difference| Setting { key: d.key, values: [d.old, d.new] };
        Ok(Self {
            settings: differing(&a.settings, &b.settings).into_iter().map(setting).collect(),
            same: Same {
                config: a.fingerprints.config == b.fingerprints.config,
                data: a.fingerprints.data == b.fingerprints.data,
                base: a.fingerprints.base == b.fingerprints.base,
            },
            quantities: quantities([a, b], &reports),
            loss,
            runs,
        })
    }

    /// As tables.
    pub fn terminal(&self, screen: Screen) -> String {
        let names = self.runs.each_ref().map(|shown| visible(&shown.run.run_id));
        let mut out = vec![
            section(screen, "Settings that differ", &self.settings_table(&names, screen)),
            section(screen, "Cost and result", &self.quantities_table(&names, screen)),
        ];
        if self.loss.iter().any(|curve| !curve.is_empty()) {
            out.push(section(screen, "Loss by step", &self.losses_table(&names, screen)));
        }
        screen.fit(out.join("\n"))
    }

    fn settings_table(&self, names: &[String; 2], screen: Screen) -> String {
        let [a, b] = names;
        let mut table = Table::new().left("").left(a).left(b);
        for setting in &self.settings {
            let [a, b] = setting.values.each_ref().map(|value| short(&visible(value)));
            table.row([setting.key.clone(), a, b]);
        }
        for (what, same) in [("(data)", self.same.data), ("(base)", self.same.base)] {
            if !same {
                table.row([what.to_owned(), "one".to_owned(), "another".to_owned()]);
            }
        }
        if self.settings.is_empty() && self.same.data && self.same.base {
            return wrap("none: the same settings, data and base", "  ", screen.columns);
        }
        table.render(screen)
    }

    fn quantities_table(&self, names: &[String; 2], screen: Screen) -> String {
        let [a, b] = names;
        let mut table = Table::new().left("").right(a).right(b).right("change");
        for quantity in &self.quantities {
            let [a, b] = quantity.values.map(|value| or_word(value, quantity.show, NOT_MEASURED));
            let change = or_word(quantity.change_pct, words::percent_error, "–");
            table.row([quantity.title.to_owned(), a, b, change]);
        }
        table.render(screen)
    }

    fn losses_table(&self, names: &[String; 2], screen: Screen) -> String {
        let [a, b] = names;
        let mut table = Table::new().right("step").right(a).right(b);
        for step in self.shown_steps() {
            let [a, b] = self.loss.each_ref().map(|curve| {
                let at = curve.iter().find(|(found, _)| *found == step);
                or_word(at.map(|(_, loss)| *loss), words::loss, "–")
            });
            table.row([step.to_string(), a, b]);
        }
        table.render(screen)
    }

    /// Evenly spaced steps of the longer run, the first and the last among them.
    fn shown_steps(&self) -> Vec<u64> {
        let longer = self.loss.iter().max_by_key(|curve| curve.len());
        let steps: Vec<u64> = longer.into_iter().flatten().map(|(step, _)| *step).collect();
        let last = steps.len().saturating_sub(1);
        let rows = SHOWN_STEPS.min(steps.len());
        let mut shown: Vec<u64> = (0..rows)
            .filter_map(|nth| steps.get(nth * last / rows.saturating_sub(1).max(1)))
            .copied()
            .collect();
        shown.dedup();
        shown
    }
}

/// A long value's beginning.
fn short(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", text.split_at(at).0),
        None => text.to_owned(),
    }
}

fn report(shown: &Shown) -> Option<Report> {
    serde_json::from_str(shown.details.report_json.as_deref()?).ok()
}

fn quantities(runs: [&Shown; 2], reports: &[Option<Report>; 2]) -> Vec<Quantity> {
    let of_run =
        |name, title, of: &dyn Fn(&Shown) -> Option<f64>, show| quantity(name, title, runs.map(of), show);
    let of_report = |name, title, of: &dyn Fn(&Report) -> Option<f64>, show| {
        quantity(name, title, reports.each_ref().map(|report| of(report.as_ref()?)), show)
    };
    let peak = |r: &Report| r.measured.peak_memory_bytes.map(|b| b as f64);
    vec![
        of_run("cost_usd", "cost", &|s| s.run.cost_usd, words::money),
        of_run("wall_s", "time", &|s| s.run.wall_s, words::seconds),
        of_report("step_s", "step time", &|r| r.measured.step_s, words::seconds),
        of_report("tokens_per_s", "tokens/s", &|r| r.measured.tokens_per_s, words::rate),
        of_report("peak_memory_bytes", "peak memory", &peak, words::bytes),
        of_run("energy_j", "energy", &|s| s.run.energy_j, words::joules),
        of_run("loss", "last loss", &|s| s.run.loss, words::loss),
        of_report("eval_loss", "evaluation loss", &|r| r.training.eval_after, words::loss),
    ]
}

fn quantity(
    name: &'static str,
    title: &'static str,
    values: [Option<f64>; 2],
    show: fn(f64) -> String,
) -> Quantity {
    let [a, b] = values;
    let change_pct = a.zip(b).map(|(a, b)| (b - a) / a * 100.0).filter(|pct| pct.is_finite());
    Quantity { name, values, change_pct, title, show }
}

/// Loss by step from the run's own records, else from what the ledger heard of it.
fn losses(ledger: &Ledger, shown: &Shown) -> crate::error::Result<Vec<(u64, f64)>> {
    let records: Vec<StepRecord> =
        metrics::read(&Path::new(&shown.run.output_dir).join("metrics.jsonl")).unwrap_or_default();
    if !records.is_empty() {
        return Ok(records.iter().filter(|r| r.loss.is_finite()).map(|r| (r.step, r.loss)).collect());
    }
    let samples = ledger.samples(&shown.run.run_id, 0.0)?;
    let mut curve: Vec<(u64, f64)> = samples.iter().filter_map(|s| Some((s.step, s.loss?))).collect();
    // A step that took longer than a heartbeat was heard of more than once.
    curve.dedup_by_key(|(step, _)| *step);
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;
    use crate::ledger::{Details, Status};

    fn shown(id: &str, cost: f64, config: &str) -> Shown {
        let details = Details { config_toml: config.into(), ..Details::default() };
        Shown::new(row(id, Status::Done, Some(cost)), details)
    }

    #[test]
    fn two_runs_differ_in_settings_cost_and_losses() {
        let home = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(home.path()).unwrap();
        let runs = [
            shown("a", 1.0, "learning_rate = 2e-4\nseed = 1\n[[datasets]]\npath = \"x\"\n"),
            shown(
                "b",
                1.5,
                "learning_rate = 1e-4\nseed = 1\n[[datasets]]\npath = \"y\"\n[cost]\nusd_per_hour = 1.0\n",
            ),
        ];
        let mut found = Comparison::of(&ledger, runs).unwrap();
        let keys: Vec<&str> = found.settings.iter().map(|s| s.key.as_str()).collect();
        assert_eq!(keys, ["cost.usd_per_hour", "datasets.0.path", "learning_rate"]);
        assert_eq!(found.settings[2].values, ["0.0002", "0.0001"]);
        assert_eq!(found.quantities[0].change_pct, Some(50.0));
        assert_eq!(found.quantities[5].change_pct, None);
        found.loss = [(1..=100).map(|n| (n, 1.0 / n as f64)).collect(), vec![(1, 3.0)]];
        let steps = found.shown_steps();
        assert_eq!((steps.len(), steps[0], steps[11]), (12, 1, 100));
        for columns in [40, 100] {
            let text = found.terminal(Screen::plain(columns));
            assert!(text.contains("+50.0 %") && text.contains("learning_rate"), "{text}");
        }
        found.loss = [vec![], vec![(7, 1.0)]];
        assert_eq!(found.shown_steps(), [7]);
    }
}
