//! `report.html`: the report as one file that opens anywhere, for ever: no scripts, no requests, light and dark, phone
//! and paper.

mod chart;
mod compare;
mod course;
mod markup;
mod parts;
mod study;
mod timeline;

use self::markup::{esc, policy};
use super::metered;
use super::record::{Parent, Provenance, Report, SamplePair, Status};
use super::words::{self, or_word};
use crate::error::Result;
use crate::fs;
use crate::train::metrics::{EvalRecord, StepRecord};
use crate::units::group_thousands;
use std::fmt::Write;
use std::path::Path;

pub use study::{Sheet, study};

const STYLE: &str = include_str!("style.css");

/// The page of a run and its records.
pub fn html(report: &Report, steps: &[StepRecord], evals: &[EvalRecord]) -> String {
    let unnamed = format!("Run {}", report.run_id);
    let base = report.provenance.base.as_deref().unwrap_or(&unnamed);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{} · run {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n",
        policy(STYLE),
        esc(base),
        esc(&report.run_id)
    );
    page += &header(report, base);
    page += &compare::section(report);
    page += &parts::phases(report);
    // Of another program's memory no parts are known.
    if report.command.is_empty() || !report.memory_parts.is_empty() {
        page += &parts::memory(report);
    }
    page += &metered(report);
    if report.command.is_empty() {
        page += &course::section(report, steps, evals);
    }
    page += &timeline::section(report);
    page += &samples(&report.samples);
    page += &data(report);
    page += &parent(report.parent.as_ref());
    page += &provenance(&report.provenance);
    page += "<footer><p>Error = (predicted − measured) / measured. What was not measured says so; \
             nothing is filled in.</p></footer>\n</main>\n</body>\n</html>\n";
    page
}

/// Writes the page durably.
pub fn write(path: &Path, report: &Report, steps: &[StepRecord], evals: &[EvalRecord]) -> Result<()> {
    fs::write_durable(path, html(report, steps, evals).as_bytes())
}

fn header(report: &Report, base: &str) -> String {
    let class = match report.status {
        Status::Done => "good",
        Status::Stopped | Status::Running => "fair",
        Status::Failed | Status::Diverged | Status::Killed => "bad",
    };
    let mut out = format!(
        "<header>\n<p class=\"line\"><span class=\"status {class}\">{}</span> run {}",
        report.status.word(),
        esc(&report.run_id)
    );
    if let Some(started) = &report.started_at {
        let _ = write!(out, " · {}", esc(started));
    }
    let _ = writeln!(out, "</p>\n<h1>{}</h1>", esc(base));
    let method = report.method.as_deref().map_or("Method not known", words::method);
    let _ = write!(out, "<p class=\"sub\">{}", esc(&words::capital(method)));
    if let Some(trainable) = report.parameters.trainable {
        let _ = write!(out, ", {} parameters trained", group_thousands(trainable));
        if let Some(share) = report.parameters.trainable_share() {
            let _ = write!(out, " ({} of all)", words::share(share));
        }
    }
    out += "</p>\n";
    if !report.command.is_empty() {
        let _ = writeln!(out, "<p class=\"sub\"><code>{}</code></p>", esc(&report.command.join(" ")));
    }
    if let Some(reason) = &report.reason {
        let _ = writeln!(out, "<p class=\"reason\">{}</p>", esc(reason));
    }
    if report.is_unmeasured() {
        let _ = writeln!(out, "<p class=\"reason\">{}</p>", words::NOTHING_MEASURED);
    }
    if !report.warnings.is_empty() {
        out += "<ul class=\"warnings\">\n";
        for warning in &report.warnings {
            let _ = writeln!(out, "<li>{}</li>", esc(warning));
        }
        out += "</ul>\n";
    }
    out + "</header>\n"
}

fn samples(samples: &[SamplePair]) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let mut out = "<section>\n<h2>Before and after</h2>\n".to_owned();
    let text = |title: &str, text: Option<&String>| {
        let text = or_word(text, |t| esc(t), "not generated");
        format!("<div><h3>{title}</h3><pre dir=\"auto\">{text}</pre></div>")
    };
    for sample in samples {
        let _ = write!(
            out,
            "<article class=\"sample\"><pre class=\"prompt\" dir=\"auto\">{}</pre><div class=\"pair\">{}{}</div>",
            esc(&sample.prompt),
            text("Before", sample.before.as_ref()),
            text("After", sample.after.as_ref()),
        );
        if let Some(reference) = &sample.reference {
            out += &text("Reference", Some(reference));
        }
        out += "</article>\n";
    }
    out + "</section>\n"
}

fn metered(report: &Report) -> String {
    let rows = metered::facts(report);
    facts("Metered", rows.into_iter().map(|(title, text)| (words::capital(&title), Some(text), "long")))
}

fn data(report: &Report) -> String {
    let data = &report.data;
    let known = |v: Option<u64>| v.map(group_thousands);
    let rows = [
        ("Rows read", known(data.rows)),
        ("Rows dropped", known(data.dropped_rows)),
        ("Rows truncated", known(data.truncated_rows)),
        ("Samples to train on", known(data.train_samples)),
        ("Samples to evaluate on", known(data.eval_samples)),
        ("Tokens", known(data.tokens)),
        ("Tokens counted in the loss", known(data.loss_tokens)),
        ("Share counted", data.counted_share().map(words::share)),
        ("Longest sample", known(data.longest_tokens).map(|t| t + " tokens")),
        ("Sequence length", known(data.sequence_len).map(|t| t + " tokens")),
        ("Packs an epoch", known(data.packs)),
    ];
    facts("Data", rows.map(|(title, value)| (title, value, "")))
}

