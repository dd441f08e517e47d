//! Rows from files to samples: what is counted, cached, split, refused.

use super::super::testing::{data, source, tokenizer, with_template};
use super::*;
use crate::config::{ExcessLength, Format, OnBadRow, TrainOnEos};
use crate::error::Kind;
use std::fmt::Write;

fn rows(n: usize) -> String {
    let mut out = String::new();
    for i in 0..n {
        writeln!(out, r#"{{"prompt": "what is {i}?", "completion": "it is {i}"}}"#).unwrap();
    }
    out
}

struct Fixture {
    folder: tempfile::TempDir,
    data: Data,
}

impl Fixture {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, text).unwrap();
        let source = source(path.to_str().unwrap(), Format::PromptCompletion);
        let data = data(vec![source]);
        Self { folder, data }
    }

    fn prepare(&self) -> Result<Prepared> {
        prepare_data(&self.data, 42, &tokenizer(), None)
    }

    fn refused(&self, kind: Kind) -> String {
        let error = self.prepare().unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        error.to_string()
    }

    fn rewrite(&self, text: &str) {
        std::fs::write(&self.data.datasets[0].path, text).unwrap();
    }
}

#[test]
fn rows_become_samples_in_file_order() {
    let fixture = Fixture::new(&rows(10));
    let prepared = fixture.prepare().unwrap();
    let texts: Vec<String> = prepared.train.iter().map(|s| tokenizer().decode(&s.ids)).collect();
    assert_eq!(texts[3], "what is 3?it is 3<|im_end|>");
    let summary = &prepared.summary;
    assert_eq!((summary.rows, summary.train_samples, summary.eval_samples), (10, 10, 0));
    assert_eq!(summary.tokens, prepared.train.iter().map(|s| s.ids.len() as u64).sum::<u64>());
    assert!(summary.loss_token_share > 0.3 && summary.loss_token_share < 0.6);
    assert!(summary.to_string().contains("10 rows"), "{summary}");
}

#[test]
fn every_bad_row_is_shown_with_its_place_and_shape() {
    let fixture = Fixture::new(&format!(
        "{}{{\"prompt\": \"a\", \"completion\": 1}}\n[1]\n{{\"a\": 1,}}\n{{\"question\": \"q\"}}\n",
        rows(2)
    ));
    let error = fixture.refused(Kind::Data);
    for fact in [
        "rows.jsonl:3: field `completion` must be a string, found number",
        "rows.jsonl:4: a row must be an object, found array",
        "rows.jsonl:5:9: invalid JSON: trailing comma",
        "rows.jsonl:6: field `prompt` is missing; the row has `question`; the first row has `prompt`, `completion`",
        "hint: ",
    ] {
        assert!(error.contains(fact), "{fact}\n{error}");
    }
}

#[test]
fn bad_rows_can_be_left_out_and_are_counted_by_reason() {
    let mut fixture = Fixture::new(&format!("[1]\n{}{{\n\"x\"\n", rows(3)));
    fixture.data.on_bad_row = OnBadRow::Skip;
    let summary = fixture.prepare().unwrap().summary;
    assert_eq!(summary.skipped["not an object"].rows, 2);
    assert!(summary.skipped["not an object"].places[1].ends_with(":6"));
    assert_eq!((summary.skipped["invalid JSON"].rows, summary.rows, summary.train_samples), (1, 6, 3));
    fixture.rewrite("[1]\n");
    let error = fixture.refused(Kind::Data);
    assert!(error.contains("no rows are left of 1: 1 not an object"), "{error}");
    assert!(error.contains("hint: look at the rows named above"), "{error}");
    fixture.rewrite("\n \n");
    assert!(fixture.refused(Kind::Data).contains("no rows are left of 0"));
}

#[test]
fn parts_of_a_file_are_taken_and_the_rest_is_not_judged() {
    let mut fixture = Fixture::new(&format!("{}[bad\n", rows(10)));
    for (split, n) in [("train[:4]", 4), ("train[2:10]", 8), ("train[:50%]", 6), ("train[0:1]", 1)] {
        fixture.data.datasets[0].split = Some(split.into());
        assert_eq!(fixture.prepare().unwrap().train.len(), n, "{split}");
    }
    fixture.data.datasets[0].split = Some("train[5:5]".into());
    assert!(fixture.refused(Kind::Data).contains("no rows"));
    fixture.data.datasets[0].split = Some("test".into());
    assert!(fixture.refused(Kind::Usage).contains("split"));
}

