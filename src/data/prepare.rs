//! From the config's datasets to samples: read, tokenise with all cores, cut or leave out what is too long, hold rows
//! out for evaluation, and judge whether there is anything to learn. The result depends on files, tokenizer and
//! config alone, never on the number of threads.

use super::Sample;
use super::error::Error;
use super::reader::hex;
use super::rng::Rng;
use super::source::{Loaded, Preparation, SHOWN, Stats, is_chat};
use super::summary::Summary;
use super::tokenizer::Tokenizer;
use crate::config::{Config, Data, Source, ValSet};
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

/// Samples for training and evaluation, and what they are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// In file order.
    pub train: Vec<Sample>,
    /// In file order.
    pub eval: Vec<Sample>,
    /// One a dataset: rows of its file, from 0, that `val_set_size` keeps from training.
    pub held_out: Vec<HashSet<u64>>,
    /// Of the retention set.
    pub retention: Retention,
    /// Counts and warnings.
    pub summary: Summary,
}

/// What a model is not to forget, in two halves that share no row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Retention {
    /// Evaluated before and after, and never learned from.
    pub judged: Vec<Sample>,
    /// For EWC, and drawn from for replay.
    pub kept: Vec<Sample>,
    /// Of `kept`, how many are replayed in each epoch.
    pub replayed: usize,
}

/// Reads and tokenises what the config names; `cache_dir` keeps the ids for the next run.
///
/// # Errors
/// A file that cannot be read, rows that are wrong, or data that nothing can be learned from.
pub fn prepare(config: &Config, tokenizer: &Tokenizer, cache_dir: Option<&Path>) -> Result<Prepared> {
    prepare_data(&config.data, config.train.seed, tokenizer, cache_dir)
}

/// [`prepare`] from the parts of the config that matter.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_data(
    data: &Data,
    seed: u64,
    tokenizer: &Tokenizer,
    cache_dir: Option<&Path>,
) -> Result<Prepared> {
    prepare_rows(data, seed, tokenizer, cache_dir, true)
}

/// [`prepare_data`] for rows that nobody learns from: it is no fault of theirs that none ends in a counted token.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_to_judge(data: &Data, seed: u64, tokenizer: &Tokenizer) -> Result<Prepared> {
    prepare_rows(data, seed, tokenizer, None, false)
}

/// `learned`: the run learns from the rows of `datasets`; from the others nobody does.
fn prepare_rows(
    data: &Data,
    seed: u64,
    tokenizer: &Tokenizer,
    cache_dir: Option<&Path>,
    learned: bool,
) -> Result<Prepared> {
    let started = Instant::now();
    let preparation = Preparation { data, tokenizer, cache_dir, stop_ids: tokenizer.stop_ids() };
    let mut summary = Summary { notes: tokenizer.notes().to_vec(), from_cache: true, ..Summary::default() };
    let mut hash = Sha256::new();
    let mut load = |source: &Source, learned: bool| -> Result<Loaded> {
        let (loaded, sha256, cached) = preparation.source(source, learned, &mut summary.warnings)?;
        summary.from_cache &= cached;
        hash.update(&sha256);
        add_stats(&mut summary, &loaded.stats);
        Ok(loaded)
    };
    let mut load_all = |sources: &[Source], learned: bool| -> Result<Vec<Loaded>> {
        sources.iter().map(|source| load(source, learned)).collect()
    };
    let train = load_all(&data.datasets, learned)?;
    let tests = load_all(&data.test_datasets, false)?;
    let retention = load_all(&data.retention_datasets, false)?;
    summary.sha256 = hex(&hash.finalize());
    let (train, mut eval, held_out) = hold_out(train, data.val_set, seed)?;
    let retention = Retention::parted(retention, seed)?.at_share(data.retention_share, train.len());
    eval.extend(tests.into_iter().flat_map(|l| l.samples));
    if data.datasets.iter().any(|s| is_chat(s.format)) {
        summary.warnings.extend(tokenizer.audit());
    }
    count(&mut summary, &train, &eval, &retention);
    summary.wall_s = started.elapsed().as_secs_f64();
    Ok(Prepared { train, eval, held_out, retention, summary })
}

