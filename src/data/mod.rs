//! From files of rows to micro-batches: readers, formats, chat template, tokenizer, masks, packing and the order of
//! an epoch. A batch has no padding: its rows lie end to end, and segments say what may attend to what.

mod cache;
mod error;
mod formats;
mod json;
pub mod packing;
pub mod prepare;
pub mod questions;
pub mod reader;
pub mod rng;
mod source;
mod split;
mod summary;
mod template;
#[cfg(test)]
mod testing;
pub mod tokenizer;
mod turns;

pub use error::{Error, RowFault};
pub use formats::alpaca_prompt;
pub use prepare::{Prepared, prepare};
pub use summary::Summary;

use std::ops::Range;

/// The label of a token that is not counted in the loss (transformers' −100).
pub const IGNORE: i32 = -100;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Its row marks it with `weight` 0: it is read, and never counted in the loss.
    pub muted: bool,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned(), muted: false }
    }
}

/// One tokenised row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// One a token, aligned with `ids` as in transformers; [`IGNORE`] = not counted. The first is never a target.
    pub labels: Vec<i32>,
}

impl Sample {
    /// Targets after the shift: the labels from the second on that count.
    pub fn loss_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&l| l != IGNORE).count()
    }
}

/// A position whose next token is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the batch's hidden states that predicts it.
    pub at: u32,
    /// The token that should come next.
    pub token: u32,
}

/// One micro-batch, its rows end to end: N tokens in all, nothing padded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// N token ids.
    pub ids: Vec<u32>,
    /// N positions, from 0 in each segment.
    pub positions: Vec<u32>,
    /// Each sample's range in `ids`; ascending, disjoint, covering all. Attention stays inside.
    pub segments: Vec<Range<usize>>,
    /// What the loss is taken over, ascending in `at`.
    pub targets: Vec<Target>,
    /// Tokens of the same optimizer step in the micro-batches before this one: row i is row `first_token + i` of the
    /// step, whatever the micro-batches, and dropout follows from that number.
    pub first_token: u64,
}

impl Batch {
    /// Lays samples end to end.
    pub fn new<'a>(samples: impl IntoIterator<Item = &'a Sample>, first_token: u64) -> Self {
        let mut batch = Self { first_token, ..Self::default() };
        for sample in samples {
            let start = batch.ids.len();
            batch.ids.extend_from_slice(&sample.ids);
            batch.positions.extend(0..u32::try_from(sample.ids.len()).unwrap_or(u32::MAX));
            batch.segments.push(start..batch.ids.len());
            for (i, &label) in sample.labels.iter().enumerate().skip(1) {
                if let (Ok(token), Ok(at)) = (u32::try_from(label), u32::try_from(start + i - 1)) {
                    batch.targets.push(Target { at, token });
                }
            }
        }
        batch
    }

    /// N.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}
