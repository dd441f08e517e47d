//! One case of a bench: criterion times it, and its rate is set against what this machine reaches at best, measured
//! right before it. With `FTTRAIN_BENCH_RESULTS` set to a folder, each case is a JSON line there, too.

#![allow(dead_code, unreachable_pub, reason = "each bench takes what it needs")]

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput};
use serde_json::json;
use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, Instant};

/// The program's own, kept as it keeps it: an op's time is also the time of its buffers.
#[global_allocator]
static ALLOCATOR: fttrain_kernels::sys::memory::Allocator = fttrain_kernels::sys::memory::Allocator;

/// Sizes of a model that a bench takes its shapes from.
#[derive(Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    /// D
    pub hidden: usize,
    /// F
    pub mlp: usize,
    /// H
    pub heads: usize,
    /// K
    pub kv_heads: usize,
    /// d
    pub head_dim: usize,
    /// V
    pub vocabulary: usize,
}

/// By their published configs.
pub const MODELS: [Model; 3] = [
    Model {
        name: "smollm2-135m",
        hidden: 576,
        mlp: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49_152,
    },
    Model {
        name: "qwen2.5-0.5b",
        hidden: 896,
        mlp: 4864,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 151_936,
    },
    Model {
        name: "llama-3.2-1b",
        hidden: 2048,
        mlp: 8192,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocabulary: 128_256,
    },
];

impl Model {
    /// `(name, out, in)` of a block's distinct projections.
    pub fn projections(&self) -> [(&'static str, usize, usize); 4] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("q", q, self.hidden),
            ("kv", kv, self.hidden),
            ("up", self.mlp, self.hidden),
            ("down", self.hidden, self.mlp),
        ]
    }
}

/// What one call does.
#[derive(Clone, Copy)]
pub enum Work {
    /// Multiply-adds counted twice, with operands of this type.
    Flops(usize, DType),
    /// Bytes read and written.
    Bytes(usize),
}

/// The settings that all benches share, short because there are many cases; `FTTRAIN_KERNEL` chooses the kernels.
pub fn criterion() -> Criterion {
    fttrain_kernels::sys::memory::keep_pages();
    if let Ok(path) = std::env::var("FTTRAIN_KERNEL") {
        fttrain_kernels::cpu::force(&path).unwrap();
    }
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .without_plots()
        .configure_from_args()
}

/// Times one case.
pub fn case(c: &mut Criterion, bench: &str, name: &str, work: Work, mut run: impl FnMut()) {
    let seconds = RefCell::new(Vec::new());
    let mut group = c.benchmark_group(bench);
    let amount = match work {
        Work::Flops(n, _) | Work::Bytes(n) => n as f64,
    };
    group.throughput(match work {
        Work::Flops(n, _) => Throughput::Elements(n as u64),
        Work::Bytes(n) => Throughput::Bytes(n as u64),
    });
    let mut best = None;
    group.bench_function(name, |b| {
        best.get_or_insert_with(|| peak(work));
        b.iter_custom(|times| {
            let begun = Instant::now();
            (0..times).for_each(|_| run());
            let taken = begun.elapsed();
            seconds.borrow_mut().push(taken.as_secs_f64() / times as f64);
            taken
        });
    });
    group.finish();
    let mut seconds = seconds.into_inner();
    seconds.sort_by(f64::total_cmp);
    // Nothing was run where the command line chose other cases.
    let (Some(&median), Some((peak, of))) = (seconds.get(seconds.len() / 2), best) else { return };
    let unit = if matches!(work, Work::Flops(..)) { "GFLOP/s" } else { "GB/s" };
    let (rate, share) = (amount / median, amount / median / peak);
    println!("{bench}/{name}: {:.1} {unit}, {:.0} % of {:.0} ({of})", rate / 1e9, share * 100.0, peak / 1e9);
    let line = json!({
        "bench": bench, "case": name, "median_s": median, "samples": seconds.len(), "amount": amount,
        "unit": unit, "rate": rate / 1e9, "peak": peak / 1e9, "peak_is": of, "share_of_peak": share,
        "kernel": fttrain_kernels::cpu::path().name(), "threads": rayon::current_num_threads(),
    });
    if let Some(folder) = std::env::var_os("FTTRAIN_BENCH_RESULTS") {
        let path = std::path::Path::new(&folder).join(format!("{bench}.jsonl"));
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

/// What this machine reaches at best in work of a kind, and what that is.
fn peak(work: Work) -> (f64, &'static str) {
    match (work, register_loops()) {
        (Work::Flops(_, DType::BF16), (_, Some(bf16))) => (bf16, "bf16 register loop"),
        (Work::Flops(..), (f32, _)) => (f32, "f32 register loop"),
        (Work::Bytes(_), _) => (copy(), "copy by all threads"),
    }
}

/// FLOP/s in f32 and, where the CPU has it, in bf16.
pub fn register_loops() -> (f64, Option<f64>) {
    use fttrain_kernels::cpu::peak::{bf16_flops_per_s, f32_flops_per_s};
    (f32_flops_per_s(), bf16_flops_per_s())
}

/// Bytes read and written per second where every thread copies a buffer beyond the caches.
pub fn copy() -> f64 {
    const FLOATS: usize = 16 << 20;
    let rates = rayon::broadcast(|_| {
        let (from, mut to) = (vec![1f32; FLOATS], vec![0f32; FLOATS]);
        let mut copy = || {
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&to);
        };
        // The first touches pages that are not there yet.
        copy();
        let begun = Instant::now();
        (0..3).for_each(|_| copy());
        3.0 * 8.0 * FLOATS as f64 / begun.elapsed().as_secs_f64()
    });
    rates.into_iter().sum()
}

/// Values of ordinary size, the same at each call.
pub fn tensor(rows: usize, columns: usize, dtype: DType) -> Tensor {
    let values: Vec<f32> =
        (0..rows * columns).map(|i| (i.wrapping_mul(2_654_435_761) % 2001) as f32 / 1000.0 - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// How a type is written in a case's name.
pub fn type_name(dtype: DType) -> &'static str {
    if dtype == DType::BF16 { "bf16" } else { "f32" }
}
