//! Which tokens of a text the loss is taken over.

use super::super::tokenizer::Encoded;
use super::super::turns::Place;
use super::super::{IGNORE, Message};
use crate::config::{Data, TrainOnEos};
use std::ops::Range;

/// A range of a text whose tokens are counted.
#[derive(Debug)]
pub(super) struct Counted {
    range: Range<usize>,
    /// Also a token that starts inside and ends beyond: an end-of-turn token may take white space along.
    touched: bool,
}

impl Counted {
    /// A token is counted iff it ends inside: one that straddles the range's start is the first that the model
    /// could not have been given whole.
    pub(super) fn by_end(range: Range<usize>) -> Self {
        Self { range, touched: false }
    }

    fn touched(range: Range<usize>) -> Self {
        Self { range, touched: true }
    }

    pub(super) fn all(text: &str) -> Self {
        Self::by_end(0..text.len())
    }

    /// All but the messages that are muted.
    pub(super) fn all_but_muted(text: &str, messages: &[Message], places: &[Place]) -> Vec<Self> {
        let mut from = 0;
        let mut counted = Vec::new();
        for place in places.iter().filter(|p| messages.get(p.message).is_some_and(|m| m.muted)) {
            counted.push(Self::by_end(from..place.start));
            from = place.end_of_turn.as_ref().map_or(place.content.end, |end| end.end);
        }
        counted.push(Self::by_end(from..text.len()));
        counted
    }

    fn has(&self, start: usize, end: usize) -> bool {
        (self.range.start < end && end <= self.range.end) || (self.touched && self.range.contains(&start))
    }
}

/// The labels of a text whose counted ranges ascend.
pub(super) fn labels(encoded: &Encoded, counted: &[Counted]) -> Vec<i32> {
    let mut ahead = counted;
    let tokens = encoded.ids.iter().zip(&encoded.offsets);
    tokens
        .map(|(&id, &(start, end))| {
            while let Some((first, rest)) = ahead.split_first()
                && first.range.end <= start
            {
                ahead = rest;
            }
            let mut near = ahead.iter().take_while(|c| c.range.start < end);
            if near.any(|c| c.has(start, end)) { label(id) } else { IGNORE }
        })
        .collect()
}

/// Ids are below 2³¹: the embedding's rows were checked against them.
pub(super) fn label(id: u32) -> i32 {
    i32::try_from(id).unwrap_or(IGNORE)
}

/// The ranges of a rendered conversation whose tokens are counted, ascending.
pub(super) fn of_turns(rules: &Data, messages: &[Message], places: &[Place]) -> Vec<Counted> {
    let mut counted = Vec::new();
    let last = places.len().saturating_sub(1);
    for (i, place) in places.iter().enumerate() {
        let message = messages.get(place.message);
        let trained = message.is_some_and(|m| !m.muted && rules.roles_to_train.contains(&m.role));
        let with_end = match rules.train_on_eos {
            TrainOnEos::Turn => trained,
            TrainOnEos::All => true,
            TrainOnEos::Last => i == last,
            TrainOnEos::None => false,
        };
        let end = place.end_of_turn.as_ref().filter(|_| with_end);
        if trained {
            // What stands between the text and its end of turn is the model's to write as well.
            let stop = end.map_or(place.content.end, |e| e.start);
            counted.push(Counted::by_end(place.start..stop));
        }
        if let Some(end) = end {
            counted.push(Counted::touched(end.clone()));
        }
    }
    counted
}