fn add_stats(summary: &mut Summary, stats: &Stats) {
    summary.rows += stats.rows;
    summary.truncated += stats.truncated;
    summary.special_text_rows += stats.special_text;
    summary.longest_tokens = summary.longest_tokens.max(stats.longest);
    for (reason, skipped) in &stats.skipped {
        let all = summary.skipped.entry(reason.clone()).or_default();
        all.rows += skipped.rows;
        let room = SHOWN.saturating_sub(all.places.len());
        all.places.extend(skipped.places.iter().take(room).cloned());
    }
}

/// Samples on both sides of the split, and the rows of each source that are held out.
type Parted = (Vec<Sample>, Vec<Sample>, Vec<HashSet<u64>>);

/// Splits rows, not samples: windows of one text stay on one side. The rows that the seeded shuffle puts last are
/// held out, and named for each source; both sides keep the files' order.
fn hold_out(sources: Vec<Loaded>, val_set: ValSet, seed: u64) -> Result<Parted, Error> {
    // The rows that left a sample, in order: of which source, and where in it.
    let mut rows: Vec<(usize, u64)> = Vec::new();
    for (at, source) in sources.iter().enumerate() {
        rows.extend(source.rows.iter().map(|&row| (at, u64::from(row))));
    }
    rows.dedup();
    let held_out = match val_set {
        ValSet::None => 0,
        // At least one row: a share was asked for.
        ValSet::Share(share) => nearest(rows.len() as f64 * share).max(1),
        ValSet::Count(count) => count,
    };
    if held_out > 0 && held_out >= rows.len() {
        return Err(Error::ValSet { held_out, rows: rows.len() });
    }
    let mut held = vec![HashSet::new(); sources.len()];
    Rng::new(seed, "val_set", 0, 0).shuffle(&mut rows);
    for (at, row) in rows.split_off(rows.len() - held_out) {
        held[at].insert(row);
    }
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for (source, held) in sources.into_iter().zip(&held) {
        for (row, sample) in source.rows.into_iter().zip(source.samples) {
            if held.contains(&u64::from(row)) { &mut eval } else { &mut train }.push(sample);
        }
    }
    Ok((train, eval, held))
}

impl Retention {
    /// Half of the rows to be judged, the others to be kept.
    fn parted(sources: Vec<Loaded>, seed: u64) -> Result<Self, Error> {
        if sources.is_empty() {
            return Ok(Self::default());
        }
        let few = |error| match error {
            Error::ValSet { rows, .. } => Error::Retention { rows },
            other => other,
        };
        let (kept, judged, _) = hold_out(sources, ValSet::Share(0.5), seed).map_err(few)?;
        Ok(Self { judged, kept, replayed: 0 })
    }

    /// The same with as many samples to replay as make up `share` of an epoch's, beside `train` of the run's own.
    fn at_share(mut self, share: f64, train: usize) -> Self {
        if share > 0.0 && !self.kept.is_empty() {
            // At least one: a share was asked for.
            self.replayed = nearest(train as f64 * share / (1.0 - share)).max(1);
        }
        self
    }
}

/// A number of rows from a share of them: between 0 and the rows, whose number fits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn nearest(rows: f64) -> usize {
    rows.round() as usize
}

