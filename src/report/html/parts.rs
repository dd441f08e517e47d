//! Wholes and their parts as bars: the bill by phase, the memory by part.

use super::super::record::Report;
use super::super::terminal::{phase_share, phase_sum, phase_time};
use super::super::words::{self, NOT_MEASURED, UNKNOWN, or_word};
use super::markup::esc;
use std::fmt::Write;

/// Time and money by phase.
pub(super) fn phases(report: &Report) -> String {
    let whole = phase_sum(&report.phases);
    let mut out = "<section>\n<h2>Where the time and the money went</h2>\n".to_owned();
    if report.phases.is_empty() {
        return out + "<p class=\"none\">not measured</p>\n</section>\n";
    }
    out += "<table class=\"bars\">\n<thead><tr><th scope=\"col\">Phase</th><th scope=\"col\"><span class=\"hidden\">\
            Share as a bar</span></th><th scope=\"col\">Time</th><th scope=\"col\">Cost</th>\
            <th scope=\"col\">Share</th></tr></thead>\n<tbody>\n";
    for phase in &report.phases {
        let share = phase_share(phase, &whole);
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"bar\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            esc(&words::name(&phase.name)),
            bar(&[(share.unwrap_or(0.0), "measured")]),
            esc(&phase_time(phase)),
            esc(&or_word(phase.cost_usd, words::money, UNKNOWN)),
            esc(&or_word(share, words::share, "")),
        );
    }
    let _ = writeln!(
        out,
        "</tbody>\n<tfoot><tr><th scope=\"row\">whole</th><td class=\"bar\"></td><td>{}</td><td>{}</td><td></td></tr>\
         </tfoot>\n</table>",
        esc(&words::seconds(whole.wall_s)),
        esc(&or_word(whole.cost_usd, words::money, UNKNOWN)),
    );
    if report.phases.iter().any(|p| p.name == "rounding") {
        out += "<p class=\"note\">Rounding is what the provider bills beyond the clock.</p>\n";
    }
    out + "</section>\n"
}

/// Memory by part, predicted over measured.
pub(super) fn memory(report: &Report) -> String {
    let mut out = "<section>\n<h2>Memory at its peak</h2>\n".to_owned();
    if report.memory_parts.is_empty() {
        return out + "<p class=\"none\">not measured</p>\n</section>\n";
    }
    let largest = report
        .memory_parts
        .iter()
        .flat_map(|p| [p.predicted_bytes, p.measured_bytes])
        .flatten()
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let length = |bytes: Option<i64>| bytes.map_or(0.0, |b| b as f64 / largest);
    out += "<table class=\"bars two\">\n<thead><tr><th scope=\"col\">Part</th><th scope=\"col\"><span class=\"hidden\">\
            As bars</span></th><th scope=\"col\"><i class=\"key band\"></i>Predicted</th>\
            <th scope=\"col\"><i class=\"key block\"></i>Measured</th></tr></thead>\n<tbody>\n";
    for part in &report.memory_parts {
        let shown = |bytes: Option<i64>, word| or_word(bytes, |b| words::bytes(b as f64), word);
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"bar\">{}</td><td>{}</td><td{}>{}</td></tr>",
            esc(&words::name(&part.name)),
            bar(&[(length(part.predicted_bytes), "band"), (length(part.measured_bytes), "measured")]),
            esc(&shown(part.predicted_bytes, "–")),
            if part.measured_bytes.is_none() { " class=\"none\"" } else { "" },
            esc(&shown(part.measured_bytes, NOT_MEASURED)),
        );
    }
    let peak = |bytes: Option<u64>, word| or_word(bytes, |b| words::bytes(b as f64), word);
    let _ = writeln!(
        out,
        "</tbody>\n<tfoot><tr><th scope=\"row\">peak</th><td class=\"bar\"></td><td>{}</td><td>{}</td></tr></tfoot>\n\
         </table>",
        esc(&peak(report.predicted.peak_memory_bytes, UNKNOWN)),
        esc(&peak(report.measured.peak_memory_bytes, NOT_MEASURED)),
    );
    let below = |p: &super::super::record::MemoryPart| p.measured_bytes.is_some_and(|b| b < 0);
    if report.memory_parts.iter().any(below) {
        out += "<p class=\"note\">Unattributed is below 0 because the parts’ peaks fell at different moments.</p>\n";
    }
    out + "</section>\n"
}

/// Bars above each other, each 0 … 1 of the width.
fn bar(lengths: &[(f64, &str)]) -> String {
    let height = 100.0 / lengths.len().max(1) as f64;
    let mut out = "<svg aria-hidden=\"true\">".to_owned();
    for (at, (length, class)) in lengths.iter().enumerate() {
        if *length > 0.0 {
            let _ = write!(
                out,
                "<rect class=\"{class}\" y=\"{:.1}%\" width=\"{:.2}%\" height=\"{:.1}%\"/>",
                height * at as f64,
                100.0 * length.min(1.0),
                height * 0.86,
            );
        }
    }
    out + "</svg>"
}
