//! One dataset: its rows read, tokenised with all cores and counted, or taken from the cache; refused where nothing
//! can be learned from it. Knows nothing of the other datasets.

use super::error::{Error, RowFault};
use super::formats::{self, Encoder, Outcome, TOO_LONG};
use super::reader::{self, Line, Lines, hex};
use super::split::Split;
use super::summary::Skipped;
use super::tokenizer::Tokenizer;
use super::{IGNORE, Sample, cache, json};
use crate::config::{Data, ExcessLength, Format, OnBadRow, Source, TrainOnEos};
use crate::error::{Fault, Problem, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Rows that are tokenised at once, and the bytes beyond which fewer are.
const BATCH: (usize, usize) = (4096, 8 << 20);
/// Bad rows shown before a dataset is refused.
pub(super) const SHOWN: usize = 5;
/// The reason of [`Outcome::left_out`] beside [`TOO_LONG`].
const NOTHING_COUNTED: &str = "no counted tokens";
/// Share of rows that `"drop"` may leave out.
const MAX_DROPPED: f64 = 0.05;

/// One source, tokenised.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Loaded {
    pub(super) samples: Vec<Sample>,
    /// One a sample, ascending: the row it comes from.
    pub(super) rows: Vec<u32>,
    pub(super) stats: Stats,
}

/// What was counted while a source was tokenised.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Stats {
    /// Rows inside the split.
    pub(super) rows: u64,
    pub(super) skipped: BTreeMap<String, Skipped>,
    pub(super) truncated: u64,
    pub(super) longest: u64,
    /// Rows with names of special tokens.
    pub(super) special_text: u64,
    /// Samples with a target that ends a turn or a text.
    pub(super) stopping: u64,
    /// Length that would keep 95 % of the rows, where all were counted.
    pub(super) keeps: Option<u64>,
}

pub(super) fn is_chat(format: Format) -> bool {
    matches!(format, Format::ChatTemplate | Format::Sharegpt)
}

/// What every source of a run is prepared with.
pub(super) struct Preparation<'a> {
    pub(super) data: &'a Data,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) cache_dir: Option<&'a Path>,
    pub(super) stop_ids: Vec<u32>,
}

