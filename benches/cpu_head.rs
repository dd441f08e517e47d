//! The last projection with the loss and the hidden gradient: `cargo bench --bench cpu_head`.

mod support;

use candle_core::DType;
use criterion::Criterion;
use fttrain::ops::head::Head;
use fttrain::ops::matmul::Precision;
use fttrain::ops::{Grads, Weight};
use std::hint::black_box;
use support::{MODELS, Work, case, tensor, type_name};

/// Counted tokens.
const COUNTED: usize = 128;

fn losses(c: &mut Criterion) {
    for model in MODELS {
        let hidden = tensor(COUNTED, model.hidden, DType::F32);
        let targets: Vec<u32> =
            (0..COUNTED).filter_map(|i| u32::try_from(i * 37 % model.vocabulary).ok()).collect();
        let product = 2 * COUNTED * model.vocabulary * model.hidden;
        for dtype in [DType::F32, DType::BF16] {
            let weight = Weight::frozen(tensor(model.vocabulary, model.hidden, dtype));
            let precision = if dtype == DType::BF16 { Precision::Bf16 } else { Precision::F32 };
            let head = Head { weight, precision };
            let name = |what: &str| {
                let shape = format!("{COUNTED}x{}x{}", model.vocabulary, model.hidden);
                format!("{}/{shape}/{what} {}", model.name, type_name(dtype))
            };
            case(c, "cpu_head", &name("loss"), Work::Flops(product, dtype), || {
                black_box(head.loss(&hidden, &targets).unwrap());
            });
            let mut grads = Grads::new(0);
            case(c, "cpu_head", &name("loss and gradient"), Work::Flops(2 * product, dtype), || {
                black_box(head.loss_and_backward(&hidden, &targets, 1.0, &mut grads).unwrap());
            });
        }
    }
}

criterion::criterion_group! { name = benches; config = support::criterion(); targets = losses }
criterion::criterion_main!(benches);
