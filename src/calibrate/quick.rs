//! The quick measurement, three seconds at most: products exactly as the engine does them, a copy, element-wise work,
//! and the cases that the caller brings.

use super::shapes::Shape;
use super::stopwatch::{Timed, time};
use crate::error::Result;
use crate::estimate::Machine;
use crate::estimate::machine::{Evidence, MatmulRate};
use crate::estimate::work::Class;
use crate::meter::machine::cpu_model;
use crate::meter::process::resident;
use crate::ops::matmul;
use candle_core::{Device, Tensor};
use std::time::Duration;

/// What a profile is valid for, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Threads that the engine uses.
    pub threads: usize,
    /// Version of the program.
    pub build: String,
    /// Kernel path: `amx`, `avx512`, `avx2`, `portable`.
    pub kernel: String,
    /// The wall clock, as a label.
    pub measured_at: String,
}

/// An op that the caller runs, because it lives in a room that this one need not know.
pub struct Case<'a> {
    /// The class whose rate it gives.
    pub class: Class,
    /// FLOPs of one run; for memory-bound classes bytes read and written.
    pub amount: f64,
    /// Runs it once.
    pub run: &'a mut dyn FnMut() -> Result<()>,
}

/// Time for one shape or case beside its three runs.
const BUDGET: Duration = Duration::from_millis(120);
/// Floats of a buffer that is copied: 32 MiB, beyond the caches of most cores.
const COPY_FLOATS: usize = 8 << 20;

/// Measures this machine at `shapes` and with `cases`.
///
/// # Errors
/// A case's own, or a fault of a tensor operation.
pub fn quick(provenance: &Provenance, shapes: &[Shape], cases: &mut [Case<'_>]) -> Result<Machine> {
    let mut machine = Machine::assumed(cpu_model(), provenance.threads);
    // Before anything is allocated: what the process weighs by itself.
    if let Some(bytes) = resident().0 {
        machine.baseline_bytes = bytes;
    }
    machine.build.clone_from(&provenance.build);
    machine.kernel.clone_from(&provenance.kernel);
    machine.measured_at = Some(provenance.measured_at.clone());
    machine.evidence = Evidence::Measured;
    let mut spreads = Vec::new();
    if !shapes.is_empty() {
        machine.matmul.clear();
    }
    for shape in shapes {
        let timed = product(*shape)?;
        spreads.push(timed.spread);
        machine.matmul.push(MatmulRate {
            m: shape.m as u64,
            n: shape.n as u64,
            k: shape.k as u64,
            flops_per_s: 2.0 * shape.m as f64 * shape.n as f64 * shape.k as f64 / timed.median_s,
        });
    }
    machine.copy_bytes_per_s = copy()?;
    machine.elementwise_bytes_per_s = elementwise()?;
    for case in cases {
        let timed = time(BUDGET, case.run)?;
        spreads.push(timed.spread);
        let rate = case.amount / timed.median_s;
        machine.class_rates.insert(case.class, rate);
    }
    spreads.sort_by(f64::total_cmp);
    machine.spread = spreads.get(spreads.len() / 2).copied().unwrap_or(0.0);
    Ok(machine)
}

fn ramp(rows: usize, columns: usize) -> Result<Tensor> {
    // Values of ordinary size: denormals and zeros may run at another speed.
    let values: Vec<f32> =
        (0u16..=u16::MAX).cycle().take(rows * columns).map(|i| f32::from(i % 255) / 255.0 + 0.1).collect();
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

fn product(shape: Shape) -> Result<Timed> {
    let x = ramp(shape.m, shape.k)?; // [m, k]
    let w = ramp(shape.n, shape.k)?; // [n, k]
    time(BUDGET, &mut || {
        std::hint::black_box(matmul::nt(&x, &w)?); // [m, n]
        Ok(())
    })
}

/// Bytes read and written per second.
fn copy() -> Result<f64> {
    let from = vec![1f32; COPY_FLOATS];
    let mut to = vec![0f32; COPY_FLOATS];
    let timed = time(BUDGET, &mut || {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        Ok(())
    })?;
    Ok(8.0 * COPY_FLOATS as f64 / timed.median_s)
}

/// Bytes read and written per second by a product of two tensors, allocation included, as the engine's small ops do.
fn elementwise() -> Result<f64> {
    let (rows, columns) = (512, 2048);
    let (a, b) = (ramp(rows, columns)?, ramp(rows, columns)?);
    let timed = time(BUDGET, &mut || {
        std::hint::black_box(a.mul(&b)?);
        Ok(())
    })?;
    Ok(12.0 * (rows * columns) as f64 / timed.median_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::shapes::shapes;
    use crate::estimate::fixture::{config, smollm2};
    use std::time::Instant;

    fn provenance() -> Provenance {
        Provenance {
            threads: 2,
            build: "test".into(),
            kernel: "portable".into(),
            measured_at: "2026-11-21T00:00:00Z".into(),
        }
    }

    #[test]
    fn rates_are_those_of_a_computer() {
        let started = Instant::now();
        let wanted = shapes(&smollm2(), &config(), Some(64));
        let machine = quick(&provenance(), &wanted, &mut []).unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "seconds, not minutes");
        assert_eq!(machine.matmul.len(), wanted.len());
        for rate in machine.matmul.iter().map(|r| r.flops_per_s) {
            assert!((1e7..1e14).contains(&rate), "{rate}");
        }
        assert!((1e7..1e13).contains(&machine.copy_bytes_per_s));
        assert!((1e7..1e13).contains(&machine.elementwise_bytes_per_s));
        assert!(machine.baseline_bytes > 1 << 20 && machine.spread >= 0.0);
        assert_eq!(machine.evidence, Evidence::Measured);
    }

    #[test]
    fn a_case_of_the_callers_sets_its_class() {
        let mut run = || {
            std::thread::sleep(Duration::from_millis(2));
            Ok(())
        };
        let mut cases = [Case { class: Class::Attention, amount: 1e6, run: &mut run }];
        let machine = quick(&provenance(), &[], &mut cases).unwrap();
        let rate = machine.class_rates[&Class::Attention];
        assert!(rate <= 0.5e9 && rate > 1e6, "{rate}");
    }

    #[test]
    fn a_case_that_fails_is_an_error() {
        let mut run = || Err(crate::error::Error::new(crate::error::Kind::Bug, "broken"));
        let mut cases = [Case { class: Class::Linear, amount: 1.0, run: &mut run }];
        assert!(quick(&provenance(), &[], &mut cases).is_err());
    }
}
