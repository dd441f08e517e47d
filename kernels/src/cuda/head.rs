//! Cross-entropy over a chunk of logits.

use super::launch::{Address, Launch, at_once, size};

/// Where a gradient goes.
#[derive(Debug, Clone, Copy)]
pub struct Slopes {
    /// `[C, V]`; of f32 the logits' own place will do.
    pub to: Address,
    /// bf16, else f32.
    pub is_bf16: bool,
    /// The gradient of the whole loss with respect to a token's.
    pub scale: f32,
}

/// logits `[C, V]`, targets `[C]` → losses `[C]`, and slopes where they are wanted.
pub fn cross_entropy(
    logits: Address,
    targets: Address,
    (rows, vocabulary): (usize, usize),
    slopes: Option<Slopes>,
    losses: Address,
) -> Launch {
    let Slopes { to, is_bf16, scale } =
        slopes.unwrap_or(Slopes { to: Address(0), is_bf16: false, scale: 0.0 });
    let arguments = [logits.into(), targets.into(), size(vocabulary), scale.into(), to.into(), losses.into()];
    let kernel = if is_bf16 { "cross_entropy_bf16" } else { "cross_entropy" };
    Launch::rows(("head", kernel), rows, 512, &arguments).taking(at_once(vocabulary, &[logits, to]))
}

/// `sum += Σ losses`, in f64.
pub fn sum_losses(losses: Address, count: usize, sum: Address) -> Launch {
    Launch::rows(("head", "sum_losses"), 1, 256, &[losses.into(), size(count), sum.into()])
}
