//! Whole blocks against the sum of their ops: what allocation, caches and the way between ops cost.

use super::rig::Rig;
use super::shapes::Ask;
use super::stopwatch::Patience;
use crate::arch::Arch;
use crate::arch::source::WeightFiles;
use crate::data::{Batch, IGNORE, Sample};
use crate::error::Result;
use crate::estimate::rates::Glue;
use crate::estimate::time;
use crate::estimate::work::{Model, Stored, Volume};
use crate::estimate::{Machine, rounded};
use crate::model::adapter::Adapter;
use crate::model::build::{self, Trained};
use crate::model::decoder::Training;
use crate::model::frozen::Frozen;
use crate::model::weights::Loader;
use crate::ops::dropout::Noise;
use crate::ops::matmul::Precision;
use candle_core::DType;

/// Blocks that are run.
const LAYERS: usize = 2;
/// The same on a GPU, where what begins and ends a micro-batch weighs less, the more blocks there are.
const LAYERS_QUEUED: usize = 8;
/// A vocabulary and targets so few that the head does not count.
const VOCABULARY: usize = 256;
const TARGETS: usize = 4;
/// Blocks that would take longer are not run: at their size nothing lies between the ops.
const LONGEST_S: f64 = 1.0;
/// A factor beyond this is a disturbed measurement.
const MOST: f64 = 1.6;

/// Runs some blocks of the model forward and backward on a mean micro-batch; `None` where that would take too long, or
/// the adapter holds whole modules.
///
/// # Errors
/// A fault of an op.
pub fn glue(
    ask: &Ask<'_>,
    adapter: Option<&Adapter>,
    machine: &Machine,
    rig: &Rig,
    patience: Patience,
) -> Result<Option<Glue>> {
    let counts = ask.counts;
    let layers = if rig.queues() { LAYERS_QUEUED.min(ask.arch.layers.len()) } else { LAYERS };
    let mean = |total: f64, of: f64| usize::try_from(rounded(total / of.max(1.0))).unwrap_or(usize::MAX);
    let tokens = mean(counts.tokens as f64, counts.micro_batches as f64).max(1);
    let length = mean(counts.segment_squares, counts.tokens as f64).clamp(1, tokens);
    let arch = cut(ask.arch, layers);
    let adapted: Vec<_> = ask.adapted.iter().filter(|l| l.layer < layers).cloned().collect();
    let whole = adapter.is_some_and(|a| !a.modules_to_save.is_empty());
    // A GPU computes sooner than the host draws its weights.
    let drawn_s = arch.parameter_count() as f64 / machine.draw_values_per_s.max(1.0);
    if whole || arch.layers.len() < LAYERS || (rig.queues() && drawn_s > LONGEST_S) {
        return Ok(None);
    }
    let model = Model { arch: &arch, adapted: &adapted, ..ask.model() };
    let segments = tokens.div_ceil(length);
    let volume = Volume {
        tokens: tokens as f64,
        targets: 0.0,
        squares: segments as f64 * (tokens as f64 / segments as f64).powi(2),
        calls: 1.0,
    };
    let ops = model.blocks_training(&volume, false);
    // The sum of the ops alone: what other models' blocks took beside theirs is not in it.
    let bare = Machine { glue: Vec::new(), ..machine.clone() };
    let expected_s = time::seconds(&ops, &bare, &model.blocks());
    if expected_s > LONGEST_S {
        return Ok(None);
    }
    let frozen = match model.stored {
        Stored::Bf16 if adapter.is_none() => {
            let dtype = if model.update.is_narrow { DType::BF16 } else { DType::F32 };
            Frozen::Trained { dtype, precision: Precision::Bf16 }
        }
        Stored::F32 => Frozen::Dense(DType::F32),
        Stored::Bf16 => Frozen::Dense(DType::BF16),
        Stored::Quantised => Frozen::Nf4 { double_quant: true, others: DType::BF16 },
    };
    let trained = adapter.map_or(Trained::Whole, Trained::Adapter);
    let positions = tokens.div_ceil(segments);
    let loader = Loader::open(&WeightFiles::Reinit, &arch, 0, "calibration")?.on(rig.device());
    let (decoder, params) = build::decoder(&arch, trained, frozen, positions, &loader)?;
    let samples: Vec<Sample> = (0..segments).map(|i| sample(positions.min(tokens - i * positions))).collect();
    let batch = Batch::new(&samples, 0);
    let noise = Noise { seed: 0, step: 0, first_token: 0 };
    let how = Training { scale: 1.0, recompute: false, noise: Some(noise) };
    let mut run = || decoder.loss_and_backward(&batch, how, &mut params.no_grads()).map(drop);
    let timed = patience.time_on(rig, &mut run)?;
    let factor = (timed.typical_s / expected_s).clamp(1.0 / MOST, MOST);
    Ok(Some(Glue { blocks: model.blocks(), tokens: tokens as u64, factor }))
}

/// The same blocks, some of them, under a small vocabulary.
fn cut(arch: &Arch, layers: usize) -> Arch {
    let mut cut = arch.clone();
    cut.layers.truncate(layers);
    cut.vocab_size = VOCABULARY;
    cut.tie_word_embeddings = true;
    cut
}

fn sample(length: usize) -> Sample {
    let mut labels = vec![IGNORE; length];
    for label in labels.iter_mut().skip(1).take(TARGETS) {
        *label = 1;
    }
    Sample { ids: (0..200u32).cycle().take(length).collect(), labels }
}
