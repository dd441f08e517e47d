//! `fttrain validate`

use super::say;
use crate::config::Device;
use crate::error::Result;
use crate::estimate::published::{self, Compared};
use crate::estimate::sheets;
use crate::fs;
use crate::ops::device;
use crate::report::json;
use crate::report::study_table::{self, ScoreRow};
use crate::report::words;
use crate::study::grid::Extent;
use crate::study::score::{Pair, Score};
use crate::study::validate::{Row, Validation, validate};
use crate::train::ground::start_threads;
use crate::train::screen::Screen;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `validate`.
#[derive(Args)]
pub(super) struct ValidateArgs {
    /// How many runs.
    #[arg(long, value_enum, default_value = "quick")]
    size: Extent,
    /// What its runs compute on: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// The folder of the study; a new one in the home folder by default. A study that was begun there goes on.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Stop after so many minutes; the same command goes on with what is left, under the same --out.
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// Judge the data sheets instead: published runs that no efficiency was fitted on.
    #[arg(long)]
    published: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ValidateArgs) -> Result<u8> {
    if args.published {
        return published_runs(args.json);
    }
    // Before anything is written: it may not be there.
    let gpu = device::chosen(args.device, 0)?;
    start_threads(None)?;
    let home = fs::home()?;
    let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let folder = args.out.clone().unwrap_or_else(|| home.join("studies").join(stamp));
    let found = validate(args.size, gpu, args.minutes, &folder, &home, &mut |done, all, row| {
        say(&format!("{done}/{all}  {}  {}", settings(row), errors(row)));
    })?;
    let text = json::to_text(&found)?;
    fs::write_durable(&folder.join("validate.json"), text.as_bytes())?;
    let rows = score_rows(&found);
    fs::write_durable(&folder.join("validate.html"), page(&found, &rows).as_bytes())?;
    super::print(&if args.json { text } else { study_table::terminal(&rows, Screen::stdout()) });
    say(&beside(&found));
    say(&format!("{}", folder.join("validate.html").display()));
    Ok(0)
}

fn minutes(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|m: &f64| m.is_finite() && *m > 0.0);
    number.ok_or_else(|| "expected a number above 0".into())
}

fn settings(row: &Row) -> String {
    let cell = &row.cell;
    let recompute = if cell.recompute { ", recompute" } else { "" };
    let alone = if cell.alone { ", 1 thread" } else { "" };
    format!(
        "{:?} {:?} {}×{} rank {}{recompute}{alone}",
        cell.size, cell.method, cell.batch, cell.sequence, cell.rank
    )
    .to_lowercase()
}

fn errors(row: &Row) -> String {
    let error = |key: &str| {
        row.quantities.get(key).map_or_else(|| "–".to_owned(), |p| words::percent_error(p.error_pct()))
    };
    format!("step {}, peak {}, drift {:.2}", error("step_s"), error("peak_memory_bytes"), row.drift)
}

const TITLES: [(&str, &str, bool); 8] = [
    ("peak_memory_bytes", "peak memory", true),
    ("step_s", "step time", true),
    ("step_s_undrifted", "step time, the machine's drift taken out", true),
    ("wall_s", "whole run", true),
    ("wall_s_after_probe", "whole run, after half of the steps", true),
    ("train_s_after_probe", "training, after half of the steps", true),
    ("train_s_by_progress_bar", "the same by a progress bar", false),
    ("step_s_by_roofline", "step time by FLOPs over the peak", false),
];

fn score_row(what: &str, score: &Score, has_interval: bool) -> ScoreRow {
    ScoreRow {
        what: what.to_owned(),
        rows: score.rows,
        mean_pct: score.mean_absolute_pct,
        worst_pct: [score.worst_under_pct, score.worst_over_pct],
        coverage: has_interval.then_some(score.coverage),
        interval_score_pct: has_interval.then_some(score.interval_score_pct),
    }
}

fn score_rows(found: &Validation) -> Vec<ScoreRow> {
    let titles = TITLES.iter();
    titles
        .filter_map(|(key, title, interval)| Some(score_row(title, found.scores.get(*key)?, *interval)))
        .collect()
}

/// What stands beside the errors: the machine's own variation, and what naive forecasts make of the same runs.
fn beside(found: &Validation) -> String {
    let varied = found.repeat_variation_pct.iter();
    let varied = varied.map(|(key, pct)| format!("{} {pct:.1} %", words::title(key).unwrap_or(key)));
    let skill = |key: &str| found.skill.get(key).map_or_else(|| "–".to_owned(), |s| format!("{s:.2}"));
    format!(
        "a run differs from its repeat by: {}; skill over FLOPs over the peak {}, over a progress bar {}; {} runs did not fit, {} not \
         run yet",
        varied.collect::<Vec<_>>().join(", "),
        skill("step_s_by_roofline"),
        skill("train_s_by_progress_bar"),
        found.left_out.len(),
        found.not_run
    )
}

fn page(found: &Validation, rows: &[ScoreRow]) -> String {
    let lead = format!(
        "{} runs on {} from {}; the machine itself varied by {:.0} % meanwhile; {}; profile {}.",
        found.rows.len(),
        found.machine,
        found.started_at,
        found.machine_variation_pct,
        beside(found),
        found.profile_sha256.get(..12).unwrap_or_default()
    );
    let columns =
        ["run", "step, predicted", "measured", "error", "peak, predicted", "measured", "error", "drift"];
    let cells = |row: &Row| {
        let three = |key: &str, show: fn(f64) -> String| match row.quantities.get(key) {
            Some(p) => [show(p.predicted), show(p.measured), words::percent_error(p.error_pct())],
            None => ["–", "–", "–"].map(str::to_owned),
        };
        let step = three("step_s", words::seconds);
        let peak = three("peak_memory_bytes", words::bytes);
        [settings(row)].into_iter().chain(step).chain(peak).chain([format!("{:.2}", row.drift)]).collect()
    };
    let runs = (columns.map(str::to_owned).to_vec(), found.rows.iter().map(cells).collect());
    study_table::page(&lead, rows, runs)
}

/// Published runs against what data sheets and the efficiency of other published runs predict.
fn published_runs(json: bool) -> Result<u8> {
    let (sheets, published) = (sheets::shipped()?, published::shipped()?);
    let compared: Vec<Compared> = published
        .iter()
        .filter_map(|row| {
            let sheet = sheets::find(&sheets, &row.accelerator)?;
            Some(row.compare(&sheets::machine(sheet, &sheets, &published)))
        })
        .collect();
    if json {
        super::print(&json::to_text(&compared)?);
        return Ok(0);
    }
    let of = |used: &str, pair: &dyn Fn(&Compared) -> Pair| {
        Score::of(&compared.iter().filter(|c| c.used == used).map(pair).collect::<Vec<_>>())
    };
    let pair = |predicted: f64, measured: f64| Pair { predicted, low: predicted, high: predicted, measured };
    let mut rows: Vec<ScoreRow> = compared
        .iter()
        .map(|c| {
            let time = pair(c.predicted_s, c.published_s);
            score_row(&format!("{} ({}), time", c.what, c.used), &Score::of(&[time]), false)
        })
        .collect();
    let time = |c: &Compared| pair(c.predicted_s, c.published_s);
    let memory = |c: &Compared| pair(c.predicted_gib, c.published_gib);
    rows.push(score_row("all that were not fitted on, time", &of("test", &time), false));
    rows.push(score_row("all that were not fitted on, memory", &of("test", &memory), false));
    super::print(&study_table::terminal(&rows, Screen::stdout()));
    Ok(0)
}
