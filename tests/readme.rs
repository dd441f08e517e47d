//! The README says what is so: its key reference is the config's own, its performance table is what was measured, and
//! what it points at exists.

#[path = "../benches/table.rs"]
mod table;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

const BEGIN: &str = "<!-- config reference: generated, do not edit -->\n";
const END: &str = "<!-- end of the config reference -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// Holds what stands between two marks to what is generated; with `FTTRAIN_BLESS` set it is rewritten instead.
fn generated(begin: &str, end: &str, wanted: &str) {
    // Two tests of one process may both rewrite the file.
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock();
    let readme = readme();
    let start = readme.find(begin).unwrap_or_else(|| panic!("no mark {begin}")) + begin.len();
    let end = readme.find(end).unwrap_or_else(|| panic!("no mark {end}"));
    if std::env::var_os("FTTRAIN_BLESS").is_some() {
        let blessed = format!("{}{wanted}{}", &readme[..start], &readme[end..]);
        std::fs::write(root().join("README.md"), blessed).unwrap();
    } else {
        assert!(&readme[start..end] == wanted, "run: FTTRAIN_BLESS=1 cargo test --release --test readme");
    }
}

#[test]
fn the_key_reference_is_the_one_that_the_config_gives() {
    generated(BEGIN, END, &format!("\n{}\n", fttrain::config::reference()));
}

#[test]
fn the_performance_table_is_the_one_that_was_measured() {
    let begin = "<!-- performance: generated, do not edit -->\n";
    let end = "<!-- end of performance -->";
    generated(begin, end, &format!("\n{}\n", table::section(&root().join("benches/results"))));
}

#[test]
fn a_table_says_who_was_how_fast_in_how_much_memory() {
    let folder = tempfile::tempdir().unwrap();
    assert!(table::section(folder.path()).contains("No comparison"));
    let contender = |name: &str, rate: f64, counted: f64| {
        serde_json::json!({"contender": name, "tokens_per_s": rate, "loss_tokens_per_s": counted,
            "peak_rss_bytes": if name == "fttrain bf16" { 1u64 << 30 } else { 2 << 30 },
            "share_of_peak": if name == "fttrain bf16" { Some(0.375) } else { None }})
    };
    let contenders = [contender("fttrain bf16", 900.0, 400.0), contender("PyTorch f32", 300.0, 100.0)];
    let summary = serde_json::json!({
        "date": "2026-01-02", "machine": {"name": "x-2c", "cpu": "X"}, "commit": "0123456789abcdef", "changed": false,
        "model": "tiny", "repetitions": 5, "threads": 2, "peaks": {"f32_flops_per_s": 5e11, "bf16_flops_per_s": 1e12},
        "versions": {"torch": "1", "transformers": "2", "peft": "3"},
        "settings": [
            {"batch": 4, "tokens": 256, "recompute": true, "contenders": contenders},
            {"batch": 8, "tokens": null, "recompute": false, "contenders": contenders},
        ],
    });
    for day in ["2026-01-01-x-2c", "2026-01-02-x-2c"] {
        std::fs::create_dir(folder.path().join(day)).unwrap();
        std::fs::write(folder.path().join(day).join("summary.json"), summary.to_string()).unwrap();
    }
    let text = table::section(folder.path());
    let wanted = [
        "| 4 × 256, recomputed | fttrain bf16 | 900 | 400 | 3.00 × | 1.00 GiB | 0.50 × | 38 % |",
        "| GSM8K, answers counted; packed here, padded there | fttrain bf16 | 900 | 400 | 4.00 × | 1.00 GiB | 0.50 × | 38 % |",
        "|  | PyTorch f32 | 300 | 100 | 1.00 × | 2.00 GiB | 1.00 × |  |",
        "500 GFLOP/s in f32 and 1000 GFLOP/s in bf16",
        "commit 0123456789, medians of 5 runs",
        "`benches/results/2026-01-02-x-2c/`",
    ];
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
}

#[test]
#[ignore = "needs FTTRAIN_PYTHON (with torch, transformers and peft)"]
fn a_comparison_ends_in_a_table() {
    let python = std::env::var("FTTRAIN_PYTHON").expect("FTTRAIN_PYTHON is not set");
    let results = tempfile::tempdir().unwrap();
    let out = results.path().join("today");
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let arguments =
        ["--repetitions", "1", "--steps", "1", "--settings", "4x256", "--contenders", "fttrain,PyTorch f32"];
    let compared = Command::new(root().join("benches/compare"))
        .args(["--model", "configs/quickstart/model", "--python", &python, "--profile", profile])
        .args(arguments)
        .arg("--out")
        .arg(&out)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
    let text = table::section(results.path());
    for contender in ["fttrain f32", "fttrain bf16", "PyTorch f32"] {
        assert!(text.contains(&format!("| {contender} |")), "{text}");
    }
}

#[test]
fn every_file_that_the_readme_names_exists() {
    let readme = readme();
    let paths: Vec<&str> = readme
        .split(|c: char| c.is_whitespace() || "`()\"'".contains(c))
        .map(|word| word.trim_end_matches(['.', ',', ':', ';']))
        .filter(|word| {
            ["configs/", "src/", "tests/", "benches/", "kernels/", ".ci/"]
                .iter()
                .any(|folder| word.starts_with(folder))
        })
        .collect();
    assert!(paths.len() > 5, "only {paths:?} are named");
    let missing: Vec<&&str> = paths.iter().filter(|p| !root().join(p).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_command_that_the_readme_names_exists() {
    let readme = readme();
    let verbs: BTreeSet<&str> = readme
        .match_indices("fttrain ")
        .filter(|(at, _)| readme[..*at].ends_with(['`', '\n']))
        .filter_map(|(at, found)| readme[at + found.len()..].split([' ', '`', '\n']).next())
        .filter(|verb| verb.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect();
    assert!(verbs.len() > 4, "only {verbs:?} are named");
    for verb in verbs {
        let help = Command::new(env!("CARGO_BIN_EXE_fttrain")).args([verb, "--help"]).output().unwrap();
        assert!(help.status.success(), "{verb}");
    }
}

#[test]
fn the_map_names_every_room() {
    let readme = readme();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            let room = entry.file_name().into_string().unwrap();
            assert!(readme.contains(&format!("`{room}/`")), "src/{room} is not in the map");
        }
    }
}