impl Preparation<'_> {
    /// One source with its file's SHA-256, and whether it came from the cache; `learned`: the run learns from its rows.
    pub(super) fn source(
        &self,
        source: &Source,
        learned: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(Loaded, String, bool)> {
        if is_chat(source.format) && !self.tokenizer.has_template() {
            let format = formats::name(source.format);
            return Err(Error::NoTemplate { format }.into());
        }
        let split = Split::parse(source.split.as_deref().unwrap_or("train"))?;
        let sha256 = reader::sha256(&source.path)?;
        let key = self.key(source, &sha256);
        let cached = self.cache_dir.and_then(|folder| cache::read(folder, &key));
        let from_cache = cached.is_some();
        let loaded = match cached {
            Some(loaded) => loaded,
            None => self.tokenise(source, split, &sha256)?,
        };
        self.judge(source, &loaded, warnings)?;
        if learned && loaded.stats.stopping == 0 {
            self.judge_ends(source, &loaded, warnings)?;
        }
        if let (Some(folder), false) = (self.cache_dir, from_cache)
            && let Err(error) = cache::write(folder, &key, &loaded)
        {
            warnings.push(format!("tokenised rows are not kept in {}: {error}", folder.display()));
        }
        Ok((loaded, sha256, from_cache))
    }

    /// All that a source's ids follow from.
    fn key(&self, source: &Source, sha256: &str) -> String {
        let data = self.data;
        let rules = (
            env!("CARGO_PKG_VERSION"),
            sha256,
            self.tokenizer.fingerprint(),
            // The path stands in the places of rows that were left out.
            source,
            (data.sequence_len, data.excess_length, data.train_on_inputs, &data.roles_to_train),
            (data.train_on_eos, data.on_bad_row, data.max_line_bytes),
        );
        let rules = serde_json::to_vec(&rules).unwrap_or_default();
        hex(&Sha256::digest(&rules))
    }

    fn tokenise(&self, source: &Source, split: Split, sha256: &str) -> Result<Loaded> {
        let open = || Lines::open(&source.path, self.data.max_line_bytes);
        let rows = if split.needs_count() { count_rows(open()?)? } else { u64::MAX };
        let mut lines = open()?;
        let mut work = Work {
            preparation: self,
            source,
            range: split.range(rows),
            row: 0,
            first_keys: None,
            loaded: Loaded::default(),
            lengths: Vec::new(),
        };
        while work.row < work.range.end {
            let batch = lines.batch(BATCH.0, BATCH.1)?;
            if batch.is_empty() {
                break;
            }
            work.batch(batch)?;
        }
        if lines.finish()? != sha256 {
            let path = source.path.clone();
            return Err(Error::Changed { path }.into());
        }
        Ok(work.finish())
    }

    /// Refuses a source from which nothing can be learned.
    fn judge(&self, source: &Source, loaded: &Loaded, warnings: &mut Vec<String>) -> Result<()> {
        let stats = &loaded.stats;
        let path = || source.path.clone();
        if loaded.samples.is_empty() {
            let counts: Vec<String> = stats
                .skipped
                .iter()
                .map(|(reason, s)| format!("{} {reason} ({})", s.rows, s.places.join(", ")))
                .collect();
            let reasons = if counts.is_empty() {
                format!(" of {}", stats.rows)
            } else {
                format!(" of {}: {}", stats.rows, counts.join("; "))
            };
            let error = crate::error::Error::from(Error::NoRows { path: path(), reasons });
            return Err(match self.way_to_count(source.format, stats) {
                Some(way) => error.hint(way),
                None => error,
            });
        }
        let dropped = stats.skipped.get(TOO_LONG).map_or(0, |s| s.rows);
        let share = dropped as f64 / stats.rows.max(1) as f64;
        if share > MAX_DROPPED && self.data.excess_length == ExcessLength::Drop {
            return Err(Error::TooManyDropped {
                path: path(),
                dropped,
                rows: stats.rows,
                share: 100.0 * share,
                limit: self.data.sequence_len,
                keeps: stats.keeps,
            }
            .into());
        }
        if stats.special_text > 0 {
            warnings.push(format!(
                "{}: {} rows hold names of special tokens, such as <|im_end|>, in their text; they are encoded as text",
                source.path.display(),
                stats.special_text
            ));
        }
        Ok(())
    }

    /// What counts more tokens, where rows are left out for the lack of them above all.
    fn way_to_count(&self, format: Format, stats: &Stats) -> Option<String> {
        let uncounted = stats.skipped.get(NOTHING_COUNTED)?.rows;
        if stats.skipped.values().any(|other| other.rows > uncounted) {
            return None;
        }
        let roles = format!(
            "`roles_to_train` = {:?} must name roles of the rows; `train_on_eos` can count ends of turns",
            self.data.roles_to_train
        );
        let cut = format!("{} rows were cut: a longer `sequence_len` keeps more of them", stats.truncated);
        let ways = [(is_chat(format), roles), (stats.truncated > 0, cut)].into_iter();
        let ways: Vec<String> = ways.filter_map(|(helps, way)| helps.then_some(way)).collect();
        (!ways.is_empty()).then(|| ways.join("; "))
    }

    /// Refuses rows that are learned from and of which none ends in a counted token, unless the config asks for it: by
    /// its format, by `train_on_eos`, or by cutting every row.
    fn judge_ends(&self, source: &Source, loaded: &Loaded, warnings: &mut Vec<String>) -> Result<(), Error> {
        let truncated = loaded.stats.truncated;
        let taught = !matches!(source.format, Format::Completion | Format::Tokenized);
        // Only `"truncate"`, which is nobody's default, cuts rows of the other formats, and to this length.
        let is_cut = |sample: &Sample| sample.ids.len() >= self.data.sequence_len;
        let why = if !taught || self.data.train_on_eos == TrainOnEos::None {
            "no counted token ends a text, so the model does not learn to stop"
        } else if truncated > 0 && loaded.samples.iter().all(is_cut) {
            "`excess_length_strategy = \"truncate\"` cut the end off every row, so the model does not learn to stop; \
             a longer `sequence_len` keeps it"
        } else {
            return Err(Error::NeverStops {
                path: source.path.clone(),
                truncated: 100.0 * truncated as f64 / loaded.stats.rows.max(1) as f64,
            });
        };
        warnings.push(format!("{}: {why}", source.path.display()));
        Ok(())
    }
}

/// The state of a source that is being tokenised.
struct Work<'a> {
    preparation: &'a Preparation<'a>,
    source: &'a Source,
    /// Rows of the split.
    range: Range<u64>,
    /// Rows met so far.
    row: u64,
    /// Fields of the first row, for messages.
    first_keys: Option<String>,
    loaded: Loaded,
    /// Tokens of each row, for the hint; emptied where one was not counted.
    lengths: Vec<u64>,
}

