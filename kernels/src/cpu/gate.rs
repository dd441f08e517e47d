//! The gated activation of the MLP: `act = silu(gate)·up`, `silu(x) = x·σ(x)`. Outputs are made in fresh buffers that
//! are written once, not cleared first: these passes are bound by memory.

use super::dispatch;
use super::math::sigmoid;
use super::widen::Value;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

const CHUNK: usize = 16_384;

// A generic function would be compiled with its caller, which in a debug build is not optimised: what is called from
// outside has a type.

/// silu(`gate`)·`up`, element by element.
///
/// # Panics
/// When the inputs are not of one length.
pub fn gate_forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    forward(gate, up)
}

/// The same of bf16, computed in f32.
///
/// # Panics
/// When the inputs are not of one length.
pub fn gate_forward_bf16(gate: &[bf16], up: &[bf16]) -> Vec<bf16> {
    forward(gate, up)
}

/// Gradients of gate and up from that of act: `dg = da·u·σ(g)·(1 + g·(1 − σ(g)))` takes its place, and
/// `du = da·silu(g)` is given.
///
/// # Panics
/// When the inputs are not of one length.
pub fn gate_backward(gate: &[f32], up: &[f32], d_act: &mut [f32]) -> Vec<f32> {
    backward(gate, up, d_act)
}

/// The same of bf16; gradients are f32.
///
/// # Panics
/// When the inputs are not of one length.
pub fn gate_backward_bf16(gate: &[bf16], up: &[bf16], d_act: &mut [f32]) -> Vec<f32> {
    backward(gate, up, d_act)
}

fn forward<T: Value>(gate: &[T], up: &[T]) -> Vec<T> {
    let n = gate.len();
    assert!(up.len() == n, "gate {n}, up {}", up.len());
    let mut act = Vec::with_capacity(n);
    act.spare_capacity_mut()[..n]
        .par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((act, gate), up)| forward_part(gate, up, act));
    // SAFETY: the parts are the whole, and each was written from inputs of the same length.
    unsafe { act.set_len(n) }
    act
}

fn backward<T: Value>(gate: &[T], up: &[T], d_act: &mut [f32]) -> Vec<f32> {
    let n = gate.len();
    assert!(up.len() == n && d_act.len() == n, "gate {n}, up {}, gradient {}", up.len(), d_act.len());
    let mut d_up = Vec::with_capacity(n);
    d_up.spare_capacity_mut()[..n]
        .par_chunks_mut(CHUNK)
        .zip(d_act.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|((d_up, d_act), (gate, up))| backward_part(gate, up, d_act, d_up));
    // SAFETY: the parts are the whole, and each was written from inputs of the same length.
    unsafe { d_up.set_len(n) }
    d_up
}

dispatch! {
    fn forward_part<T: Value>(gate: &[T], up: &[T], act: &mut [MaybeUninit<T>]) {
        for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
            let g = g.wide();
            a.write(T::narrow(g * sigmoid::<FMA>(g) * u.wide()));
        }
    }
}

dispatch! {
    fn backward_part<T: Value>(gate: &[T], up: &[T], d: &mut [f32], d_up: &mut [MaybeUninit<f32>]) {
        for (((d, du), g), u) in d.iter_mut().zip(d_up).zip(gate).zip(up) {
            let (g, u, da) = (g.wide(), u.wide(), *d);
            let s = sigmoid::<FMA>(g);
            *d = da * u * s * (1.0 + g * (1.0 - s));
            du.write(da * g * s);
        }
    }
}
