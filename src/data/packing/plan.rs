//! Which samples go together: packs and their order in each epoch, from lengths and seed alone.

use crate::config::Config;
use crate::data::Sample;
use crate::data::rng::Rng;
use std::collections::BTreeSet;

/// What a sample weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// Tokens.
    pub tokens: u32,
    /// Targets after the shift.
    pub loss_tokens: u32,
}

impl From<&Sample> for Length {
    fn from(sample: &Sample) -> Self {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { tokens: count(sample.ids.len()), loss_tokens: count(sample.loss_tokens()) }
    }
}

/// The part of a config that decides what goes together and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Tokens of a pack.
    pub sequence_len: usize,
    /// Several samples a pack.
    pub sample_packing: bool,
    /// A new order each epoch.
    pub shuffle: bool,
    /// Packs a micro-batch.
    pub micro_batch_size: usize,
    /// Micro-batches that each process takes in a step.
    pub gradient_accumulation_steps: usize,
    /// Processes that share the steps; the micro-batches of each are dealt out to them in turn.
    pub processes: usize,
    /// Passes over the data where `max_steps` is not set.
    pub num_epochs: usize,
    /// Steps, whatever the epochs.
    pub max_steps: Option<u64>,
    /// What the order follows from.
    pub seed: u64,
}

impl From<&Config> for Order {
    fn from(config: &Config) -> Self {
        let (data, train) = (&config.data, &config.train);
        Self {
            sequence_len: data.sequence_len,
            sample_packing: data.sample_packing,
            shuffle: data.shuffle,
            micro_batch_size: train.micro_batch_size,
            gradient_accumulation_steps: train.gradient_accumulation_steps,
            processes: 1,
            num_epochs: train.num_epochs,
            max_steps: train.max_steps,
            seed: train.seed,
        }
    }
}

/// Which samples go together, by their lengths alone.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of the run's own samples, then of those that may be replayed.
    pub(super) lengths: Vec<Length>,
    pub(super) order: Order,
    /// The run's own samples.
    own: usize,
    /// Of the others, how many come into each epoch.
    replayed: usize,
}

/// One epoch's packs: indexes of samples, in the order in which they are trained on.
pub(super) type Packs = Vec<Vec<u32>>;

impl Plan {
    /// A plan for samples of these lengths.
    pub fn new(lengths: Vec<Length>, order: Order) -> Self {
        Self { own: lengths.len(), lengths, order, replayed: 0 }
    }

    /// The same with `replayed` samples an epoch out of `kept`, drawn anew for each.
    #[must_use]
    pub fn replaying(mut self, kept: impl Iterator<Item = Length>, replayed: usize) -> Self {
        self.lengths.extend(kept);
        self.replayed = if self.lengths.len() > self.own { replayed } else { 0 };
        self
    }

    /// Processes that share the steps.
    pub fn processes(&self) -> usize {
        self.order.processes
    }

    /// Samples of an epoch.
    pub fn rows(&self) -> usize {
        self.own.saturating_add(self.replayed)
    }

    /// The packs of an epoch, from 0.
    pub fn packs(&self, epoch: u64) -> Packs {
        let mut order = self.samples(epoch);
        if self.order.shuffle {
            Rng::new(self.order.seed, "shuffle", epoch, 0).shuffle(&mut order);
        }
        match (self.order.sample_packing, self.order.shuffle) {
            (false, _) => order.into_iter().map(|i| vec![i]).collect(),
            (true, true) => self.best_fit(&order),
            (true, false) => self.next_fit(&order),
        }
    }

    /// The samples of an epoch in file order, those that are replayed spread evenly among them.
    fn samples(&self, epoch: u64) -> Vec<u32> {
        let own = 0..numbered(self.own);
        if self.replayed == 0 {
            return own.collect();
        }
        let mut drawn = self.drawn(epoch).into_iter();
        let mut samples = Vec::with_capacity(self.rows());
        for (i, sample) in own.enumerate() {
            samples.push(sample);
            let due = (i + 1).saturating_mul(self.replayed) / self.own;
            samples.extend(drawn.by_ref().take(due.saturating_sub(samples.len() - i - 1)));
        }
        samples
    }

    /// What an epoch replays: the next of one endless sequence of shuffles, so that each comes once before any comes
    /// twice.
    fn drawn(&self, epoch: u64) -> Vec<u32> {
        let kept = numbered(self.own)..numbered(self.lengths.len());
        let first = epoch.saturating_mul(self.replayed as u64);
        let each = (kept.len() as u64).max(1);
        let mut skipped = usize::try_from(first % each).unwrap_or_default();
        let mut drawn = Vec::with_capacity(self.replayed);
        let mut round = first / each;
        while drawn.len() < self.replayed && !kept.is_empty() {
            let mut order: Vec<u32> = kept.clone().collect();
            Rng::new(self.order.seed, "replay", round, 0).shuffle(&mut order);
            drawn.extend(order.into_iter().skip(skipped).take(self.replayed - drawn.len()));
            skipped = 0;
            round = round.saturating_add(1);
        }
        drawn
    }

    pub(super) fn length(&self, sample: u32) -> Length {
        let none = Length { tokens: 0, loss_tokens: 0 };
        self.lengths.get(sample as usize).copied().unwrap_or(none)
    }

    /// Each sample goes where the least room is left behind it, the older pack where two are alike; packs stay in
    /// the order of their first samples.
    pub(super) fn best_fit(&self, order: &[u32]) -> Packs {
        let mut packs: Packs = Vec::new();
        let mut open: BTreeSet<(usize, usize)> = BTreeSet::new();
        for &sample in order {
            let need = self.length(sample).tokens as usize;
            let fit = open.range((need, 0)..).next().copied();
            let (left, pack) = fit.unwrap_or_else(|| {
                packs.push(Vec::new());
                (self.order.sequence_len.max(need), packs.len() - 1)
            });
            open.remove(&(left, pack));
            packs[pack].push(sample);
            if left > need {
                open.insert((left - need, pack));
            }
        }
        packs
    }

    /// A sample that does not fit behind the one before it opens the next pack.
    pub(super) fn next_fit(&self, order: &[u32]) -> Packs {
        let mut packs: Packs = Vec::new();
        let mut left = 0;
        for &sample in order {
            let need = self.length(sample).tokens as usize;
            match packs.last_mut() {
                Some(pack) if need <= left => pack.push(sample),
                _ => {
                    packs.push(vec![sample]);
                    left = self.order.sequence_len.max(need);
                }
            }
            left -= need;
        }
        packs
    }

    pub(super) fn packs_per_step(&self) -> usize {
        let order = &self.order;
        let each = order.micro_batch_size.saturating_mul(order.gradient_accumulation_steps);
        each.saturating_mul(order.processes).max(1)
    }

    pub(super) fn steps_of(&self, packs: usize) -> u64 {
        packs.div_ceil(self.packs_per_step()) as u64
    }

    /// Steps of every epoch where all have the same number.
    pub(super) fn constant_steps(&self) -> Option<u64> {
        match (self.order.sample_packing, self.order.shuffle) {
            (false, _) => Some(self.steps_of(self.rows())),
            (true, false) if self.replayed == 0 => Some(self.steps_of(self.packs(0).len())),
            (true, _) => None,
        }
    }
}

/// Samples are numbered in 32 bits.
fn numbered(samples: usize) -> u32 {
    u32::try_from(samples).unwrap_or(u32::MAX)
}
