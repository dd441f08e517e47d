//! One measurement: an op of the engine at a shape, run as the engine runs it, through the same public functions.

use super::rig::Rig;
use super::stopwatch::{Patience, Timed};
use crate::arch::{Arch, Rope, RopeScaling};
use crate::config::Optimizer;
use crate::error::Result;
use crate::estimate::rates::Rate;
use crate::estimate::trained::Update;
use crate::estimate::work::{Class, Op, Site, Stored, Way};
use crate::ops::attention::{self, Span};
use crate::ops::gpu::{self, Placed};
use crate::ops::head::Head;
use crate::ops::linear::{Linear, Lora};
use crate::ops::matmul::Precision;
use crate::ops::norm::Norm;
use crate::ops::optimizer::{self, Settings};
use crate::ops::rope::Table;
use crate::ops::{Grads, ParamId, Weight, gate, narrow};
use candle_core::{DType, Tensor};
use std::collections::VecDeque;

/// An op at a shape; the fields are those of [`Rate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Which op.
    pub class: Class,
    /// What it is done for.
    pub way: Way,
    /// How the frozen weight is kept; quantised linears are measured in NF4, a quantised model's head in bf16.
    pub stored: Stored,
    /// Rows.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Rank of the adapter; 0 = none.
    pub rank: usize,
}

/// What of a model a probe has beside its shape.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// H, query heads of attention.
    pub heads: usize,
    /// K, keys for them.
    pub kv_heads: usize,
    /// Tokens of a micro-batch: a GPU computes the attention of all its segments at once.
    pub tokens: usize,
    /// Layers: weights of one shape, at least.
    pub layers: usize,
}

/// How large a probe may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Operations of one run.
    flops: usize,
    /// Elements of one operand in f32.
    elements: usize,
    /// Rows of attention.
    length: usize,
    /// The head's rows in one run are those of a chunk of logits; on a GPU, where a loss without gradients is waited for
    /// once, the wait would else be counted once a chunk.
    pub(super) is_head_chunked: bool,
}

impl Bounds {
    /// Of the CPU: 256 MiB for an operand.
    pub const CPU: Self =
        Self { flops: 2_000_000_000, elements: 64 << 20, length: 4096, is_head_chunked: true };

    /// Of a GPU with so many bytes, of which an operand may take a sixteenth: half a dozen stand at once.
    pub fn of_card(bytes: u64) -> Self {
        let elements = usize::try_from(bytes / 64).unwrap_or(usize::MAX).clamp(16 << 20, 512 << 20);
        Self { flops: 2_000_000_000_000, elements, length: 16_384, is_head_chunked: false }
    }
}

/// Rows are cut no further than this, where a product still runs at its full rate.
const LEAST_ROWS: usize = 64;

impl Probe {
    /// The shape cut down to what can be measured in a moment: features first, then rows.
    #[must_use]
    pub fn cut(self, bounds: &Bounds) -> Self {
        let &Bounds { flops, elements, length, .. } = bounds;
        if self.class == Class::Attention || self.class.optimizer().is_some() {
            let n = self.n.clamp(1, if self.class == Class::Attention { length } else { elements / 4 });
            let m = if self.class == Class::Attention { n } else { 1 };
            return Self { m, n, ..self };
        }
        let k = self.k.clamp(1, elements / 64);
        let n = self.n.clamp(1, elements / k);
        // The head's rows are few already, and its rate falls with them.
        let most = if self.class == Class::Head { 5 * flops } else { flops };
        let rows = most / (2 * n * k).max(1);
        let m = self.m.max(1).min(rows.max(LEAST_ROWS)).min((elements / n.max(k)).max(1));
        Self { m, n, k, ..self }
    }

