//! The machine as numbers: how fast, how much memory, how well known. `calibrate` measures it; the estimate only reads.

use super::rates::{Glue, Rate};
use super::work::Class;
use crate::config::Budget;
use crate::units::BYTES_PER_GIB;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a machine's numbers came about; decides how wide the intervals are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Measured on this machine by `fttrain calibrate`: a grid of shapes, each for longer.
    Calibrated,
    /// Measured on this machine in a few seconds, at the shapes of a run.
    Measured,
    /// A data sheet's peaks times the efficiency that published runs reached on such a device.
    Sheet,
    /// Nobody measured it: typical figures of its kind.
    Assumed,
}

/// Where the arithmetic is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The host's cores; activations are f32.
    #[default]
    Cpu,
    /// A GPU with memory of its own; activations are bf16.
    Accelerator,
}

/// A machine profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// CPU model as the system names it, or the accelerator's name.
    pub name: String,
    /// Where the arithmetic is done.
    #[serde(default)]
    pub kind: Kind,
    /// Threads that were used to measure it; of an accelerator 1.
    pub threads: usize,
    /// Build of the program that measured it.
    pub build: String,
    /// Kernel path: `amx`, `avx512`, `avx2`, `portable`; `cuda`.
    pub kernel: String,
    /// When it was measured, a label.
    pub measured_at: Option<String>,
    /// How its numbers came about.
    pub evidence: Evidence,
    /// Rates of ops at the shapes that were measured.
    pub rates: Vec<Rate>,
    /// What a whole block takes beside its ops.
    #[serde(default)]
    pub glue: Vec<Glue>,
    /// Rates of whole op classes, where no shape is known: FLOP/s, for memory-bound classes bytes/s.
    pub class_rates: BTreeMap<Class, f64>,
    /// Bytes read and written per second by element-wise work.
    pub elementwise_bytes_per_s: f64,
    /// Bytes read and written per second by a plain copy.
    pub copy_bytes_per_s: f64,
    /// Bytes per second that a fresh buffer is touched at for the first time.
    pub fresh_bytes_per_s: f64,
    /// The same beyond [`NEAR`]: the host of a virtual machine takes back what is not used, and has to find it again.
    /// 0 = not measured: as fast as the first.
    #[serde(default)]
    pub far_bytes_per_s: f64,
    /// Bytes per second from the disk, as far as its cache lets one see.
    pub disk_bytes_per_s: f64,
    /// Bytes per second to the disk, hashed and synced.
    pub disk_write_bytes_per_s: f64,
    /// Seconds of one small durable write.
    pub fsync_s: f64,
    /// Values per second that become NF4.
    pub quantise_values_per_s: f64,
    /// FLOP/s in f64 of a weight that is decomposed, for an adapter that begins with a part of it.
    pub decompose_flops_per_s: f64,
    /// Values per second of weights that are drawn anew.
    pub draw_values_per_s: f64,
    /// Tokens per second of the tokenizer.
    pub tokenise_tokens_per_s: f64,
    /// Seconds that each optimizer step takes beside its ops.
    pub step_overhead_s: f64,
    /// Seconds of one kernel's launch; 0 on a CPU, where the rates hold it, as measured ones of an accelerator do at the
    /// shapes that were measured.
    #[serde(default)]
    pub launch_s: f64,
    /// Seconds from the start of the process to the first byte loaded.
    pub startup_s: f64,
    /// Scatter of repeated measurements, (slower − faster) / middle; 0 = unknown.
    pub spread: f64,
    /// Resident bytes of the process, or of the device's context, before anything is loaded.
    pub baseline_bytes: u64,
    /// Mean power under load, W; `None` = never measured.
    pub power_w: Option<f64>,
    /// Power at rest, W; `None` = never measured.
    #[serde(default)]
    pub idle_power_w: Option<f64>,
    /// Power by the data sheet, W: energy made from it is modelled.
    pub sheet_power_w: Option<f64>,
    /// It multiplies in bf16, and `bf16 = "auto"` keeps the frozen base in it.
    pub bf16_base: bool,
}

/// Bytes of fresh pages that a system has at hand: used a moment ago, by whomever.
pub const NEAR: u64 = 512 << 20;

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

