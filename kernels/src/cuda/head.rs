//! Cross-entropy over a chunk of logits.

use super::launch::{Address, Launch, at_once, flag, size};

/// logits `[C, V]`, which become their gradient times `scale` where there is one; targets, losses `[C]`.
pub fn cross_entropy(
    logits: Address,
    targets: Address,
    (rows, vocabulary): (usize, usize),
    scale: Option<f32>,
    losses: Address,
) -> Launch {
    let arguments = [
        logits.into(),
        targets.into(),
        size(vocabulary),
        flag(scale.is_some()),
        scale.unwrap_or(0.0).into(),
        losses.into(),
    ];
    let at_once = at_once(vocabulary, &[logits]);
    Launch::rows(("head", "cross_entropy"), rows, 512, &arguments).taking(at_once)
}

/// `sum += Σ losses`, in f64.
pub fn sum_losses(losses: Address, count: usize, sum: Address) -> Launch {
    Launch::rows(("head", "sum_losses"), 1, 256, &[losses.into(), size(count), sum.into()])
}
