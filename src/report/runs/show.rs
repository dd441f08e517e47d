//! One run in full, as the ledger knows it: also one that was killed and left no report.

use super::super::table::{Table, section};
use super::super::words::{self, NOT_MEASURED, UNKNOWN, or_word};
use super::minute;
use crate::ledger::{Details, RunRow};
use crate::train::screen::{Screen, visible};
use crate::units::group_thousands;
use serde::Serialize;

/// A run with everything beside its row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The pinned fields.
    #[serde(flatten)]
    pub run: RunRow,
    /// Optimizer steps done.
    pub step: u64,
    /// `experiment`, `final`, …
    pub purpose: String,
    /// What it belongs to; empty = nothing that was named.
    pub project: String,
    /// `full`, `lora` or `qlora`.
    pub method: String,
    /// The base model.
    pub base: String,
    /// Joules; `None` = not measured.
    pub energy_j: Option<f64>,
    /// SHA-256 of settings, data and base.
    pub fingerprints: Fingerprints,
    /// Phases, costs and checkpoints.
    #[serde(flatten)]
    pub details: Details,
    /// Every setting of its config, as TOML.
    pub settings: std::collections::BTreeMap<String, String>,
}

/// What makes two runs the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fingerprints {
    /// Of the settings that decide the result.
    pub config: String,
    /// Of the data.
    pub data: String,
    /// Of the base model.
    pub base: String,
}

impl Shown {
    /// The row and what stands beside it.
    pub fn new(run: RunRow, details: Details) -> Self {
        Self {
            step: run.step,
            purpose: run.purpose.clone(),
            project: run.project.clone(),
            method: run.method.clone(),
            base: run.base.clone(),
            energy_j: run.energy_j,
            fingerprints: Fingerprints {
                config: run.config_hash.clone(),
                data: run.data_hash.clone(),
                base: run.base_hash.clone(),
            },
            settings: crate::config::settings_of(&details.config_toml),
            details,
            run,
        }
    }

    /// As tables.
    pub fn terminal(&self, screen: Screen) -> String {
        let mut out =
            vec![section(screen, &format!("Run {}", visible(&self.run.run_id)), &self.facts(screen))];
        if !self.details.phases.is_empty() {
            out.push(section(screen, "Phases", &self.phases(screen)));
        }
        if !self.details.costs.is_empty() {
            out.push(section(screen, "Costs", &self.costs(screen)));
        }
        if !self.details.checkpoints.is_empty() {
            out.push(section(screen, "Checkpoints", &self.checkpoints(screen)));
        }
        screen.fit(out.join("\n"))
    }

    fn facts(&self, screen: Screen) -> String {
        let run = &self.run;
        let named = |text: &str| if text.is_empty() { "–".to_owned() } else { visible(text) };
        let rows = [
            ("status", run.status.as_str().to_owned()),
            ("started", minute(&run.started_at)),
            ("ended", self.details.finished_at.as_deref().map_or_else(|| "–".to_owned(), minute)),
            ("steps", group_thousands(run.step)),
            ("time", or_word(run.wall_s, words::seconds, NOT_MEASURED)),
            ("cost", or_word(run.cost_usd, words::money, UNKNOWN)),
            ("energy", or_word(run.energy_j, words::joules, NOT_MEASURED)),
            ("loss", or_word(run.loss, words::loss, "–")),
            ("base", named(&run.base)),
            ("method", named(words::method(&run.method))),
            ("purpose", named(&run.purpose)),
            ("project", named(&run.project)),
            ("folder", named(&run.output_dir)),
            ("config", named(&run.config_hash)),
            ("data", named(&run.data_hash)),
            ("weights", named(&run.base_hash)),
        ];
        let mut table = Table::new().left("").left("");
        for (name, value) in rows {
            table.row([name.to_owned(), value]);
        }
        table.render(screen)
    }

    fn phases(&self, screen: Screen) -> String {
        let mut table = Table::new()
            .left("phase")
            .right("time")
            .extra("CPU time", 2)
            .extra("peak memory", 1)
            .right("cost");
        for phase in &self.details.phases {
            table.row([
                visible(&words::name(&phase.name)),
                words::seconds(phase.wall_s),
                or_word(phase.cpu_s, words::seconds, NOT_MEASURED),
                or_word(phase.peak_rss_bytes, |b| words::bytes(b as f64), NOT_MEASURED),
                or_word(phase.cost_usd, words::money, UNKNOWN),
            ]);
        }
        table.render(screen)
    }

    fn costs(&self, screen: Screen) -> String {
        let mut table = Table::new().left("category").left("kind").left("for").right("amount");
        for line in &self.details.costs {
            table.row([
                visible(&line.category),
                line.amount.kind().as_str().to_owned(),
                visible(&line.period),
                or_word(line.amount.usd(), words::money, UNKNOWN),
            ]);
        }
        table.render(screen)
    }

    fn checkpoints(&self, screen: Screen) -> String {
        let mut table = Table::new().right("step").extra("committed", 1).left("folder");
        for checkpoint in &self.details.checkpoints {
            table.row([group_thousands(checkpoint.step), minute(&checkpoint.at), visible(&checkpoint.path)]);
        }
        table.render(screen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;
    use crate::estimate::amount::Kind;
    use crate::estimate::{Amount, CostLine};
    use crate::ledger::{Checkpoint, Status};

    #[test]
    fn a_killed_run_is_shown_with_all_that_the_ledger_heard() {
        let details = Details {
            costs: vec![CostLine::of_run("compute", Amount::new(Kind::Measured, Some(0.25)))],
            checkpoints: vec![Checkpoint {
                path: "runs/a/checkpoints/step-10".into(),
                step: 10,
                at: "t".into(),
            }],
            config_toml: "seed = 7\n[cost]\nusd_per_hour = 2.5\n".into(),
            ..Details::default()
        };
        let shown = Shown::new(row("a", Status::Killed, Some(0.25)), details);
        for columns in [30, 80] {
            let text = shown.terminal(Screen::plain(columns));
            assert!(
                text.contains("killed") && text.contains("$0.25") && text.contains("Checkpoints"),
                "{text}"
            );
            assert!(text.lines().all(|line| console::measure_text_width(line) <= columns), "{text}");
        }
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(
            (json["status"].as_str(), json["settings"]["cost.usd_per_hour"].as_str()),
            (Some("killed"), Some("2.5"))
        );
        assert_eq!(json["energy_j"], serde_json::Value::Null);
    }
}
