//! One measurement: an op of the engine at a shape, run as the engine runs it, through the same public functions.

use super::stopwatch::{Patience, Timed};
use crate::arch::{Arch, Rope, RopeScaling};
use crate::config::Optimizer;
use crate::error::Result;
use crate::estimate::rates::Rate;
use crate::estimate::trained::Update;
use crate::estimate::work::{Class, Op, Site, Stored, Way};
use crate::ops::attention::{self, Span};
use crate::ops::head::Head;
use crate::ops::linear::{Linear, Lora};
use crate::ops::matmul::Precision;
use crate::ops::norm::Norm;
use crate::ops::optimizer::{self, Settings};
use crate::ops::rope::Table;
use crate::ops::{Grads, Matrix, ParamId, Weight, gate, host, narrow};
use candle_core::{DType, Device, Tensor};
use fttrain_kernels::cpu::Nf4;
use std::collections::VecDeque;
use std::sync::Arc;

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

/// Query heads, and keys for each of them, that attention is measured with.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// H.
    pub query: usize,
    /// K.
    pub key: usize,
}

/// Operations of one run of a probe.
const MOST_FLOPS: usize = 2_000_000_000;
/// Elements of one operand: 256 MiB in f32.
const MOST_ELEMENTS: usize = 64 << 20;
/// Rows are cut no further than this, where a product still runs at its full rate.
const LEAST_ROWS: usize = 64;
/// Values of the weights that a probe goes round in: a step finds no weight in a cache that it left a layer ago.
const COLD_VALUES: usize = 16 << 20;
const MOST_COPIES: usize = 24;

impl Probe {
    /// The shape cut down to what can be measured in a moment: features first, then rows.
    #[must_use]
    pub fn cut(self) -> Self {
        if self.class == Class::Attention || self.class.optimizer().is_some() {
            let n = self.n.clamp(1, if self.class == Class::Attention { 4096 } else { MOST_ELEMENTS / 4 });
            let m = if self.class == Class::Attention { n } else { 1 };
            return Self { m, n, ..self };
        }
        let k = self.k.clamp(1, MOST_ELEMENTS / 64);
        let n = self.n.clamp(1, MOST_ELEMENTS / k);
        // The head's rows are few already, and its rate falls with them.
        let most = if self.class == Class::Head { 5 * MOST_FLOPS } else { MOST_FLOPS };
        let rows = most / (2 * n * k).max(1);
        let m = self.m.max(1).min(rows.max(LEAST_ROWS)).min((MOST_ELEMENTS / n.max(k)).max(1));
        Self { m, n, k, ..self }
    }

