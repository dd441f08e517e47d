//! What memory bounds: norms, rope, the gated activation, updates: `cargo bench --bench cpu_elementwise`.

mod support;

use candle_core::DType;
use criterion::Criterion;
use fttrain::arch::{Rope, RopeScaling};
use fttrain::config::Optimizer;
use fttrain::ops::matmul::Precision;
use fttrain::ops::norm::Norm;
use fttrain::ops::optimizer::{self, Settings, Step};
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
    let norm = Norm { weight: Weight::frozen(weight), eps: 1e-5, reader: Precision::F32 };
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
    case(c, "cpu_elementwise", &format!("{}/activation/backward", model.name), floats(7 * wide), || {
        // It is used up: a copy is made for each.
        black_box(gate::backward(&gate, &up, d_act.copy().unwrap()).unwrap());
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
    let grad = tensor(1, TRAINED, DType::F32);
    let step = Step { count: 3, lr: 1e-4, weight_decay: 0.0, grad_scale: 1.0, rounding: 0 };
    // Bytes of a value: read and written, beside its gradient.
    for (optimizer, name, state) in [
        (Optimizer::Adamw, "adamw", 8),
        (Optimizer::Adamw8bit, "adamw_8bit", 2),
        (Optimizer::Adafactor, "adafactor", 0),
        (Optimizer::Lion, "lion", 4),
        (Optimizer::Sgd, "sgd", 0),
    ] {
        for (dtype, kept) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
            let value = tensor(1, TRAINED, dtype);
            let settings = Settings { optimizer, beta1: 0.9, beta2: 0.999, eps: 1e-8, momentum: 0.0 };
            let mut rule = optimizer::rule(&settings, &value).unwrap();
            let bytes = (2 * dtype.size_in_bytes() + 4 + 2 * state) * TRAINED;
            case(c, "cpu_elementwise", &format!("update/{name}/{kept}"), Work::Bytes(bytes), || {
                rule.update(&value, &grad, &step).unwrap();
            });
        }
    }
    case(c, "cpu_elementwise", "update/norm of a gradient", floats(TRAINED), || {
        black_box(optimizer::sums_of_squares(&[&grad]).unwrap());
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
