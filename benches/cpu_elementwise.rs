//! What memory bounds: norms, rope, the gated activation, AdamW: `cargo bench --bench cpu_elementwise`.

mod support;

use candle_core::DType;
use criterion::Criterion;
use fttrain::arch::{Rope, RopeScaling};
use fttrain::ops::norm::Norm;
use fttrain::ops::optimizer::{self, AdamW};
use fttrain::ops::rope::Table;
use fttrain::ops::{Grads, Weight, gate};
use std::hint::black_box;
use support::{MODELS, Model, Work, case, tensor};

/// Tokens of a micro-batch.
const ROWS: usize = 1024;
/// Values of a trained tensor: beyond the caches with its moments and gradient.
const TRAINED: usize = 4 << 20;

/// `floats` read or written.
fn floats(floats: usize) -> Work {
    Work::Bytes(4 * floats)
}

fn norms(c: &mut Criterion, model: &Model) {
    let wide = ROWS * model.hidden;
    let (x, dy) = (tensor(ROWS, model.hidden, DType::F32), tensor(ROWS, model.hidden, DType::F32));
    let weight = tensor(1, model.hidden, DType::F32).squeeze(0).unwrap();
    let norm = Norm { weight: Weight::frozen(weight), eps: 1e-5 };
    case(c, "cpu_elementwise", &format!("{}/norm/forward", model.name), floats(2 * wide), || {
        black_box(norm.forward(&x).unwrap());
    });
    let saved = norm.forward(&x).unwrap().1;
    let mut grads = Grads::new(0);
    case(c, "cpu_elementwise", &format!("{}/norm/backward", model.name), floats(3 * wide), || {
        black_box(norm.backward(&saved, &dy, None, &mut grads).unwrap());
    });
}

fn activations(c: &mut Criterion, model: &Model) {
    let wide = ROWS * model.mlp;
    let [gate, up, d_act] = [(); 3].map(|()| tensor(ROWS, model.mlp, DType::F32));
    case(c, "cpu_elementwise", &format!("{}/activation/forward", model.name), floats(3 * wide), || {
        black_box(gate::forward(&gate, &up).unwrap());
    });
    case(c, "cpu_elementwise", &format!("{}/activation/backward", model.name), floats(5 * wide), || {
        black_box(gate::backward(&gate, &up, &d_act).unwrap());
    });
}

fn ropes(c: &mut Criterion, model: &Model) {
    let width = model.heads * model.head_dim;
    let rope = Rope { theta: 1e5, scaling: RopeScaling::None };
    let table = Table::new(&rope, model.head_dim, ROWS);
    let positions: Vec<u32> = (0..ROWS).filter_map(|p| u32::try_from(p).ok()).collect();
    let q = tensor(ROWS, width, DType::F32);
    case(c, "cpu_elementwise", &format!("{}/rope/in place", model.name), floats(2 * ROWS * width), || {
        table.forward(&q, &positions).unwrap();
    });
}

fn update(c: &mut Criterion) {
    let how = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        correction1: 0.1,
        correction2_sqrt: 0.03,
        grad_scale: 1.0,
    };
    let [param, m, v, grad] = [(); 4].map(|()| tensor(1, TRAINED, DType::F32).abs().unwrap());
    case(c, "cpu_elementwise", "update/adamw", floats(7 * TRAINED), || {
        optimizer::adamw(&param, &m, &v, &grad, &how).unwrap();
    });
    case(c, "cpu_elementwise", "update/norm of a gradient", floats(TRAINED), || {
        black_box(optimizer::sum_of_squares(&grad).unwrap());
    });
}

fn all(c: &mut Criterion) {
    for model in MODELS {
        norms(c, &model);
        activations(c, &model);
        ropes(c, &model);
    }
    update(c);
}

criterion::criterion_group! { name = benches; config = support::criterion(); targets = all }
criterion::criterion_main!(benches);
