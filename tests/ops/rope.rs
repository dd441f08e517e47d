//! Rotary positions under each scaling.

use super::references::{Input, Ours, agree, close, constant, random, values, wide};
use candle_core::Tensor;
use fttrain::arch::{Rope, RopeScaling};
use fttrain::ops::host;
use fttrain::ops::rope::Table;

const LONGEST: usize = 8192;

fn ropes() -> [Rope; 4] {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64.0,
    };
    [
        Rope { theta: 10_000.0, scaling: RopeScaling::None },
        Rope { theta: 1_000_000.0, scaling: RopeScaling::None },
        Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.5 } },
        Rope { theta: 500.0, scaling: llama3 },
    ]
}

/// The frequency of pair i, rounded to f32 as transformers keeps it.
fn frequency(rope: &Rope, i: usize, d: usize) -> f32 {
    let plain = rope.theta.powf(-2.0 * i as f64 / d as f64);
    let scaled = match rope.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // How often the pair turns within the original context decides how much of it is kept.
            let turns = original_context * plain / std::f64::consts::TAU;
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            plain * (kept + (1.0 - kept) / factor)
        }
    };
    scaled as f32
}

/// cos and sin `[rows, d/2]` of the rows' angles.
fn angles(rope: &Rope, d: usize, positions: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let angle = |&p: &u32, i| f64::from(p as f32 * frequency(rope, i, d));
    let all = positions.iter().flat_map(|p| (0..d / 2).map(move |i| angle(p, i)));
    all.map(|a| (a.cos(), a.sin())).unzip()
}

fn check(rope: &Rope, heads: usize, d: usize, positions: &[u32]) {
    let (n, half) = (positions.len(), d / 2);
    let table = Table::new(rope, d, LONGEST);
    let x = Input::random("x", &[n, heads * d]);
    let y = x.tensor();
    table.forward(&y, positions).unwrap();
    let dy = random("dy", n * heads * d, 1.0);
    let dx = host::tensor(dy.clone(), (n, heads * d)).unwrap();
    table.backward(&dx, positions).unwrap();
    let (cos, sin) = angles(rope, d, positions);
    let narrow = |v: &[f64]| v.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let (cos32, sin32) = (narrow(&cos), narrow(&sin));
    agree(
        &format!("{rope:?} {heads} heads of {d}, {n} rows"),
        &[x],
        &Ours { y: values(&y), dy, grads: vec![Some(values(&dx))] },
        |t| {
            let (cos, sin) = (constant(&cos32, &[n, 1, half])?, constant(&sin32, &[n, 1, half])?);
            let x = t[0].reshape((n, heads, d))?;
            let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
            let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
            let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
            Tensor::cat(&[turned_low, turned_high], 2)?.reshape((n, heads * d))
        },
        |t| {
            let mut y = t[0].clone();
            for (at, pair) in y.chunks_mut(d).enumerate() {
                for i in 0..half {
                    let angle = at / heads * half + i;
                    let (c, s) = (f64::from(cos32[angle]), f64::from(sin32[angle]));
                    let (a, b) = (pair[i], pair[i + half]);
                    (pair[i], pair[i + half]) = (a * c - b * s, b * c + a * s);
                }
            }
            y
        },
    );
}

#[test]
fn every_scaling_agrees_with_both_references_on_odd_shapes() {
    // Positions restart and repeat, as in packed rows; 33 rows cross the chunks of 16.
    let packed: Vec<u32> = (0..20).chain(0..1).chain(0..12).collect();
    for rope in ropes() {
        for (heads, d) in [(1, 2), (1, 6), (3, 10), (5, 64)] {
            check(&rope, heads, d, &packed);
            check(&rope, heads, d, &[0]);
            check(&rope, heads, d, &[8191]);
        }
    }
}

#[test]
fn llama3_keeps_high_frequencies_divides_low_ones_and_joins_them_without_a_step() {
    let rope = &ropes()[3];
    let plain = Rope { scaling: RopeScaling::None, ..rope.clone() };
    let kept = |i| frequency(rope, i, 64) / frequency(&plain, i, 64);
    let shares: Vec<f32> = (0..32).map(kept).collect();
    assert!((shares[0] - 1.0).abs() < 1e-6 && (shares[31] - 0.125).abs() < 1e-6, "{shares:?}");
    assert!(shares.is_sorted_by(|a, b| *a >= b - 1e-6), "{shares:?}");
    assert!(shares.iter().any(|s| *s > 0.2 && *s < 0.9), "nothing lies on the ramp: {shares:?}");
}

#[test]
fn the_backward_turn_undoes_the_forward_turn() {
    let table = Table::new(&ropes()[3], 16, LONGEST);
    let x = Input::random("x", &[40, 48]);
    let turned = x.tensor();
    let positions: Vec<u32> = (0..40).map(|i| i * 199).collect();
    table.forward(&turned, &positions).unwrap();
    assert_ne!(values(&turned), x.values);
    table.backward(&turned, &positions).unwrap();
    close("there and back", &wide(&values(&turned)), &wide(&x.values), 1e-6);
}
