//! Predicted against measured: the table that the program exists for, with each measurement drawn inside the range
//! that was predicted.

use super::super::causes;
use super::super::record::Report;
use super::super::words::{self, Quantity};
use super::markup::esc;
use std::fmt::Write;

pub(super) fn section(report: &Report) -> String {
    let quantities = words::quantities(report);
    let ranged = quantities.iter().any(|q| q.interval.is_some());
    let range = if ranged { "<th scope=\"col\" class=\"range\">Range</th>" } else { "" };
    let mut out = format!(
        "<section>\n<h2>Predicted and measured</h2>\n<table class=\"compare\">\n\
         <thead><tr><th scope=\"col\">Quantity</th><th scope=\"col\">Predicted</th>{range}\
         <th scope=\"col\">Measured</th><th scope=\"col\">Error</th></tr></thead>\n<tbody>\n"
    );
    for quantity in quantities.iter().filter(|q| report.command.is_empty() || q.is_known()) {
        out += &row(quantity, ranged);
    }
    out += "</tbody>\n</table>\n";
    if ranged {
        out += "<p class=\"note\"><i class=\"key band\"></i>predicted range <i class=\"key tick\"></i>predicted \
                <i class=\"key dot\"></i>measured</p>\n";
    }
    let _ = writeln!(out, "<p class=\"note\">Price: {}</p>", esc(&words::price(&report.price)));
    out + &causes(report) + "</section>\n"
}

/// Quantity by quantity, where its error came from.
fn causes(report: &Report) -> String {
    let lines = causes::lines(&report.causes, &words::title);
    if lines.is_empty() {
        return String::new();
    }
    let mut out = "<h3>Where the errors came from, in points</h3>\n<dl class=\"facts\">\n".to_owned();
    for (title, text) in lines {
        let title = esc(&words::capital(title));
        let _ = writeln!(out, "<div class=\"long\"><dt>{title}</dt><dd>{}</dd></div>", esc(&text));
    }
    out + "</dl>\n"
}

fn row(q: &Quantity, ranged: bool) -> String {
    let title = words::capital(q.title);
    let mut measured = esc(&q.measured_text());
    let missing = if q.measured.is_none() { " class=\"none\"" } else { "" };
    if let Some(modelled) = q.modelled {
        let _ = write!(measured, "<small>modelled: {}</small>", esc(&(q.show)(modelled)));
    }
    let range = match q.interval {
        Some(_) => format!("{}<small>{}</small>", strip(q), esc(&q.interval_text())),
        None => String::new(),
    };
    let range = if ranged { format!("<td class=\"range\">{range}</td>") } else { range };
    format!(
        "<tr><th scope=\"row\">{title}</th><td data-title=\"Predicted\">{}</td>{range}\
         <td data-title=\"Measured\"{missing}>{measured}</td>\
         <td data-title=\"Error\" class=\"error\">{}</td></tr>\n",
        esc(&q.predicted_text()),
        esc(&q.error_text()),
    )
}

/// The range as a band, the prediction as a tick, the measurement as a dot, on a scale that holds all three.
fn strip(q: &Quantity) -> String {
    let Some(range) = q.interval else {
        return String::new();
    };
    let values = || [range.low, range.high].into_iter().chain(q.predicted).chain(q.measured);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let spread = high - low;
    let at = |v: f64| {
        if spread > 0.0 { 60.0 + 880.0 * (v - low) / spread } else { 500.0 }
    };
    let inside = match q.measured {
        Some(m) if m < range.low => "measured below the range",
        Some(m) if m > range.high => "measured above the range",
        Some(_) => "measured inside the range",
        None => "not measured",
    };
    let (left, right) = (at(range.low), at(range.high));
    let mut out = format!(
        "<svg class=\"strip\" viewBox=\"0 0 1000 16\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{inside}\">\
         <path class=\"grid\" d=\"M0 8H1000\"/><rect class=\"band\" x=\"{left:.1}\" y=\"4\" width=\"{:.1}\" height=\"8\"/>",
        (right - left).max(4.0)
    );
    if let Some(predicted) = q.predicted {
        let _ = write!(out, "<path class=\"tick\" d=\"M{:.1} 1V15\"/>", at(predicted));
    }
    if let Some(measured) = q.measured {
        let _ = write!(out, "<path class=\"measured dots\" d=\"M{:.1} 8h0\"/>", at(measured));
    }
    out + "</svg>"
}
