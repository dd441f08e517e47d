//! The machine as numbers: how fast, how much memory, how well known. `calibrate` measures it; the estimate only reads.

use super::work::Class;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a machine's numbers came about; decides how wide the intervals are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Measured on this machine by `calibrate`.
    Measured,
    /// Nobody measured it: typical figures of its kind.
    Assumed,
}

/// The rate of one matrix product of `[m, k]·[k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MatmulRate {
    /// Rows of the activation.
    pub m: u64,
    /// Output features.
    pub n: u64,
    /// Input features.
    pub k: u64,
    /// Floating-point operations per second at this shape.
    pub flops_per_s: f64,
}

/// A machine profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// CPU model as the system names it.
    pub name: String,
    /// Threads that were used to measure it.
    pub threads: usize,
    /// Version of the program that measured it.
    pub build: String,
    /// Kernel path: `amx`, `avx512`, `avx2`, `portable`.
    pub kernel: String,
    /// When it was measured, a label.
    pub measured_at: Option<String>,
    /// Measured or assumed.
    pub evidence: Evidence,
    /// Rates of products at the shapes that were measured.
    pub matmul: Vec<MatmulRate>,
    /// Rates of whole op classes where they were measured: FLOP/s, for memory-bound classes bytes/s.
    pub class_rates: BTreeMap<Class, f64>,
    /// Bytes read and written per second by element-wise work.
    pub elementwise_bytes_per_s: f64,
    /// Bytes read and written per second by a plain copy.
    pub copy_bytes_per_s: f64,
    /// Bytes per second from and to the disk.
    pub disk_bytes_per_s: f64,
    /// Tokens per second of the tokenizer.
    pub tokenise_tokens_per_s: f64,
    /// Seconds that each optimizer step takes beside its ops.
    pub step_overhead_s: f64,
    /// Seconds from the start of the process to the first byte loaded.
    pub startup_s: f64,
    /// (slowest − fastest) / median of repeated measurements; 0 = unknown.
    pub spread: f64,
    /// Resident bytes of the process before anything is loaded.
    pub baseline_bytes: u64,
    /// Mean power under load, W; `None` = never measured.
    pub power_w: Option<f64>,
    /// Power by the data sheet, W: energy made from it is modelled.
    pub sheet_power_w: Option<f64>,
    /// What `bf16 = "auto"` means here: the frozen base is kept in bf16.
    pub bf16_base: bool,
}

/// What this process may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Cores, by affinity and CPU quota; at least 1.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Which limit the bytes are: a cgroup's, or what the host has free.
    pub memory_source: String,
}

/// Typical of one server core with AVX2 or AVX-512 in f32 products; used only where nothing was measured.
const ASSUMED_FLOPS_PER_CORE: f64 = 50e9;
/// Typical of one core's share of memory traffic.
const ASSUMED_BYTES_PER_CORE: f64 = 5e9;
/// Small products (one head, short segments) against large ones, where attention was not measured.
const ATTENTION_EFFICIENCY: f64 = 0.35;
/// Resident bytes of the program itself, allocator and thread stacks, where not measured.
const ASSUMED_BASELINE_BYTES: u64 = 64 << 20;

impl Machine {
    /// A machine that nobody measured, with `threads` typical cores.
    pub fn assumed(name: impl Into<String>, threads: usize) -> Self {
        let cores = threads.max(1) as f64;
        Self {
            name: name.into(),
            threads,
            build: String::new(),
            kernel: String::new(),
            measured_at: None,
            evidence: Evidence::Assumed,
            matmul: vec![MatmulRate {
                m: 512,
                n: 1024,
                k: 1024,
                flops_per_s: ASSUMED_FLOPS_PER_CORE * cores,
            }],
            class_rates: BTreeMap::new(),
            elementwise_bytes_per_s: ASSUMED_BYTES_PER_CORE * cores,
            copy_bytes_per_s: ASSUMED_BYTES_PER_CORE * cores,
            disk_bytes_per_s: 500e6,
            tokenise_tokens_per_s: 500e3,
            step_overhead_s: 0.005,
            startup_s: 0.2,
            spread: 0.0,
            baseline_bytes: ASSUMED_BASELINE_BYTES,
            power_w: None,
            sheet_power_w: None,
            bf16_base: false,
        }
    }

