//! The whole model: embedding, blocks, final norm, head; its loss and gradients for a micro-batch.

use super::block::{Block, Pass, Saved};
use super::cache::Caches;
use crate::data::Batch;
use crate::error::Result;
use crate::ops::attention::Span;
use crate::ops::device::Gpu;
use crate::ops::dropout::Noise;
use crate::ops::gpu::{self, Placed};
use crate::ops::head::{self, Head, LossSum, Scored};
use crate::ops::norm::Norm;
use crate::ops::profile;
use crate::ops::{Grads, Matrix, ParamId, Weight, embedding, host};
use candle_core::{DType, Tensor};

/// A decoder, frozen or trained in part or whole.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// `[V, D]`
    pub embedding: Weight<Matrix>,
    /// In order.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: Norm,
    /// To the vocabulary.
    pub head: Head,
}

/// How a training pass is done.
#[derive(Debug, Clone, Copy)]
pub struct Training {
    /// Gradients are those of `scale·Σ` token losses: 1 / counted tokens of the whole optimizer step.
    pub scale: f32,
    /// Keep only the input of each block and run it again in the backward pass.
    pub recompute: bool,
    /// Dropout's place in the run; `None`: nothing is dropped.
    pub noise: Option<Noise>,
}

/// Bytes of tensors that stood at one moment of a pass, counted where they were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the blocks kept for the backward pass.
    pub activations: u64,
    /// Gradients so far.
    pub gradients: u64,
    /// One chunk of logits.
    pub logits: u64,
}

impl Memory {
    /// The moment at which more stood.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.bytes() > self.bytes() { other } else { self }
    }

    /// Of all of them.
    pub fn bytes(self) -> u64 {
        self.activations + self.gradients + self.logits
    }
}

/// What a training pass gave, beside gradients.
#[derive(Debug, Clone)]
pub struct PassResult {
    /// Σ of the batch's token losses.
    pub sum: LossSum,
    /// What it took.
    pub memory: Memory,
}

/// Takes gradients that are whole out of those so far: `(Σ of the batch's token losses, gradients, the one that is not
/// whole yet)`.
pub type Settle<'a> = dyn FnMut(&LossSum, &mut Grads, Option<ParamId>) -> Result<()> + 'a;

/// What a block leaves for the backward pass.
enum Kept {
    Input(Tensor),
    All(Box<Saved>),
}

impl Kept {
    fn bytes(&self) -> u64 {
        match self {
            Self::Input(x) => 4 * x.elem_count() as u64,
            Self::All(saved) => saved.bytes(),
        }
    }
}

impl Decoder {
    /// Σ of the batch's token losses, with gradients added to `grads`. A batch without targets costs nothing.
    pub fn loss_and_backward(&self, batch: &Batch, how: Training, grads: &mut Grads) -> Result<PassResult> {
        self.loss_and_descent(batch, how, grads, &mut |_, _, _| Ok(()))
    }

