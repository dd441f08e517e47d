//! Which products a model is made of, so that rates are measured at shapes that occur.

use crate::arch::{Arch, Proj};
use crate::config::{Config, Method};
use crate::estimate::Machine;

/// A product `[m, k]·[n, k]ᵀ`, as the engine does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows: tokens of a micro-batch.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
}

/// Operations of one measured product: a tenth of a second on two slow cores.
const MOST_FLOPS: usize = 5_000_000_000;
/// Elements of one measured operand, 32 MiB in f32: calibrating must not set the process's peak.
const MOST_ELEMENTS: usize = 8 << 20;
/// Rows are cut no further than this, where a product still runs at its full rate.
const LEAST_ROWS: usize = 64;
/// Tokens of a micro-batch that is not known.
const TYPICAL_ROWS: usize = 512;

impl Shape {
    /// Cuts a shape down to what can be measured in a moment: features first, then rows.
    fn cut(self) -> Self {
        let k = self.k.clamp(1, MOST_ELEMENTS / 64);
        let n = self.n.clamp(1, MOST_ELEMENTS / k);
        let rows = MOST_FLOPS / (2 * n * k).max(1);
        let m = self.m.max(1).min(rows.max(LEAST_ROWS)).min(MOST_ELEMENTS / n.max(k));
        Self { m: m.max(1), n, k }
    }
}

/// The distinct products of a run: the blocks' linears, the head, and the adapter's thin one.
pub fn shapes(arch: &Arch, config: &Config, batch_tokens: Option<usize>) -> Vec<Shape> {
    let m = batch_tokens.unwrap_or(TYPICAL_ROWS);
    let mut all: Vec<Shape> = Proj::ALL
        .into_iter()
        .map(|p| arch.linear(0, p))
        .map(|l| (l.outputs, l.inputs))
        .chain([(arch.vocab_size, arch.hidden_size)])
        .chain(rank(config).map(|r| (r, arch.hidden_size)))
        .map(|(n, k)| Shape { m, n, k }.cut())
        .collect();
    all.sort_by_key(|s| (s.n, s.k));
    all.dedup();
    all
}

fn rank(config: &Config) -> Option<usize> {
    match &config.method {
        Method::Full => None,
        Method::Lora(lora) | Method::Qlora { lora, .. } => lora.r,
    }
}

/// The shapes that a profile has nothing near of: every dimension within a factor of two counts as near.
pub fn lacking(machine: &Machine, wanted: &[Shape]) -> Vec<Shape> {
    let near = |a: usize, b: u64| {
        let (a, b) = (a as f64, b as f64);
        a <= 2.0 * b && b <= 2.0 * a
    };
    wanted
        .iter()
        .filter(|s| !machine.matmul.iter().any(|r| near(s.m, r.m) && near(s.n, r.n) && near(s.k, r.k)))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{config, llama_70b, smollm2};
    use crate::estimate::machine::MatmulRate;

    #[test]
    fn a_model_has_few_distinct_products_and_each_is_cheap() {
        for arch in [smollm2(), llama_70b()] {
            let all = shapes(&arch, &config(), Some(4096));
            assert!((3..=8).contains(&all.len()), "{all:?}");
            for s in all {
                assert!(s.n * s.k <= MOST_ELEMENTS && s.m * s.n <= MOST_ELEMENTS, "{s:?}");
                assert!(2 * s.m * s.n * s.k <= 2 * MOST_FLOPS, "{s:?}");
            }
        }
    }

    #[test]
    fn small_products_are_measured_as_they_are() {
        let all = shapes(&smollm2(), &config(), Some(256));
        for (n, k) in [(576, 576), (192, 576), (1536, 576), (576, 1536), (16, 576)] {
            assert!(all.contains(&Shape { m: 256, n, k }), "{n} {k}: {all:?}");
        }
    }

    #[test]
    fn what_is_near_a_known_shape_is_not_lacking() {
        let mut machine = Machine::assumed("test", 1);
        machine.matmul = vec![MatmulRate { m: 256, n: 1024, k: 576, flops_per_s: 1.0 }];
        let near = Shape { m: 500, n: 1536, k: 576 };
        let far = Shape { n: 16, ..near };
        assert_eq!(lacking(&machine, &[near, far]), [far]);
    }

    #[test]
    fn absurd_shapes_are_cut_and_not_multiplied() {
        let cut = Shape { m: usize::MAX, n: usize::MAX, k: usize::MAX }.cut();
        assert!(cut.n * cut.k <= MOST_ELEMENTS && cut.m >= 1);
    }
}
