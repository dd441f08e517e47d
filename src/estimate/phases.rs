//! The phases of a run from its first byte to its last, and what it leaves on the disk.

use super::history::Learned;
use super::memory::Layout;
use super::prediction::Inputs;
use super::work::{Model, Op};
use super::{Counts, product, sum, time, wide};
use crate::config::Config;

/// Ledger, metrics and reports of a run.
pub(crate) const RECORD_BYTES: u64 = 16 << 20;

/// Tokens of a sample that is decoded before and after training, at most.
pub const SAMPLE_TOKENS: usize = 96;

/// Seconds of each phase, multiplied by what past runs taught of it.
pub(crate) fn phases(
    inputs: &Inputs<'_>,
    layout: &Layout<'_>,
    model: &Model<'_>,
    training: &[Op],
    learned: &Learned,
) -> Vec<(String, f64)> {
    let (counts, machine) = (inputs.counts, inputs.machine);
    let eval = counts.eval;
    let kept = sum(&[layout.base_bytes(), product(&[layout.parameters.trainable, 4])]);
    let file = inputs.file_bytes.unwrap_or_else(|| product(&[layout.parameters.total, 2]));
    let commits = commits(inputs.config, counts.steps);
    let hidden = inputs.arch.hidden_size as f64;
    let of = |ops: &[Op]| -> f64 {
        let classes = time::by_class(ops, machine, model.stored, hidden);
        classes.into_iter().map(|(class, s)| s * learned.class(class)).sum()
    };
    let train = of(training) + counts.steps as f64 * machine.step_overhead_s;
    // Lists of ops are long: none is made for passes that do not happen.
    let times = |passes: u64, ops: &dyn Fn() -> Vec<Op>| match passes {
        0 => 0.0,
        _ => passes as f64 * of(&ops()),
    };
    let judged = times(eval.passes, &|| model.evaluation(&eval.volume()));
    let retained = times(counts.retention.passes, &|| model.evaluation(&counts.retention.volume()));
    let informed =
        times(counts.fisher.passes, &|| model.information(&counts.fisher.volume(), &layout.parameters));
    let decoded = (2 * inputs.config.output.samples.len() * SAMPLE_TOKENS) as f64;
    let phases = [
        ("load", time::load(file, kept, machine)),
        ("tokenise", time::tokenise(counts.data_tokens, machine)),
        ("calibrate", 0.0),
        ("train", train),
        ("evaluate", judged + retained + informed + time::decode(decoded, kept, machine)),
        ("save", time::save(layout.checkpoint_bytes(), commits, machine)),
    ];
    phases
        .into_iter()
        .map(|(name, s)| (name.to_owned(), taken(inputs.taken, name, s * learned.phase(name))))
        .filter(|(_, s)| *s > 0.0)
        .collect()
}

/// What a phase will have taken: data and machine are read once, so the clock's word stands for the model's; of
/// loading only the shapes are over.
fn taken(taken: &[(String, f64)], name: &str, modelled: f64) -> f64 {
    let clock: f64 = taken.iter().filter(|(phase, _)| phase == name).map(|(_, s)| s).sum();
    match name {
        "tokenise" | "calibrate" if !taken.is_empty() => clock,
        _ => clock + modelled,
    }
}

/// Checkpoints of a run: on time, and at the end.
fn commits(config: &Config, steps: u64) -> u64 {
    let on_time = config.schedule.save_steps.map_or(0, |n| steps / n.max(1));
    on_time.saturating_add(1)
}

/// Bytes of a checkpoint, and of all that may lie in the output folder at once.
pub(crate) fn disk(config: &Config, counts: &Counts, layout: &Layout<'_>) -> (u64, u64) {
    let one = layout.checkpoint_bytes();
    let made = commits(config, counts.steps);
    let best = u64::from(config.schedule.load_best_model_at_end);
    // One more than is kept: the new one is committed before the oldest goes.
    let kept = config.schedule.save_total_limit.map_or(made, |n| made.min(wide(n).saturating_add(1 + best)));
    let all = sum(&[product(&[kept, one]), one / 3, RECORD_BYTES]);
    (one, all.saturating_add(all / 20))
}
