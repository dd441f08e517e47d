//! A grid of real small runs, each predicted before it starts: what the estimate is worth on this machine.

use super::bench::Bench;
use super::child::Child;
use super::grid::{self, Cell, Extent, Method};
use super::reference::Reference;
use super::score::{Pair, Score};
use crate::calibrate::Profiles;
use crate::error::Result;
use crate::estimate::Prediction;
use crate::fs;
use crate::train::metrics::{self, StepRecord};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// One run of the grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its settings.
    pub cell: Cell,
    /// SHA-256 of the prediction, taken before the run started.
    pub prediction_sha256: String,
    /// Predicted, bounds and measured, by the quantity's key.
    pub quantities: BTreeMap<String, Pair>,
    /// Time of the reference loop around the run over its first: above 1 the machine was slower.
    pub drift: f64,
    /// Training time forecast after the first half of the steps, by fttrain's correction.
    pub after_probe: Option<Pair>,
    /// The same by the mean of all steps so far, as a progress bar does it.
    pub progress_bar: Option<Pair>,
    /// Step time by FLOPs over the fastest product alone.
    pub roofline: Option<Pair>,
    /// `unattributed` over the peak, %.
    pub unattributed_pct: Option<f64>,
}

/// What a validation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// When it began.
    pub started_at: String,
    /// The machine, and the build whose profile was used.
    pub machine: String,
    /// SHA-256 of the profile: every constant that a prediction rests on, frozen before the first run.
    pub profile_sha256: String,
    /// Every run.
    pub rows: Vec<Row>,
    /// By quantity: `step_s`, `wall_s`, `peak_memory_bytes`; `step_s_undrifted` with the machine's own drift taken out.
    pub scores: BTreeMap<String, Score>,
    /// Scatter of the reference loop over the study, (slowest − fastest) / fastest, %.
    pub machine_variation_pct: f64,
}

const QUANTITIES: [&str; 3] = ["step_s", "wall_s", "peak_memory_bytes"];

/// Runs the grid under `folder`, with the machine's profile copied from `home`; `said` hears each row.
///
/// # Errors
/// A run of the grid fails; the folder cannot be written.
pub fn validate(
    extent: Extent,
    folder: &Path,
    home: &Path,
    said: &mut dyn FnMut(usize, usize, &Row),
) -> Result<Validation> {
    let started_at = jiff::Timestamp::now().to_string();
    let bench = Bench::new(folder, extent.steps())?;
    let profile = frozen(folder, home)?;
    let reference = Reference::start()?;
    let cells = grid::sample(extent.rows());
    let mut rows = Vec::new();
    let mut machine = String::new();
    for (at, cell) in cells.iter().enumerate() {
        // A home for each: no row learns from another.
        let own = folder.join(format!("home-{at:03}"));
        fs::create_folders(&own)?;
        fs::write_durable(&own.join(Profiles::FILE), &profile)?;
        let (row, name) = run(&bench, &format!("row-{at:03}"), cell, &Child::new(&own)?, reference)?;
        machine = name;
        said(at + 1, cells.len(), &row);
        rows.push(row);
    }
    let drifts = || rows.iter().map(|r| r.drift);
    let (slow, fast) = (drifts().fold(f64::MIN, f64::max), drifts().fold(f64::MAX, f64::min));
    Ok(Validation {
        started_at,
        machine,
        profile_sha256: fs::sha256_bytes(&profile),
        scores: scores(&rows),
        machine_variation_pct: if rows.is_empty() { 0.0 } else { 100.0 * (slow / fast - 1.0) },
        rows,
    })
}

/// The profile as it stands, kept beside the study; an empty one where the machine was never calibrated.
fn frozen(folder: &Path, home: &Path) -> Result<Vec<u8>> {
    let file = home.join(Profiles::FILE);
    let bytes =
        fs::read_at_most(&file, 4 << 20).unwrap_or_else(|_| Profiles::default().to_json().into_bytes());
    fs::write_durable(&folder.join(Profiles::FILE), &bytes)?;
    Ok(bytes)
}

fn run(bench: &Bench, name: &str, cell: &Cell, child: &Child, reference: Reference) -> Result<(Row, String)> {
    let (config, out) = bench.lay(name, cell)?;
    let path = config.to_string_lossy().into_owned();
    let before = reference.drift()?;
    let predicted = child.json(&["estimate".into(), path.clone(), "--json".into()])?;
    let text = predicted.to_string();
    // Written and hashed before the run starts.
    let prediction_sha256 = fs::sha256_bytes(text.as_bytes());
    fs::write_durable(&config.with_file_name("prediction.json"), text.as_bytes())?;
    fs::write_durable(&config.with_file_name("prediction.sha256"), prediction_sha256.as_bytes())?;
    let flag = if cell.method == Method::Full { "--full" } else { "--lora" };
    let report = child.json(&[flag.into(), path, "--json".into()])?;
    let drift = f64::midpoint(before, reference.drift()?);
    let steps: Vec<StepRecord> = metrics::read(&out.join("metrics.jsonl"))?;
    let prediction: Option<Prediction> = serde_json::from_value(predicted.clone()).ok();
    let quantities = QUANTITIES
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), pair(&predicted, &report, key)?)))
        .collect();
    let row = Row {
        cell: *cell,
        prediction_sha256,
        quantities,
        drift,
        after_probe: probed(&steps, 1),
        progress_bar: probed(&steps, 0),
        roofline: roofline(prediction.as_ref(), &report, child),
        unattributed_pct: unattributed(&report),
    };
    Ok((row, prediction.map_or_else(String::new, |p| p.machine)))
}

