//! The run over its time: memory, processor, power, and what it was doing meanwhile.

use super::super::record::{Moment, Report};
use super::super::words;
use super::chart::{Across, Chart, Series};
use super::markup::esc;
use crate::estimate::parts::Part;
use std::fmt::Write;

pub(super) fn section(report: &Report) -> String {
    let moments = &report.timeline;
    let Some(last) = moments.last().filter(|_| moments.len() > 1) else { return String::new() };
    let across = Across::seconds(report.measured.wall_s.unwrap_or(last.at_s).max(last.at_s));
    let mut out = "<section>\n<h2>The machine over time</h2>\n".to_owned();
    out += &strip(moments, &across);
    out += "<div class=\"charts\">\n";
    out += &memory(report, &across).svg();
    let rate = |title: &str, of: fn(&Moment) -> Option<f64>| Chart {
        title: title.to_owned(),
        series: vec![line("measured", points(moments, of))],
        stack: Vec::new(),
        from_zero: true,
        level: None,
        across: across.clone(),
        wide: false,
    };
    let mut busy = rate("Cores kept busy", |m| m.cores_busy);
    busy.level = report.provenance.threads.map(|n| ("threads", n as f64));
    out += &busy.svg();
    out += &rate("Power, W", |m| m.power_w).svg();
    out + "</div>\n</section>\n"
}

fn points(moments: &[Moment], of: fn(&Moment) -> Option<f64>) -> Vec<(f64, f64)> {
    moments.iter().filter_map(|m| Some((m.at_s, of(m)?))).collect()
}

fn line(label: &'static str, points: Vec<(f64, f64)>) -> Series {
    Series { label, class: "measured", points, dots: false }
}

/// The device's memory where it was measured, else that of the process, under the predicted peak; below it what it was
/// held for.
fn memory(report: &Report, across: &Across) -> Chart {
    let on_device = report.timeline.iter().any(|m| m.device_bytes.is_some());
    let bytes: fn(&Moment) -> Option<f64> =
        if on_device { |m| m.device_bytes.map(|b| b as f64) } else { |m| m.rss_bytes.map(|b| b as f64) };
    let mut points = points(&report.timeline, bytes);
    let peak = report.predicted.peak_memory_bytes.map(|b| b as f64);
    let largest = points.iter().map(|(_, b)| *b).chain(peak).fold(0.0, f64::max);
    let (unit, scale) = words::memory_unit(largest);
    let mut stack = stack(&report.timeline);
    for (_, bytes) in stack.iter_mut().flat_map(|part| &mut part.points).chain(&mut points) {
        *bytes /= scale;
    }
    let of = if on_device { "of the device" } else { "of the process" };
    Chart {
        title: format!("Memory {of}, {unit}"),
        series: vec![line("measured", points)],
        stack,
        from_zero: true,
        level: peak.map(|peak| ("predicted peak", peak / scale)),
        across: across.clone(),
        wide: true,
    }
}

/// The classes of the parts in the style sheet.
const PARTS: [&str; 9] = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"];

/// Bytes of each part over time, from the moments that know them.
fn stack(moments: &[Moment]) -> Vec<Series> {
    let of = |part: Part, class: &'static str| Series {
        label: part.name(),
        class,
        points: moments.iter().filter_map(|m| Some((m.at_s, m.parts?.of(part) as f64))).collect(),
        dots: false,
    };
    Part::ALL.into_iter().zip(PARTS.into_iter().cycle()).map(|(part, class)| of(part, class)).collect()
}

/// What the run was doing: one band, a stretch a phase.
fn strip(moments: &[Moment], across: &Across) -> String {
    let mut out = "<figure class=\"chart wide phases\"><figcaption>What the run was doing".to_owned();
    let mut names: Vec<&str> = Vec::new();
    for moment in moments {
        if !names.contains(&moment.phase.as_str()) {
            names.push(&moment.phase);
        }
    }
    out += "<span class=\"legend\">";
    for name in &names {
        let _ = write!(out, "<i class=\"key {}\"></i>{} ", class(name), esc(&words::name(name)));
    }
    out += "</span></figcaption><svg viewBox=\"0 0 1000 10\" preserveAspectRatio=\"none\" role=\"img\" \
            aria-label=\"Phases over time\">";
    let scale = 1000.0 / across.last.max(f64::MIN_POSITIVE);
    let mut from = 0.0;
    for (at, moment) in moments.iter().enumerate() {
        let is_end = moments.get(at + 1).is_none_or(|next| next.phase != moment.phase);
        if is_end && moment.at_s > from {
            let _ = write!(
                out,
                "<rect class=\"{}\" x=\"{:.1}\" width=\"{:.1}\" height=\"10\"/>",
                class(&moment.phase),
                from * scale,
                (moment.at_s - from) * scale,
            );
            from = moment.at_s;
        }
    }
    out + "</svg>" + &across.labelled() + "</figure>\n"
}

/// The classes of the style sheet; a phase that it does not know looks like idling.
fn class(phase: &str) -> &'static str {
    match phase {
        "train" => "p-train",
        "evaluate" => "p-evaluate",
        "save" => "p-save",
        "load" => "p-load",
        "tokenise" => "p-tokenise",
        "calibrate" => "p-calibrate",
        _ => "p-idle",
    }
}
