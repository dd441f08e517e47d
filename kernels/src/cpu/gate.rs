//! The gated activation of the MLP: `act = silu(gate)·up`, `silu(x) = x·σ(x)`.

use super::dispatch;
use super::math::sigmoid;
use rayon::prelude::*;

const CHUNK: usize = 16_384;

/// `act` = silu(`gate`)·`up`, element by element.
pub fn gate_forward(gate: &[f32], up: &[f32], act: &mut [f32]) {
    act.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((act, gate), up)| forward_part(gate, up, act));
}

/// Gradients of gate and up from that of act: `dg = da·u·σ(g)·(1 + g·(1 − σ(g)))`, `du = da·silu(g)`.
pub fn gate_backward(gate: &[f32], up: &[f32], d_act: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    d_gate
        .par_chunks_mut(CHUNK)
        .zip(d_up.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .zip(d_act.par_chunks(CHUNK))
        .for_each(|(((d_gate, d_up), (gate, up)), d_act)| {
            backward_part(gate, up, d_act, d_gate, d_up);
        });
}

dispatch! {
    fn forward_part(gate: &[f32], up: &[f32], act: &mut [f32]) {
        for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
            *a = g * sigmoid::<FMA>(*g) * u;
        }
    }
}

dispatch! {
    fn backward_part(gate: &[f32], up: &[f32], d_act: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        for ((((dg, du), g), u), da) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(d_act) {
            let s = sigmoid::<FMA>(*g);
            *dg = da * u * s * (1.0 + g * (1.0 - s));
            *du = da * g * s;
        }
    }
}
