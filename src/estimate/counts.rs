//! The plain numbers of a packed dataset and its schedule that the estimate needs: tokens, targets, segments.

use super::work::Volume;
use super::{product, rounded, wide};
use crate::config::{Config, Format, Source, ValSet};
use crate::data::Batch;
use serde::{Deserialize, Serialize};

/// What the whole run sees, all epochs; a resumed run counts what is left.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Optimizer steps.
    pub steps: u64,
    /// Micro-batches: passes through the model.
    pub micro_batches: u64,
    /// Real input tokens.
    pub tokens: u64,
    /// Tokens of the middle step behind the first one, of the process with the most; 0 = steps are alike.
    #[serde(default)]
    pub median_step_tokens: f64,
    /// Targets after the shift.
    pub loss_tokens: u64,
    /// Σ length² over all segments: attention's work is half of it.
    pub segment_squares: f64,
    /// Tokens of the longest micro-batch.
    pub max_batch_tokens: u64,
    /// Targets of the micro-batch with most.
    pub max_batch_targets: u64,
    /// Training samples: no micro-batch can have more rows.
    pub rows: u64,
    /// Tokens of the longest of them; 0 = not known.
    #[serde(default)]
    pub longest: u64,
    /// Tokens of all samples that are kept in memory, training and evaluation.
    pub data_tokens: u64,
    /// One evaluation, and how many there are.
    pub eval: EvalCounts,
    /// One evaluation of what is not to be forgotten, and how many there are.
    #[serde(default)]
    pub retention: EvalCounts,
    /// One backward pass over rows that must not be forgotten, for EWC, and whether there is one.
    #[serde(default)]
    pub fisher: EvalCounts,
    /// What the process with the most to do takes; `None` = there is one process.
    #[serde(default)]
    pub shared: Option<Shared>,
    /// The run turns text into tokens itself; not where an earlier process left them.
    #[serde(default)]
    pub tokenises: bool,
    /// Rows and lengths were stated or assumed, not counted.
    pub assumed: bool,
}

/// What is left for one of several processes that share a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// How many they are.
    pub processes: u64,
    /// Of each step, what the slowest of them takes.
    pub slowest: Volume,
}

/// One pass over the evaluation set.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct EvalCounts {
    /// Evaluations in the run; 0 = no evaluation set.
    pub passes: u64,
    /// Micro-batches.
    pub micro_batches: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets after the shift.
    pub loss_tokens: u64,
    /// Σ length² over the segments.
    pub segment_squares: f64,
    /// Tokens of the longest micro-batch.
    pub max_batch_tokens: u64,
}

impl EvalCounts {
    /// Adds one micro-batch; the passes are set apart, for evaluations by [`eval_passes`].
    pub fn add(&mut self, batch: &Batch) {
        let tokens = wide(batch.ids.len());
        self.micro_batches = self.micro_batches.saturating_add(1);
        self.tokens = self.tokens.saturating_add(tokens);
        self.loss_tokens = self.loss_tokens.saturating_add(wide(batch.targets.len()));
        self.segment_squares += squares(batch);
        self.max_batch_tokens = self.max_batch_tokens.max(tokens);
    }

    /// What goes through the model of one process in one pass that so many share.
    pub(crate) fn volume(&self, processes: u64) -> Volume {
        let calls = self.micro_batches.div_ceil(processes.max(1)) as f64;
        let share = calls / self.micro_batches.max(1) as f64;
        Volume {
            tokens: share * self.tokens as f64,
            targets: share * self.loss_tokens as f64,
            squares: share * self.segment_squares,
            calls,
        }
    }
}

fn squares(batch: &Batch) -> f64 {
    batch.segments.iter().map(|s| (s.len() as f64).powi(2)).sum()
}