#[test]
fn what_is_not_to_be_forgotten_is_judged_apart_and_replayed_at_its_share() {
    let mut fixture = Fixture::new(&rows(90));
    let path = fixture.folder.path().join("old.jsonl");
    std::fs::write(&path, rows(10).replace("what is", "say")).unwrap();
    fixture.data.retention_datasets = vec![source(path.to_str().unwrap(), Format::PromptCompletion)];
    let plain = fixture.prepare().unwrap();
    assert_eq!((plain.train.len(), plain.retention.judged.len(), plain.retention.kept.len()), (90, 5, 5));
    assert!(plain.retention.judged.iter().all(|sample| !plain.retention.kept.contains(sample)));
    assert_eq!((plain.retention.replayed, plain.summary.retention_samples), (0, 5));
    assert!(plain.summary.to_string().contains("retention set: 5 samples judged, 0 replayed an epoch"));
    fixture.data.retention_share = 0.1;
    let replayed = fixture.prepare().unwrap();
    assert_eq!((&replayed.train, replayed.retention.replayed), (&plain.train, 10));
    assert_eq!(replayed.retention.judged, plain.retention.judged);
    assert!(replayed.summary.warnings.is_empty(), "{:?}", replayed.summary.warnings);
    assert_ne!(plain.summary.sha256, Fixture::new(&rows(90)).prepare().unwrap().summary.sha256);
}

#[test]
fn a_retention_set_needs_two_rows_and_says_what_of_it_is_trained_on() {
    let mut fixture = Fixture::new(&rows(20));
    fixture.data.retention_datasets = fixture.data.datasets.clone();
    let warnings = fixture.prepare().unwrap().summary.warnings;
    assert!(warnings[0].starts_with("10 of 10 samples that the retention set is judged by"), "{warnings:?}");
    fixture.data.retention_datasets[0].split = Some("train[:1]".into());
    assert!(fixture.refused(Kind::Data).contains("the retention set has 1 rows"));
}

#[test]
fn rows_that_are_evaluated_and_replayed_are_a_leak() {
    let mut fixture = Fixture::new(&rows(90));
    let path = fixture.folder.path().join("old.jsonl");
    std::fs::write(&path, rows(10).replace("what is", "say")).unwrap();
    fixture.data.retention_datasets = vec![source(path.to_str().unwrap(), Format::PromptCompletion)];
    fixture.data.test_datasets = fixture.data.retention_datasets.clone();
    assert_eq!(fixture.prepare().unwrap().summary.overlap, 0, "judged alone they teach nothing");
    fixture.data.retention_share = 0.1;
    let summary = fixture.prepare().unwrap().summary;
    assert_eq!((summary.overlap, summary.duplicates), (5, 0));
    let said = "5 of 10 evaluation samples are also trained on";
    assert!(summary.warnings.iter().any(|w| w.starts_with(said)), "{:?}", summary.warnings);
}

#[test]
fn held_out_rows_are_a_function_of_the_seed_and_leave_no_row_twice() {
    let mut fixture = Fixture::new(&rows(40));
    fixture.data.val_set = ValSet::Count(5);
    let first = fixture.prepare().unwrap();
    assert_eq!((first.train.len(), first.eval.len(), first.summary.overlap), (35, 5, 0));
    let all = prepare_data(&Data { val_set: ValSet::None, ..fixture.data.clone() }, 42, &tokenizer(), None)
        .unwrap();
    let named = |row: &usize| first.held_out[0].contains(&(*row as u64));
    let held: Vec<_> = (0..40).filter(named).map(|row| all.train[row].clone()).collect();
    assert_eq!(held, first.eval, "rows are named as they lie in the file");
    let again = fixture.prepare().unwrap();
    assert_eq!((first.train.clone(), first.eval.clone()), (again.train, again.eval));
    let other = prepare_data(&fixture.data, 7, &tokenizer(), None).unwrap();
    assert_ne!(first.eval, other.eval);
    fixture.data.val_set = ValSet::Share(0.1);
    assert_eq!(fixture.prepare().unwrap().eval.len(), 4);
    fixture.data.val_set = ValSet::Count(40);
    assert!(fixture.refused(Kind::Data).contains("holds out 40 of 40"));
}