    /// The same, with `settle` called whenever gradients of the head or of a block are whole, while those of blocks
    /// below are not made yet: what it takes out never stands beside them.
    pub fn loss_and_descent(
        &self,
        batch: &Batch,
        how: Training,
        grads: &mut Grads,
        settle: &mut Settle<'_>,
    ) -> Result<PassResult> {
        if batch.targets.is_empty() {
            return Ok(PassResult { sum: LossSum::ZERO, memory: Memory::default() });
        }
        profile::count(batch);
        let forward = profile::pass(profile::Pass::Forward);
        let spans = spans(batch);
        let noise = how.noise.map(|noise| Noise { first_token: batch.first_token, ..noise });
        let mut x = embedding::forward(&self.embedding, &batch.ids)?; // [N, D]
        let placed = Placed::new(x.device(), &batch.positions, &spans)?;
        let placed = placed.as_ref();
        let pass = Pass { positions: &batch.positions, spans: &spans, noise, placed };
        let mut kept = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let _span = profile::block(profile::Pass::Forward, i);
            let (y, saved) = block.forward(&x, pass, None)?;
            kept.push(if how.recompute { Kept::Input(x) } else { Kept::All(Box::new(saved)) });
            x = y;
        }
        let vocabulary = self.head.weight.value.shape()?.0;
        let rows = head::chunk_rows(vocabulary).min(batch.targets.len());
        let logits = 4 * rows as u64 * vocabulary as u64;
        let mut standing: u64 = kept.iter().map(Kept::bytes).sum();
        let (sum, dx) = self.head_backward(&x, batch, how.scale, grads)?;
        let mut memory = Memory { activations: standing, gradients: grads.bytes(), logits };
        drop((x, forward));
        let _backward = profile::pass(profile::Pass::Backward);
        // A head that shares the embedding's weight is whole when the embedding's own part is added, at the end.
        let open = self.embedding.param;
        settle(&sum, grads, open)?;
        let mut dx = Some(dx);
        let lowest = self.lowest_trained_block();
        for (i, (block, kept)) in self.blocks.iter().zip(kept).enumerate().skip(lowest).rev() {
            let Some(dy) = dx.take() else { break };
            let _span = profile::block(profile::Pass::Backward, i);
            let below = standing - kept.bytes();
            let saved = match kept {
                Kept::All(saved) => *saved,
                Kept::Input(x) => {
                    let _span = profile::block(profile::Pass::Recompute, i);
                    block.forward(&x, pass, None)?.1
                }
            };
            // Run again, it stands whole on top of its input.
            let activations = if how.recompute { standing + saved.bytes() } else { standing };
            let wanted =
                i > lowest || self.embedding.param.is_some() || block.attn_norm.weight.param.is_some();
            dx = block.backward(saved, dy, pass, wanted, grads)?;
            memory = memory.max(Memory { activations, gradients: grads.bytes(), logits: 0 });
            standing = below;
            settle(&sum, grads, open)?;
        }
        if let Some(dx) = dx {
            embedding::backward(&self.embedding, &batch.ids, &dx, grads)?;
            memory = memory.max(Memory { gradients: grads.bytes(), ..Memory::default() });
        }
        settle(&sum, grads, None)?;
        Ok(PassResult { sum, memory })
    }

    /// Σ of the batch's token losses.
    pub fn loss(&self, batch: &Batch) -> Result<f64> {
        if batch.targets.is_empty() {
            return Ok(0.0);
        }
        let (counted, targets) = counted(&self.hidden(batch)?, batch)?;
        self.head.loss(&self.norm.forward(&counted)?.0, &targets)
    }

    /// Log-probability of each target, in the batch's order, and whether it was the likeliest token.
    pub fn log_probabilities(&self, batch: &Batch) -> Result<Vec<Scored>> {
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let (counted, targets) = counted(&self.hidden(batch)?, batch)?;
        self.head.log_probabilities(&self.norm.forward(&counted)?.0, &targets)
    }

    /// Logits `[N, V]` of every row: for tests and checks, on short texts.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        self.head.logits(&self.norm.forward(&self.hidden(batch)?)?.0)
    }

    /// Appends tokens to each text and returns the logits `[texts, V]` of the last of each.
    pub fn extend(&self, new: &[&[u32]], caches: &mut Caches) -> Result<Tensor> {
        let (spans, positions) = caches.grow(new);
        let mut x = embedding::forward(&self.embedding, &new.concat())?;
        // What is kept of the texts lies in the host's memory, and so does attention over it.
        let placed = Placed::new(x.device(), &positions, &[])?;
        let pass = Pass { positions: &positions, spans: &spans, noise: None, placed: placed.as_ref() };
        for (block, cache) in self.blocks.iter().zip(&mut caches.blocks) {
            x = block.forward(&x, pass, Some(cache))?.0;
        }
        let last: Vec<u32> =
            spans.iter().filter_map(|s| u32::try_from(s.q.end.checked_sub(1)?).ok()).collect();
        let last = x.index_select(&Tensor::from_slice(&last, last.len(), x.device())?, 0)?;
        self.head.logits(&self.norm.forward(&last)?.0)
    }

    /// Values of a token's keys in one block.
    pub fn kv_width(&self) -> usize {
        self.blocks.first().map_or(0, |block| block.attention.kv_heads * block.attention.head_dim)
    }

    fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let spans = spans(batch);
        let mut x = embedding::forward(&self.embedding, &batch.ids)?;
        let placed = Placed::new(x.device(), &batch.positions, &spans)?;
        let pass = Pass { positions: &batch.positions, spans: &spans, noise: None, placed: placed.as_ref() };
        for block in &self.blocks {
            x = block.forward(&x, pass, None)?.0;
        }
        Ok(x)
    }

    /// Loss and the gradient of the last block's output: only counted rows reach the norm and the vocabulary.
    fn head_backward(
        &self,
        x: &Tensor,
        batch: &Batch,
        scale: f32,
        grads: &mut Grads,
    ) -> Result<(LossSum, Tensor)> {
        let (counted, targets) = counted(x, batch)?; // [C, D]
        let (normed, saved) = self.norm.forward(&counted)?;
        let (sum, d_normed) = self.head.loss_and_backward(&normed, &targets, scale, grads)?;
        let d_counted = self.norm.backward(&saved, &d_normed, None, grads)?;
        let dx = Tensor::zeros(x.shape(), DType::F32, x.device())?;
        if let Some(gpu) = Gpu::of(&dx) {
            let at: Vec<u32> = batch.targets.iter().map(|target| target.at).collect();
            gpu::embedding::scatter(&gpu, &at, &d_counted, &dx)?;
            return Ok((sum, dx));
        }
        let width = x.dim(1)?;
        let rows = host::read(&d_counted)?;
        host::edit(&dx, |dx| {
            for (target, row) in batch.targets.iter().zip(rows.chunks_exact(width)) {
                let at = target.at as usize * width;
                dx[at..at + width].copy_from_slice(row);
            }
        })?;
        drop(rows);
        Ok((sum, dx))
    }

    /// Bytes of the weights that are not trained; a tied head counts once.
    pub fn frozen_bytes(&self) -> u64 {
        let head = Some(&self.head.weight).filter(|head| !head.value.is(&self.embedding.value));
        let matrices = self.blocks.iter().flat_map(Block::linears).map(|linear| &linear.weight);
        let matrices = matrices.chain([&self.embedding]).chain(head).filter(|w| w.param.is_none());
        let vectors = self.blocks.iter().flat_map(Block::vectors).chain([&self.norm.weight]);
        let vectors = vectors.filter(|w| w.param.is_none()).map(|w| &w.value);
        matrices.map(|w| w.value.bytes()).sum::<u64>()
            + vectors.map(|v| (v.elem_count() * v.dtype().size_in_bytes()) as u64).sum::<u64>()
    }

    /// The trained parameters in the order in which a backward pass makes their gradients whole: in groups, one a call of
    /// `settle` in [`Self::loss_and_descent`].
    pub fn trained(&self) -> Vec<Vec<ParamId>> {
        let embedding = self.embedding.param;
        let head = [self.head.weight.param, self.norm.weight.param];
        let first = head.into_iter().flatten().filter(|id| Some(*id) != embedding).collect();
        let blocks = self.blocks.iter().skip(self.lowest_trained_block()).rev();
        let blocks = blocks.map(|block| block.trained().collect());
        [first].into_iter().chain(blocks).chain([embedding.into_iter().collect()]).collect()
    }

    /// Below it nothing is trained, so no gradient goes there.
    fn lowest_trained_block(&self) -> usize {
        if self.embedding.param.is_some() {
            return 0;
        }
        self.blocks.iter().position(Block::is_trained).unwrap_or(self.blocks.len())
    }
}

/// The rows of x `[N, D]` whose next token is counted, and those tokens.
fn counted(x: &Tensor, batch: &Batch) -> Result<(Tensor, Vec<u32>)> {
    let (at, targets): (Vec<u32>, Vec<u32>) = batch.targets.iter().map(|t| (t.at, t.token)).unzip();
    let count = at.len();
    Ok((x.index_select(&Tensor::from_vec(at, count, x.device())?, 0)?, targets))
}

fn spans(batch: &Batch) -> Vec<Span> {
    let span = |range: &std::ops::Range<usize>| Span { q: range.clone(), k: range.clone() };
    batch.segments.iter().map(span).collect()
}