impl Work<'_> {
    fn batch(&mut self, lines: Vec<Line>) -> Result<()> {
        if let (None, Some(first)) = (&self.first_keys, lines.first()) {
            self.first_keys = Some(first.text.as_ref().map_or_else(|_| String::new(), |t| json::keys(t)));
        }
        let first = self.row;
        self.row += lines.len() as u64;
        let wanted: Vec<(u64, Line)> =
            (first..).zip(lines).filter(|(row, _)| self.range.contains(row)).collect();
        let (preparation, source) = (self.preparation, self.source);
        let outcomes: Vec<(u64, u64, Result<Outcome, RowFault>)> = wanted
            .into_par_iter()
            .map(|(row, line)| {
                let encoder = Encoder { tokenizer: preparation.tokenizer, rules: preparation.data };
                let text = line.text;
                let outcome = text
                    .and_then(|text| formats::parse(source, &text))
                    .and_then(|parsed| encoder.encode(parsed));
                (row, line.number, outcome)
            })
            .collect();
        let mut problems = Vec::new();
        let (mut kind, mut bad) = (None, 0);
        for (row, number, outcome) in outcomes {
            self.loaded.stats.rows += 1;
            match outcome {
                Ok(outcome) => self.keep(row, number, outcome),
                // `"raise"` refuses the dataset for a row that is too long, which is not a bad one.
                Err(fault)
                    if self.preparation.data.on_bad_row == OnBadRow::Skip
                        && !matches!(fault, RowFault::TooLong { .. }) =>
                {
                    self.skip(fault.reason(), number);
                }
                Err(fault) => {
                    bad += 1;
                    kind.get_or_insert(fault.kind());
                    if problems.len() < SHOWN {
                        problems.push(self.problem(number, fault));
                    }
                }
            }
        }
        let Some(kind) = kind else { return Ok(()) };
        if bad > problems.len() {
            problems.push(Problem {
                message: format!(
                    "{}: {} more rows like these",
                    self.source.path.display(),
                    bad - problems.len()
                ),
                hint: None,
            });
        }
        Err(crate::error::Error { kind, problems })
    }

    fn keep(&mut self, row: u64, number: u64, outcome: Outcome) {
        let stats = &mut self.loaded.stats;
        stats.longest = stats.longest.max(outcome.tokens);
        stats.truncated += u64::from(outcome.truncated);
        stats.special_text += u64::from(outcome.foreign);
        self.lengths.push(if outcome.uncounted { u64::MAX } else { outcome.tokens });
        let stops = |sample: &&Sample| {
            let counted = sample.labels.iter().skip(1).filter(|&&l| l != IGNORE);
            counted.clone().any(|&l| u32::try_from(l).is_ok_and(|id| self.preparation.stop_ids.contains(&id)))
        };
        stats.stopping += outcome.samples.iter().filter(stops).count() as u64;
        let row = u32::try_from(row).unwrap_or(u32::MAX);
        for sample in outcome.samples {
            self.loaded.rows.push(row);
            self.loaded.samples.push(sample);
        }
        if let Some(reason) = outcome.left_out {
            self.skip(reason, number);
        }
    }

    fn skip(&mut self, reason: &str, number: u64) {
        let skipped = self.loaded.stats.skipped.entry(reason.to_owned()).or_default();
        skipped.rows += 1;
        if skipped.places.len() < SHOWN {
            skipped.places.push(format!("{}:{number}", self.source.path.display()));
        }
    }

    fn problem(&self, number: u64, fault: RowFault) -> Problem {
        let fault = match (fault, &self.first_keys) {
            (RowFault::Missing { field, shapes }, Some(first)) if !shapes.ends_with(first.as_str()) => {
                RowFault::Missing { field, shapes: format!("{shapes}; the first row has {first}") }
            }
            (fault, _) => fault,
        };
        let column = fault.column().map_or(String::new(), |c| format!(":{c}"));
        Problem {
            message: format!("{}:{number}{column}: {fault}", self.source.path.display()),
            hint: fault.hint(),
        }
    }

    fn finish(mut self) -> Loaded {
        self.lengths.sort_unstable();
        let at = self.lengths.len().saturating_mul(95).div_ceil(100).saturating_sub(1);
        self.loaded.stats.keeps = self.lengths.get(at).copied().filter(|&tokens| tokens < u64::MAX);
        self.loaded
    }
}

fn count_rows(mut lines: Lines) -> Result<u64, Error> {
    let mut rows = 0;
    while lines.next_line()?.is_some() {
        rows += 1;
    }
    Ok(rows)
}
