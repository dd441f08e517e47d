//! The gated activation.

use super::launch::{Address, Launch, long};

/// `act = silu(gate)·up`, each of `count` values.
pub fn forward(gate: Address, up: Address, count: usize, act: Address) -> Launch {
    Launch::elements(("gate", "gate_forward"), count, &[gate.into(), up.into(), long(count), act.into()])
}

/// Gradients of gate and up, which σ is made again for.
pub fn backward(
    (gate, up): (Address, Address),
    d_act: Address,
    count: usize,
    (d_gate, d_up): (Address, Address),
) -> Launch {
    let arguments = [gate.into(), up.into(), d_act.into(), long(count), d_gate.into(), d_up.into()];
    Launch::elements(("gate", "gate_backward"), count, &arguments)
}
