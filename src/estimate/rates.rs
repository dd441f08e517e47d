//! Measured rates of ops and how a rate at a shape that was not measured follows from those that were.

use super::machine::{Kind, Machine};
use super::work::{Class, Op, Stored, Way};
use crate::arch::Arch;
use crate::config::Method;
use serde::{Deserialize, Serialize};

/// The rate of one op at one shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Which op.
    pub class: Class,
    /// Forward, backward, or backward with the weight's own gradient.
    pub way: Way,
    /// How the frozen weight is kept.
    pub stored: Stored,
    /// Rows: tokens of a micro-batch; of attention the segment's length.
    pub m: u64,
    /// Output features; of attention the segment's length, of the optimizer the values of a tensor.
    pub n: u64,
    /// Input features; of attention the size of a head.
    pub k: u64,
    /// Rank of the adapter on it; 0 = none.
    pub rank: u64,
    /// FLOP/s, for memory-bound classes bytes/s.
    pub per_s: f64,
}

/// What lies between the ops of a model's blocks depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Hidden size of the model.
    pub hidden: u64,
    /// How the weights are kept.
    pub stored: Stored,
    /// They are frozen, with adapters beside them.
    pub is_adapted: bool,
    /// An adapter's inputs are masked (dropout), or its rows have lengths of their own (`DoRA`): in no op's rate.
    pub has_extras: bool,
}

impl Blocks {
    /// Of a model that is trained by a method, its weights kept as `stored`.
    pub fn of(arch: &Arch, method: &Method, stored: Stored) -> Self {
        let lora = match method {
            Method::Full => None,
            Method::Lora(lora) | Method::Qlora { lora, .. } => Some(lora),
        };
        Self {
            hidden: arch.hidden_size as u64,
            stored,
            is_adapted: lora.is_some(),
            has_extras: lora.is_some_and(|lora| lora.dropout > 0.0 || lora.dora == Some(true)),
        }
    }
}

/// Seconds of whole blocks over the sum of their ops, measured: allocation, caches, what lies between ops.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Glue {
    /// Of what.
    pub blocks: Blocks,
    /// Tokens of the micro-batch.
    pub tokens: u64,
    /// Whole over sum.
    pub factor: f64,
}

impl Rate {
    /// Same op at the same shape.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |r: &Self| (r.class, r.way, r.stored, r.m, r.n, r.k, r.rank);
        key(self) == key(other)
    }
}

/// Tokens this near to each other have the same factor: a quarter more, or a fifth less.
const NEAR_OCTAVES: f64 = 0.33;

fn octaves(a: f64, b: u64) -> f64 {
    (a.max(1.0) / (b.max(1) as f64)).log2().powi(2)
}

/// Mean of 1/value over (squared distance, value), weighted by the inverse fourth power of the distance; a value at
/// distance 0 stands for itself. `None` where there is nothing.
fn between(known: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut weights, mut time) = (0.0, 0.0);
    for (distance, value) in known.filter(|(_, value)| *value > 0.0) {
        if distance < 1e-9 {
            return Some(value);
        }
        let weight = distance.powi(-2);
        weights += weight;
        time += weight / value;
    }
    (time > 0.0 && time.is_finite()).then(|| weights / time)
}

impl Machine {
    /// FLOP/s (bytes/s of a memory-bound class) of an op: times per operation of the measured shapes, weighted by
    /// their distance in log₂ of the dimensions. A shape that was measured gives its own rate.
    pub fn rate(&self, op: &Op, stored: Stored) -> f64 {
        // What published runs reach holds for whole runs, whatever the rank of their adapters.
        let ranks = if self.kind == Kind::Accelerator && !self.is_measured() { 0.0 } else { 1.0 };
        let distance = |r: &Rate| {
            let rank = ranks * octaves(op.rank + 1.0, r.rank + 1);
            octaves(op.m, r.m) + octaves(op.n, r.n) + octaves(op.k, r.k) + rank
        };
        let of = |wanted: &dyn Fn(&Rate) -> bool| {
            let known = self.rates.iter().filter(|r| r.class == op.class && wanted(r));
            between(known.map(|r| (distance(r), r.per_s)))
        };
        of(&|r| r.way == op.way && r.stored == stored)
            .or_else(|| of(&|r| r.way == op.way))
            .or_else(|| of(&|_| true))
            .unwrap_or_else(
                || {
                    if op.flops > 0.0 { self.class_rate(op.class) } else { self.byte_rate(op.class) }
                },
            )
    }