    /// Measures it on a device.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn measure(self, rig: &Rig, setting: Setting, patience: Patience) -> Result<(Rate, Timed)> {
        let (timed, amount) = match (self.class, self.class.optimizer()) {
            (_, Some(optimizer)) => self.optimizer(rig, optimizer, patience)?,
            (Class::Head, _) => self.head(rig, patience)?,
            (Class::Attention, _) => self.attention(rig, setting, patience)?,
            (Class::Elementwise, _) => self.elementwise(rig, patience)?,
            _ => self.linear(rig, setting, patience)?,
        };
        let rate = Rate {
            class: self.class,
            way: self.way,
            stored: self.stored,
            m: self.m as u64,
            n: self.n as u64,
            k: self.k as u64,
            rank: self.rank as u64,
            per_s: amount / timed.typical_s,
        };
        Ok((rate, timed))
    }

    fn shape(&self) -> (f64, f64, f64) {
        (self.m as f64, self.n as f64, self.k as f64)
    }

    fn weight(&self, rig: &Rig, rows: usize, columns: usize, param: Option<ParamId>) -> Result<Weight> {
        let value = rig.filled(rows, columns)?;
        let precision = if param.is_none() { self.precision() } else { Precision::F32 };
        Ok(Weight { value: narrow::kept(Site::Down, value, precision)?, param })
    }

    fn layer(&self, rig: &Rig) -> Result<Linear> {
        let trained = (self.way == Way::Trained).then_some(ParamId(0));
        let lora = |rank| -> Result<Lora> {
            Ok(Lora {
                a: Weight { value: rig.filled(rank, self.k)?, param: Some(ParamId(1)) },
                b: Weight { value: rig.filled(self.n, rank)?, param: Some(ParamId(2)) },
                scale: 1.0,
                dropout: 0.0,
                site: 0,
                dora: None,
            })
        };
        let weight = if self.stored == Stored::Quantised && trained.is_none() {
            Weight { value: rig.blocks(self.n, self.k)?, param: None }
        } else {
            self.weight(rig, self.n, self.k, trained)?.into()
        };
        let lora = (self.rank > 0).then(|| lora(self.rank)).transpose()?;
        Ok(Linear { weight, bias: None, lora, precision: self.precision() })
    }

    /// As the model has it: a base that is kept narrow is multiplied narrow, and what products read is kept narrow, too.
    fn precision(&self) -> Precision {
        if self.stored == Stored::F32 { Precision::F32 } else { Precision::Bf16 }
    }

    fn linear(&self, rig: &Rig, setting: Setting, patience: Patience) -> Result<(Timed, f64)> {
        // On a GPU blocks are taken apart whole, and what a product reads is that: they may as well be the same ones.
        let is_taken_apart = rig.queues() && self.stored == Stored::Quantised;
        let copies = if is_taken_apart { 1 } else { rig.copies(self.n * self.k, setting.layers) };
        let layers = (0..copies).map(|_| self.layer(rig)).collect::<Result<Vec<_>>>()?;
        let mut round = layers.iter().cycle();
        let (x, dy) = (rig.filled(self.m, self.k)?, rig.filled(self.m, self.n)?);
        // On a GPU what products read is written as they read it.
        let x = if rig.queues() { narrow::kept(Site::Down, x, self.precision())? } else { x };
        let saved = layers[0].forward(&x, None)?.1;
        // A trained layer's gradient has memory of its own, whose pages are there and which no cache holds any more.
        let mut kept: VecDeque<Grads> = (0..copies).map(|_| Grads::new(3)).collect();
        if self.way == Way::Trained && !rig.queues() {
            drop((0..copies).map(|_| rig.filled(self.n, self.k)).collect::<Result<Vec<_>>>()?);
        }
        let timed = patience.time_on(rig, &mut || {
            let Some(layer) = round.next() else { return Ok(()) };
            if self.way == Way::Forward {
                return layer.forward(&x, None).map(drop);
            }
            kept.pop_front();
            let mut grads = Grads::new(3);
            layer.backward(&x, &saved, &dy, true, None, &mut grads)?;
            kept.push_back(grads);
            Ok(())
        })?;
        let op = Op::linear(self.way, self.shape(), self.rank as f64, self.m as f64, 1.0);
        Ok((timed, op.flops))
    }

    fn head(&self, rig: &Rig, patience: Patience) -> Result<(Timed, f64)> {
        let trained = (self.way == Way::Trained).then_some(ParamId(0));
        let weight = self.weight(rig, self.n, self.k, trained)?.into();
        let head = Head { weight, precision: self.precision() };
        // Logits as a model's: where they lie far apart, their probabilities are denormal, and products of those are slow.
        let hidden = (rig.filled(self.m, self.k)? * (8.0 / self.k as f64))?;
        let targets = vec![0; self.m];
        let timed = patience.time_on(rig, &mut || {
            if self.way == Way::Forward {
                return head.loss(&hidden, &targets).map(drop);
            }
            head.loss_and_backward(&hidden, &targets, 1.0, &mut Grads::new(1)).map(drop)
        })?;
        Ok((timed, Op::head(self.way, self.shape(), self.m as f64, 1.0).flops))
    }

    /// One segment, which is enough for all cores; on a GPU as many as a micro-batch has.
    fn attention(&self, rig: &Rig, setting: Setting, patience: Patience) -> Result<(Timed, f64)> {
        let (length, head_dim) = (self.n, self.k);
        let Setting { heads, kv_heads, tokens, .. } = setting;
        let segments = if rig.queues() { (tokens.min(rig.bounds().length) / length).max(1) } else { 1 };
        let shape = attention::Shape { heads, kv_heads, head_dim, scale: 0.1, softcap: None, window: None };
        let spans: Vec<Span> = (0..segments)
            .map(|i| i * length..(i + 1) * length)
            .map(|rows| Span { q: rows.clone(), k: rows })
            .collect();
        let rows = segments * length;
        let placed = Placed::new(rig.device(), &vec![0; rows], &spans)?;
        let q = rig.filled(rows, heads * head_dim)?;
        let (k, v) = (rig.filled(rows, kv_heads * head_dim)?, rig.filled(rows, kv_heads * head_dim)?);
        let forward = || {
            let kept = |x: &Tensor| narrow::kept(Site::Attention, x.clone(), self.precision());
            let (q, k, v) = (kept(&q)?, kept(&k)?, kept(&v)?);
            match &placed {
                Some(placed) => gpu::attention::forward(placed, &shape, &q, &k, &v),
                None => attention::forward(&shape, &spans, &q, &k, &v),
            }
        };
        let (_, saved) = forward()?;
        let d_out = rig.filled(rows, heads * head_dim)?;
        let timed = patience.time_on(rig, &mut || {
            if self.way == Way::Forward {
                return forward().map(drop);
            }
            let grads = match &placed {
                Some(placed) => gpu::attention::backward(placed, &shape, &saved, &d_out),
                None => attention::backward(&shape, &spans, &saved, &d_out),
            };
            grads.map(drop)
        })?;
        let (length, width) = (length as f64, (heads * head_dim) as f64);
        let pairs = segments as f64 * 0.5 * (length * length + length);
        Ok((timed, Op::attention(self.way, length, head_dim as f64, width, pairs, 1.0).flops))
    }

    /// What a block does beside products and attention: two norms, the rope on q and k, the gate; backward the norms
    /// and the gate once more, their gradients, and the rope.
    fn elementwise(&self, rig: &Rig, patience: Patience) -> Result<(Timed, f64)> {
        let (m, width, hidden) = (self.m, self.n, self.k);
        let arch = stand_in(hidden, width);
        let bytes = Op::elementwise(self.way, &arch, m as f64, m as f64, 1.0).map(|op| op.bytes);
        let norm = Norm {
            weight: Weight::frozen(rig.filled(1, hidden)?.flatten_all()?),
            eps: 1e-5,
            reader: self.precision(),
        };
        let (x, wide_gated, wide_up) = (rig.filled(m, hidden)?, rig.filled(m, width)?, rig.filled(m, width)?);
        let positions: Vec<u32> = (0..m).filter_map(|p| u32::try_from(p % 512).ok()).collect();
        let rope = Table::new(&arch.ropes[0], arch.head_dim, 512).on(rig.device())?;
        let placed = Placed::new(rig.device(), &positions, &[])?;
        let q = rig.filled(m, arch.heads * arch.head_dim)?;
        let k = rig.beside(&q)?;
        let (_, saved) = norm.forward(&x)?;
        let kept = || -> Result<_> {
            let kept = |x: &Tensor| narrow::kept(Site::Gate, x.clone(), self.precision());
            Ok((kept(&wide_gated)?, kept(&wide_up)?))
        };
        let (gated, up) = kept()?;
        let timed = patience.time_on(rig, &mut || {
            rope.turn_both((&q, &k), &positions, placed.as_ref(), false)?;
            // On a GPU the products write what is kept.
            let narrows = self.way == Way::Forward && !rig.queues();
            let (gated, up) = if narrows { kept()? } else { (gated.clone(), up.clone()) };
            let act = gate::forward(&gated, &up)?;
            for _ in 0..2 {
                norm.again(&saved)?;
            }
            if self.way == Way::Forward {
                return Ok(());
            }
            gate::backward(&gated, &up, narrow::wide(&act)?)?;
            for _ in 0..2 {
                norm.backward(&saved, &x, None, &mut Grads::new(1))?;
            }
            Ok(())
        })?;
        Ok((timed, bytes.iter().sum()))
    }

    fn optimizer(&self, rig: &Rig, optimizer: Optimizer, patience: Patience) -> Result<(Timed, f64)> {
        let tensors = Rig::tensors(self.n);
        let is_narrow = self.stored == Stored::Bf16;
        let settings = Settings { optimizer, beta1: 0.9, beta2: 0.999, eps: 1e-8, momentum: 0.0 };
        // Adafactor makes means of the rows and columns of a matrix.
        let rows = (1..=self.n).rev().find(|rows| rows * rows <= self.n && self.n.is_multiple_of(*rows));
        let shape = (rows.unwrap_or(1), self.n / rows.unwrap_or(1));
        let one = || -> Result<_> {
            let value = rig.filled(shape.0, shape.1)?;
            let value = if is_narrow { value.to_dtype(DType::BF16)? } else { value };
            Ok((optimizer::rule(&settings, &value)?, value, rig.filled(shape.0, shape.1)?))
        };
        let mut sets = (0..tensors).map(|_| one()).collect::<Result<Vec<_>>>()?;
        let step = optimizer::Step { count: 1, lr: 1e-6, weight_decay: 0.0, grad_scale: 1.0, rounding: 0 };
        let timed = patience.time_on(rig, &mut || {
            // The norm is of all gradients: where a step updates the first of them, the caches hold the last.
            optimizer::sums_of_squares(&sets.iter().map(|(_, _, grad)| grad).collect::<Vec<_>>())?;
            let all = sets.iter_mut();
            optimizer::update(
                all.map(|(rule, value, grad)| optimizer::Update { rule: &mut **rule, value, grad, step })
                    .collect(),
            )
        })?;
        let values = (tensors * self.n) as f64;
        let update = Update { optimizer, is_narrow, ..Update::ADAMW };
        Ok((timed, Op::optimizer(update, values, self.n as f64, 1.0).bytes))
    }
}