impl Limits {
    /// What is left for one of `beside` processes of this machine, of which `sharing` may use the same cores.
    #[must_use]
    pub fn shared(self, beside: usize, sharing: usize) -> Self {
        if beside <= 1 {
            return self;
        }
        Self {
            cores: (self.cores / sharing.max(1)).max(1),
            memory_bytes: self.memory_bytes / beside as u64,
            memory_source: format!("{}, shared by {beside} processes", self.memory_source),
        }
    }

    /// No more memory than the budget allows.
    #[must_use]
    pub fn capped(&self, budget: &Budget) -> Self {
        let cap = budget.max_memory_gib.map(|gib| super::rounded(gib * BYTES_PER_GIB));
        match cap.filter(|cap| *cap < self.memory_bytes) {
            Some(cap) => {
                Self { memory_bytes: cap, memory_source: "budget.max_memory_gib".into(), ..self.clone() }
            }
            None => self.clone(),
        }
    }
}

/// Typical of one server core with AVX2 or AVX-512 in f32 products; used only where nothing was measured.
const ASSUMED_FLOPS_PER_CORE: f64 = 50e9;
/// Typical of one core's share of memory traffic.
const ASSUMED_BYTES_PER_CORE: f64 = 5e9;
/// Small products (one head, short segments) against large ones, where attention was not measured.
const ATTENTION_EFFICIENCY: f64 = 0.35;
/// Values per second that one core quantises to NF4, and draws, where that was not measured.
const ASSUMED_QUANTISED_PER_CORE: f64 = 50e6;
/// FLOP/s in f64 of a weight that one core decomposes, where that was not measured.
const ASSUMED_DECOMPOSED_PER_CORE: f64 = 1e9;
const ASSUMED_DRAWN_PER_CORE: f64 = 30e6;
/// Resident bytes of the program itself, allocator and thread stacks, where not measured.
const ASSUMED_BASELINE_BYTES: u64 = 64 << 20;

impl Machine {
    /// A machine that nobody measured, with `threads` typical cores.
    pub fn assumed(name: impl Into<String>, threads: usize) -> Self {
        let cores = threads.max(1) as f64;
        let flops = ASSUMED_FLOPS_PER_CORE * cores;
        Self {
            name: name.into(),
            kind: Kind::Cpu,
            threads,
            build: String::new(),
            kernel: String::new(),
            measured_at: None,
            evidence: Evidence::Assumed,
            rates: Vec::new(),
            glue: Vec::new(),
            class_rates: BTreeMap::from([
                (Class::Linear, flops),
                (Class::Head, flops),
                (Class::Attention, ATTENTION_EFFICIENCY * flops),
            ]),
            elementwise_bytes_per_s: ASSUMED_BYTES_PER_CORE * cores,
            copy_bytes_per_s: ASSUMED_BYTES_PER_CORE * cores,
            fresh_bytes_per_s: 3e9,
            far_bytes_per_s: 0.0,
            disk_bytes_per_s: 500e6,
            disk_write_bytes_per_s: 500e6,
            fsync_s: 0.004,
            quantise_values_per_s: ASSUMED_QUANTISED_PER_CORE * cores,
            decompose_flops_per_s: ASSUMED_DECOMPOSED_PER_CORE * cores,
            draw_values_per_s: ASSUMED_DRAWN_PER_CORE * cores,
            tokenise_tokens_per_s: 500e3,
            step_overhead_s: 0.005,
            launch_s: 0.0,
            startup_s: 0.2,
            spread: 0.0,
            baseline_bytes: ASSUMED_BASELINE_BYTES,
            power_w: None,
            idle_power_w: None,
            sheet_power_w: None,
            bf16_base: false,
        }
    }

    /// Its rates were measured, by fttrain's own ops.
    pub fn is_measured(&self) -> bool {
        matches!(self.evidence, Evidence::Calibrated | Evidence::Measured)
    }

