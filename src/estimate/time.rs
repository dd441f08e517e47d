//! Seconds of each phase: every op's FLOPs or bytes over the machine's rate at that shape, plus overheads.

use super::Machine;
use super::work::Op;

/// Seconds that the ops take on a machine.
pub fn seconds(ops: &[Op], machine: &Machine) -> f64 {
    ops.iter()
        .map(|op| {
            let compute =
                if op.flops > 0.0 { op.flops / machine.class_rate(op.class, op.m, op.n, op.k) } else { 0.0 };
            let memory = if op.bytes > 0.0 { op.bytes / machine.byte_rate(op.class) } else { 0.0 };
            compute + memory
        })
        .sum()
}

/// Seconds to read `file_bytes` of weights and widen them to `kept_bytes`, from the start of the process.
pub fn load(file_bytes: u64, kept_bytes: u64, machine: &Machine) -> f64 {
    machine.startup_s
        + file_bytes as f64 / machine.disk_bytes_per_s.max(1.0)
        + (file_bytes as f64 + kept_bytes as f64) / machine.copy_bytes_per_s.max(1.0)
}

/// Seconds to commit `times` folders of `bytes` each: written, hashed as they are written, synced.
pub fn save(bytes: u64, times: u64, machine: &Machine) -> f64 {
    let each = SYNCS_PER_COMMIT * FSYNC_S
        + bytes as f64 / machine.disk_bytes_per_s.max(1.0)
        + bytes as f64 / SHA256_BYTES_PER_S;
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
/// Typical of a local SSD; modelled.
const FSYNC_S: f64 = 0.004;
/// Typical of one core with SHA instructions; modelled.
const SHA256_BYTES_PER_S: f64 = 1e9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::work::{Class, Pass, Site};

    #[test]
    fn products_take_flops_over_rate_and_the_rest_bytes_over_bandwidth() {
        let mut machine = Machine::assumed("test", 1);
        machine.class_rates.insert(Class::Linear, 100.0);
        machine.elementwise_bytes_per_s = 10.0;
        let (site, pass) = (Site::Down, Pass::Forward);
        let op = |class, flops, bytes| Op { class, site, pass, m: 1.0, n: 1.0, k: 1.0, flops, bytes };
        let ops = [op(Class::Linear, 500.0, 0.0), op(Class::Elementwise, 0.0, 20.0)];
        assert!((seconds(&ops, &machine) - 7.0).abs() < 1e-9);
    }
}