    /// Measures it.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn measure(self, heads: Heads, patience: Patience) -> Result<(Rate, Timed)> {
        let (timed, amount) = match self.class {
            Class::Linear => self.linear(patience)?,
            Class::Head => self.head(patience)?,
            Class::Attention => self.attention(heads, patience)?,
            Class::Elementwise => self.elementwise(patience)?,
            Class::Optimizer => self.optimizer(Optimizer::Adamw, patience)?,
            Class::Adamw8bit => self.optimizer(Optimizer::Adamw8bit, patience)?,
            Class::Adafactor => self.optimizer(Optimizer::Adafactor, patience)?,
            Class::Lion => self.optimizer(Optimizer::Lion, patience)?,
            Class::Sgd => self.optimizer(Optimizer::Sgd, patience)?,
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

    fn weight(&self, rows: usize, columns: usize, param: Option<ParamId>) -> Result<Weight> {
        let value = filled(rows, columns)?;
        let narrow = self.stored != Stored::F32 && param.is_none();
        Ok(Weight { value: if narrow { value.to_dtype(DType::BF16)? } else { value }, param })
    }

    fn layer(&self) -> Result<Linear> {
        let trained = (self.way == Way::Trained).then_some(ParamId(0));
        let lora = |rank| -> Result<Lora> {
            Ok(Lora {
                a: Weight { value: filled(rank, self.k)?, param: Some(ParamId(1)) },
                b: Weight { value: filled(self.n, rank)?, param: Some(ParamId(2)) },
                scale: 1.0,
                dropout: 0.0,
                site: 0,
                dora: None,
            })
        };
        let weight = if self.stored == Stored::Quantised && trained.is_none() {
            let values = filled(self.n, self.k)?;
            let values = host::read(&values)?;
            let shape = (self.n, self.k);
            let blocks = Nf4::encode(shape, true, |range, out| out.copy_from_slice(&values[range]));
            Weight { value: Matrix::Quantised(Arc::new(blocks)), param: None }
        } else {
            self.weight(self.n, self.k, trained)?.into()
        };
        let lora = (self.rank > 0).then(|| lora(self.rank)).transpose()?;
        Ok(Linear { weight, bias: None, lora, precision: self.precision() })
    }

    /// As the model has it: a base that is kept narrow is multiplied narrow, and what products read is kept narrow, too.
    fn precision(&self) -> Precision {
        if self.stored == Stored::F32 { Precision::F32 } else { Precision::Bf16 }
    }

    fn linear(&self, patience: Patience) -> Result<(Timed, f64)> {
        let copies = (COLD_VALUES / (self.n * self.k).max(1)).clamp(1, MOST_COPIES);
        let layers = (0..copies).map(|_| self.layer()).collect::<Result<Vec<_>>>()?;
        let mut round = layers.iter().cycle();
        let (x, dy) = (filled(self.m, self.k)?, filled(self.m, self.n)?);
        let saved = layers[0].forward(&x, None)?.1;
        // A trained layer's gradient has memory of its own, whose pages are there and which no cache holds any more.
        let mut kept: VecDeque<Grads> = (0..copies).map(|_| Grads::new(3)).collect();
        if self.way == Way::Trained {
            drop((0..copies).map(|_| filled(self.n, self.k)).collect::<Result<Vec<_>>>()?);
        }
        let timed = patience.time(&mut || {
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

    fn head(&self, patience: Patience) -> Result<(Timed, f64)> {
        let trained = (self.way == Way::Trained).then_some(ParamId(0));
        let weight = self.weight(self.n, self.k, trained)?.into();
        let head = Head { weight, precision: self.precision() };
        let hidden = filled(self.m, self.k)?;
        let targets = vec![0; self.m];
        let timed = patience.time(&mut || {
            if self.way == Way::Forward {
                return head.loss(&hidden, &targets).map(drop);
            }
            head.loss_and_backward(&hidden, &targets, 1.0, &mut Grads::new(1)).map(drop)
        })?;
        Ok((timed, Op::head(self.way, self.shape(), self.m as f64, 1.0).flops))
    }

    fn attention(&self, heads: Heads, patience: Patience) -> Result<(Timed, f64)> {
        let (length, head_dim) = (self.n, self.k);
        let shape = attention::Shape {
            heads: heads.query,
            kv_heads: heads.key,
            head_dim,
            scale: 0.1,
            softcap: None,
            window: None,
        };
        let spans = [Span { q: 0..length, k: 0..length }];
        let q = filled(length, heads.query * head_dim)?;
        let (k, v) = (filled(length, heads.key * head_dim)?, filled(length, heads.key * head_dim)?);
        let forward = || {
            let kept = |x: &Tensor| narrow::kept(Site::Attention, x.clone(), self.precision());
            attention::forward(&shape, &spans, &kept(&q)?, &kept(&k)?, &kept(&v)?)
        };
        let (_, saved) = forward()?;
        let d_out = filled(length, heads.query * head_dim)?;
        let timed = patience.time(&mut || {
            if self.way == Way::Forward {
                return forward().map(drop);
            }
            attention::backward(&shape, &spans, &saved, &d_out).map(drop)
        })?;
        let (length, width) = (length as f64, (heads.query * head_dim) as f64);
        let pairs = 0.5 * (length * length + length);
        Ok((timed, Op::attention(self.way, length, head_dim as f64, width, pairs, 1.0).flops))
    }

    /// What a block does beside products and attention: two norms, the rope on q and k, the gate; backward the norms
    /// and the gate once more, their gradients, and the rope.
    fn elementwise(&self, patience: Patience) -> Result<(Timed, f64)> {
        let (m, width, hidden) = (self.m, self.n, self.k);
        let arch = stand_in(hidden, width);
        let bytes = Op::elementwise(self.way, &arch, m as f64, m as f64, 1.0).map(|op| op.bytes);
        let norm = Norm { weight: Weight::frozen(filled(1, hidden)?.flatten_all()?), eps: 1e-5 };
        let (x, wide_gated, wide_up) = (filled(m, hidden)?, filled(m, width)?, filled(m, width)?);
        let positions: Vec<u32> = (0..m).filter_map(|p| u32::try_from(p % 512).ok()).collect();
        let rope = Table::new(&arch.ropes[0], arch.head_dim, 512);
        let q = filled(m, arch.heads * arch.head_dim)?;
        let (_, saved) = norm.forward(&x)?;
        let kept = || -> Result<_> {
            let kept = |x: &Tensor| narrow::kept(Site::Gate, x.clone(), self.precision());
            Ok((kept(&wide_gated)?, kept(&wide_up)?))
        };
        let (gated, up) = kept()?;
        let timed = patience.time(&mut || {
            for tensor in [&q, &q] {
                rope.forward(tensor, &positions)?;
            }
            let (gated, up) = if self.way == Way::Forward { kept()? } else { (gated.clone(), up.clone()) };
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

    fn optimizer(&self, optimizer: Optimizer, patience: Patience) -> Result<(Timed, f64)> {
        let tensors = (COLD_VALUES / self.n.max(1)).clamp(1, 400);
        let is_narrow = self.stored == Stored::Bf16;
        let settings = Settings { optimizer, beta1: 0.9, beta2: 0.999, eps: 1e-8, momentum: 0.0 };
        // Adafactor makes means of the rows and columns of a matrix.
        let rows = (1..=self.n).rev().find(|rows| rows * rows <= self.n && self.n.is_multiple_of(*rows));
        let shape = (rows.unwrap_or(1), self.n / rows.unwrap_or(1));
        let one = || -> Result<_> {
            let value = filled(shape.0, shape.1)?;
            let value = if is_narrow { value.to_dtype(DType::BF16)? } else { value };
            Ok((optimizer::rule(&settings, &value)?, value, filled(shape.0, shape.1)?))
        };
        let mut sets = (0..tensors).map(|_| one()).collect::<Result<Vec<_>>>()?;
        let step = optimizer::Step { count: 1, lr: 1e-6, weight_decay: 0.0, grad_scale: 1.0, rounding: 0 };
        let timed = patience.time(&mut || {
            // The norm is of all gradients: where a step updates the first of them, the caches hold the last.
            for (_, _, grad) in &sets {
                optimizer::sums_of_squares(&[grad])?;
            }
            for (rule, value, grad) in &mut sets {
                rule.update(value, grad, &step)?;
            }
            Ok(())
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

/// Values of ordinary size: denormals and zeros may run at another speed.
pub(crate) fn filled(rows: usize, columns: usize) -> Result<Tensor> {
    let values = (0u16..1000).cycle().take(rows * columns).map(|i| f32::from(i) * 1e-3 - 0.45);
    Ok(Tensor::from_vec(values.collect::<Vec<f32>>(), (rows, columns), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HEADS: Heads = Heads { query: 3, key: 1 };

    fn probe(class: Class, way: Way) -> Probe {
        Probe { class, way, stored: Stored::F32, m: 64, n: 96, k: 64, rank: 0 }
    }

    #[test]
    fn every_op_is_measured_each_way() {
        let patience = Patience { budget: Duration::ZERO, least: 1 };
        let updates = [Class::Optimizer, Class::Adamw8bit, Class::Adafactor, Class::Lion, Class::Sgd];
        let others = [Class::Linear, Class::Head, Class::Attention, Class::Elementwise];
        for class in others.into_iter().chain(updates) {
            for way in [Way::Forward, Way::Backward] {
                let (rate, _) = probe(class, way).measure(HEADS, patience).unwrap();
                assert!((1e6..1e14).contains(&rate.per_s), "{rate:?}");
            }
        }
        let trained = Probe { way: Way::Trained, ..probe(Class::Linear, Way::Trained) };
        assert!(trained.measure(HEADS, patience).unwrap().0.per_s > 1e6);
        let adapted = Probe { rank: 8, stored: Stored::Bf16, ..probe(Class::Linear, Way::Backward) };
        assert_eq!(adapted.measure(HEADS, patience).unwrap().0.rank, 8);
    }

    #[test]
    fn absurd_shapes_are_cut_and_not_multiplied() {
        for class in [Class::Linear, Class::Head, Class::Attention, Class::Elementwise] {
            let absurd = Probe { m: usize::MAX, n: usize::MAX, k: 64, ..probe(class, Way::Forward) };
            let cut = absurd.cut();
            assert!(cut.n * 64 <= 4 * MOST_ELEMENTS && cut.m * 64 <= MOST_ELEMENTS && cut.m >= 1, "{cut:?}");
        }
    }

    #[test]
    fn small_products_are_measured_as_they_are() {
        let small = Probe { m: 256, n: 1536, k: 576, ..probe(Class::Linear, Way::Forward) };
        assert_eq!(small.cut(), small);
    }
}
