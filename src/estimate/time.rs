//! Seconds of each phase: every op's FLOPs or bytes over the machine's rate at that shape, plus overheads.

use super::Machine;
use super::machine::Kind;
use super::rates::Blocks;
use super::work::{Class, Op};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the ops of a class took in the steps that were profiled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassTime {
    /// Which.
    pub class: Class,
    /// Steps that were looked at.
    pub steps: u64,
    /// Seconds in all.
    pub measured_s: f64,
}

/// Kernels that one call of an op launches on an accelerator, by its class; an adapter adds [`ADAPTER_KERNELS`]. These are
/// other trainers', and go with the seconds of a launch that were learned from their runs.
fn kernels(class: Class) -> f64 {
    match class {
        Class::Linear | Class::Attention => 2.0,
        Class::Head => 8.0,
        Class::Elementwise => 12.0,
        Class::Optimizer | Class::Adamw8bit | Class::Adafactor | Class::Lion | Class::Sgd => 1.0,
    }
}

/// Two thin products, a scaling, a sum, a copy.
const ADAPTER_KERNELS: f64 = 5.0;
/// Of ours, the least that a call launches, with an adapter three products in place of one: the measured rate of a shape
/// holds all of its launches, and these only bound what is concluded from larger shapes. All tensors of a step are updated in
/// one launch.
fn least_kernels(op: &Op) -> f64 {
    match op.class.optimizer() {
        Some(_) => 0.0,
        None if op.rank > 0.0 => 3.0,
        None => 1.0,
    }
}
/// Other trainers' activations and gradients on an accelerator are bf16, and ops are counted in f32, as ours are measured.
const BF16_SHARE: f64 = 0.5;

/// Seconds that the ops of a model with such blocks take on a machine.
pub fn seconds(ops: &[Op], machine: &Machine, blocks: &Blocks) -> f64 {
    by_class(ops, machine, blocks).values().sum()
}

/// Seconds that the ops of each class take.
pub fn by_class(ops: &[Op], machine: &Machine, blocks: &Blocks) -> BTreeMap<Class, f64> {
    let mut all = BTreeMap::new();
    for op in ops {
        *all.entry(op.class).or_insert(0.0) += one(op, machine, blocks);
    }
    all
}

/// Seconds of one op's calls.
pub fn one(op: &Op, machine: &Machine, blocks: &Blocks) -> f64 {
    let stored = blocks.stored;
    let is_measured = machine.is_measured();
    let narrower = machine.kind == Kind::Accelerator && !is_measured && op.class == Class::Elementwise;
    let bytes = if narrower { BF16_SHARE * op.bytes } else { op.bytes };
    let work = if op.flops > 0.0 { op.flops } else { bytes };
    if work <= 0.0 {
        return 0.0;
    }
    let glue = match op.class {
        Class::Linear | Class::Elementwise => machine.glue(op.m, blocks),
        _ => 1.0,
    };
    let adapter = if op.rank > 0.0 { ADAPTER_KERNELS } else { 0.0 };
    let kernels = if is_measured { least_kernels(op) } else { kernels(op.class) + adapter };
    let launches = op.calls * kernels * machine.launch_s;
    // An accelerator works while the host launches: the slower of the two sets the pace. They are never added, so launches
    // that a measured rate holds are not counted once more.
    (glue * work / machine.rate(op, op.stored.unwrap_or(stored.beside(op.class)))).max(launches)
}

/// Seconds to read `file_bytes` of weights and widen them to `kept_bytes`, from the start of the process.
pub fn load(file_bytes: u64, kept_bytes: u64, machine: &Machine) -> f64 {
    machine.startup_s + file_bytes as f64 / machine.disk_bytes_per_s.max(1.0) + machine.touch_s(0, kept_bytes)
}

/// Seconds to commit `times` folders of `bytes` each, beside `resident` bytes of the process: written into fresh pages of the
/// system's cache, hashed meanwhile, synced.
pub fn save(bytes: u64, times: u64, resident: u64, machine: &Machine) -> f64 {
    let each = SYNCS_PER_COMMIT * machine.fsync_s
        + bytes as f64 / machine.disk_write_bytes_per_s.max(1.0)
        + machine.touch_s(resident, bytes);
    each * times as f64
}

/// Seconds to decode `tokens` tokens one by one: each reads all weights once.
pub fn decode(tokens: f64, weight_bytes: u64, machine: &Machine) -> f64 {
    // A copy reads and writes: its rate counts both.
    tokens * weight_bytes as f64 / machine.copy_bytes_per_s.max(1.0)
}

