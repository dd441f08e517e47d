//! The closing report on the terminal: predicted, measured, error; where the money and the memory went; what was
//! learned. Fits 80 columns and degrades below.

use super::causes;
use super::metered;
use super::record::{Phase, Report, SamplePair};
use super::table::{Table, hanging, section, wrap};
use super::words::{self, NOT_MEASURED, NOTHING_MEASURED, UNKNOWN, or_word};
use crate::train::screen::{Screen, visible};

/// A sample's text is cut to this many characters; the HTML has the whole.
const SAMPLE_CHARS: usize = 400;

/// The whole closing report.
pub fn terminal(report: &Report, screen: Screen) -> String {
    let sections = [
        headline(report, screen),
        compared(report, screen),
        causes(report, screen),
        phases(report, screen),
        memory(report, screen),
        metered(report, screen),
        learned(report, screen),
        samples(&report.samples, screen),
        warnings(&report.warnings, screen),
    ];
    let shown: Vec<String> = sections.into_iter().filter(|s| !s.is_empty()).collect();
    screen.fit(shown.join("\n"))
}

fn headline(report: &Report, screen: Screen) -> String {
    let base = report.provenance.base.as_deref();
    let what = [report.method.as_deref().map(words::method), base].into_iter().flatten().map(visible);
    let words: Vec<String> = ["run".to_owned(), visible(&report.run_id)]
        .into_iter()
        .chain([format!("· {}", report.status.word())])
        .chain(what.map(|w| format!("· {w}")))
        .collect();
    let mut out = wrap(&words.join(" "), "", screen.columns);
    if !report.command.is_empty() {
        out += &wrap(&visible(&report.command.join(" ")), "  ", screen.columns);
    }
    if let Some(reason) = &report.reason {
        out += &wrap(&visible(reason), "  ", screen.columns);
    }
    if report.is_unmeasured() {
        out += &wrap(NOTHING_MEASURED, "  ", screen.columns);
    }
    out
}

fn compared(report: &Report, screen: Screen) -> String {
    let mut table =
        Table::new().left("").right("predicted").extra("interval", 1).right("measured").right("error");
    let quantities = words::quantities(report);
    // Another program has no steps that could be seen.
    for q in quantities.iter().filter(|q| report.command.is_empty() || q.is_known()) {
        table.row([
            q.title.to_owned(),
            q.predicted_text(),
            q.interval_text(),
            q.measured_text(),
            q.error_text(),
        ]);
    }
    let mut body = table.render(screen);
    let modelled: Vec<String> =
        quantities.iter().filter_map(|q| Some(format!("{} {}", q.title, (q.show)(q.modelled?)))).collect();
    if !modelled.is_empty() {
        let text = format!("modelled, not measured: {}", modelled.join(", "));
        body += &wrap(&text, "  ", screen.columns);
    }
    let price = format!("price: {}", visible(&words::price(&report.price)));
    body += &wrap(&price, "  ", screen.columns);
    section(screen, "Predicted and measured", &body)
}

/// Quantity by quantity, in points of the measured value.
fn causes(report: &Report, screen: Screen) -> String {
    let lines = causes::lines(&report.causes, &words::title);
    if lines.is_empty() {
        return String::new();
    }
    let width = lines.iter().map(|(title, _)| title.chars().count()).max().unwrap_or(0);
    let body: String =
        lines.iter().map(|(title, text)| hanging(title, width + 2, &visible(text), screen.columns)).collect();
    section(screen, "Where the errors came from, in points", &body)
}

fn phases(report: &Report, screen: Screen) -> String {
    if report.phases.is_empty() {
        return String::new();
    }
    let mut table = Table::new().left("phase").right("time").right("cost").extra("share", 1);
    let whole = phase_sum(&report.phases);
    for phase in &report.phases {
        table.row([
            visible(&words::name(&phase.name)),
            phase_time(phase),
            or_word(phase.cost_usd, words::money, UNKNOWN),
            phase_share(phase, &whole).map_or_else(String::new, words::share),
        ]);
    }
    table.total([
        "whole".to_owned(),
        words::seconds(whole.wall_s),
        or_word(whole.cost_usd, words::money, UNKNOWN),
        String::new(),
    ]);
    section(screen, "Where the time and the money went", &table.render(screen))
}

/// Time and cost of all phases; the cost is unknown where none has one.
pub(super) fn phase_sum(phases: &[Phase]) -> Phase {
    let costs = || phases.iter().filter_map(|p| p.cost_usd);
    Phase {
        name: "whole".into(),
        beside: false,
        wall_s: phases.iter().map(|p| p.wall_s).sum(),
        cost_usd: costs().next().map(|_| costs().sum()),
    }
}

/// Of the money, without a price of the time.
pub(super) fn phase_share(phase: &Phase, whole: &Phase) -> Option<f64> {
    let (part, all) = match (phase.cost_usd, whole.cost_usd) {
        (Some(part), Some(all)) if all > 0.0 => (part, all),
        _ => (phase.wall_s, whole.wall_s),
    };
    (all > 0.0).then(|| part / all)
}

/// A phase of money alone took no time.
pub(super) fn phase_time(phase: &Phase) -> String {
    if phase.wall_s == 0.0 { "–".to_owned() } else { words::seconds(phase.wall_s) }
}

