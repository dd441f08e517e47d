//! The order of an epoch and what goes through the model together: rows to packs, packs to micro-batches, those to
//! optimizer steps. The plan follows from lengths and seed alone, so that a run can be counted before it starts and
//! joined at any step.

mod counts;
mod plan;

pub use counts::{Counts, Share, eval_counts};
pub use plan::{Length, Order, Plan};

use super::error::Error;
use super::{Batch, Sample};
use plan::Packs;

/// One optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The epoch that it belongs to, from 0.
    pub epoch: u64,
    /// Epochs completed when it is done.
    pub epoch_fraction: f64,
    /// Its micro-batches.
    pub batches: Vec<Batch>,
    /// Indexes of its samples, for messages.
    pub samples: Vec<u32>,
}

/// The training samples in the order of the run.
#[derive(Debug)]
pub struct Epochs {
    plan: Plan,
    /// The run's own, then those that may be replayed.
    samples: Vec<Sample>,
    constant: Option<u64>,
    /// First step of each epoch known so far, and one behind the last of them.
    starts: Vec<u64>,
    /// The epoch asked for last.
    current: Option<(u64, Packs)>,
    total: u64,
}

impl Epochs {
    /// Plans a run over these samples; packs every epoch once to count the steps unless `max_steps` says them.
    pub fn new(samples: Vec<Sample>, order: Order) -> Self {
        Self::replaying(samples, Vec::new(), 0, order)
    }

    /// The same with `replayed` samples an epoch out of `kept`.
    pub fn replaying(mut samples: Vec<Sample>, kept: Vec<Sample>, replayed: usize, order: Order) -> Self {
        let plan = Plan::new(samples.iter().map(Length::from).collect(), order);
        let plan = plan.replaying(kept.iter().map(Length::from), replayed);
        if replayed > 0 {
            samples.extend(kept);
        }
        let mut epochs =
            Self { constant: plan.constant_steps(), plan, samples, starts: vec![0], current: None, total: 0 };
        if !epochs.samples.is_empty() {
            epochs.total = match order.max_steps {
                Some(steps) => steps,
                None => epochs.start_of(order.num_epochs as u64),
            };
        }
        epochs
    }

    /// Steps of the run.
    pub fn total_steps(&self) -> u64 {
        self.total
    }

    /// Steps of an epoch, from 0.
    pub fn steps_in_epoch(&mut self, epoch: u64) -> u64 {
        match self.constant {
            Some(steps) => steps,
            None => self.start_of(epoch + 1) - self.start_of(epoch),
        }
    }

    /// The samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The plan, for counting.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Step `k` of the run, from 0; any order, cheap within an epoch.
    ///
    /// # Errors
    /// There is no such step.
    pub fn step(&mut self, k: u64) -> Result<Step, Error> {
        let none = || Error::NoSuchStep { step: k, steps: self.total };
        if k >= self.total {
            return Err(none());
        }
        let epoch = self.epoch_of(k);
        let first = self.start_of(epoch);
        let steps = self.steps_in_epoch(epoch).max(1);
        let per_step = self.plan.packs_per_step();
        let micro = self.plan.order.micro_batch_size.max(1);
        let within = usize::try_from(k - first).unwrap_or(usize::MAX);
        let packs: Vec<Vec<u32>> =
            self.epoch_packs(epoch).chunks(per_step).nth(within).map(<[_]>::to_vec).unwrap_or_default();
        let mut batches = Vec::new();
        let mut first_token = 0;
        for group in packs.chunks(micro) {
            let samples = group.iter().flatten().filter_map(|&i| self.samples.get(i as usize));
            let batch = Batch::new(samples, first_token);
            first_token += batch.tokens() as u64;
            batches.push(batch);
        }
        Ok(Step {
            epoch,
            epoch_fraction: epoch as f64 + (k - first + 1) as f64 / steps as f64,
            batches,
            samples: packs.into_iter().flatten().collect(),
        })
    }

    fn epoch_packs(&mut self, epoch: u64) -> &Packs {
        let kept = self.current.take().filter(|(e, _)| *e == epoch);
        let packs = kept.map_or_else(|| self.plan.packs(epoch), |(_, packs)| packs);
        &self.current.insert((epoch, packs)).1
    }

    fn epoch_of(&mut self, k: u64) -> u64 {
        if let Some(steps) = self.constant {
            return k / steps.max(1);
        }
        while self.starts.last().is_some_and(|&end| end <= k) {
            self.learn_next();
        }
        self.starts.partition_point(|&start| start <= k) as u64 - 1
    }

