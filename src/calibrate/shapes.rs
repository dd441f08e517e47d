//! Which ops a run is made of, so that rates are measured at shapes that occur; and the grid of `fttrain calibrate`.

use super::probe::{Bounds, Probe, Setting};
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
    /// What it would be computed on.
    pub kind: Kind,
}

impl Ask<'_> {
    /// How the frozen base will be kept; in full fine-tuning, what products will be rounded to.
    pub fn stored(&self) -> Stored {
        let prefers_bf16 = || self.kind == Kind::Accelerator || fttrain_kernels::cpu::path().has_bf16();
        let bf16 = self.config.base.bf16.unwrap_or_else(prefers_bf16);
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

    /// What its probes have of the model beside their shapes.
    pub fn setting(&self) -> Setting {
        let Counts { tokens, micro_batches, .. } = self.counts;
        Setting {
            heads: self.arch.heads,
            kv_heads: self.arch.kv_heads,
            tokens: size(*tokens as f64 / (*micro_batches).max(1) as f64),
            layers: self.arch.layers.len(),
        }
    }
}

fn size(value: f64) -> usize {
    usize::try_from(crate::estimate::rounded(value)).unwrap_or(usize::MAX).max(1)
}

fn probe(op: &Op, stored: Stored, head_rows: f64) -> Probe {
    let m = if op.class == Class::Head { op.m.min(head_rows) } else { op.m };
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
pub fn wanted(ask: &Ask<'_>, bounds: &Bounds) -> Vec<Probe> {
    let (model, counts) = (ask.model(), ask.counts);
    let parameters = Parameters::count(ask.arch, &ask.config.method, ask.adapted);
    let mut ops = model.training(&counts.volume(), 1.0, &parameters, false);
    for judged in [&counts.eval, &counts.retention].into_iter().filter(|judged| judged.passes > 0) {
        let eval = model.evaluation(&judged.volume(1));
        ops.extend(eval.into_iter().filter(|op| op.class == Class::Head));
    }
    ops.sort_by(|a, b| (b.flops + b.bytes).total_cmp(&(a.flops + a.bytes)));
    let head_rows = if bounds.is_head_chunked { ask.logits_rows as f64 } else { f64::INFINITY };
    let mut all: Vec<Probe> = Vec::new();
    for probe in ops.iter().map(|op| probe(op, model.stored, head_rows).cut(bounds)) {
        if !all.contains(&probe) {
            all.push(probe);
        }
    }
    all
}

/// The probes that a machine has no rate near of: the weight's shape itself, and rows within a quarter.
pub fn lacking(machine: &Machine, wanted: &[Probe]) -> Vec<Probe> {
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

fn linear((n, k): (usize, usize), m: usize, way: Way, stored: Stored, rank: usize) -> Probe {
    Probe { class: Class::Linear, way, stored, m, n, k, rank }
}

fn plain(class: Class, way: Way, stored: Stored, m: usize, n: usize, k: usize) -> Probe {
    Probe { class, way, stored, m, n, k, rank: 0 }
}

fn distinct(probes: impl Iterator<Item = Probe>) -> Vec<Probe> {
    let mut ordered: Vec<Probe> = Vec::new();
    for probe in probes {
        if !ordered.contains(&probe) {
            ordered.push(probe);
        }
    }
    ordered
}

/// The grid of a calibration: ops over the shapes of models from a hundred million to some billions of parameters,
/// the most telling first, so that a slow machine leaves out the least.
pub fn grid() -> Vec<Probe> {
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
    let mut others = Vec::new();
    for way in [Way::Forward, Way::Backward] {
        for stored in [Stored::Bf16, Stored::F32] {
            let plain = |class, m, n, k| plain(class, way, stored, m, n, k);
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
            for stored in [Stored::F32, Stored::Bf16] {
                others.push(plain(Class::Head, way, stored, 256, n, k));
            }
        }
    }
    others.push(plain(Class::Head, Way::Trained, Stored::F32, 256, 49_152, 576));
    for n in [1 << 12, 1 << 15, 1 << 20] {
        others.push(plain(Class::Optimizer, Way::Backward, Stored::F32, 1, n, 1));
    }
    for class in [Class::Adamw8bit, Class::Adafactor, Class::Lion, Class::Sgd] {
        others.push(plain(class, Way::Backward, Stored::F32, 1, 1 << 20, 1));
    }
    distinct(others.into_iter().chain(all).map(|probe| probe.cut(&Bounds::CPU)))
}

/// The same of a GPU: more rows, up to the widths of seven billion parameters, products in bf16 before those in f32, and
/// the one optimizer that runs there. What the card's memory does not suffice for is cut.
pub fn grid_of_card(bounds: &Bounds) -> Vec<Probe> {
    const SHAPES: [(usize, usize); 9] = [
        (576, 576),
        (1536, 576),
        (576, 1536),
        (2048, 2048),
        (8192, 2048),
        (2048, 8192),
        (4096, 4096),
        (11_008, 4096),
        (4096, 11_008),
    ];
    const WAYS: [Way; 2] = [Way::Forward, Way::Backward];
    let mut all = Vec::new();
    for m in [4096, 1024, 16_384] {
        for way in WAYS {
            for (n, k) in SHAPES {
                all.push(linear((n, k), m, way, Stored::Bf16, 16));
            }
            for (n, k) in [(1536, 576), (8192, 2048), (11_008, 4096)] {
                all.push(plain(Class::Elementwise, way, Stored::Bf16, m, n, k));
            }
            for (n, k) in [(49_152, 576), (128_256, 2048), (32_000, 4096)] {
                all.push(plain(Class::Head, way, Stored::Bf16, m, n, k));
            }
        }
    }
    for way in WAYS {
        for head_dim in [64, 128] {
            for length in [2048, 512, 8192, 1024, 256, 128] {
                all.push(plain(Class::Attention, way, Stored::Bf16, length, length, head_dim));
            }
        }
    }
    for n in [1 << 16, 1 << 20, 1 << 24, 1 << 13] {
        all.push(plain(Class::Optimizer, Way::Backward, Stored::F32, 1, n, 1));
    }
    for way in WAYS {
        for shape in SHAPES {
            all.push(linear(shape, 4096, way, Stored::Quantised, 16));
        }
    }
    for m in [4096, 1024, 16_384] {
        for shape in SHAPES {
            all.push(linear(shape, m, Way::Forward, Stored::Bf16, 0));
            all.push(linear(shape, m, Way::Trained, Stored::Bf16, 0));
        }
    }
    all.push(plain(Class::Head, Way::Trained, Stored::Bf16, 4096, 49_152, 576));
    for way in WAYS {
        for shape in SHAPES {
            all.push(linear(shape, 4096, way, Stored::F32, 16));
        }
        all.push(plain(Class::Elementwise, way, Stored::F32, 4096, 5632, 2048));
        all.push(plain(Class::Attention, way, Stored::F32, 1024, 1024, 64));
        all.push(plain(Class::Head, way, Stored::F32, 1024, 32_000, 2048));
    }
    distinct(all.into_iter().map(|probe| probe.cut(bounds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{config, llama_70b, smollm2};

    fn probes(arch: &Arch) -> Vec<Probe> {
        probes_of(arch, Kind::Cpu, &Bounds::CPU)
    }

    fn probes_of(arch: &Arch, kind: Kind, bounds: &Bounds) -> Vec<Probe> {
        let config = config();
        let adapted: Vec<Linear> = arch.linears().collect();
        let counts = Counts::uniform(1000, 512, &config);
        let ask = Ask { arch, config: &config, adapted: &adapted, counts: &counts, logits_rows: 170, kind };
        wanted(&ask, bounds)
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
    fn on_a_gpu_the_base_is_bf16_and_the_heads_rows_are_all_there() {
        let all = probes_of(&smollm2(), Kind::Accelerator, &Bounds::of_card(80 << 30));
        let of = |class| all.iter().filter(move |p| p.class == class);
        assert!(of(Class::Linear).chain(of(Class::Attention)).all(|p| p.stored == Stored::Bf16), "{all:?}");
        assert!(of(Class::Head).all(|p| p.m > 170), "{all:?}");
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
    fn a_grid_holds_each_shape_once() {
        let once = |grid: &[Probe]| {
            for (i, probe) in grid.iter().enumerate() {
                assert!(!grid[..i].contains(probe), "{probe:?}");
            }
        };
        let grid = grid();
        once(&grid);
        assert!((150..400).contains(&grid.len()), "{}", grid.len());
        let on_gpu = grid_of_card(&Bounds::of_card(80 << 30));
        once(&on_gpu);
        assert!((150..300).contains(&on_gpu.len()), "{}", on_gpu.len());
        let widest = on_gpu.iter().filter(|p| (p.n, p.k) == (11_008, 4096) && p.class == Class::Linear);
        assert_eq!(widest.map(|p| p.m).max(), Some(16_384), "a large card takes all of it");
        once(&grid_of_card(&Bounds::of_card(4 << 30)));
    }
}
