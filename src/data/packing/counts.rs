//! What a run or an evaluation puts through the model, counted by walking its plan.

use super::eval_groups;
use super::plan::{Length, Plan};
use serde::Serialize;

/// Samples that [`Plan::counts`] looks at before it extrapolates.
const EXACT_SAMPLES: u64 = 50_000_000;
/// Steps whose sizes it keeps for their middle.
const MOST_SIZES: usize = 1 << 20;

/// What some micro-batches put through the model.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Share {
    /// Micro-batches.
    pub batches: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub loss_tokens: u64,
    /// Σ over segments of tokens².
    pub segment_squares: u64,
}

impl Share {
    fn add(&mut self, other: Self) {
        self.batches += other.batches;
        self.tokens += other.tokens;
        self.loss_tokens += other.loss_tokens;
        self.segment_squares = self.segment_squares.saturating_add(other.segment_squares);
    }
}

/// What a run will put through the model; counted, except where `exact` is false.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Counts {
    /// Optimizer steps.
    pub steps: u64,
    /// Micro-batches.
    pub batches: u64,
    /// Samples, one segment each.
    pub segments: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub loss_tokens: u64,
    /// Σ over segments of tokens²: what attention costs.
    pub segment_squares: u64,
    /// Of each step, what the process with the most tokens takes.
    pub slowest: Share,
    /// Tokens of the largest micro-batch.
    pub max_batch_tokens: u64,
    /// Targets of the micro-batch with the most.
    pub max_batch_targets: u64,
    /// Σ of tokens² of the micro-batch with the most.
    pub max_batch_squares: u64,
    /// Tokens / micro-batches.
    pub mean_batch_tokens: f64,
    /// Tokens of the middle step behind the first one, of the process with the most.
    pub median_step_tokens: f64,
    /// Passes over the data.
    pub epochs: f64,
    /// Every step was counted; otherwise the later epochs were taken to be like the first ones.
    pub exact: bool,
}

impl Counts {
    fn add(&mut self, samples: impl Iterator<Item = Length>) -> Share {
        let (mut tokens, mut targets, mut squares) = (0, 0, 0);
        for sample in samples {
            let length = u64::from(sample.tokens);
            self.segments += 1;
            tokens += length;
            targets += u64::from(sample.loss_tokens);
            squares += length * length;
        }
        self.batches += 1;
        self.tokens += tokens;
        self.loss_tokens += targets;
        self.segment_squares = self.segment_squares.saturating_add(squares);
        self.max_batch_tokens = self.max_batch_tokens.max(tokens);
        self.max_batch_targets = self.max_batch_targets.max(targets);
        self.max_batch_squares = self.max_batch_squares.max(squares);
        Share { batches: 1, tokens, loss_tokens: targets, segment_squares: squares }
    }

    /// Stretches the sums from the steps counted to `steps`.
    fn stretch(&mut self, steps: u64) {
        let counted = self.steps.max(1);
        let stretch = |n: u64| {
            let exact = u128::from(n) * u128::from(steps) / u128::from(counted);
            u64::try_from(exact).unwrap_or(u64::MAX)
        };
        for sum in [
            &mut self.batches,
            &mut self.segments,
            &mut self.tokens,
            &mut self.loss_tokens,
            &mut self.segment_squares,
            &mut self.slowest.batches,
            &mut self.slowest.tokens,
            &mut self.slowest.loss_tokens,
            &mut self.slowest.segment_squares,
        ] {
            *sum = stretch(*sum);
        }
        self.epochs *= steps as f64 / counted as f64;
        self.steps = steps;
        self.exact = false;
    }

    /// With what follows from the sums, and from the tokens of each step.
    pub(super) fn closed(mut self, mut steps: Vec<u64>) -> Self {
        self.mean_batch_tokens = self.tokens as f64 / self.batches.max(1) as f64;
        let behind = if steps.len() > 1 { &mut steps[1..] } else { &mut steps };
        behind.sort_unstable();
        let at = |i: usize| behind.get(i).map_or(0.0, |tokens| *tokens as f64);
        self.median_step_tokens = f64::midpoint(at(behind.len().saturating_sub(1) / 2), at(behind.len() / 2));
        self
    }
}
impl Plan {
    /// Walks the run's steps and counts what they hold.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { exact: true, ..Counts::default() };
        if self.lengths.is_empty() {
            return counts;
        }
        let epochs = match self.order.max_steps {
            Some(_) => u64::MAX,
            None => self.order.num_epochs as u64,
        };
        let wanted = self.order.max_steps.unwrap_or(u64::MAX);
        let (mut epoch, mut sizes) = (0, Vec::new());
        while epoch < epochs && counts.steps < wanted {
            if epoch > 0 && epoch.saturating_mul(self.rows() as u64) >= EXACT_SAMPLES {
                let steps = match self.order.max_steps {
                    Some(steps) => steps,
                    None => counts.steps.saturating_mul(epochs) / epoch,
                };
                counts.stretch(steps);
                return counts.closed(sizes);
            }
            let packs = self.packs(epoch);
            let steps = self.steps_of(packs.len());
            let taken = steps.min(wanted - counts.steps);
            let last = usize::try_from(taken).unwrap_or(usize::MAX);
            for step in packs.chunks(self.packs_per_step()).take(last) {
                let mut shares = vec![Share::default(); self.order.processes.max(1)];
                for (i, batch) in step.chunks(self.order.micro_batch_size.max(1)).enumerate() {
                    let share = counts.add(batch.iter().flatten().map(|&s| self.length(s)));
                    let process = i % shares.len();
                    shares[process].add(share);
                }
                let slowest = shares.into_iter().max_by_key(|share| share.tokens).unwrap_or_default();
                counts.slowest.add(slowest);
                if sizes.len() < MOST_SIZES {
                    sizes.push(slowest.tokens);
                }
            }
            counts.steps += taken;
            counts.epochs += taken as f64 / steps.max(1) as f64;
            epoch += 1;
        }
        counts.closed(sizes)
    }
}

/// What one evaluation puts through the model; `steps` stays 0.
pub fn eval_counts(lengths: &[Length], max_tokens: usize) -> Counts {
    let mut counts = Counts { exact: true, ..Counts::default() };
    let mut rest = lengths.iter().copied();
    for n in eval_groups(lengths.iter().map(|l| l.tokens as usize), max_tokens) {
        counts.add(rest.by_ref().take(n));
    }
    counts.closed(Vec::new())
}