    /// Whether the numbers can be a machine's: a profile lies in a file that anyone can edit.
    pub fn is_sound(&self) -> bool {
        let rates = self.matmul.iter().map(|r| r.flops_per_s);
        let positive = |v: f64| v.is_finite() && v > 0.0;
        rates
            .chain(self.class_rates.values().copied())
            .chain([
                self.elementwise_bytes_per_s,
                self.copy_bytes_per_s,
                self.disk_bytes_per_s,
                self.tokenise_tokens_per_s,
            ])
            .chain(self.power_w)
            .all(positive)
            && [self.step_overhead_s, self.startup_s, self.spread]
                .into_iter()
                .all(|v| v.is_finite() && v >= 0.0)
    }

    /// FLOP/s of a product `[m, k]·[k, n]`: the measured shapes' times per operation, weighted by the inverse square
    /// of their distance in log₂ of the three dimensions. A shape that was measured gives its own rate.
    pub fn matmul_rate(&self, m: f64, n: f64, k: f64) -> f64 {
        let octaves = |a: f64, b: u64| (a.max(1.0) / (b.max(1) as f64)).log2().powi(2);
        let (mut weights, mut time) = (0.0, 0.0);
        for known in self.matmul.iter().filter(|r| r.flops_per_s > 0.0) {
            let distance = octaves(m, known.m) + octaves(n, known.n) + octaves(k, known.k);
            if distance < 1e-9 {
                return known.flops_per_s;
            }
            weights += 1.0 / distance;
            time += 1.0 / (distance * known.flops_per_s);
        }
        if weights > 0.0 && weights.is_finite() {
            weights / time
        } else {
            ASSUMED_FLOPS_PER_CORE * self.threads.max(1) as f64
        }
    }

    /// FLOP/s of a class of products at a shape.
    pub(crate) fn class_rate(&self, class: Class, m: f64, n: f64, k: f64) -> f64 {
        match (self.class_rates.get(&class), class) {
            (Some(&rate), _) if rate > 0.0 => rate,
            (_, Class::Attention) => ATTENTION_EFFICIENCY * self.matmul_rate(m, n, k),
            _ => self.matmul_rate(m, n, k),
        }
    }

    /// Bytes/s of a memory-bound class.
    pub(crate) fn byte_rate(&self, class: Class) -> f64 {
        match self.class_rates.get(&class) {
            Some(&rate) if rate > 0.0 => rate,
            _ => self.elementwise_bytes_per_s.max(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_shapes() -> Machine {
        let mut machine = Machine::assumed("test", 1);
        machine.matmul = [(100e9, 64), (400e9, 1024)]
            .map(|(flops_per_s, n)| MatmulRate { m: 256, n, k: 256, flops_per_s })
            .to_vec();
        machine
    }

    #[test]
    fn a_measured_shape_gives_its_own_rate() {
        let rate = two_shapes().matmul_rate(256.0, 1024.0, 256.0);
        assert!((rate - 400e9).abs() < 1.0, "{rate}");
    }

    #[test]
    fn a_shape_halfway_takes_the_mean_time_per_operation() {
        // 256 is two octaves from both: 2 / (1/100 + 1/400) = 160.
        let rate = two_shapes().matmul_rate(256.0, 256.0, 256.0);
        assert!((rate - 160e9).abs() < 1.0, "{rate}");
    }

    #[test]
    fn a_class_that_was_measured_wins_over_shapes() {
        let mut machine = two_shapes();
        machine.class_rates.insert(Class::Attention, 7e9);
        let rate = machine.class_rate(Class::Attention, 256.0, 64.0, 256.0);
        assert!((rate - 7e9).abs() < 1.0);
        assert!(machine.class_rate(Class::Lora, 256.0, 64.0, 256.0) > 99e9);
    }

    #[test]
    fn a_profile_without_rates_still_gives_a_finite_one() {
        let mut machine = two_shapes();
        machine.matmul.clear();
        assert!(machine.matmul_rate(1.0, 1.0, 0.0) > 0.0);
    }

    #[test]
    fn a_profile_survives_json() {
        let mut machine = two_shapes();
        machine.class_rates.insert(Class::Elementwise, 1e9);
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
    }
}