impl Counts {
    /// Adds one optimizer step.
    pub fn add_step(&mut self, batches: &[Batch]) {
        self.steps = self.steps.saturating_add(1);
        for batch in batches {
            let (tokens, targets) = (wide(batch.ids.len()), wide(batch.targets.len()));
            self.micro_batches = self.micro_batches.saturating_add(1);
            self.tokens = self.tokens.saturating_add(tokens);
            self.loss_tokens = self.loss_tokens.saturating_add(targets);
            self.segment_squares += squares(batch);
            self.max_batch_tokens = self.max_batch_tokens.max(tokens);
            self.max_batch_targets = self.max_batch_targets.max(targets);
        }
    }

    /// Processes that share the run.
    pub fn processes(&self) -> u64 {
        self.shared.map_or(1, |shared| shared.processes)
    }

    /// As many micro-batches that hold a smaller `part` of the `whole`'s tokens.
    #[must_use]
    pub fn with_less(self, part: u64, whole: u64) -> Self {
        let share = part as f64 / whole.max(1) as f64;
        let less = |n: u64| rounded(n as f64 * share).max(n.min(1));
        let of_slowest = |v: Volume| Volume {
            tokens: v.tokens * share,
            targets: v.targets * share,
            squares: v.squares * share,
            ..v
        };
        Self {
            tokens: less(self.tokens),
            loss_tokens: less(self.loss_tokens),
            segment_squares: self.segment_squares * share,
            shared: self.shared.map(|s| Shared { slowest: of_slowest(s.slowest), ..s }),
            ..self
        }
    }

    /// Tokens of the middle step, which is the one that a median of steps' seconds is of.
    pub fn middle_step_tokens(&self) -> f64 {
        let mean = self.volume().tokens / self.steps.max(1) as f64;
        if self.median_step_tokens > 0.0 { self.median_step_tokens } else { mean }
    }

    /// What goes through the model of one process in training.
    pub fn volume(&self) -> Volume {
        if let Some(shared) = &self.shared {
            return shared.slowest;
        }
        Volume {
            tokens: self.tokens as f64,
            targets: self.loss_tokens as f64,
            squares: self.segment_squares,
            calls: self.micro_batches as f64,
        }
    }

    /// The counts of `rows` rows of `tokens_per_row` tokens each, for an estimate without data.
    ///
    /// Assumes equal rows, replayed ones like the others, every token but the first a target (an upper bound); longer
    /// rows are cut at `sequence_len`, plain text into as many windows as it fills. A retention set is not evaluated, and
    /// EWC's pass over it left out, because nobody said how long it is.
    pub fn uniform(rows: u64, tokens_per_row: u64, config: &Config) -> Self {
        let (train, sequence) = (&config.train, wide(config.data.sequence_len).max(1));
        let is_text = |source: &Source| source.format == Format::Completion;
        let windows = match config.data.datasets.first() {
            Some(source) if is_text(source) => tokens_per_row.div_ceil(sequence).max(1),
            _ => 1,
        };
        let rows = product(&[rows, windows]);
        let length = tokens_per_row.div_ceil(windows).min(sequence);
        let held_out = match config.data.val_set {
            ValSet::None => 0,
            ValSet::Share(share) => rounded(rows as f64 * share).min(rows),
            ValSet::Count(n) => product(&[wide(n), windows]).min(rows),
        };
        let own = rows - held_out;
        let share = config.data.retention_share;
        let train_rows = own.saturating_add(rounded(own as f64 * share / (1.0 - share)));
        let per_pack = if config.data.sample_packing { (sequence / length.max(1)).max(1) } else { 1 };
        let packs = train_rows.div_ceil(per_pack);
        let micro = wide(train.micro_batch_size).max(1);
        let batches_per_epoch = packs.div_ceil(micro);
        let accumulation = wide(train.gradient_accumulation_steps).max(1);
        let steps_per_epoch = batches_per_epoch.div_ceil(accumulation);
        let steps = train.max_steps.unwrap_or_else(|| product(&[steps_per_epoch, wide(train.num_epochs)]));
        let epochs = if steps_per_epoch == 0 { 0.0 } else { steps as f64 / steps_per_epoch as f64 };
        let rows_seen = rounded(train_rows as f64 * epochs);
        let batch_rows = product(&[micro.min(packs), per_pack]).min(train_rows);
        // An evaluation takes as many rows at once as packs of training could hold.
        let judged_rows = (product(&[micro, sequence]) / length.max(1)).max(1);
        Self {
            steps,
            micro_batches: rounded(batches_per_epoch as f64 * epochs),
            tokens: product(&[rows_seen, length]),
            median_step_tokens: 0.0,
            loss_tokens: product(&[rows_seen, length.saturating_sub(1)]),
            segment_squares: rows_seen as f64 * (length as f64).powi(2),
            max_batch_tokens: product(&[batch_rows, length]),
            max_batch_targets: product(&[batch_rows, length.saturating_sub(1)]),
            rows: train_rows,
            longest: length,
            shared: None,
            data_tokens: product(&[rows, length]),
            retention: EvalCounts::default(),
            fisher: EvalCounts::default(),
            eval: EvalCounts {
                passes: if held_out == 0 { 0 } else { eval_passes(steps, config.schedule.eval_steps) },
                micro_batches: held_out.div_ceil(judged_rows),
                tokens: product(&[held_out, length]),
                loss_tokens: product(&[held_out, length.saturating_sub(1)]),
                segment_squares: held_out as f64 * (length as f64).powi(2),
                max_batch_tokens: product(&[judged_rows.min(held_out), length]),
            },
            tokenises: config.data.reads_text(),
            assumed: true,
        }
    }
}

