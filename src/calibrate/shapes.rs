//! Which ops a run is made of, so that rates are measured at shapes that occur; and the grid of `fttrain calibrate`.

use super::probe::Probe;
use crate::arch::{Arch, Linear};
use crate::config::{Config, Method};
use crate::estimate::machine::Kind;
use crate::estimate::rates::Rate;
use crate::estimate::trained::Update;
use crate::estimate::work::{Class, Model, Op, Stored, Way};
use crate::estimate::{Counts, Machine, Parameters};

/// Rows of products, and rows further apart than this factor are measured anew.
const NEAR: f64 = 1.25;

/// The run whose ops are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Shapes.
    pub arch: &'a Arch,
    /// The run.
    pub config: &'a Config,
    /// Linears that get an adapter.
    pub adapted: &'a [Linear],
    /// The packed data.
    pub counts: &'a Counts,
    /// Rows of logits that the head keeps at once.
    pub logits_rows: u64,
}

impl Ask<'_> {
    /// How the frozen base will be kept on a CPU; in full fine-tuning, what products will be rounded to.
    pub fn stored(&self) -> Stored {
        let bf16 = self.config.base.bf16.unwrap_or_else(|| fttrain_kernels::cpu::path().has_bf16());
        match &self.config.method {
            Method::Qlora { .. } => Stored::Quantised,
            Method::Lora(_) | Method::Full if bf16 => Stored::Bf16,
            Method::Lora(_) | Method::Full => Stored::F32,
        }
    }

    /// The model's ops.
    pub fn model(&self) -> Model<'_> {
        Model {
            arch: self.arch,
            method: &self.config.method,
            adapted: self.adapted,
            stored: self.stored(),
            update: Update::of(&self.config.method, &self.config.train),
        }
    }
}

fn size(value: f64) -> usize {
    usize::try_from(crate::estimate::rounded(value)).unwrap_or(usize::MAX).max(1)
}

fn probe(op: &Op, stored: Stored, logits_rows: u64) -> Probe {
    let m = if op.class == Class::Head { op.m.min(logits_rows as f64) } else { op.m };
    let stored = op.stored.unwrap_or(stored.beside(op.class));
    Probe {
        class: op.class,
        way: op.way,
        stored,
        m: size(m),
        n: size(op.n),
        k: size(op.k),
        rank: if op.rank > 0.0 { size(op.rank) } else { 0 },
    }
}

/// The distinct ops of a run, each at the shape of its mean micro-batch, the costliest first.
pub fn wanted(ask: &Ask<'_>) -> Vec<Probe> {
    let (model, counts) = (ask.model(), ask.counts);
    let parameters = Parameters::count(ask.arch, &ask.config.method, ask.adapted);
    let mut ops = model.training(&counts.volume(), 1.0, &parameters, false);
    for judged in [&counts.eval, &counts.retention].into_iter().filter(|judged| judged.passes > 0) {
        let eval = model.evaluation(&judged.volume(1));
        ops.extend(eval.into_iter().filter(|op| op.class == Class::Head));
    }
    ops.sort_by(|a, b| (b.flops + b.bytes).total_cmp(&(a.flops + a.bytes)));
    let mut all: Vec<Probe> = Vec::new();
    for probe in ops.iter().map(|op| probe(op, model.stored, ask.logits_rows).cut()) {
        if !all.contains(&probe) {
            all.push(probe);
        }
    }
    all
}

/// The probes that a machine has no rate near of: the weight's shape itself, and rows within a quarter.
pub fn lacking(machine: &Machine, wanted: &[Probe]) -> Vec<Probe> {
    if machine.kind == Kind::Accelerator {
        return Vec::new();
    }
    wanted.iter().filter(|p| !machine.rates.iter().any(|r| covers(r, p))).copied().collect()
}

fn covers(rate: &Rate, probe: &Probe) -> bool {
    let near = |a: usize, b: u64| {
        let (a, b) = (a as f64, b as f64);
        a <= NEAR * b && b <= NEAR * a
    };
    let rows_only = matches!(probe.class, Class::Linear | Class::Head | Class::Elementwise);
    let same = |a: usize, b: u64| if rows_only { a as u64 == b } else { near(a, b) };
    (rate.class, rate.way, rate.stored, rate.rank)
        == (probe.class, probe.way, probe.stored, probe.rank as u64)
        && near(probe.m, rate.m)
        && same(probe.n, rate.n)
        && same(probe.k, rate.k)
}

