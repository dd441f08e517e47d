//! A sample of the data: as long and as short as the whole, and rows to judge it by that it has never seen.

use crate::data::Sample;
use crate::data::rng::Rng;
use crate::fs;
use std::collections::HashSet;
use std::fmt::Write;

/// Rows of a pilot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drawn {
    /// One of each stratum of equal length.
    pub train: Vec<Sample>,
    /// To evaluate on; none of them has the content of a training row.
    pub held_out: Vec<Sample>,
    /// Rows that they stand for.
    pub candidates: usize,
}

/// Rows that are held out at least, as far as there are so many and whatever they cost: fewer say nothing of a loss.
const LEAST_HELD_OUT: usize = 32;
/// Of the training tokens: the evaluations, which are forward passes alone, are not to cost more than the training.
const HELD_OUT_SHARE: f64 = 0.25;

/// About `tokens` tokens of `train`, stratified by length, and held-out rows from `eval`, or from `train` where there
/// are none.
pub fn draw(train: &[Sample], eval: &[Sample], tokens: u64, seed: u64) -> Drawn {
    let mut order: Vec<(usize, String)> =
        train.iter().enumerate().map(|(at, sample)| (at, hash(sample))).collect();
    order.sort_by_cached_key(|(at, hash)| (train.get(*at).map_or(0, |s| s.ids.len()), hash.clone()));
    let drawn = stratified(&order, share_of(train, tokens), seed);
    let seen: HashSet<&str> = drawn.iter().map(|(_, hash)| hash.as_str()).collect();
    let is_new = |sample: &&Sample| !seen.contains(hash(sample).as_str());
    let mut others: Vec<&(usize, String)> =
        order.iter().filter(|(_, h)| !seen.contains(h.as_str())).collect();
    others.sort_by(|a, b| a.1.cmp(&b.1));
    let candidates: Vec<&Sample> = if eval.is_empty() {
        others.iter().filter_map(|(at, _)| train.get(*at)).collect()
    } else {
        eval.iter().filter(is_new).collect()
    };
    let room = HELD_OUT_SHARE * tokens as f64;
    let mut held = 0.0;
    let mut held_out: Vec<Sample> = Vec::new();
    for sample in &candidates {
        if held >= room && held_out.len() >= LEAST_HELD_OUT {
            break;
        }
        held += sample.ids.len() as f64;
        held_out.push((*sample).clone());
    }
    let train = drawn.iter().filter_map(|(at, _)| train.get(*at).cloned()).collect();
    Drawn { train, held_out, candidates: candidates.len() }
}

/// Rows of `train` that hold so many tokens on average: never all of them, for some must be held out.
fn share_of(train: &[Sample], tokens: u64) -> usize {
    let all: usize = train.iter().map(|s| s.ids.len()).sum();
    let rows = (train.len() as f64 * tokens as f64 / all.max(1) as f64).ceil();
    let rows = usize::try_from(crate::estimate::rounded(rows)).unwrap_or(usize::MAX);
    rows.clamp(1, train.len().saturating_sub(train.len() / 8).max(1))
}

/// `rows` of a sorted list: one at random of each of as many parts of equal size.
fn stratified(order: &[(usize, String)], rows: usize, seed: u64) -> Vec<&(usize, String)> {
    let one = |stratum: usize| {
        let (from, to) = (stratum * order.len() / rows, (stratum + 1) * order.len() / rows);
        let part = order.get(from..to).filter(|part| !part.is_empty())?;
        let at = Rng::new(seed, "pilot", stratum as u64, 0).below(part.len() as u64);
        part.get(usize::try_from(at).ok()?)
    };
    (0..rows).filter_map(one).collect()
}

/// SHA-256 of the ids: two rows that share it are the same text.
fn hash(sample: &Sample) -> String {
    let bytes: Vec<u8> = sample.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    fs::sha256_bytes(&bytes)
}

/// Rows as a file of the type `tokenized`.
pub fn jsonl(samples: &[Sample]) -> String {
    let mut text = String::new();
    for sample in samples {
        let line = serde_json::json!({ "input_ids": sample.ids, "labels": sample.labels });
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row n has n tokens, and is there twice.
    fn rows(n: u32) -> Vec<Sample> {
        let row = |length: u32| Sample { ids: (0..length).collect(), labels: vec![1; length as usize] };
        (1..=n).flat_map(|length| [row(length), row(length)]).collect()
    }

    #[test]
    fn a_sample_is_as_long_as_the_whole_and_the_same_each_time() {
        let rows = rows(400);
        let drawn = draw(&rows, &[], 8020, 1);
        assert_eq!(drawn.train.len(), 40, "a twentieth of the tokens is a twentieth of the rows");
        let tokens: usize = drawn.train.iter().map(|s| s.ids.len()).sum();
        assert!((7800..=8240).contains(&tokens), "{tokens}");
        for (at, sample) in drawn.train.iter().enumerate() {
            assert!((10 * at..=10 * (at + 1)).contains(&sample.ids.len()), "stratum {at}");
        }
        assert_eq!(drawn, draw(&rows, &[], 8020, 1));
        assert_ne!(drawn, draw(&rows, &[], 8020, 2));
    }

    #[test]
    fn no_held_out_row_has_the_content_of_a_training_row() {
        let rows = rows(100);
        for eval in [Vec::new(), rows.clone()] {
            let drawn = draw(&rows, &eval, 3000, 7);
            assert!(drawn.held_out.len() >= LEAST_HELD_OUT);
            let seen: HashSet<String> = drawn.train.iter().map(hash).collect();
            assert!(drawn.held_out.iter().all(|sample| !seen.contains(&hash(sample))));
        }
    }

    #[test]
    fn a_pilot_of_more_than_there_is_takes_most_of_it() {
        let rows = rows(4);
        assert_eq!(draw(&rows, &[], u64::MAX, 1).train.len(), 7);
        assert_eq!(draw(&[], &[], 10, 1), Drawn::default());
    }

    #[test]
    fn rows_are_written_as_the_trainer_reads_them() {
        let text = jsonl(&[Sample { ids: vec![5, 6], labels: vec![-100, 6] }]);
        assert_eq!(text, "{\"input_ids\":[5,6],\"labels\":[-100,6]}\n");
    }
}
