//! The phases of a run from its first byte to its last, and what it leaves on the disk.

use super::history::Learned;
use super::memory::Layout;
use super::parameters::rank;
use super::prediction::Inputs;
use super::work::{Model, Op};
use super::{Counts, product, sum, time, wide};
use crate::arch::Linear;
use crate::config::{Config, LoraInit, Method};

/// Ledger, metrics and reports of a run.
pub(crate) const RECORD_BYTES: u64 = 16 << 20;

/// Tokens of a sample that is decoded before and after training, at most.
pub const SAMPLE_TOKENS: usize = 96;

/// What a run computes.
pub(crate) struct Ops<'a> {
    pub(crate) model: &'a Model<'a>,
    pub(crate) training: &'a [Op],
    /// Seconds in which the first step touches memory that nobody touched before.
    pub(crate) touching_s: f64,
    /// Bytes of the process at its highest.
    pub(crate) resident: u64,
}

/// Seconds of each phase, multiplied by what past runs taught of it.
pub(crate) fn phases(
    inputs: &Inputs<'_>,
    layout: &Layout<'_>,
    Ops { model, training, touching_s, resident }: &Ops<'_>,
    learned: &Learned,
) -> Vec<(String, f64)> {
    let (counts, machine) = (inputs.counts, inputs.machine);
    let eval = counts.eval;
    let kept = sum(&[layout.base_bytes(), product(&[layout.parameters.trainable, 4])]);
    let commits = commits(inputs.config, counts.steps);
    // The result is read back once it is written.
    let result = time::save(layout.result_bytes(), 1, *resident, machine)
        + layout.result_bytes() as f64 / machine.disk_bytes_per_s.max(1.0);
    let saved = time::save(layout.checkpoint_bytes(), commits, *resident, machine) + result;
    let blocks = model.blocks();
    let of = |ops: &[Op]| -> f64 {
        let classes = time::by_class(ops, machine, &blocks);
        classes.into_iter().map(|(class, s)| s * learned.class(class)).sum()
    };
    let train = of(training) + counts.steps as f64 * machine.step_overhead_s + touching_s;
    // Lists of ops are long: none is made for passes that do not happen.
    let times = |passes: u64, ops: &dyn Fn() -> Vec<Op>| match passes {
        0 => 0.0,
        _ => passes as f64 * of(&ops()),
    };
    let judged = times(eval.passes, &|| model.evaluation(&eval.volume(counts.processes())));
    let retained =
        times(counts.retention.passes, &|| model.evaluation(&counts.retention.volume(counts.processes())));
    let informed =
        times(counts.fisher.passes, &|| model.information(&counts.fisher.volume(1), &layout.parameters));
    let decoded = (2 * inputs.config.output.samples.len() * SAMPLE_TOKENS) as f64;
    let phases = [
        ("load", load(inputs, layout, kept)),
        ("tokenise", time::tokenise(counts.data_tokens, machine)),
        ("calibrate", 0.0),
        ("train", train),
        ("evaluate", judged + retained + informed + time::decode(decoded, kept, machine)),
        ("save", saved),
    ];
    phases
        .into_iter()
        .map(|(name, s)| (name.to_owned(), taken(inputs.taken, name, s * learned.phase(name))))
        .filter(|(_, s)| *s > 0.0)
        .collect()
}

/// FLOPs in f64 of the `rank` largest singular values of a weight with these sides, and of their vectors: exactly, by the
/// eigenvalues of the shorter side's products (Golub and Van Loan, 8.3: 4/3·n³ for the tridiagonal form, 2·n² a vector
/// back), or by rounds of subspace iteration.
pub(crate) fn decomposing((a, b): (u64, u64), rank: u64, rounds: Option<u64>) -> f64 {
    let exact =
        |n: f64, m: f64, r: f64| n * n * m + 4.0 / 3.0 * n.powi(3) + 2.0 * n * n * r + 2.0 * r * n * m;
    let (n, m, r) = (a.min(b) as f64, a.max(b) as f64, rank as f64);
    match rounds {
        None => exact(n, m, r),
        Some(rounds) => (2.0 * rounds as f64 + 2.0) * 2.0 * r * n * m + exact(r, m, r),
    }
}

/// Of all weights that an adapter takes its start from.
fn decomposed(inputs: &Inputs<'_>) -> f64 {
    let Method::Lora(lora) = &inputs.config.method else { return 0.0 };
    let LoraInit::Pissa { rounds } = lora.init else { return 0.0 };
    let of = |linear: &Linear| {
        let sides = (wide(linear.inputs), wide(linear.outputs));
        decomposing(sides, rank(lora, &linear.name), rounds.map(wide))
    };
    inputs.adapted.iter().map(of).sum()
}

/// Weights are read from their files, or drawn where the config asks for new ones; those that become NF4 are quantised,
/// and those that an adapter begins with a part of are decomposed.
fn load(inputs: &Inputs<'_>, layout: &Layout<'_>, kept: u64) -> f64 {
    let (machine, total) = (inputs.machine, layout.parameters.total);
    let (file, drawn) = if inputs.config.base.reinit_weights {
        (0, total)
    } else {
        (inputs.file_bytes.unwrap_or_else(|| product(&[total, 2])), 0)
    };
    time::load(file, kept, machine)
        + drawn as f64 / machine.draw_values_per_s.max(1.0)
        + layout.quantised_values() as f64 / machine.quantise_values_per_s.max(1.0)
        + decomposed(inputs) / machine.decompose_flops_per_s.max(1.0)
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

/// Checkpoints of a run, at most: on time, at each evaluation where the best is kept, and at the end.
pub(crate) fn commits(config: &Config, steps: u64) -> u64 {
    let schedule = &config.schedule;
    let saves = schedule.save_steps.unwrap_or(steps).max(1);
    let judges = schedule.eval_steps.filter(|_| schedule.load_best_model_at_end).unwrap_or(saves).max(1);
    let both = saves / gcd(saves, judges) * judges;
    let is_due = |step: u64| step.is_multiple_of(saves) || step.is_multiple_of(judges);
    steps / saves + (steps / judges - steps / both) + u64::from(!is_due(steps) || steps == 0)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Bytes of a checkpoint, and of all that may lie in the output folder at once.
pub(crate) fn disk(config: &Config, counts: &Counts, layout: &Layout<'_>) -> (u64, u64) {
    let one = layout.checkpoint_bytes();
    let made = commits(config, counts.steps);
    let best = u64::from(config.schedule.load_best_model_at_end);
    // One more than is kept: the new one is committed before the oldest goes.
    let kept = config.schedule.save_total_limit.map_or(made, |n| made.min(wide(n).saturating_add(1 + best)));
    let all = sum(&[product(&[kept, one]), layout.result_bytes(), RECORD_BYTES]);
    (one, all.saturating_add(all / 20))
}