/// Seconds to tokenise.
pub fn tokenise(tokens: u64, machine: &Machine) -> f64 {
    tokens as f64 / machine.tokenise_tokens_per_s.max(1.0)
}

/// Three files, the folder and its parent.
const SYNCS_PER_COMMIT: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::machine::Evidence;
    use crate::estimate::rates::{Glue, Rate};
    use crate::estimate::work::{Stored, Way};

    const BLOCKS: Blocks = Blocks { hidden: 1, stored: Stored::F32, is_adapted: false, has_extras: false };
    const NARROW: Blocks = Blocks { stored: Stored::Bf16, ..BLOCKS };

    #[test]
    fn products_take_flops_over_rate_and_the_rest_bytes_over_bandwidth() {
        let mut machine = Machine::assumed("test", 1);
        machine.class_rates.insert(Class::Linear, 100.0);
        machine.elementwise_bytes_per_s = 10.0;
        let ops = [
            Op { flops: 500.0, ..Op::nothing(Class::Linear, Way::Forward) },
            Op { bytes: 20.0, ..Op::nothing(Class::Elementwise, Way::Forward) },
        ];
        assert!((seconds(&ops, &machine, &BLOCKS) - 7.0).abs() < 1e-9);
        machine.glue = vec![Glue { blocks: BLOCKS, tokens: 1, factor: 2.0 }];
        assert!((seconds(&ops, &machine, &BLOCKS) - 14.0).abs() < 1e-9);
    }

    /// A measured accelerator that one product was measured on: 100 FLOP of 10 rows in 4 s, launches among them.
    fn accelerator() -> (Machine, Op) {
        let mut machine = Machine::assumed("test", 1);
        machine.kind = Kind::Accelerator;
        machine.evidence = Evidence::Measured;
        machine.launch_s = 3.0;
        let op = Op {
            m: 10.0,
            n: 5.0,
            k: 1.0,
            flops: 100.0,
            calls: 1.0,
            ..Op::nothing(Class::Linear, Way::Forward)
        };
        let (class, way, stored) = (Class::Linear, Way::Forward, Stored::Bf16);
        machine.rates = vec![Rate { class, way, stored, m: 10, n: 5, k: 1, rank: 0, per_s: 25.0 }];
        (machine, op)
    }

    #[test]
    fn a_measured_rate_holds_its_launches_and_a_smaller_shape_is_launched_all_the_same() {
        let (machine, op) = accelerator();
        let seconds = |op: &Op| one(op, &machine, &NARROW);
        assert!((seconds(&op) - 4.0).abs() < 1e-9, "not 4 + 3, and not two kernels of 3");
        let smaller = Op { m: 1.0, flops: 10.0, ..op };
        assert!((seconds(&smaller) - 3.0).abs() < 1e-9, "0.4 s by its rate, but one launch");
        let adapted = Op { rank: 2.0, ..smaller };
        assert!((seconds(&adapted) - 9.0).abs() < 1e-9, "three products at least");
        let update = Op { flops: 0.0, bytes: 1e-9, ..Op::nothing(Class::Optimizer, Way::Backward) };
        assert!(seconds(&Op { calls: 1e3, ..update }) < 1e-6, "one launch updates a thousand tensors");
    }

    #[test]
    fn bytes_of_a_measured_accelerator_are_counted_as_they_were_measured() {
        let (mut machine, _) = accelerator();
        (machine.launch_s, machine.elementwise_bytes_per_s) = (0.0, 10.0);
        let op = Op { bytes: 20.0, ..Op::nothing(Class::Elementwise, Way::Forward) };
        assert!((one(&op, &machine, &NARROW) - 2.0).abs() < 1e-9);
        machine.evidence = Evidence::Sheet;
        assert!((one(&op, &machine, &NARROW) - 1.0).abs() < 1e-9, "other trainers' bf16");
    }

    #[test]
    fn launches_count_where_a_kernel_has_one() {
        let mut machine = Machine::assumed("test", 1);
        machine.class_rates.insert(Class::Linear, 1.0);
        machine.launch_s = 0.5;
        let op = Op { flops: 1.0, calls: 3.0, ..Op::nothing(Class::Linear, Way::Forward) };
        assert!((one(&op, &machine, &BLOCKS) - 3.0).abs() < 1e-9);
    }
}
