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
mod tests;