    fn start_of(&mut self, epoch: u64) -> u64 {
        if let Some(steps) = self.constant {
            return steps.saturating_mul(epoch);
        }
        let at = usize::try_from(epoch).unwrap_or(usize::MAX);
        while self.starts.len() <= at {
            self.learn_next();
        }
        self.starts.get(at).copied().unwrap_or(u64::MAX)
    }

    fn learn_next(&mut self) {
        let epoch = self.starts.len() as u64 - 1;
        let packs = self.epoch_packs(epoch).len();
        let end = self.starts.last().copied().unwrap_or(0) + self.plan.steps_of(packs).max(1);
        self.starts.push(end);
    }
}

/// Groups of neighbours of at most `max_tokens` tokens each, a longer sample alone.
fn eval_groups(lengths: impl Iterator<Item = usize>, max_tokens: usize) -> Vec<usize> {
    let mut groups: Vec<usize> = Vec::new();
    let mut left = 0;
    for length in lengths {
        match groups.last_mut() {
            Some(group) if length <= left => *group += 1,
            _ => {
                groups.push(1);
                left = max_tokens.max(length);
            }
        }
        left -= length;
    }
    groups
}

/// Evaluation samples in file order, whole samples up to `max_tokens` a batch.
pub fn eval_batches(eval: &[Sample], max_tokens: usize) -> Vec<Batch> {
    let mut rest = eval.iter();
    eval_groups(eval.iter().map(|s| s.ids.len()), max_tokens)
        .into_iter()
        .map(|n| Batch::new(rest.by_ref().take(n), 0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(lengths: &[usize]) -> Vec<Sample> {
        let sample = |(i, &n): (usize, &usize)| {
            let id = u32::try_from(i).unwrap();
            Sample { ids: vec![id; n], labels: vec![i32::try_from(i).unwrap(); n] }
        };
        lengths.iter().enumerate().map(sample).collect()
    }

    fn order() -> Order {
        Order {
            sequence_len: 10,
            sample_packing: true,
            shuffle: true,
            micro_batch_size: 2,
            gradient_accumulation_steps: 2,
            processes: 1,
            num_epochs: 3,
            max_steps: None,
            seed: 42,
        }
    }

    fn many() -> Vec<usize> {
        (0..97).map(|i| 1 + (i * 7) % 10).collect()
    }

    #[test]
    fn every_epoch_holds_each_sample_once_and_no_pack_overflows() {
        for (sample_packing, shuffle) in [(true, true), (true, false), (false, true), (false, false)] {
            let order = Order { sample_packing, shuffle, ..order() };
            let lengths = many();
            let plan = Plan::new(samples(&lengths).iter().map(Length::from).collect(), order);
            for epoch in 0..3 {
                let packs = plan.packs(epoch);
                let mut seen: Vec<u32> = packs.iter().flatten().copied().collect();
                if !shuffle {
                    assert!(seen.is_sorted());
                }
                seen.sort_unstable();
                assert_eq!(seen, (0..97).collect::<Vec<_>>());
                for pack in &packs {
                    let tokens: usize = pack.iter().map(|&i| lengths[i as usize]).sum();
                    assert!(tokens <= 10, "{tokens}");
                    assert!(sample_packing || pack.len() == 1);
                }
            }
            assert_eq!(plan.packs(0) == plan.packs(1), !shuffle);
        }
    }

    #[test]
    fn best_fit_fills_the_fullest_pack_that_has_room() {
        let lengths = [6, 7, 3, 4, 9];
        let plan = Plan::new(samples(&lengths).iter().map(Length::from).collect(), order());
        assert_eq!(plan.best_fit(&[0, 1, 2, 3, 4]), [vec![0, 3], vec![1, 2], vec![4]]);
        assert_eq!(plan.next_fit(&[0, 1, 2, 3, 4]), [vec![0], vec![1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn steps_never_cross_an_epoch_and_the_short_last_one_is_kept() {
        let order = Order { sample_packing: false, ..order() };
        let mut epochs = Epochs::new(samples(&[3; 10]), order);
        assert_eq!((epochs.total_steps(), epochs.steps_in_epoch(1)), (9, 3));
        for k in 0..9 {
            let step = epochs.step(k).unwrap();
            assert_eq!(step.epoch, k / 3);
            let short = k % 3 == 2;
            assert_eq!(step.samples.len(), if short { 2 } else { 4 });
            assert_eq!(step.batches.len(), if short { 1 } else { 2 });
            assert!((step.epoch_fraction - (k + 1) as f64 / 3.0).abs() < 1e-12);
        }
        assert!(epochs.step(9).is_err());
    }

    #[test]
    fn a_step_is_the_same_however_it_is_reached() {
        let mut forward = Epochs::new(samples(&many()), order());
        let total = forward.total_steps();
        let all: Vec<Step> = (0..total).map(|k| forward.step(k).unwrap()).collect();
        for k in (0..total).rev() {
            let mut anew = Epochs::new(samples(&many()), order());
            assert_eq!(anew.step(k).unwrap(), all[usize::try_from(k).unwrap()]);
        }
        let per_epoch: u64 = (0..3).map(|e| forward.steps_in_epoch(e)).sum();
        assert_eq!(per_epoch, total);
        assert!((all.last().unwrap().epoch_fraction - 3.0).abs() < 1e-12);
    }

    #[test]
    fn one_by_four_is_four_by_one() {
        let run = |micro_batch_size, gradient_accumulation_steps| {
            let order = Order { micro_batch_size, gradient_accumulation_steps, ..order() };
            let mut epochs = Epochs::new(samples(&many()), order);
            (0..epochs.total_steps())
                .map(|k| {
                    let step = epochs.step(k).unwrap();
                    // Rows of a step are numbered through, whatever the micro-batches.
                    let numbered: Vec<(u64, u32)> = step
                        .batches
                        .iter()
                        .flat_map(|b| b.ids.iter().zip(b.first_token..).map(|(&id, n)| (n, id)))
                        .collect();
                    assert!(numbered.iter().zip(0..).all(|((n, _), i)| *n == i));
                    numbered
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1, 4), run(4, 1));
        assert_eq!(run(2, 2), run(4, 1));
    }

    #[test]
    fn replayed_samples_are_drawn_anew_each_epoch_and_each_comes_before_any_comes_twice() {
        for (sample_packing, shuffle) in [(true, true), (true, false), (false, true), (false, false)] {
            let order = Order { sample_packing, shuffle, ..order() };
            let anew = || Epochs::replaying(samples(&[3; 20]), samples(&[2; 7]), 5, order);
            let mut epochs = anew();
            let total = epochs.total_steps();
            let mut all: Vec<Step> = Vec::new();
            for k in 0..total {
                all.push(epochs.step(k).unwrap());
            }
            let mut seen = Vec::new();
            for epoch in 0..3 {
                let of = all.iter().filter(|step| step.epoch == epoch).flat_map(|step| &step.samples);
                let (own, mut kept): (Vec<u32>, Vec<u32>) = of.partition(|&&i| i < 20);
                assert_eq!((own.len(), kept.len()), (20, 5));
                kept.sort_unstable();
                seen.push(kept);
            }
            assert_ne!(seen[0], seen[1]);
            let mut first: Vec<u32> = seen.concat();
            first.sort_unstable();
            // Fifteen of seven: each twice, and one of them again.
            first.dedup();
            assert_eq!(first, (20..27).collect::<Vec<_>>());
            for (k, step) in (0..total).zip(&all) {
                assert_eq!(anew().step(k).unwrap(), *step, "a step is the same however it is reached");
            }
            let counts = epochs.plan().counts();
            assert_eq!((counts.steps, counts.segments, counts.tokens), (total, 75, 3 * (60 + 10)));
        }
    }

    #[test]
    fn in_file_order_replayed_samples_stand_evenly_among_the_others() {
        let order = Order { shuffle: false, sample_packing: false, ..order() };
        let mut epochs = Epochs::replaying(samples(&[3; 9]), samples(&[2; 50]), 3, order);
        let first: Vec<u32> = (0..3).flat_map(|k| epochs.step(k).unwrap().samples).collect();
        let places: Vec<usize> =
            first.iter().enumerate().filter(|(_, i)| **i >= 9).map(|(place, _)| place).collect();
        assert_eq!((first.len(), places), (12, vec![3, 7, 11]));
    }

    #[test]
    fn max_steps_wins_and_repeats_epochs() {
        let order = Order { max_steps: Some(50), ..order() };
        let mut epochs = Epochs::new(samples(&[5, 5, 5]), order);
        assert_eq!(epochs.total_steps(), 50);
        let step = epochs.step(49).unwrap();
        assert_eq!((step.epoch, step.samples.len()), (49, 3));
        assert_eq!(epochs.plan().counts().tokens, 50 * 15);
        let mut huge =
            Epochs::new(samples(&[5]), Order { max_steps: Some(u64::MAX), shuffle: false, ..order });
        assert_eq!(huge.step(u64::MAX - 1).unwrap().samples, [0]);
    }

    #[test]
    fn counts_are_what_the_steps_hold() {
        for order in [order(), Order { max_steps: Some(17), ..order() }, Order { processes: 3, ..order() }] {
            let mut epochs = Epochs::new(samples(&many()), order);
            let counts = epochs.plan().counts();
            let mut found = Counts { exact: true, ..Counts::default() };
            let mut sizes = Vec::new();
            for k in 0..epochs.total_steps() {
                let step = epochs.step(k).unwrap();
                found.epochs = step.epoch_fraction;
                found.steps += 1;
                // What each process takes, and of it what the one with most tokens does.
                let mut shares = vec![Share::default(); order.processes];
                for (i, batch) in step.batches.iter().enumerate() {
                    let lengths: Vec<u64> = batch.segments.iter().map(|s| s.len() as u64).collect();
                    let squares = lengths.iter().map(|l| l * l).sum();
                    let share = &mut shares[i % order.processes];
                    share.batches += 1;
                    share.tokens += batch.tokens() as u64;
                    share.loss_tokens += batch.targets.len() as u64;
                    share.segment_squares += squares;
                    found.batches += 1;
                    found.segments += lengths.len() as u64;
                    found.tokens += batch.tokens() as u64;
                    found.loss_tokens += batch.targets.len() as u64;
                    found.segment_squares += squares;
                    found.max_batch_tokens = found.max_batch_tokens.max(batch.tokens() as u64);
                    found.max_batch_targets = found.max_batch_targets.max(batch.targets.len() as u64);
                    found.max_batch_squares = found.max_batch_squares.max(squares);
                }
                let most = shares.into_iter().max_by_key(|share| share.tokens).unwrap();
                sizes.push(most.tokens);
                found.slowest.batches += most.batches;
                found.slowest.tokens += most.tokens;
                found.slowest.loss_tokens += most.loss_tokens;
                found.slowest.segment_squares += most.segment_squares;
            }
            let found = found.closed(sizes);
            let whole = order.processes == 1;
            assert_eq!(
                whole,
                found.slowest.tokens == found.tokens,
                "one process takes all, of three none does"
            );
            assert!((found.epochs - counts.epochs).abs() < 1e-9);
            assert_eq!(Counts { epochs: counts.epochs, ..found }, counts);
        }
    }

    #[test]
    fn the_middle_step_is_that_of_the_measured_ones_behind_the_first() {
        let middle = |sizes: &[u64]| Counts::default().closed(sizes.to_vec()).median_step_tokens;
        let of = [middle(&[]), middle(&[7]), middle(&[100, 7]), middle(&[1, 16, 8]), middle(&[1, 9, 2, 5])];
        assert_eq!(of.map(f64::to_bits), [0.0, 7.0, 7.0, 12.0, 5.0].map(f64::to_bits));
    }

    #[test]
    fn an_endless_plan_is_stretched_and_says_so() {
        let order = Order { max_steps: Some(1 << 40), ..order() };
        let lengths = vec![Length { tokens: 5, loss_tokens: 2 }; 1 << 16];
        let counts = Plan::new(lengths, order).counts();
        assert!(!counts.exact);
        assert_eq!(counts.steps, 1 << 40);
        assert_eq!(counts.tokens, (1 << 40) * 40);
    }

    #[test]
    fn evaluation_takes_every_sample_in_order() {
        let eval = samples(&[4, 4, 4, 20, 1]);
        let batches = eval_batches(&eval, 10);
        let lengths: Vec<Vec<usize>> =
            batches.iter().map(|b| b.segments.iter().map(ExactSizeIterator::len).collect()).collect();
        assert_eq!(lengths, [vec![4, 4], vec![4], vec![20], vec![1]]);
        let all: Vec<Length> = eval.iter().map(Length::from).collect();
        let counts = eval_counts(&all, 10);
        assert_eq!((counts.batches, counts.tokens, counts.max_batch_tokens), (4, 33, 20));
        assert!(eval_batches(&[], 10).is_empty());
    }
}