/// The settings that differ from the run before it.
fn parent(parent: Option<&Parent>) -> String {
    let Some(parent) = parent else { return String::new() };
    let what = if parent.is_origin { "The run that this one continues" } else { "The nearest earlier run" };
    let mut out = format!(
        "<section>\n<h2>Against run {}</h2>\n<p>{what}, {}: {}, last training loss {}.</p>\n",
        esc(&parent.run_id),
        esc(&parent.started_at),
        esc(&or_word(parent.cost_usd, words::money, "of unknown cost")),
        esc(&or_word(parent.loss, words::loss, "not known")),
    );
    if parent.differences.is_empty() {
        return out + "<p class=\"none\">The same settings, data and base.</p>\n</section>\n";
    }
    out += "<table class=\"settings\">\n<thead><tr><th scope=\"col\">Setting</th><th scope=\"col\">Then</th>\
            <th scope=\"col\">Now</th></tr></thead>\n<tbody>\n";
    for difference in &parent.differences {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td data-title=\"Then\">{}</td><td data-title=\"Now\">{}</td></tr>",
            esc(&difference.key),
            esc(&difference.then),
            esc(&difference.now)
        );
    }
    out + "</tbody>\n</table>\n</section>\n"
}

fn provenance(p: &Provenance) -> String {
    let number = |v: Option<u64>| v.map(|v| v.to_string());
    facts(
        "Provenance",
        [
            ("Program", p.version.clone(), ""),
            ("Build", p.build.clone(), ""),
            ("System", p.os.clone(), ""),
            ("Processor", p.cpu.clone(), ""),
            ("Accelerator", p.gpu.clone(), ""),
            ("Device", p.device.clone(), ""),
            ("Threads", number(p.threads), ""),
            ("Kernels", p.kernel.clone(), ""),
            ("Seed", number(p.seed), ""),
            ("Base", p.base_hash.clone(), "hash"),
            ("Data", p.data_hash.clone(), "hash"),
            ("Config", p.config_hash.clone(), "hash"),
        ],
    )
}

/// A list of what is known; what is long takes a row of its own.
fn facts<T: AsRef<str>>(
    title: &str,
    rows: impl IntoIterator<Item = (T, Option<String>, &'static str)>,
) -> String {
    let mut out = String::new();
    for (name, value, class) in rows {
        let Some(value) = value else { continue };
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = writeln!(out, "<div{class}><dt>{}</dt><dd>{}</dd></div>", esc(name.as_ref()), esc(&value));
    }
    if out.is_empty() {
        return out;
    }
    format!("<section>\n<h2>{title}</h2>\n<dl class=\"facts\">\n{out}</dl>\n</section>\n")
}

#[cfg(test)]
mod tests {
    use super::STYLE;
    use std::collections::BTreeMap;

    /// Of text on what lies behind it (WCAG 2.2, 1.4.3), and of lines and areas that say something (1.4.11).
    const TEXT: f64 = 4.5;
    const DRAWN: f64 = 3.0;

    /// The colours of light, dark and paper.
    fn palettes() -> Vec<BTreeMap<&'static str, &'static str>> {
        let blocks = STYLE.split(":root {").skip(1).filter_map(|rest| rest.split('}').next());
        let colour = |part: &'static str| {
            let (name, value) = part.trim().strip_prefix("--")?.split_once(": ")?;
            Some((name, value))
        };
        blocks.map(|block| block.split(';').filter_map(colour).collect()).collect()
    }

    /// WCAG's relative luminance of `#rgb` or `#rrggbb`.
    fn luminance(colour: &str) -> f64 {
        let digits = colour.strip_prefix('#').unwrap();
        let wide = digits.len() / 3;
        let channel = |nth: usize| {
            let part = digits[nth * wide..][..wide].repeat(3 - wide);
            let share = f64::from(u8::from_str_radix(&part, 16).unwrap()) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(1) + 0.0722 * channel(2)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
        a.max(b) / a.min(b)
    }

    #[test]
    fn text_and_curves_stand_out_in_light_in_dark_and_on_paper() {
        assert!((contrast("#fff", "#000000") - 21.0).abs() < 1e-9);
        let palettes = palettes();
        assert_eq!(palettes.len(), 3);
        for (palette, scheme) in palettes.iter().zip(["light", "dark", "print"]) {
            for behind in ["paper", "well"] {
                for name in ["ink", "soft", "good", "fair", "bad"] {
                    let found = contrast(palette[name], palette[behind]);
                    assert!(found >= TEXT, "{scheme}: {name} on {behind}: {found:.2}");
                }
            }
            for name in ["measured", "second", "tick", "load", "tokenise"] {
                let found = contrast(palette[name], palette["paper"]);
                assert!(found >= DRAWN, "{scheme}: {name}: {found:.2}");
            }
        }
    }
}