/// Shapes of a model that only its widths are known of.
pub(crate) fn stand_in(hidden: usize, width: usize) -> Arch {
    let head_dim = 64;
    Arch {
        family: crate::arch::Family::Llama,
        vocab_size: 1024,
        hidden_size: hidden,
        intermediate_size: width,
        heads: (hidden / head_dim).max(1),
        kv_heads: (hidden / head_dim).max(1),
        head_dim,
        norm_eps: 1e-5,
        tie_word_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        max_position: 4096,
        ropes: vec![Rope { theta: 1e4, scaling: RopeScaling::None }],
        layers: vec![crate::arch::Layer { rope: 0, window: None }],
        init_std: 0.02,
        bos_ids: Vec::new(),
        eos_ids: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SETTING: Setting = Setting { heads: 3, kv_heads: 1, tokens: 300, layers: 2 };

    fn probe(class: Class, way: Way) -> Probe {
        Probe { class, way, stored: Stored::F32, m: 64, n: 96, k: 64, rank: 0 }
    }

    /// The CPU, and the CPU in the part of a GPU.
    fn rigs() -> [Rig; 2] {
        [Rig::CPU, Rig::queue(&candle_core::Device::Cpu, 16 << 30)]
    }

    #[test]
    fn every_op_is_measured_each_way_wherever_it_runs() {
        let patience = Patience { budget: Duration::ZERO, least: 1 };
        let updates = [Class::Optimizer, Class::Adamw8bit, Class::Adafactor, Class::Lion, Class::Sgd];
        let others = [Class::Linear, Class::Head, Class::Attention, Class::Elementwise];
        for rig in rigs() {
            for class in others.into_iter().chain(updates) {
                for way in [Way::Forward, Way::Backward] {
                    let (rate, _) = probe(class, way).measure(&rig, SETTING, patience).unwrap();
                    assert!((1e6..1e14).contains(&rate.per_s), "{rate:?}");
                }
            }
            let trained = Probe { way: Way::Trained, ..probe(Class::Linear, Way::Trained) };
            assert!(trained.measure(&rig, SETTING, patience).unwrap().0.per_s > 1e6);
            for stored in [Stored::Bf16, Stored::Quantised] {
                let adapted = Probe { rank: 8, stored, ..probe(Class::Linear, Way::Backward) };
                assert_eq!(adapted.measure(&rig, SETTING, patience).unwrap().0.rank, 8);
            }
        }
    }

    #[test]
    fn all_segments_of_a_micro_batch_count_where_they_run_at_once() {
        // Twelve segments take twelve times the time of one, and are twelve times the work.
        let patience = Patience { budget: Duration::from_millis(30), least: 3 };
        let [cpu, gpu] = rigs().map(|rig| {
            let probe = Probe { n: 25, ..probe(Class::Attention, Way::Forward) };
            probe.measure(&rig, SETTING, patience).unwrap().0.per_s
        });
        assert!((0.2..5.0).contains(&(cpu / gpu)), "{cpu} {gpu}");
    }

    #[test]
    fn absurd_shapes_are_cut_and_not_multiplied() {
        for bounds in [Bounds::CPU, Bounds::of_card(0), Bounds::of_card(u64::MAX)] {
            for class in [Class::Linear, Class::Head, Class::Attention, Class::Elementwise] {
                let absurd = Probe { m: usize::MAX, n: usize::MAX, k: 64, ..probe(class, Way::Forward) };
                let (cut, most) = (absurd.cut(&bounds), bounds.elements);
                assert!(cut.n * 64 <= 4 * most && cut.m * 64 <= most && cut.m >= 1, "{cut:?}");
            }
        }
    }

    #[test]
    fn small_products_are_measured_as_they_are_and_a_gpu_is_given_large_ones() {
        let small = Probe { m: 256, n: 1536, k: 576, ..probe(Class::Linear, Way::Forward) };
        assert_eq!(small.cut(&Bounds::CPU), small);
        let large = Probe { m: 16_384, n: 11_008, k: 4096, ..small };
        assert_eq!(large.cut(&Bounds::of_card(80 << 30)), large);
        assert_eq!(large.cut(&Bounds::CPU).m, LEAST_ROWS);
        let on_a_small_card = large.cut(&Bounds::of_card(8 << 30));
        assert!(on_a_small_card.m * large.n * 4 <= 8 << 26, "{on_a_small_card:?}");
    }
}
