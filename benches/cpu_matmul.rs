//! The three products of a linear layer, at the shapes of three models: `cargo bench --bench cpu_matmul`.

mod support;

use candle_core::{DType, Tensor};
use criterion::Criterion;
use fttrain::ops::matmul::{self, Precision};
use std::hint::black_box;
use support::{MODELS, Work, case, tensor, type_name};

/// Tokens of a micro-batch.
const ROWS: usize = 1024;

fn products(c: &mut Criterion) {
    for model in MODELS {
        for (projection, outputs, inputs) in model.projections() {
            let (x, dy) = (tensor(ROWS, inputs, DType::F32), tensor(ROWS, outputs, DType::F32));
            let flops = 2 * ROWS * outputs * inputs;
            let shape = format!("{}/{projection} {ROWS}x{outputs}x{inputs}", model.name);
            for dtype in [DType::F32, DType::BF16] {
                let (w, work) = (tensor(outputs, inputs, dtype), Work::Flops(flops, dtype));
                let name = |product: &str| format!("{shape}/{product} {}", type_name(dtype));
                case(c, "cpu_matmul", &name("x·Wᵀ"), work, || {
                    black_box(matmul::nt(&x, &w).unwrap());
                });
                case(c, "cpu_matmul", &name("dy·W"), work, || {
                    black_box(matmul::nn(&dy, &w).unwrap());
                });
            }
            for (precision, dtype) in [(Precision::F32, DType::F32), (Precision::Bf16, DType::BF16)] {
                let mut dw: Option<Tensor> = None;
                let name = format!("{shape}/dyᵀ·x {}", type_name(dtype));
                case(c, "cpu_matmul", &name, Work::Flops(flops, dtype), || {
                    matmul::tn(&mut dw, &dy, &x, 1.0, precision).unwrap();
                });
            }
        }
    }
}

criterion::criterion_group! { name = benches; config = support::criterion(); targets = products }
criterion::criterion_main!(benches);
