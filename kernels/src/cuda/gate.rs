//! The gated activation; gate, up and their gradients are f32 or bf16.

use super::launch::{Address, Launch, at_once, long};

/// `act = silu(gate)·up`, each of `count` values of one type.
pub fn forward(gate: Address, up: Address, count: usize, act: Address, bf16: bool) -> Launch {
    let kernel = if bf16 { "gate_forward_bf16" } else { "gate_forward" };
    let arguments = [gate.into(), up.into(), long(count), act.into()];
    Launch::elements(("gate", kernel), count, at_once(count, &[gate, up, act]), &arguments)
}

/// Gradients of gate and up in their type, which σ is made again for; `d_act` is f32.
pub fn backward(
    (gate, up): (Address, Address),
    d_act: Address,
    count: usize,
    (d_gate, d_up): (Address, Address),
    bf16: bool,
) -> Launch {
    let kernel = if bf16 { "gate_backward_bf16" } else { "gate_backward" };
    let arguments = [gate.into(), up.into(), d_act.into(), long(count), d_gate.into(), d_up.into()];
    Launch::elements(("gate", kernel), count, at_once(count, &[gate, up, d_act, d_gate, d_up]), &arguments)
}