/// The grid of a calibration: ops over the shapes of models from a hundred million to some billions of parameters,
/// the most telling first, so that a slow machine leaves out the least.
pub fn grid() -> Vec<Probe> {
    let linear = |(n, k): (usize, usize), m, way, stored, rank| Probe {
        class: Class::Linear,
        way,
        stored,
        m,
        n,
        k,
        rank,
    };
    let mut all = Vec::new();
    for rank in [16, 0] {
        for m in [1024, 256, 4096, 64] {
            for shape in
                [(576, 576), (1536, 576), (576, 1536), (192, 576), (2048, 2048), (8192, 2048), (2048, 8192)]
            {
                for stored in [Stored::F32, Stored::Bf16] {
                    all.push(linear(shape, m, Way::Forward, stored, rank));
                    all.push(linear(shape, m, Way::Backward, stored, rank));
                }
                if rank == 0 {
                    all.push(linear(shape, m, Way::Trained, Stored::F32, 0));
                } else if m == 1024 || m == 256 {
                    all.push(linear(shape, m, Way::Forward, Stored::Quantised, rank));
                    all.push(linear(shape, m, Way::Backward, Stored::Quantised, rank));
                }
            }
        }
    }
    let plain = |class, way, m, n, k| Probe { class, way, stored: Stored::F32, m, n, k, rank: 0 };
    let mut others = Vec::new();
    for way in [Way::Forward, Way::Backward] {
        for stored in [Stored::Bf16, Stored::F32] {
            let plain = |class, m, n, k| Probe { stored, ..plain(class, way, m, n, k) };
            for head_dim in [64, 128] {
                for length in [64, 128, 256, 512, 1024, 2048] {
                    others.push(plain(Class::Attention, length, length, head_dim));
                }
            }
            for m in [64, 512, 4096] {
                for (n, k) in [(1536, 576), (5632, 2048)] {
                    others.push(plain(Class::Elementwise, m, n, k));
                }
            }
        }
        for (n, k) in [(49_152, 576), (32_000, 2048)] {
            others.push(plain(Class::Head, way, 256, n, k));
            others.push(Probe { stored: Stored::Bf16, ..plain(Class::Head, way, 256, n, k) });
        }
    }
    others.push(plain(Class::Head, Way::Trained, 256, 49_152, 576));
    for n in [1 << 12, 1 << 15, 1 << 20] {
        others.push(plain(Class::Optimizer, Way::Backward, 1, n, 1));
    }
    for class in [Class::Adamw8bit, Class::Adafactor, Class::Lion, Class::Sgd] {
        others.push(plain(class, Way::Backward, 1, 1 << 20, 1));
    }
    let mut ordered: Vec<Probe> = Vec::new();
    for probe in others.into_iter().chain(all).map(Probe::cut) {
        if !ordered.contains(&probe) {
            ordered.push(probe);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{config, llama_70b, smollm2};

    fn probes(arch: &Arch) -> Vec<Probe> {
        let config = config();
        let adapted: Vec<Linear> = arch.linears().collect();
        let counts = Counts::uniform(1000, 512, &config);
        wanted(&Ask { arch, config: &config, adapted: &adapted, counts: &counts, logits_rows: 170 })
    }

    #[test]
    fn a_model_has_few_distinct_ops_and_each_is_cheap() {
        for arch in [smollm2(), llama_70b()] {
            let all = probes(&arch);
            assert!((10..=20).contains(&all.len()), "{all:?}");
            let linears = all.iter().filter(|p| p.class == Class::Linear);
            for p in linears {
                assert!(2 * p.m * p.n * p.k <= 64 * 2 * (64 << 20), "{p:?}");
            }
        }
    }

    #[test]
    fn small_models_are_measured_at_their_own_shapes() {
        let all = probes(&smollm2());
        for (n, k) in [(576, 576), (192, 576), (1536, 576), (576, 1536)] {
            for way in [Way::Forward, Way::Backward] {
                let found = all
                    .iter()
                    .any(|p| p.class == Class::Linear && (p.way, p.n, p.k, p.rank) == (way, n, k, 16));
                assert!(found, "{way:?} {n} {k}: {all:?}");
            }
        }
        assert!(all.iter().any(|p| p.class == Class::Head && p.m == 170));
    }

    #[test]
    fn what_was_measured_is_not_lacking_and_another_width_is() {
        let all = probes(&smollm2());
        let mut machine = Machine::assumed("test", 1);
        machine.rates = all
            .iter()
            .map(|p| Rate {
                class: p.class,
                way: p.way,
                stored: p.stored,
                m: p.m as u64,
                n: p.n as u64,
                k: p.k as u64,
                rank: p.rank as u64,
                per_s: 1.0,
            })
            .collect();
        assert_eq!(lacking(&machine, &all), []);
        let wider = Probe { n: all[0].n + 1, ..all[0] };
        assert_eq!(lacking(&machine, &[wider]), [wider]);
    }

    #[test]
    fn the_grid_holds_each_shape_once() {
        let grid = grid();
        for (i, probe) in grid.iter().enumerate() {
            assert!(!grid[..i].contains(probe), "{probe:?}");
        }
        assert!((150..400).contains(&grid.len()), "{}", grid.len());
    }
}