fn memory(report: &Report, screen: Screen) -> String {
    if report.memory_parts.is_empty() {
        return String::new();
    }
    let shown = |bytes: Option<i64>, word| or_word(bytes, |b| words::bytes(b as f64), word);
    let mut table = Table::new().left("part").right("predicted").right("measured");
    for part in &report.memory_parts {
        table.row([
            visible(&words::name(&part.name)),
            shown(part.predicted_bytes, "–"),
            shown(part.measured_bytes, NOT_MEASURED),
        ]);
    }
    let peak = |bytes: Option<u64>, word| or_word(bytes, |b| words::bytes(b as f64), word);
    table.total([
        "peak".to_owned(),
        peak(report.predicted.peak_memory_bytes, UNKNOWN),
        peak(report.measured.peak_memory_bytes, NOT_MEASURED),
    ]);
    let mut body = table.render(screen);
    if report.memory_parts.iter().any(|p| p.measured_bytes.is_some_and(|b| b < 0)) {
        let why = "unattributed is below 0: the parts' peaks fell at different moments";
        body += &wrap(why, "  ", screen.columns);
    }
    section(screen, "Memory at its peak", &body)
}

fn metered(report: &Report, screen: Screen) -> String {
    let facts = metered::facts(report);
    let width = facts.iter().map(|(title, _)| title.chars().count()).max().unwrap_or(0).min(16) + 2;
    let body: String = facts
        .iter()
        .map(|(title, text)| hanging(&visible(title), width, &visible(text), screen.columns))
        .collect();
    if body.is_empty() { body } else { section(screen, "Metered", &body) }
}

fn learned(report: &Report, screen: Screen) -> String {
    let t = &report.training;
    if !report.command.is_empty() {
        return String::new();
    }
    if t.steps == 0 {
        return section(screen, "Training", &wrap("no step was taken", "  ", screen.columns));
    }
    let mut body = String::new();
    let mut say = |text: String| body += &wrap(&text, "  ", screen.columns);
    let planned = t.planned_steps.map_or_else(String::new, |planned| format!(" of {planned}"));
    say(format!(
        "{}{planned} steps, {} tokens, {} counted in the loss",
        t.steps,
        words::thousands(t.tokens as f64),
        words::thousands(t.loss_tokens as f64),
    ));
    let loss = |v: Option<f64>| or_word(v, words::loss, "not finite");
    say(if t.steps == 1 {
        format!("training loss {}", loss(t.loss_last))
    } else {
        format!("training loss {} → {}", loss(t.loss_first), loss(t.loss_last))
    });
    say(evaluated(report));
    if let Some(retained) = retained(report) {
        say(retained);
    }
    if t.non_finite_steps > 0 {
        say(format!("{} steps had no finite loss", t.non_finite_steps));
    }
    if let Some(work) = words::work(&report.work) {
        say(visible(&work));
    }
    section(screen, "Training", &body)
}

/// The evaluation in one sentence.
pub(super) fn evaluated(report: &Report) -> String {
    let t = &report.training;
    let best = match (t.eval_best, t.eval_best_step) {
        (Some(best), Some(step)) => format!(", best {} at step {step}", words::loss(best)),
        _ => String::new(),
    };
    match (t.eval_before, t.eval_after) {
        (Some(before), Some(after)) => {
            format!("evaluation loss {} → {}{best}", words::loss(before), words::loss(after))
        }
        (Some(before), None) => {
            format!("evaluation loss {} before, {NOT_MEASURED} after{best}", words::loss(before))
        }
        (None, Some(after)) => {
            format!("evaluation loss {} after, {NOT_MEASURED} before{best}", words::loss(after))
        }
        (None, None) => format!("evaluation loss {NOT_MEASURED}{best}"),
    }
}

/// What was lost of the retention set, in one sentence.
pub(super) fn retained(report: &Report) -> Option<String> {
    let r = report.retention.as_ref()?;
    let said = |loss: Option<f64>| loss.map_or_else(|| NOT_MEASURED.to_owned(), words::loss);
    let verdict = match r.lost {
        Some(lost) if lost > 0.0 => format!(": {} lost", words::loss(lost)),
        Some(lost) => format!(": nothing lost, {} gained", words::loss(-lost)),
        None => String::new(),
    };
    Some(format!("retention loss {} → {}{verdict}", said(r.loss_before), said(r.loss_after)))
}

fn samples(samples: &[SamplePair], screen: Screen) -> String {
    if samples.is_empty() {
        return String::new();
    }
    let mut body = String::new();
    for sample in samples {
        let texts = [
            ("prompt", Some(&sample.prompt)),
            ("before", sample.before.as_ref()),
            ("after", sample.after.as_ref()),
        ];
        for (title, text) in texts {
            let text = text.map_or_else(|| "not generated".to_owned(), |t| cut(&visible(t)));
            body += &hanging(title, 8, &text, screen.columns);
        }
        body.push('\n');
    }
    section(screen, "Before and after", body.trim_end_matches('\n')) + "\n"
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SAMPLE_CHARS) {
        Some((at, _)) => text.split_at(at).0.to_owned() + "…",
        None => text.to_owned(),
    }
}

/// One list, also of the estimate.
pub(super) fn warnings(warnings: &[String], screen: Screen) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let body: String = warnings.iter().map(|w| wrap(&visible(w), "  ", screen.columns)).collect();
    section(screen, "Warnings", &body)
}
