//! README's performance table, from the newest folder of `benches/results` that has a comparison in it.

use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The section between README's marks.
pub(crate) fn section(results: &Path) -> String {
    match newest(results) {
        Some((folder, summary)) => text(&folder, &summary),
        None => "No comparison was run on this version yet: `benches/compare --help` says how.\n".to_owned(),
    }
}

/// Folders begin with their date, so that the last name is the newest.
fn newest(results: &Path) -> Option<(String, Value)> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(results).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders.into_iter().rev().find_map(|folder| {
        let text = std::fs::read_to_string(folder.join("summary.json")).ok()?;
        let summary = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        Some((folder.file_name()?.to_str()?.to_owned(), summary))
    })
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn text(folder: &str, summary: &Value) -> String {
    let (machine, versions) = (&summary["machine"], &summary["versions"]);
    let commit: String = word(&summary["commit"]).chars().take(10).collect();
    let changed = if summary["changed"] == true { " with changes" } else { "" };
    let runs = number(&summary["repetitions"]);
    let times =
        if runs > 1.0 { format!("medians of {runs} runs, all contenders in turn") } else { "one run".into() };
    let mut out = format!(
        "{}, LoRA r 16 on all linears, {} threads of {} ({}); {}, commit {commit}{changed}, {times}.\n\
         PyTorch {} with transformers {} and PEFT {}, glibc told to keep its memory.\n\n\
         | rows | | tokens/s | counted tokens/s | speed | peak memory | of its memory | share of peak |\n\
         |---|---|---|---|---|---|---|---|\n",
        word(&summary["model"]),
        summary["threads"],
        word(&machine["name"]),
        word(&machine["cpu"]),
        word(&summary["date"]),
        word(&versions["torch"]),
        word(&versions["transformers"]),
        word(&versions["peft"]),
    );
    for setting in summary["settings"].as_array().into_iter().flatten() {
        rows(setting, &mut out);
    }
    let _ = write!(
        out,
        "\nSpeed and memory are over those of PyTorch's fastest mode on the same rows. Share of peak is what a whole step \
         reaches\nof this machine's multiply-adds in registers, in the type that it multiplies: {}.\nPeak memory is the whole process's. \
         Runs and commands: `benches/results/{folder}/`.\n",
        peaks(&summary["peaks"]),
    );
    out
}

fn peaks(peaks: &Value) -> String {
    let rate = |key: &str| peaks[key].as_f64().map(|rate| format!("{:.0} GFLOP/s", rate / 1e9));
    let known = [("f32", rate("f32_flops_per_s")), ("bf16", rate("bf16_flops_per_s"))];
    let known = known.into_iter().filter_map(|(name, rate)| Some(format!("{} in {name}", rate?)));
    known.collect::<Vec<_>>().join(" and ")
}

fn rows(setting: &Value, out: &mut String) {
    let contenders = setting["contenders"].as_array().map_or(&[][..], Vec::as_slice);
    // Where prompts are not counted, what is learned from is the measure.
    let key = if setting["tokens"].is_null() { "loss_tokens_per_s" } else { "tokens_per_s" };
    let is_peer = |c: &&Value| word(&c["contender"]).starts_with("PyTorch");
    let best = contenders.iter().filter(is_peer).max_by(|a, b| number(&a[key]).total_cmp(&number(&b[key])));
    for (i, c) in contenders.iter().enumerate() {
        let over = |key: &str| best.map(|best| number(&c[key]) / number(&best[key]));
        let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2} ×"));
        let _ = writeln!(
            out,
            "| {} | {} | {:.0} | {:.0} | {} | {:.2} GiB | {} | {} |",
            if i == 0 { title(setting) } else { String::new() },
            word(&c["contender"]),
            number(&c["tokens_per_s"]),
            number(&c["loss_tokens_per_s"]),
            times(over(key)),
            number(&c["peak_rss_bytes"]) / 1_073_741_824.0,
            times(over("peak_rss_bytes")),
            c["share_of_peak"].as_f64().map_or_else(String::new, |share| format!("{:.0} %", share * 100.0)),
        );
    }
}

fn title(setting: &Value) -> String {
    match setting["tokens"].as_u64() {
        None => "GSM8K, answers counted; packed here, padded there".to_owned(),
        Some(tokens) => {
            let recompute = if setting["recompute"] == true { ", recomputed" } else { "" };
            format!("{} × {tokens}{recompute}", setting["batch"])
        }
    }
}
