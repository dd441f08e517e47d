//! Keys and values of texts that are being continued, so that each token is computed once. Texts come and go by
//! themselves: nothing is padded.

use crate::error::Result;
use crate::ops::attention::{self, Shape, Span};
use crate::ops::host;
use candle_core::Tensor;

/// What one block keeps.
#[derive(Debug, Default, Clone)]
pub struct Cache {
    texts: Vec<Text>,
}

/// Keys and values of one text, `[tokens, K·d]` each.
#[derive(Debug, Clone)]
struct Text {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    /// Appends the keys and values of each text's new rows (`spans`, one a text) and lets the queries see all that is
    /// kept of their text: q `[N, H·d]`, k and v `[N, K·d]` → `[N, H·d]`.
    pub(super) fn attend(
        &mut self,
        shape: &Shape,
        spans: &[Span],
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let width = k.dim(1)?;
        let (new_k, new_v) = (host::read(k)?, host::read(v)?);
        for (text, span) in self.texts.iter_mut().zip(spans) {
            let rows = span.q.start * width..span.q.end * width;
            text.k.extend_from_slice(&new_k[rows.clone()]);
            text.v.extend_from_slice(&new_v[rows]);
        }
        if spans.iter().all(|span| span.q.len() == 1) {
            let kept: Vec<_> = self.texts.iter().map(|t| attention::Kept { k: &t.k, v: &t.v }).collect();
            return attention::decode(shape, q, &kept);
        }
        let whole = |part: fn(&Text) -> &Vec<f32>| {
            let values: Vec<f32> = self.texts.iter().flat_map(|text| part(text).iter().copied()).collect();
            let rows = values.len() / width.max(1);
            host::tensor(values, (rows, width))
        };
        let (out, _) = attention::forward(shape, spans, q, &whole(|t| &t.k)?, &whole(|t| &t.v)?)?;
        Ok(out.to_device(q.device())?)
    }
}

/// What a whole model keeps of the texts that it continues.
#[derive(Debug, Clone)]
pub struct Caches {
    pub(super) blocks: Vec<Cache>,
    /// Tokens kept of each text.
    lengths: Vec<usize>,
}

impl Caches {
    /// Of as many empty texts, each of at most `room` tokens whose keys have `width` values.
    pub fn new(blocks: usize, texts: usize, width: usize, room: usize) -> Self {
        let empty = || Text { k: Vec::with_capacity(room * width), v: Vec::with_capacity(room * width) };
        let cache = |_| Cache { texts: (0..texts).map(|_| empty()).collect() };
        Self { blocks: (0..blocks).map(cache).collect(), lengths: vec![0; texts] }
    }

    /// Texts.
    pub fn texts(&self) -> usize {
        self.lengths.len()
    }

    /// Each text's new tokens as rows of one pass: who sees whom, and at which positions; they count as kept.
    pub(super) fn grow(&mut self, new: &[&[u32]]) -> (Vec<Span>, Vec<u32>) {
        let (mut rows, mut keys) = (0, 0);
        let (mut spans, mut positions) = (Vec::new(), Vec::new());
        for (length, ids) in self.lengths.iter_mut().zip(new) {
            let whole = *length + ids.len();
            spans.push(Span { q: rows..rows + ids.len(), k: keys..keys + whole });
            positions.extend((*length..whole).filter_map(|p| u32::try_from(p).ok()));
            rows += ids.len();
            keys += whole;
            *length = whole;
        }
        (spans, positions)
    }

    /// Takes the texts of `other` in behind its own.
    pub fn append(&mut self, other: Self) {
        self.lengths.extend(other.lengths);
        for (own, theirs) in self.blocks.iter_mut().zip(other.blocks) {
            own.texts.extend(theirs.texts);
        }
    }

    /// Forgets the texts that are not wanted any more.
    pub fn retain(&mut self, wanted: &[bool]) {
        let mut keep = wanted.iter();
        self.lengths.retain(|_| keep.next().copied().unwrap_or(false));
        for block in &mut self.blocks {
            let mut keep = wanted.iter();
            block.texts.retain(|_| keep.next().copied().unwrap_or(false));
        }
    }

    /// As many texts that begin as this one does, with room for more.
    #[must_use]
    pub fn fork(&self, texts: usize, width: usize, room: usize) -> Self {
        let mut forked = Self::new(self.blocks.len(), texts, width, room);
        forked.lengths = vec![self.lengths.first().copied().unwrap_or(0); texts];
        for (to, from) in forked.blocks.iter_mut().zip(&self.blocks) {
            for text in &mut to.texts {
                text.k.extend(from.texts.iter().take(1).flat_map(|t| &t.k));
                text.v.extend(from.texts.iter().take(1).flat_map(|t| &t.v));
            }
        }
        forked
    }
}
