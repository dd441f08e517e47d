//! What a run learns from: its rows tokenised and packed, and the counts that the estimate needs of them.

use super::ground::Ground;
use crate::config::Config;
use crate::data::packing::{self, Epochs, Length, Order};
use crate::data::prepare::Retention;
use crate::data::tokenizer::Tokenizer;
use crate::data::{self, Batch, Summary};
use crate::error::Result;
use crate::estimate::counts::Shared;
use crate::estimate::work::Volume;
use crate::estimate::{self, Counts};
use crate::fs;
use crate::meter::process::resident;
use fttrain_kernels::sys::memory::give_back_pages;

/// What a run learns from.
pub(super) struct Material {
    pub(super) tokenizer: Tokenizer,
    pub(super) tokenizer_bytes: u64,
    pub(super) epochs: Epochs,
    pub(super) eval: Vec<Batch>,
    pub(super) retention: RetentionBatches,
    pub(super) summary: Summary,
}

impl Material {
    pub(super) fn gather(ground: &Ground) -> Result<Self> {
        let config = &ground.resolved.config;
        let template = config.data.chat_template.as_deref();
        give_back_pages();
        let before = resident().0.unwrap_or(0);
        let tokenizer = Tokenizer::open(&ground.source.tokenizer()?, &ground.arch, template)?;
        // Not what only reading its file took.
        give_back_pages();
        let tokenizer_bytes = resident().0.map_or(0, |now| now.saturating_sub(before));
        let prepared = data::prepare(config, &tokenizer, Some(&fs::home()?.join("tokenised")))?;
        let Retention { judged, kept, replayed } = prepared.retention;
        let order = Order { processes: ground.place.size, ..Order::from(config) };
        let informing = if config.train.ewc > 0.0 { kept.as_slice() } else { &[] };
        Ok(Self {
            eval: packing::eval_batches(&prepared.eval, eval_tokens(config)),
            retention: RetentionBatches {
                judged: packing::eval_batches(&judged, eval_tokens(config)),
                kept: informing.iter().map(|sample| Batch::new([sample], 0)).collect(),
            },
            epochs: Epochs::replaying(prepared.train, kept, replayed, order),
            summary: prepared.summary,
            tokenizer,
            tokenizer_bytes,
        })
    }
}

/// The two halves of the retention set as micro-batches.
#[derive(Debug, Clone, Default)]
pub struct RetentionBatches {
    /// Evaluated before and after; empty = there is no such set.
    pub judged: Vec<Batch>,
    /// A sample each, for EWC; empty where nothing asks for them.
    pub kept: Vec<Batch>,
}

/// The counts of the config's own data, packed.
///
/// # Errors
/// Tokenizer or data cannot be used.
pub fn counted(ground: &Ground) -> Result<(Counts, Summary)> {
    let material = Material::gather(ground)?;
    let Material { epochs, eval, retention, .. } = &material;
    Ok((counts(&ground.resolved.config, epochs, eval, retention), material.summary))
}

/// Tokens of an evaluation micro-batch: as large as a training one.
fn eval_tokens(config: &Config) -> usize {
    config.data.sequence_len.saturating_mul(config.train.micro_batch_size)
}

/// What the estimate needs to know of the packed data.
pub(super) fn counts(
    config: &Config,
    epochs: &Epochs,
    eval: &[Batch],
    retention: &RetentionBatches,
) -> Counts {
    let plan = epochs.plan().counts();
    let processes = epochs.plan().processes();
    let mut counts = Counts {
        steps: plan.steps,
        micro_batches: plan.batches,
        tokens: plan.tokens,
        median_step_tokens: plan.median_step_tokens,
        loss_tokens: plan.loss_tokens,
        segment_squares: plan.segment_squares as f64,
        max_batch_tokens: plan.max_batch_tokens,
        max_batch_targets: plan.max_batch_targets,
        rows: epochs.plan().rows() as u64,
        longest: epochs.samples().iter().map(|s| u64::from(Length::from(s).tokens)).max().unwrap_or(0),
        shared: (processes > 1).then_some(Shared {
            processes: processes as u64,
            slowest: Volume {
                tokens: plan.slowest.tokens as f64,
                targets: plan.slowest.loss_tokens as f64,
                squares: plan.slowest.segment_squares as f64,
                calls: plan.slowest.batches as f64,
            },
        }),
        data_tokens: epochs.samples().iter().map(|s| u64::from(Length::from(s).tokens)).sum(),
        assumed: !plan.exact,
        ..Counts::default()
    };
    for batch in eval {
        counts.eval.add(batch);
    }
    for batch in &retention.judged {
        counts.retention.add(batch);
    }
    for batch in &retention.kept {
        counts.fisher.add(batch);
    }
    counts.retention.passes = if retention.judged.is_empty() { 0 } else { 2 };
    counts.fisher.passes = u64::from(!retention.kept.is_empty());
    let others = [counts.eval, counts.retention, counts.fisher];
    counts.data_tokens += others.iter().map(|set| set.tokens).sum::<u64>();
    if !eval.is_empty() {
        counts.eval.passes = estimate::counts::eval_passes(counts.steps, config.schedule.eval_steps);
    }
    counts
}