fn pair(predicted: &Value, report: &Value, key: &str) -> Option<Pair> {
    let measured = report["measured"][key].as_f64().filter(|m| *m > 0.0)?;
    Some(Pair {
        predicted: predicted["predicted"][key].as_f64()?,
        low: predicted["interval"][key]["low"].as_f64()?,
        high: predicted["interval"][key]["high"].as_f64()?,
        measured,
    })
}

/// Training time by the first half of the steps, the first `skipped` of them left out of the rate.
fn probed(steps: &[StepRecord], skipped: usize) -> Option<Pair> {
    let half = steps.len() / 2;
    let seen = steps.get(skipped..half).filter(|seen| !seen.is_empty())?;
    let rate = seen.iter().map(|s| s.step_s).sum::<f64>() / seen.iter().map(|s| s.tokens as f64).sum::<f64>();
    let done: f64 = steps[..half].iter().map(|s| s.step_s).sum();
    let left: f64 = steps[half..].iter().map(|s| s.tokens as f64).sum();
    let predicted = done + rate * left;
    let measured = steps.iter().map(|s| s.step_s).sum();
    // A progress bar states no interval.
    Some(Pair { predicted, low: predicted, high: predicted, measured })
}

/// FLOPs of a step over the fastest product that the profile holds.
fn roofline(prediction: Option<&Prediction>, report: &Value, child: &Child) -> Option<Pair> {
    let (profiles, _) = Profiles::load(&child.home().join(Profiles::FILE));
    let peak = profiles.machines().last()?.peak_flops_per_s()?;
    let predicted = prediction?.flops_per_step / peak;
    let measured = report["measured"]["step_s"].as_f64().filter(|s| *s > 0.0)?;
    Some(Pair { predicted, low: predicted, high: predicted, measured })
}

fn unattributed(report: &Value) -> Option<f64> {
    let parts = report["memory_parts"].as_array()?;
    let bytes = parts.iter().find(|p| p["name"] == "unattributed")?["measured_bytes"].as_f64()?;
    Some(100.0 * bytes / report["measured"]["peak_memory_bytes"].as_f64()?)
}

fn scores(rows: &[Row]) -> BTreeMap<String, Score> {
    let of =
        |pairs: &dyn Fn(&Row) -> Option<Pair>| Score::of(&rows.iter().filter_map(pairs).collect::<Vec<_>>());
    let mut scores: BTreeMap<String, Score> = QUANTITIES
        .iter()
        .map(|key| ((*key).to_owned(), of(&|row| row.quantities.get(*key).copied())))
        .collect();
    let undrifted = |row: &Row| {
        let pair = row.quantities.get("step_s")?;
        Some(Pair { measured: pair.measured / row.drift, ..*pair })
    };
    scores.insert("step_s_undrifted".into(), of(&undrifted));
    scores.insert("train_s_after_probe".into(), of(&|row| row.after_probe));
    scores.insert("train_s_by_progress_bar".into(), of(&|row| row.progress_bar));
    scores.insert("step_s_by_roofline".into(), of(&|row| row.roofline));
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, step_s: f64) -> StepRecord {
        let line = format!(
            "{{\"step\":{step},\"epoch\":0.1,\"loss\":1.0,\"grad_norm\":1.0,\"learning_rate\":0.1,\"tokens\":10,\
             \"padded_tokens\":0,\"loss_tokens\":5,\"step_s\":{step_s},\"rss_bytes\":null,\"device_bytes\":null}}"
        );
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_probe_leaves_the_first_step_out_and_a_progress_bar_does_not() {
        let steps = [step(1, 3.0), step(2, 1.0), step(3, 1.0), step(4, 1.0), step(5, 1.0), step(6, 1.0)];
        let (probe, bar) = (probed(&steps, 1).unwrap(), probed(&steps, 0).unwrap());
        assert!((probe.measured - 8.0).abs() < 1e-9 && (probe.predicted - 8.0).abs() < 1e-9);
        assert!((bar.predicted - 10.0).abs() < 1e-9);
        assert_eq!(probed(&steps[..1], 0), None);
    }
}