    /// What the blocks' ops are multiplied by at a micro-batch of `tokens`: as measured of such blocks, the last time
    /// first, or else of any.
    pub fn glue(&self, tokens: f64, blocks: &Blocks) -> f64 {
        let is_like = |g: &Glue| Blocks { hidden: blocks.hidden, ..g.blocks } == *blocks;
        let distance = |g: &Glue| octaves(tokens, g.tokens) + octaves(blocks.hidden as f64, g.blocks.hidden);
        let known = || self.glue.iter().rev();
        between(known().filter(|g| is_like(g)).map(|g| (distance(g), g.factor)))
            .or_else(|| between(known().map(|g| (distance(g), g.factor))))
            .unwrap_or(1.0)
    }

    /// Whether it was measured of such blocks at about so many tokens.
    pub fn knows_glue(&self, tokens: f64, blocks: &Blocks) -> bool {
        self.glue
            .iter()
            .any(|g| g.blocks == *blocks && octaves(tokens, g.tokens) < NEAR_OCTAVES * NEAR_OCTAVES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(way: Way, stored: Stored, n: u64, rank: u64, per_s: f64) -> Rate {
        Rate { class: Class::Linear, way, stored, m: 256, n, k: 256, rank, per_s }
    }

    fn two_shapes() -> Machine {
        let mut machine = Machine::assumed("test", 1);
        machine.rates = vec![
            rate(Way::Forward, Stored::F32, 64, 0, 100e9),
            rate(Way::Forward, Stored::F32, 1024, 0, 400e9),
        ];
        machine
    }

    fn op(n: f64, rank: f64) -> Op {
        Op { m: 256.0, n, k: 256.0, rank, flops: 1.0, ..Op::nothing(Class::Linear, Way::Forward) }
    }

    #[test]
    fn a_measured_shape_gives_its_own_rate() {
        let rate = two_shapes().rate(&op(1024.0, 0.0), Stored::F32);
        assert!((rate - 400e9).abs() < 1.0, "{rate}");
    }

    #[test]
    fn a_shape_halfway_takes_the_mean_time_per_operation() {
        // 256 is two octaves from both: 2 / (1/100 + 1/400) = 160.
        let rate = two_shapes().rate(&op(256.0, 0.0), Stored::F32);
        assert!((rate - 160e9).abs() < 1.0, "{rate}");
    }

    #[test]
    fn the_way_and_the_type_of_the_weight_come_before_the_shape() {
        let mut machine = two_shapes();
        machine.rates.push(rate(Way::Forward, Stored::Bf16, 64, 0, 7e9));
        machine.rates.push(rate(Way::Backward, Stored::F32, 1024, 0, 9e9));
        let at = |stored| machine.rate(&op(1024.0, 0.0), stored);
        assert!((at(Stored::Bf16) - 7e9).abs() < 1.0);
        assert!((at(Stored::F32) - 400e9).abs() < 1.0);
        assert!((at(Stored::Quantised) - 400e9).abs() < 1.0, "no such type was measured: the nearest shape");
        let back = Op { way: Way::Backward, ..op(64.0, 0.0) };
        assert!((machine.rate(&back, Stored::F32) - 9e9).abs() < 1.0);
    }

    #[test]
    fn an_adapter_is_a_shape_of_its_own() {
        let mut machine = two_shapes();
        machine.rates.push(rate(Way::Forward, Stored::F32, 1024, 16, 300e9));
        assert!((machine.rate(&op(1024.0, 16.0), Stored::F32) - 300e9).abs() < 1.0);
    }

    #[test]
    fn a_profile_without_rates_still_gives_a_finite_one() {
        let mut machine = two_shapes();
        machine.rates.clear();
        machine.class_rates.clear();
        assert!(machine.rate(&op(1.0, 0.0), Stored::F32) > 0.0);
        assert!((machine.glue(1.0, &blocks(false)) - 1.0).abs() < 1e-12);
    }

    fn blocks(is_adapted: bool) -> Blocks {
        Blocks { hidden: 64, stored: Stored::F32, is_adapted, has_extras: false }
    }

    #[test]
    fn what_lies_between_ops_is_that_of_like_blocks_as_measured_last() {
        let mut machine = two_shapes();
        let glue = |is_adapted, tokens, factor| Glue { blocks: blocks(is_adapted), tokens, factor };
        machine.glue = vec![glue(true, 256, 1.1), glue(false, 256, 1.3), glue(true, 256, 1.2)];
        assert!((machine.glue(256.0, &blocks(true)) - 1.2).abs() < 1e-12);
        assert!((machine.glue(256.0, &blocks(false)) - 1.3).abs() < 1e-12);
        assert!((machine.glue(64.0, &blocks(false)) - 1.3).abs() < 1e-12, "one of its kind, far away");
        let masked = Blocks { has_extras: true, ..blocks(true) };
        assert!((1.1..1.3).contains(&machine.glue(256.0, &masked)), "none of its kind");
        assert!(machine.knows_glue(300.0, &blocks(true)) && !machine.knows_glue(512.0, &blocks(true)));
        assert!(!machine.knows_glue(256.0, &masked));
    }
}