fn count(summary: &mut Summary, train: &[Sample], eval: &[Sample], retention: &Retention) {
    let tokens = |all: &[Sample]| all.iter().map(|s| s.ids.len() as u64).sum::<u64>();
    let targets = |all: &[Sample]| all.iter().map(|s| s.loss_tokens() as u64).sum::<u64>();
    summary.train_samples = train.len() as u64;
    summary.eval_samples = eval.len() as u64;
    (summary.tokens, summary.loss_tokens) = (tokens(train), targets(train));
    (summary.eval_tokens, summary.eval_loss_tokens) = (tokens(eval), targets(eval));
    summary.loss_token_share = summary.loss_tokens as f64 / summary.tokens.max(1) as f64;
    summary.mean_tokens = summary.tokens as f64 / train.len().max(1) as f64;
    let mut known: HashSet<[u8; 32]> = HashSet::with_capacity(train.len());
    summary.duplicates = train.iter().filter(|s| !known.insert(identity(s))).count() as u64;
    let Retention { judged, kept, replayed } = retention;
    if *replayed > 0 {
        known.extend(kept.iter().map(identity));
    }
    summary.overlap = eval.iter().filter(|s| known.contains(&identity(s))).count() as u64;
    if summary.overlap > 0 {
        summary.warnings.push(format!(
            "{} of {} evaluation samples are also trained on: the evaluation loss will look too good",
            summary.overlap, summary.eval_samples
        ));
    }
    summary.retention_samples = judged.len() as u64;
    summary.replayed_samples = *replayed as u64;
    let learned = judged.iter().filter(|s| known.contains(&identity(s))).count();
    if learned > 0 {
        summary.warnings.push(format!(
            "{learned} of {} samples that the retention set is judged by are also trained on: less will seem to be lost",
            judged.len()
        ));
    }
}

/// SHA-256 of ids and labels.
fn identity(sample: &Sample) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((sample.ids.len() as u64).to_le_bytes());
    sample.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    sample.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
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
        assert!(fixture.refused(Kind::Data).contains("no rows are left of 1: 1 not an object"));
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
        assert!(
            warnings[0].starts_with("10 of 10 samples that the retention set is judged by"),
            "{warnings:?}"
        );
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
        let all =
            prepare_data(&Data { val_set: ValSet::None, ..fixture.data.clone() }, 42, &tokenizer(), None)
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
            error.contains("90 of 100 rows (90.0 %)")
                && error.contains("`sequence_len = 20` would keep 95 %"),
            "{error}"
        );
        fixture.data.excess_length = ExcessLength::Truncate;
        let summary = fixture.prepare().unwrap().summary;
        assert_eq!((summary.truncated, summary.longest_tokens), (90, 20));
        fixture.data.sequence_len = 12;
        let warnings = fixture.prepare().unwrap().summary.warnings;
        assert!(warnings.iter().any(|w| w.contains("cut the end off every row")), "{warnings:?}");
        fixture.data.sequence_len = 5;
        assert!(fixture.refused(Kind::Data).contains("100 no counted tokens"));
    }

    #[test]
    fn data_that_never_stops_or_counts_nothing_is_refused() {
        let mut fixture = Fixture::new(
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
        );
        fixture.data.datasets[0].format = Format::ChatTemplate;
        assert_eq!(fixture.prepare().unwrap().summary.loss_tokens, 2);
        let endless =
            with_template("{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}");
        let error = prepare_data(&fixture.data, 1, &endless, None).unwrap_err().to_string();
        assert!(error.contains("never learn to stop"), "{error}");
        fixture.data.train_on_eos = TrainOnEos::None;
        assert!(prepare_data(&fixture.data, 1, &endless, None).unwrap().summary.warnings.len() > 1);
        fixture.data.roles_to_train = vec!["bot".into()];
        assert!(fixture.refused(Kind::Data).contains("1 no counted tokens"));
        let raising = with_template("{{ raise_exception('no') }}");
        let error = prepare_data(&fixture.data, 1, &raising, None).unwrap_err();
        assert_eq!(error.kind, Kind::Model);
        assert!(
            error.to_string().contains("rows.jsonl:1: chat template: the template refuses: no"),
            "{error}"
        );
    }

    #[test]
    fn rows_that_nobody_learns_from_need_no_end() {
        let mut fixture = Fixture::new(&rows(3));
        let path = fixture.folder.path().join("chat.jsonl");
        let row = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
        std::fs::write(&path, row.repeat(2)).unwrap();
        let chat = source(path.to_str().unwrap(), Format::ChatTemplate);
        let endless =
            with_template("{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}");
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
            assert!(prompt.ends_with(&format!(
                "{}<|im_end|>\n<|im_start|>assistant\n",
                row["question"].as_str().unwrap()
            )));
            assert!(prompt.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
        }
    }
}