#[test]
fn windows_of_one_text_stay_on_one_side() {
    let mut fixture = Fixture::new("");
    let mut text = String::new();
    for letter in 'a'..='t' {
        let body = letter.to_string().repeat(100);
        writeln!(text, r#"{{"text": "{body}"}}"#).unwrap();
    }
    fixture.rewrite(&text);
    fixture.data.datasets[0].format = Format::Completion;
    fixture.data.sequence_len = 30;
    fixture.data.val_set = ValSet::Count(6);
    let prepared = fixture.prepare().unwrap();
    let first: HashSet<u32> = prepared.train.iter().map(|s| s.ids[0]).collect();
    assert!(prepared.eval.len() == 24 && prepared.eval.iter().all(|s| !first.contains(&s.ids[0])));
}

#[test]
fn repeats_and_leaks_are_counted() {
    let mut fixture = Fixture::new(&format!("{}{}", rows(5), rows(2)));
    fixture.data.test_datasets = fixture.data.datasets.clone();
    fixture.data.test_datasets[0].split = Some("train[:3]".into());
    let summary = fixture.prepare().unwrap().summary;
    assert_eq!((summary.duplicates, summary.overlap, summary.eval_samples), (2, 3, 3));
    assert!(summary.warnings.iter().any(|w| w.contains("3 of 3 evaluation samples")));
}

#[test]
fn too_many_long_rows_are_refused_with_the_length_that_helps() {
    let mut fixture = Fixture::new(&rows(100));
    fixture.data.sequence_len = 19;
    let error = fixture.refused(Kind::Data);
    assert!(
        error.contains("90 of 100 rows (90.0 %)") && error.contains("`sequence_len = 20` would keep 95 %"),
        "{error}"
    );
    fixture.data.excess_length = ExcessLength::Truncate;
    let summary = fixture.prepare().unwrap().summary;
    assert_eq!((summary.truncated, summary.longest_tokens), (90, 20));
    fixture.data.sequence_len = 12;
    let warnings = fixture.prepare().unwrap().summary.warnings;
    assert!(warnings.iter().any(|w| w.contains("cut the end off every row")), "{warnings:?}");
    fixture.data.sequence_len = 5;
    let error = fixture.refused(Kind::Data);
    assert!(error.contains("100 no counted tokens"), "{error}");
    assert!(error.contains("hint: 100 rows were cut") && !error.contains("roles_to_train"), "{error}");
}

#[test]
fn a_row_that_is_too_long_is_raised_even_where_bad_ones_are_skipped() {
    let mut fixture = Fixture::new(&format!("[1]\n{}", rows(11)));
    fixture.data.on_bad_row = OnBadRow::Skip;
    fixture.data.excess_length = ExcessLength::Raise;
    assert_eq!(fixture.prepare().unwrap().summary.skipped["not an object"].rows, 1);
    fixture.data.sequence_len = 19;
    let error = fixture.refused(Kind::Data);
    assert!(error.contains("rows.jsonl:12: the row has 20 tokens, `sequence_len` is 19"), "{error}");
    assert!(!error.contains("rows.jsonl:1:"), "{error}");
}

#[test]
fn data_that_never_stops_or_counts_nothing_is_refused() {
    let mut fixture = Fixture::new(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
    );
    fixture.data.datasets[0].format = Format::ChatTemplate;
    assert_eq!(fixture.prepare().unwrap().summary.loss_tokens, 2);
    let endless = with_template("{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}");
    let error = prepare_data(&fixture.data, 1, &endless, None).unwrap_err().to_string();
    assert!(error.contains("never learn to stop"), "{error}");
    fixture.data.train_on_eos = TrainOnEos::None;
    assert!(prepare_data(&fixture.data, 1, &endless, None).unwrap().summary.warnings.len() > 1);
    fixture.data.roles_to_train = vec!["bot".into()];
    let error = fixture.refused(Kind::Data);
    assert!(error.contains("1 no counted tokens"), "{error}");
    let hint = "hint: `roles_to_train` = [\"bot\"] must name roles of the rows; `train_on_eos`";
    assert!(error.contains(hint), "{error}");
    let raising = with_template("{{ raise_exception('no') }}");
    let error = prepare_data(&fixture.data, 1, &raising, None).unwrap_err();
    assert_eq!(error.kind, Kind::Model);
    assert!(error.to_string().contains("rows.jsonl:1: chat template: the template refuses: no"), "{error}");
}

#[test]
fn rows_that_nobody_learns_from_need_no_end() {
    let mut fixture = Fixture::new(&rows(3));
    let path = fixture.folder.path().join("chat.jsonl");
    let row = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    std::fs::write(&path, row.repeat(2)).unwrap();
    let chat = source(path.to_str().unwrap(), Format::ChatTemplate);
    let endless = with_template("{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}");
    fixture.data.test_datasets = vec![chat.clone()];
    fixture.data.retention_datasets = vec![chat.clone()];
    let prepared = prepare_data(&fixture.data, 1, &endless, None).unwrap();
    assert_eq!((prepared.eval.len(), prepared.retention.judged.len()), (2, 1));
    let warnings = prepared.summary.warnings;
    assert!(!warnings.iter().any(|w| w.contains("learn to stop")), "{warnings:?}");
    let alone = data(vec![chat]);
    let error = prepare_data(&alone, 1, &endless, None).unwrap_err().to_string();
    assert!(error.contains("never learn to stop"), "{error}");
    assert_eq!(prepare_to_judge(&alone, 1, &endless).unwrap().train.len(), 2);
}

#[test]
fn the_cache_gives_the_same_rows_and_a_broken_one_is_made_anew() {
    let fixture = Fixture::new(&rows(30));
    let cache = fixture.folder.path().join("cache");
    let run = |seed| prepare_data(&fixture.data, seed, &tokenizer(), Some(&cache)).unwrap();
    let first = run(42);
    let second = run(43);
    assert_eq!((first.summary.from_cache, second.summary.from_cache), (false, true));
    assert_eq!(first.train, second.train);
    let strip = |s: &Summary| Summary { wall_s: 0.0, from_cache: false, ..s.clone() };
    assert_eq!(strip(&first.summary), strip(&second.summary));
    let kept = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&kept, "broken").unwrap();
    assert!(!run(42).summary.from_cache);
    assert!(run(42).summary.from_cache);
    fixture.rewrite(&rows(31));
    assert!(!run(42).summary.from_cache);
    let changed = Data { train_on_inputs: true, ..fixture.data.clone() };
    assert!(!prepare_data(&changed, 42, &tokenizer(), Some(&cache)).unwrap().summary.from_cache);
}

