//! Causal attention by segment length: `cargo bench --bench cpu_attention`.

mod support;

use candle_core::DType;
use criterion::Criterion;
use fttrain::ops::attention::{self, Shape, Span};
use std::hint::black_box;
use support::{MODELS, Model, Work, case, tensor};

/// Tokens in all.
const ROWS: usize = 2048;

fn shape(model: &Model) -> Shape {
    let (heads, kv_heads, head_dim) = (model.heads, model.kv_heads, model.head_dim);
    let scale = 1.0 / (head_dim as f32).sqrt();
    Shape { heads, kv_heads, head_dim, scale, softcap: None, window: None }
}

fn segments(c: &mut Criterion) {
    for model in MODELS {
        let shape = shape(&model);
        let (width, kv_width) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        let [q, d_out] = [width; 2].map(|width| tensor(ROWS, width, DType::F32));
        let [k, v] = [kv_width; 2].map(|width| tensor(ROWS, width, DType::F32));
        for length in [128, 512, 2048] {
            let starts = (0..ROWS).step_by(length);
            let spans: Vec<Span> = starts.map(|at| Span { q: at..at + length, k: at..at + length }).collect();
            // Two products over the lower triangle.
            let flops = 4 * width * ROWS * (length + 1) / 2;
            let name = |pass: &str| format!("{}/{ROWS} in {length}s/{pass}", model.name);
            case(c, "cpu_attention", &name("forward"), Work::Flops(flops, DType::F32), || {
                black_box(attention::forward(&shape, &spans, &q, &k, &v).unwrap());
            });
            let saved = attention::forward(&shape, &spans, &q, &k, &v).unwrap().1;
            // The scores once more, then four products for two.
            let work = Work::Flops(flops * 5 / 2, DType::F32);
            case(c, "cpu_attention", &name("backward"), work, || {
                black_box(attention::backward(&shape, &spans, &saved, &d_out).unwrap());
            });
        }
    }
}

criterion::criterion_group! { name = benches; config = support::criterion(); targets = segments }
criterion::criterion_main!(benches);