    /// Takes over what an accelerator leaves to its host.
    pub fn take_host(&mut self, host: &Self) {
        self.fresh_bytes_per_s = host.fresh_bytes_per_s;
        self.far_bytes_per_s = host.far_bytes_per_s;
        self.disk_bytes_per_s = host.disk_bytes_per_s;
        self.disk_write_bytes_per_s = host.disk_write_bytes_per_s;
        self.fsync_s = host.fsync_s;
        self.quantise_values_per_s = host.quantise_values_per_s;
        self.decompose_flops_per_s = host.decompose_flops_per_s;
        self.draw_values_per_s = host.draw_values_per_s;
        self.tokenise_tokens_per_s = host.tokenise_tokens_per_s;
        self.step_overhead_s = host.step_overhead_s;
        self.startup_s = host.startup_s;
    }

    /// Seconds to touch `bytes` for the first time in a process that has touched so many `before`.
    pub fn touch_s(&self, before: u64, bytes: u64) -> f64 {
        let near = bytes.min(NEAR.saturating_sub(before));
        let rate = |measured: f64| if measured > 0.0 { measured } else { self.fresh_bytes_per_s.max(1.0) };
        near as f64 / rate(self.fresh_bytes_per_s) + (bytes - near) as f64 / rate(self.far_bytes_per_s)
    }

    /// Whether the numbers can be a machine's: a profile lies in a file that anyone can edit.
    pub fn is_sound(&self) -> bool {
        let rates = self.rates.iter().map(|r| r.per_s).chain(self.glue.iter().map(|g| g.factor));
        let positive = |v: f64| v.is_finite() && v > 0.0;
        rates
            .chain(self.class_rates.values().copied())
            .chain([
                self.elementwise_bytes_per_s,
                self.copy_bytes_per_s,
                self.fresh_bytes_per_s,
                self.disk_bytes_per_s,
                self.disk_write_bytes_per_s,
                self.quantise_values_per_s,
                self.decompose_flops_per_s,
                self.draw_values_per_s,
                self.tokenise_tokens_per_s,
            ])
            .chain(self.power_w)
            .chain(self.idle_power_w)
            .all(positive)
            && [self.step_overhead_s, self.startup_s, self.spread, self.fsync_s, self.launch_s]
                .into_iter()
                .all(|v| v.is_finite() && v >= 0.0)
    }

    /// FLOP/s of the fastest product that was measured, or of the class where none was.
    pub fn peak_flops_per_s(&self) -> Option<f64> {
        let linear = self.rates.iter().filter(|r| matches!(r.class, Class::Linear | Class::Head));
        linear.map(|r| r.per_s).reduce(f64::max).or_else(|| self.class_rates.get(&Class::Linear).copied())
    }

    /// FLOP/s of a class of products that no measured shape is near of.
    pub(crate) fn class_rate(&self, class: Class) -> f64 {
        let known = self.class_rates.get(&class).copied().filter(|r| *r > 0.0);
        known.unwrap_or_else(|| match self.peak_flops_per_s() {
            Some(peak) if self.kind == Kind::Accelerator => peak * ATTENTION_EFFICIENCY,
            _ => ASSUMED_FLOPS_PER_CORE * self.threads.max(1) as f64,
        })
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

    #[test]
    fn pages_that_nobody_used_lately_are_dearer() {
        let mut machine = Machine::assumed("test", 1);
        machine.fresh_bytes_per_s = NEAR as f64;
        assert!((machine.touch_s(0, 3 * NEAR) - 3.0).abs() < 1e-9, "not measured: as the first");
        machine.far_bytes_per_s = NEAR as f64 / 10.0;
        assert!((machine.touch_s(0, 3 * NEAR) - 21.0).abs() < 1e-9);
        assert!((machine.touch_s(NEAR / 2, NEAR) - 5.5).abs() < 1e-9);
        assert!((machine.touch_s(9 * NEAR, NEAR) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_profile_survives_json() {
        let mut machine = Machine::assumed("test", 1);
        machine.class_rates.insert(Class::Elementwise, 1e9);
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
    }

    #[test]
    fn a_rate_below_0_is_no_machines() {
        let mut machine = Machine::assumed("test", 1);
        assert!(machine.is_sound());
        machine.class_rates.insert(Class::Linear, -1.0);
        assert!(!machine.is_sound());
    }
}
