//! Dropout: linear in its input, its own backward, and a mask that follows from its place alone.

use super::references::{Input, Ours, agree, constant, random, values};
use fttrain::ops::dropout::{Noise, apply};
use fttrain::ops::host;

const NOISE: Noise = Noise { seed: 1, step: 2, first_token: 30 };

fn mask(p: f32, site: u64, noise: Noise, rows: usize, width: usize) -> Vec<f32> {
    let ones = host::tensor(vec![1.0; rows * width], (rows, width)).unwrap();
    values(&apply(&ones, p, site, noise).unwrap())
}

#[test]
fn dropout_agrees_with_both_references_on_odd_shapes() {
    for (n, width) in [(1, 1), (1, 3), (33, 17), (2, 129)] {
        for p in [0.0, 0.1, 0.5, 0.9] {
            let x = Input::random("x", &[n, width]);
            let y = apply(&x.tensor(), p, 3, NOISE).unwrap();
            let dy = random("dy", n * width, 1.0);
            let dx = apply(&host::tensor(dy.clone(), (n, width)).unwrap(), p, 3, NOISE).unwrap();
            let mask = mask(p, 3, NOISE, n, width);
            let keep = 1.0 / (1.0 - p);
            assert!(mask.iter().all(|&m| m == 0.0 || (m - keep).abs() < 1e-6), "p = {p}");
            agree(
                &format!("{n} × {width}, p = {p}"),
                &[x],
                &Ours { y: values(&y), dy, grads: vec![Some(values(&dx))] },
                |t| &t[0] * constant(&mask, &[n, width])?,
                |t| t[0].iter().zip(&mask).map(|(x, m)| x * f64::from(*m)).collect(),
            );
        }
    }
}

/// The share of places where two masks of p = 0.5 agree: 0.5 where they know nothing of each other.
fn agreement(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a.to_bits() == b.to_bits()).count() as f64 / a.len() as f64
}

#[test]
fn neighbouring_places_have_masks_that_know_nothing_of_each_other() {
    let at = |site, noise| mask(0.5, site, noise, 64, 129);
    let here = at(3, NOISE);
    assert_eq!(here, at(3, NOISE));
    let others = [
        at(4, NOISE),
        at(3, Noise { seed: 2, ..NOISE }),
        at(3, Noise { step: 3, ..NOISE }),
        at(3, Noise { first_token: 94, ..NOISE }),
        at(2, Noise { step: 3, ..NOISE }),
    ];
    // 8256 places: four standard deviations are 0.022.
    for (i, other) in others.iter().enumerate() {
        let share = agreement(&here, other);
        assert!((share - 0.5).abs() < 0.022, "{i}: {share}");
    }
    for lag in [1, 2, 129] {
        let share = agreement(&here[lag..], &here[..here.len() - lag]);
        assert!((share - 0.5).abs() < 0.022, "lag {lag}: {share}");
    }
}

#[test]
fn every_column_is_dropped_at_the_same_rate() {
    let (rows, width) = (4000, 5);
    let mask = mask(0.3, 0, NOISE, rows, width);
    for column in 0..width {
        let dropped = mask.iter().skip(column).step_by(width).filter(|&&m| m == 0.0).count();
        let share = dropped as f64 / rows as f64;
        assert!((share - 0.3).abs() < 0.03, "column {column}: {share}");
    }
}
