//! The gated activation.

use super::references::{Input, Ours, agree, random, values};
use fttrain::ops::{gate, host};

fn check(gate_in: Input, up: Input) {
    let shape = gate_in.shape.clone();
    let (g, u) = (gate_in.tensor(), up.tensor());
    let y = gate::forward(&g, &u).unwrap();
    let dy = random("dy", gate_in.values.len(), 1.0);
    let (dg, du) = gate::backward(&g, &u, host::tensor(dy.clone(), shape.clone()).unwrap()).unwrap();
    agree(
        &format!("{shape:?}"),
        &[gate_in, up],
        &Ours { y: values(&y), dy, grads: vec![Some(values(&dg)), Some(values(&du))] },
        |t| t[0].silu()? * &t[1],
        |t| t[0].iter().zip(&t[1]).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect(),
    );
}

#[test]
fn the_gate_agrees_with_both_references_on_odd_shapes() {
    // The last crosses the chunk of values that one task takes.
    for (n, f) in [(1, 1), (1, 3), (33, 17), (129, 129)] {
        check(Input::random("gate", &[n, f]), Input::random("up", &[n, f]));
    }
}

#[test]
fn a_gate_far_from_zero_is_the_line_or_nothing() {
    let gates = [-200.0, -90.0, -88.5, -87.0, -20.0, -1e-6, 0.0, 1e-6, 20.0, 87.0, 88.5, 90.0, 200.0];
    check(Input { shape: vec![1, 13], values: gates.to_vec() }, Input::random("up", &[1, 13]));
    let all = host::tensor(vec![-1e30, 1e30], (1, 2)).unwrap();
    let one = host::tensor(vec![1.0, 1.0], (1, 2)).unwrap();
    assert_eq!(values(&gate::forward(&all, &one).unwrap())[1].to_bits(), 1e30f32.to_bits());
    let slope = host::tensor(vec![1.0, 1.0], (1, 2)).unwrap();
    let (dg, du) = gate::backward(&all, &one, slope).unwrap();
    for x in [values(&dg), values(&du), values(&gate::forward(&all, &one).unwrap())].concat() {
        assert!(x.is_finite(), "{x}");
    }
}
