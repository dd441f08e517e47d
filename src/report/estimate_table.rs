//! What is printed before the first step: what will be trained on what, and what it will take.

use super::build::build;
use super::record::{DataSummary, Interval, Parameters, Price};
use super::table::{Table, hanging, section, wrap};
use super::terminal::warnings;
use super::words::{self, UNKNOWN, or_word};
use super::{Inputs, Status};
use crate::estimate::Quantities;
use crate::estimate::levers::Lever;
use crate::train::screen::{Screen, visible};
use crate::units::group_thousands;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Everything the table shows.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// By name.
    pub base: String,
    /// `lora`, `qlora` or `full`.
    pub method: String,
    /// Where it will run.
    pub machine: String,
    /// Counts of the model.
    pub parameters: Parameters,
    /// What will be learned from.
    pub data: DataSummary,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Epochs, with the fraction.
    pub epochs: Option<f64>,
    /// Bytes by part.
    pub memory_parts: Vec<(String, u64)>,
    /// Bytes that the run may use.
    pub memory_available: Option<u64>,
    /// Peak of a merge afterwards.
    pub merge_bytes: Option<u64>,
    /// The six.
    pub predicted: Quantities,
    /// By the quantity's key.
    pub interval: BTreeMap<String, Interval>,
    /// Counted from shapes, mean of a step.
    pub flops_per_step: Option<f64>,
    /// What an hour costs.
    pub price: Price,
    /// The same run by the three methods.
    pub methods: Vec<Lever>,
    /// The nearest settings that fit, or that cost less where a cap is crossed.
    pub levers: Vec<Lever>,
    /// What the reader must know.
    pub warnings: Vec<String>,
}

/// The estimate in words and tables.
pub fn estimate_table(plan: &Plan, screen: Screen) -> String {
    let sections = [
        setting(plan, screen),
        memory(plan, screen),
        expected(plan, screen),
        settings("Methods side by side", "method", &plan.methods, screen),
        settings("What fits or costs less", "setting", &plan.levers, screen),
        warnings(&plan.warnings, screen),
    ];
    let shown: Vec<String> = sections.into_iter().filter(|s| !s.is_empty()).collect();
    screen.fit(shown.join("\n"))
}

fn setting(plan: &Plan, screen: Screen) -> String {
    let count = |v: Option<u64>| or_word(v, group_thousands, UNKNOWN);
    let mut lines = vec![
        ("model", format!("{}, {}", plan.base, words::method(&plan.method))),
        ("machine", plan.machine.clone()),
        ("parameters", parameters(&plan.parameters)),
    ];
    let data = &plan.data;
    let mut rows = format!("{} to train on", count(data.train_samples));
    for (number, what) in [
        (data.eval_samples, "to evaluate on"),
        (data.dropped_rows, "dropped"),
        (data.truncated_rows, "truncated"),
    ] {
        if let Some(number) = number.filter(|n| *n > 0) {
            let _ = write!(rows, ", {} {what}", group_thousands(number));
        }
    }
    lines.push(("rows", rows));
    let mut tokens = format!("{} an epoch", count(data.tokens));
    if let Some(share) = data.counted_share() {
        let _ = write!(tokens, ", {} counted in the loss", words::share(share));
    }
    if let Some(longest) = data.longest_tokens {
        let _ = write!(tokens, ", longest row {}", group_thousands(longest));
    }
    lines.push(("tokens", tokens));
    let mut steps = count(plan.steps);
    if let Some(epochs) = plan.epochs.filter(|e| e.is_finite()) {
        let digits = if epochs.fract() == 0.0 { 0 } else { 2 };
        let noun = if (epochs - 1.0).abs() < 1e-9 { "epoch" } else { "epochs" };
        let _ = write!(steps, " in {epochs:.digits$} {noun}");
    }
    if let Some(flops) = plan.flops_per_step.filter(|f| f.is_finite()) {
        let _ = write!(steps, ", {} each", crate::units::Flops(flops));
    }
    lines.push(("steps", steps));
    let body: String =
        lines.iter().map(|(title, text)| hanging(title, 12, &visible(text), screen.columns)).collect();
    section(screen, "The run", &body)
}

fn parameters(parameters: &Parameters) -> String {
    let count = |v: Option<u64>| or_word(v, group_thousands, UNKNOWN);
    let share =
        parameters.trainable_share().map_or_else(String::new, |share| format!(" ({})", words::share(share)));
    format!("{}, of which {} are trained{share}", count(parameters.total), count(parameters.trainable))
}

fn memory(plan: &Plan, screen: Screen) -> String {
    if plan.memory_parts.is_empty() && plan.predicted.peak_memory_bytes.is_none() {
        return String::new();
    }
    let shown = |b: u64| words::bytes(b as f64);
    let peak = plan.predicted.peak_memory_bytes;
    let mut table = Table::new().left("part").right("bytes").extra("share", 1);
    for (name, bytes) in &plan.memory_parts {
        table.row([
            visible(&words::name(name)),
            shown(*bytes),
            peak.filter(|p| *p > 0).map_or_else(String::new, |p| words::share(*bytes as f64 / p as f64)),
        ]);
    }
    table.total(["peak".to_owned(), or_word(peak, shown, UNKNOWN)]);
    let mut body = table.render(screen);
    let fits = match (peak, plan.memory_available) {
        (Some(peak), Some(there)) if peak > there => {
            format!("does not fit: {} are available", shown(there))
        }
        (Some(_), Some(there)) => format!("fits: {} are available", shown(there)),
        _ => format!("available: {UNKNOWN}"),
    };
    body += &wrap(&fits, "  ", screen.columns);
    if let Some(bytes) = plan.merge_bytes {
        body += &wrap(&format!("`fttrain merge` afterwards: {}", shown(bytes)), "  ", screen.columns);
    }
    section(screen, "Memory", &body)
}

fn expected(plan: &Plan, screen: Screen) -> String {
    let report = build(Inputs {
        status: Status::Done,
        predicted: plan.predicted,
        interval: plan.interval.clone(),
        price: plan.price.clone(),
        ..Inputs::default()
    });
    let mut table = Table::new().left("").right("predicted").extra("interval", 1);
    for quantity in &words::quantities(&report) {
        table.row([quantity.title.to_owned(), quantity.predicted_text(), quantity.interval_text()]);
    }
    let mut body = table.render(screen);
    let price = format!("price: {}", visible(&words::price(&plan.price)));
    body += &wrap(&price, "  ", screen.columns);
    section(screen, "Time, energy and money", &body)
}

/// Settings with the peak, the time and the money that each leads to.
fn settings(heading: &str, title: &'static str, levers: &[Lever], screen: Screen) -> String {
    if levers.is_empty() {
        return String::new();
    }
    let mut table = Table::new()
        .left(title)
        .right("peak memory")
        .right("one step")
        .right("whole run")
        .right("cost")
        .extra("trained", 1);
    for lever in levers {
        let fits = if lever.fits { "" } else { " (does not fit)" };
        table.row([
            visible(&lever.setting),
            format!("{}{fits}", words::bytes(lever.peak_memory_bytes as f64)),
            words::seconds(lever.step_s),
            words::seconds(lever.wall_s),
            or_word(lever.cost_usd, words::money, UNKNOWN),
            group_thousands(lever.trainable),
        ]);
    }
    section(screen, heading, &table.render(screen))
}
