//! A frozen linear layer with an adapter of rank 16, forward and backward: `cargo bench --bench cpu_linear`.

mod support;

use candle_core::DType;
use criterion::Criterion;
use fttrain::ops::linear::{Linear, Lora};
use fttrain::ops::matmul::Precision;
use fttrain::ops::{Grads, ParamId, Weight};
use std::hint::black_box;
use support::{MODELS, Work, case, tensor, type_name};

/// Tokens of a micro-batch.
const ROWS: usize = 1024;
const RANK: usize = 16;

fn layer(outputs: usize, inputs: usize, dtype: DType) -> Linear {
    let trained = |id: usize, rows, columns| Weight {
        value: tensor(rows, columns, DType::F32),
        param: Some(ParamId(id)),
    };
    let (a, b) = (trained(0, RANK, inputs), trained(1, outputs, RANK));
    Linear {
        weight: Weight::frozen(tensor(outputs, inputs, dtype)),
        bias: None,
        lora: Some(Lora { a, b, scale: 2.0, dropout: 0.0, site: 0, dora: None }),
        precision: if dtype == DType::BF16 { Precision::Bf16 } else { Precision::F32 },
    }
}

fn layers(c: &mut Criterion) {
    for model in MODELS {
        for (projection, outputs, inputs) in model.projections() {
            let (x, dy) = (tensor(ROWS, inputs, DType::F32), tensor(ROWS, outputs, DType::F32));
            let (base, thin) = (2 * ROWS * outputs * inputs, 2 * ROWS * RANK * (outputs + inputs));
            for dtype in [DType::F32, DType::BF16] {
                let layer = layer(outputs, inputs, dtype);
                let saved = layer.forward(&x, None).unwrap().1;
                let name = |pass: &str| {
                    let shape = format!("{ROWS}x{outputs}x{inputs} r{RANK}");
                    format!("{}/{projection} {shape}/{pass} {}", model.name, type_name(dtype))
                };
                let work = Work::Flops(base + thin, dtype);
                case(c, "cpu_linear", &name("forward"), work, || {
                    black_box(layer.forward(&x, None).unwrap());
                });
                // dx of the base, then dy·B, (dy·B)·A, dB and dA.
                let work = Work::Flops(base + 2 * thin, dtype);
                let mut grads = Grads::new(2);
                case(c, "cpu_linear", &name("backward"), work, || {
                    black_box(layer.backward(&x, &saved, &dy, true, None, &mut grads).unwrap());
                });
            }
        }
    }
}

criterion::criterion_group! { name = benches; config = support::criterion(); targets = layers }
criterion::criterion_main!(benches);
