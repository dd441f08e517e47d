//! What the quickstart ships is what its generator writes, and its rows can be learned: every record is grounded in
//! its report.

#[path = "../configs/quickstart/grammar.rs"]
mod grammar;
#[path = "../configs/quickstart/texts.rs"]
mod texts;
#[path = "../configs/quickstart/tokens.rs"]
mod tokens;

use grammar::Grammar;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// More than this is not a small model that ships with the source.
const MODEL_BYTES: u64 = 4 << 20;

fn world() -> Grammar {
    Grammar::parse(&read("world.txt")).unwrap()
}

fn read(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/quickstart");
    fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn the_committed_rows_are_what_the_generator_writes() {
    let rows = texts::reports(&world()).unwrap();
    assert!(texts::lines(&rows) == read("train.jsonl"), "run the make-quickstart example with --overwrite");
}

#[test]
fn the_committed_tokenizer_is_what_the_corpus_gives() {
    let corpus = texts::corpus(&world()).unwrap();
    let tokenizer = tokens::learn(corpus.strings()).unwrap();
    assert!(
        tokenizer.to_string(false).unwrap() == read("model/tokenizer.json"),
        "run the make-quickstart example with --overwrite"
    );
    let config: Value = serde_json::from_str(&read("model/tokenizer_config.json")).unwrap();
    assert_eq!(config, tokens::config());
    for (id, special) in (0..).zip(tokens::SPECIALS) {
        assert_eq!(tokenizer.token_to_id(special), Some(id));
    }
    assert_eq!(tokenizer.get_vocab_size(true), tokens::VOCABULARY);
}

#[test]
fn every_value_of_a_record_stands_in_its_report() {
    let mut missing = 0;
    let rows = texts::reports(&world()).unwrap();
    for row in &rows {
        let report = row["messages"][0]["content"].as_str().unwrap();
        let record = row["messages"][1]["content"].as_str().unwrap();
        let record: serde_json::Map<String, Value> = serde_json::from_str(record).unwrap();
        let keys: Vec<&str> = record.keys().map(String::as_str).collect();
        assert_eq!(keys, ["lost", "where", "found"]);
        for key in ["lost", "where"] {
            let value = record[key].as_str().unwrap();
            assert!(report.contains(value), "{key}: {value} is not in: {report}");
        }
        missing += usize::from(record["found"] == false);
    }
    assert!(missing > rows.len() / 5 && missing < rows.len() / 2, "{missing} things stay lost");
}

#[test]
fn the_shipped_model_stays_small() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/quickstart/model");
    let files = fs::read_dir(folder).unwrap();
    let bytes: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= MODEL_BYTES, "{bytes} bytes");
}

#[test]
fn the_samples_are_reports_that_no_row_holds() {
    let config = include_str!("../configs/quickstart.toml");
    let config: toml::Table = config.parse().unwrap();
    let samples = config["sample_prompts"].as_array().unwrap();
    assert!(!samples.is_empty());
    let rows = read("train.jsonl");
    for sample in samples {
        assert!(!rows.contains(sample.as_str().unwrap()), "{sample}");
    }
}