#[test]
fn a_cache_that_cannot_be_written_is_only_a_warning() {
    let fixture = Fixture::new(&rows(3));
    let file = fixture.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let summary = prepare_data(&fixture.data, 1, &tokenizer(), Some(&file)).unwrap().summary;
    assert!(summary.warnings.iter().any(|w| w.contains("not kept")), "{:?}", summary.warnings);
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let fixture = Fixture::new(&rows(500));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fixture.prepare().unwrap().train)
    };
    assert_eq!(on(1), on(7));
}

#[test]
#[ignore = "needs FTTRAIN_SMOLLM2_HF and FTTRAIN_GSM8K"]
fn of_gsm8k_the_answers_and_their_end_of_turn_are_counted() {
    use super::super::tokenizer::TokenizerFiles;
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
    let folder = std::path::PathBuf::from(variable("FTTRAIN_SMOLLM2_HF"));
    let path = variable("FTTRAIN_GSM8K");
    let files = TokenizerFiles {
        tokenizer_json: folder.join("tokenizer.json"),
        tokenizer_config: Some(folder.join("tokenizer_config.json")),
        chat_template: Some(folder.join("chat_template.jinja")),
        ..TokenizerFiles::default()
    };
    let arch = crate::arch::Arch { vocab_size: 49152, ..super::super::testing::arch() };
    let tokenizer = Tokenizer::from_files(&files, &arch, None).unwrap();
    let mut source = source(&path, Format::ChatTemplate);
    source.field_prompt = Some("question".into());
    source.field_completion = Some("answer".into());
    let rules = Data { sequence_len: 2048, ..data(vec![source]) };
    let prepared = prepare_data(&rules, 42, &tokenizer, None).unwrap();
    assert_eq!(prepared.train.len(), 7473);
    let rows = std::fs::read_to_string(&path).unwrap();
    for (sample, row) in prepared.train.iter().zip(rows.lines()) {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        let counted: Vec<u32> = sample.labels.iter().filter_map(|&l| u32::try_from(l).ok()).collect();
        let answer = row["answer"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&counted), format!("{answer}<|im_end|>"));
        let prompt = tokenizer.decode(&sample.ids[..sample.ids.len() - counted.len() - 1]);
        assert!(
            prompt.ends_with(&format!(
                "{}<|im_end|>\n<|im_start|>assistant\n",
                row["question"].as_str().unwrap()
            ))
        );
        assert!(prompt.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
    }
}