/// Evaluations of a run of `steps` steps: at step 0, every `eval_steps`, and at the end unless it was just done.
pub fn eval_passes(steps: u64, eval_steps: Option<u64>) -> u64 {
    match eval_steps {
        Some(every) if every > 0 => {
            let on_time = steps / every;
            1 + on_time + u64::from(!steps.is_multiple_of(every))
        }
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sample;
    use crate::estimate::fixture::config;

    fn sample(length: usize) -> Sample {
        Sample { ids: vec![1; length], labels: vec![1; length] }
    }

    #[test]
    fn a_step_counts_tokens_targets_and_squares() {
        let (a, b, c) = (sample(3), sample(5), sample(4));
        let mut counts = Counts::default();
        counts.add_step(&[Batch::new([&a, &b], 0), Batch::new([&c], 8)]);
        assert_eq!((counts.steps, counts.micro_batches, counts.tokens), (1, 2, 12));
        assert_eq!(counts.loss_tokens, 2 + 4 + 3);
        assert!((counts.segment_squares - (9.0 + 25.0 + 16.0)).abs() < 1e-9);
        assert_eq!((counts.max_batch_tokens, counts.max_batch_targets), (8, 6));
    }

    #[test]
    fn equal_rows_are_packed_as_the_packer_would() {
        let mut config = config();
        config.data.sequence_len = 1000;
        config.train.micro_batch_size = 2;
        config.train.gradient_accumulation_steps = 3;
        // 3 rows of 300 a pack, 34 packs, 17 micro-batches, 6 steps an epoch.
        let counts = Counts::uniform(100, 300, &config);
        assert_eq!((counts.steps, counts.micro_batches, counts.tokens), (6, 17, 30_000));
        assert_eq!(counts.max_batch_tokens, 1800);
        config.train.max_steps = Some(12);
        assert_eq!(Counts::uniform(100, 300, &config).tokens, 60_000);
        config.train.max_steps = None;
        config.data.retention_share = 0.2;
        assert_eq!(Counts::uniform(100, 300, &config).tokens, 125 * 300);
    }

    #[test]
    fn evaluations_are_counted_at_the_start_on_time_and_at_the_end_once() {
        assert_eq!(eval_passes(100, Some(50)), 3);
        assert_eq!(eval_passes(101, Some(50)), 4);
        assert_eq!(eval_passes(100, None), 2);
    }
}
