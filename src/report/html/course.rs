//! The course of the run over its steps: loss, learning rate, gradient norm, throughput, memory, as recorded.

use super::super::record::Report;
use super::super::terminal::{evaluated, retained};
use super::super::words;
use super::chart::{Across, Chart, Series};
use super::markup::esc;
use crate::train::metrics::{EvalRecord, StepRecord};
use std::fmt::Write;

pub(super) fn section(report: &Report, steps: &[StepRecord], evals: &[EvalRecord]) -> String {
    let mut out = "<section>\n<h2>Training</h2>\n".to_owned();
    if steps.is_empty() && evals.is_empty() {
        return out + "<p class=\"none\">No step was taken.</p>\n</section>\n";
    }
    let _ = writeln!(out, "<p>{}</p>\n<div class=\"charts\">", esc(&summary(report)));
    let last_step = steps.iter().map(|s| s.step).chain(evals.iter().map(|e| e.step)).max().unwrap_or(0);
    for chart in charts(report, steps, evals, last_step) {
        out += &chart.svg();
    }
    out += "</div>\n";
    let missing = report.training.non_finite_steps;
    if missing > 0 {
        let _ = writeln!(out, "<p class=\"note\">{missing} steps had no finite loss and are not drawn.</p>");
    }
    out + "</section>\n"
}

fn summary(report: &Report) -> String {
    let t = &report.training;
    let planned = t.planned_steps.map_or_else(String::new, |planned| format!(" of {planned}"));
    let noun = if t.steps == 1 { "step" } else { "steps" };
    let mut text = format!(
        "{}{planned} {noun} over {} tokens, {} of them counted in the loss; {}.",
        t.steps,
        words::thousands(t.tokens as f64),
        words::thousands(t.loss_tokens as f64),
        evaluated(report)
    );
    if let Some(retained) = retained(report) {
        let _ = write!(text, " {}.", words::capital(&retained));
    }
    if let Some(work) = words::work(&report.work) {
        let _ = write!(text, " {}.", words::capital(&work));
    }
    text
}

fn charts(report: &Report, steps: &[StepRecord], evals: &[EvalRecord], last_step: u64) -> Vec<Chart> {
    let line = |of: &dyn Fn(&StepRecord) -> f64| Series {
        label: "training",
        class: "measured",
        points: steps.iter().map(|s| (s.step as f64, of(s))).collect(),
        dots: false,
    };
    let chart = |title: String, series: Vec<Series>, from_zero: bool| Chart {
        title,
        series,
        stack: Vec::new(),
        from_zero,
        level: None,
        across: Across::steps(last_step),
        wide: false,
    };
    let evaluation = Series {
        label: "evaluation",
        class: "second",
        points: evals.iter().map(|e| (e.step as f64, e.loss)).collect(),
        dots: true,
    };
    let mut loss = chart("Loss".into(), vec![line(&|s| s.loss), evaluation], false);
    loss.wide = true;
    let top_rate = steps.iter().map(|s| s.learning_rate).fold(0.0, f64::max);
    let power = if top_rate > 0.0 { top_rate.log10().floor() } else { 0.0 };
    let unit = 10_f64.powf(power);
    let mut charts = vec![
        loss,
        chart(format!("Learning rate, in 1e{power}"), vec![line(&|s| s.learning_rate / unit)], true),
        chart("Gradient norm".into(), vec![line(&|s| s.grad_norm)], true),
        chart("Tokens a second".into(), vec![line(&|s| s.tokens as f64 / s.step_s)], true),
    ];
    // Where the meter's own looks are kept, they are drawn over time.
    if report.timeline.len() < 2 {
        charts.push(memory(report, steps, last_step));
    }
    charts
}

/// Device memory where it was recorded, else that of the process, with the predicted peak.
fn memory(report: &Report, steps: &[StepRecord], last_step: u64) -> Chart {
    let on_device = steps.iter().any(|s| s.device_bytes.is_some());
    let bytes = |s: &StepRecord| {
        if on_device { s.device_bytes } else { s.rss_bytes }
    };
    let peak = report.predicted.peak_memory_bytes.map(|b| b as f64);
    let largest = steps.iter().filter_map(bytes).map(|b| b as f64).chain(peak).fold(0.0, f64::max);
    let (unit, scale) = words::memory_unit(largest);
    let of = if on_device { "of the device" } else { "of the process" };
    Chart {
        title: format!("Memory {of}, {unit}"),
        series: vec![Series {
            label: "measured",
            class: "measured",
            points: steps.iter().filter_map(|s| Some((s.step as f64, bytes(s)? as f64 / scale))).collect(),
            dots: false,
        }],
        stack: Vec::new(),
        from_zero: true,
        level: peak.map(|peak| ("predicted peak", peak / scale)),
        across: Across::steps(last_step),
        wide: false,
    }
}
