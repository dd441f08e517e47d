//! What a run computes: a list of ops, each with its shape, FLOPs and bytes, counted from shapes and token counts.
//!
//! Linears: 2·N·in·out forward; backward as much again for dx, and once more for dW where the weight is trained.
//! Attention: causal, by real segment lengths. Head: counted tokens only. Left out: embedding look-up, final norm,
//! softmax arithmetic (memory-bound, and inside the element-wise bytes).

use super::parameters::{self, Parameters};
use crate::arch::{Arch, Linear, Proj};
use crate::config::Method;
use serde::{Deserialize, Serialize};

/// Ops that run at one kind of rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The blocks' base weights.
    Linear,
    /// The adapter's thin products.
    Lora,
    /// Scores and values.
    Attention,
    /// The output projection, counted tokens only.
    Head,
    /// Norms, rope, gate, residuals, widening of bf16 weights: bound by memory.
    Elementwise,
    /// Clipping and the update: bound by memory.
    Optimizer,
}

impl Class {
    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Lora => "lora",
            Self::Attention => "attention",
            Self::Head => "head",
            Self::Elementwise => "elementwise",
            Self::Optimizer => "optimizer",
        }
    }
}

/// Where in the model an op stands: what a profile tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// Rows of the embedding, gathered or added back.
    Embedding,
    /// `RMSNorm`s.
    Norm,
    /// The projections into attention, adapters included.
    Qkv,
    /// Rotary positions.
    Rope,
    /// Scores and values.
    Attention,
    /// The projection out of attention, adapter included.
    Output,
    /// The projections into the MLP, adapters included.
    GateUp,
    /// The gated activation.
    Gate,
    /// The projection out of the MLP, adapter included.
    Down,
    /// Residual sums.
    Residual,
    /// The last projection with the loss and the hidden gradient.
    Head,
    /// The gradient norm and the optimizer.
    Update,
}

impl Site {
    /// The name in tables and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::Qkv => "q k v",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::Output => "o",
            Self::GateUp => "gate up",
            Self::Gate => "activation",
            Self::Down => "down",
            Self::Residual => "residual",
            Self::Head => "head and loss",
            Self::Update => "update",
        }
    }

    fn of(proj: Proj) -> Self {
        match proj {
            Proj::Q | Proj::K | Proj::V => Self::Qkv,
            Proj::O => Self::Output,
            Proj::Gate | Proj::Up => Self::GateUp,
            Proj::Down => Self::Down,
        }
    }
}

/// Which way through the model an op runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pass {
    /// The loss; the head makes its gradient on the way.
    Forward,
    /// A block once more, for what it did not keep.
    Recompute,
    /// Gradients.
    Backward,
    /// New weights.
    Update,
}

impl Pass {
    /// The name in tables and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Recompute => "recompute",
            Self::Backward => "backward",
            Self::Update => "update",
        }
    }
}

/// All calls of one op over a phase, with the shape of one call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Op {
    /// Its class.
    pub class: Class,
    /// Its place in the model.
    pub site: Site,
    /// Its way through it.
    pub pass: Pass,
    /// Rows of a call: tokens of a mean micro-batch.
    pub m: f64,
    /// Output features.
    pub n: f64,
    /// Input features.
    pub k: f64,
    /// FLOPs of all calls; 0 for what only moves bytes.
    pub flops: f64,
    /// Bytes of all calls that memory must move; 0 for products.
    pub bytes: f64,
}

/// How much goes through the model in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Volume {
    /// Tokens.
    pub tokens: f64,
    /// Counted targets.
    pub targets: f64,
    /// Σ segment length².
    pub squares: f64,
    /// Micro-batches.
    pub calls: f64,
}

/// What the ops are made for.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// Shapes.
    pub arch: &'a Arch,
    /// Full, LoRA or QLoRA.
    pub method: &'a Method,
    /// Linears with an adapter.
    pub adapted: &'a [Linear],
    /// The frozen base is stored in less than f32 and widened at each use.
    pub narrow_base: bool,
}

const F32: f64 = 4.0;
/// Backward of attention against its forward: the scores are made again, then four products in place of two
/// (Dao et al. 2022).
const ATTENTION_BACKWARD: f64 = 2.5;
/// Element-wise traffic backward against forward: each op reads its saved input beside the gradient.
const ELEMENTWISE_BACKWARD: f64 = 2.0;
/// Passes over a trainable tensor at a step: norm 1, update reads p, g, m, v and writes p, m, v, gradient zeroed 1.
const OPTIMIZER_PASSES: f64 = 9.0;
/// bf16 read, f32 written, then read by the product.
const WIDENING_BYTES: f64 = 2.0 + F32 + F32;

fn f(n: usize) -> f64 {
    n as f64
}

fn matmul(class: Class, at: (Site, Pass), m: f64, n: f64, k: f64, rows: f64) -> Op {
    Op { class, site: at.0, pass: at.1, m, n, k, flops: 2.0 * rows * n * k, bytes: 0.0 }
}

fn traffic(class: Class, at: (Site, Pass), bytes: f64) -> Op {
    Op { class, site: at.0, pass: at.1, m: 1.0, n: 1.0, k: 1.0, flops: 0.0, bytes }
}

impl Model<'_> {
    fn layers(&self) -> f64 {
        f(self.arch.layers.len())
    }

    /// Layers that the gradient goes through: those from the lowest with something trainable in it.
    fn layers_backward(&self) -> f64 {
        let whole = match self.method {
            Method::Full => true,
            Method::Lora(l) | Method::Qlora { lora: l, .. } => {
                l.modules_to_save.iter().any(|m| m != "lm_head")
            }
        };
        if whole {
            return self.layers();
        }
        let lowest = self.adapted.iter().map(|l| l.layer).min();
        f(self.arch.layers.len().saturating_sub(lowest.unwrap_or(self.arch.layers.len())))
    }

    fn rank(&self) -> f64 {
        match self.method {
            Method::Full => 0.0,
            Method::Lora(l) | Method::Qlora { lora: l, .. } => parameters::rank(l) as f64,
        }
    }

    /// Query-key pairs of one layer: half the squares, less where a sliding window cuts them.
    fn pairs(&self, volume: &Volume) -> f64 {
        self.arch
            .layers
            .iter()
            .map(|layer| {
                let causal = 0.5 * (volume.squares + volume.tokens);
                layer.window.map_or(causal, |w| causal.min(volume.tokens * f(w)))
            })
            .sum()
    }

    /// Floats that one layer's element-wise ops read and write for a token, forward.
    fn elementwise_floats(&self) -> [(Site, f64); 4] {
        let a = self.arch;
        let heads = f(a.heads + a.kv_heads) * f(a.head_dim);
        let qk_norm = if a.qk_norm { 2.0 * heads } else { 0.0 };
        [
            (Site::Norm, 4.0 * f(a.hidden_size) + qk_norm),
            (Site::Residual, 6.0 * f(a.hidden_size)),
            (Site::Rope, 2.0 * heads),
            (Site::Gate, 3.0 * f(a.intermediate_size)),
        ]
    }

    /// The topmost `layers` blocks forward, for the first time or once more; all adapters lie in them.
    fn blocks_forward(&self, pass: Pass, v: &Volume, layers: f64, ops: &mut Vec<Op>) {
        let m = v.tokens / v.calls.max(1.0);
        let share = if self.layers() > 0.0 { layers / self.layers() } else { 0.0 };
        for proj in Proj::ALL {
            let l = self.arch.linear(0, proj);
            let rows = v.tokens * layers;
            ops.push(matmul(Class::Linear, (Site::of(proj), pass), m, f(l.outputs), f(l.inputs), rows));
        }
        for l in self.adapted {
            let (r, at) = (self.rank(), (Site::of(l.proj), pass));
            ops.push(matmul(Class::Lora, at, m, r, f(l.inputs), v.tokens));
            ops.push(matmul(Class::Lora, at, m, f(l.outputs), r, v.tokens));
        }
        let width = f(self.arch.heads) * f(self.arch.head_dim);
        ops.push(self.attention(pass, v, 4.0 * width * self.pairs(v) * share));
        for (site, floats) in self.elementwise_floats() {
            ops.push(traffic(Class::Elementwise, (site, pass), F32 * floats * v.tokens * layers));
        }
        self.widen_blocks(pass, v, layers, ops);
    }

    fn blocks_backward(&self, v: &Volume, ops: &mut Vec<Op>) {
        let (m, layers) = (v.tokens / v.calls.max(1.0), self.layers_backward());
        let share = if self.layers() > 0.0 { layers / self.layers() } else { 0.0 };
        for proj in Proj::ALL {
            let l = self.arch.linear(0, proj);
            let (n, k, rows) = (f(l.outputs), f(l.inputs), v.tokens * layers);
            let at = (Site::of(proj), Pass::Backward);
            ops.push(matmul(Class::Linear, at, m, k, n, rows));
            if matches!(self.method, Method::Full) {
                // dW = dyᵀ·x: the tokens are the inner dimension.
                let mut dw = matmul(Class::Linear, at, m, n, k, rows);
                (dw.m, dw.k) = (dw.k, dw.m);
                ops.push(dw);
            }
        }
        for l in self.adapted {
            let (r, n, k) = (self.rank(), f(l.outputs), f(l.inputs));
            let at = (Site::of(l.proj), Pass::Backward);
            // dy·B and (dy·B)·A, then dB and dA of the same sizes.
            for _ in 0..2 {
                ops.push(matmul(Class::Lora, at, m, r, n, v.tokens));
                ops.push(matmul(Class::Lora, at, m, k, r, v.tokens));
            }
        }
        let width = f(self.arch.heads) * f(self.arch.head_dim);
        let forward = 4.0 * width * self.pairs(v) * share;
        ops.push(self.attention(Pass::Backward, v, ATTENTION_BACKWARD * forward));
        for (site, floats) in self.elementwise_floats() {
            let bytes = ELEMENTWISE_BACKWARD * F32 * floats * v.tokens * layers;
            ops.push(traffic(Class::Elementwise, (site, Pass::Backward), bytes));
        }
        self.widen_blocks(Pass::Backward, v, layers, ops);
    }

    fn attention(&self, pass: Pass, v: &Volume, flops: f64) -> Op {
        // One call is one head of one segment of the mean length, weighted by its work.
        let length = (v.squares / v.tokens.max(1.0)).max(1.0);
        let (m, n, k) = (length, length, f(self.arch.head_dim));
        Op { class: Class::Attention, site: Site::Attention, pass, m, n, k, flops, bytes: 0.0 }
    }

    fn widen_blocks(&self, pass: Pass, v: &Volume, layers: f64, ops: &mut Vec<Op>) {
        for proj in Proj::ALL.into_iter().filter(|_| self.narrow_base) {
            let l = self.arch.linear(0, proj);
            let weights = f(l.inputs) * f(l.outputs) * layers;
            ops.push(traffic(Class::Elementwise, (Site::of(proj), pass), WIDENING_BYTES * weights * v.calls));
        }
    }

    /// The projection of counted tokens and the loss, with the hidden gradient in the same pass when training.
    fn head(&self, v: &Volume, training: bool, ops: &mut Vec<Op>) {
        let (d, vocab) = (f(self.arch.hidden_size), f(self.arch.vocab_size));
        let (m, at) = (v.targets / v.calls.max(1.0), (Site::Head, Pass::Forward));
        ops.push(matmul(Class::Head, at, m, vocab, d, v.targets));
        if training {
            ops.push(matmul(Class::Head, at, m, d, vocab, v.targets));
            if parameters::trains_head(self.method) {
                ops.push(Op { m: vocab, k: m, ..matmul(Class::Head, at, m, d, vocab, v.targets) });
            }
        }
        // Logits are written, read for the maximum, for the sum, and turned into their gradient in place.
        let passes = if training { 5.0 } else { 3.0 };
        ops.push(traffic(Class::Elementwise, at, passes * F32 * v.targets * vocab));
        if self.narrow_base {
            ops.push(traffic(Class::Elementwise, at, WIDENING_BYTES * d * vocab * v.calls));
        }
    }

    /// Everything that training computes, updates included.
    pub fn training(&self, v: &Volume, steps: f64, counted: &Parameters, recompute: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        self.blocks_forward(Pass::Forward, v, self.layers(), &mut ops);
        self.head(v, true, &mut ops);
        if recompute {
            self.blocks_forward(Pass::Recompute, v, self.layers_backward(), &mut ops);
        }
        self.blocks_backward(v, &mut ops);
        let floats = counted.trainable as f64 * OPTIMIZER_PASSES;
        ops.push(traffic(Class::Optimizer, (Site::Update, Pass::Update), F32 * floats * steps));
        ops
    }

    /// Everything that one evaluation computes.
    pub fn evaluation(&self, v: &Volume) -> Vec<Op> {
        let mut ops = Vec::new();
        self.blocks_forward(Pass::Forward, v, self.layers(), &mut ops);
        self.head(v, false, &mut ops);
        ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{lora, smollm2};

    const ONE_TOKEN: Volume = Volume { tokens: 1.0, targets: 1.0, squares: 0.0, calls: 1.0 };

    fn flops(ops: &[Op], class: Class) -> f64 {
        ops.iter().filter(|o| o.class == class).map(|o| o.flops).sum()
    }

    fn training(method: &Method, adapted: &[Linear], v: &Volume, recompute: bool) -> Vec<Op> {
        let arch = smollm2();
        let counted = Parameters::count(&arch, method, adapted);
        let model = Model { arch: &arch, method, adapted, narrow_base: false };
        model.training(v, 1.0, &counted, recompute)
    }

    #[test]
    fn a_token_of_smollm2_costs_what_its_shapes_say() {
        let method = Method::Lora(lora(16));
        let all: Vec<Linear> = smollm2().linears().collect();
        let ops = training(&method, &all, &ONE_TOKEN, false);
        let (weights, head, adapter) = (106_168_320.0, 49_152.0 * 576.0, 4_884_480.0);
        assert!((flops(&ops, Class::Linear) - 4.0 * weights).abs() < 1.0);
        assert!((flops(&ops, Class::Head) - 4.0 * head).abs() < 1.0);
        assert!((flops(&ops, Class::Lora) - 6.0 * adapter).abs() < 1.0);
        // The 0.57 GFLOP a token that was found by hand.
        let total: f64 = ops.iter().map(|o| o.flops).sum();
        assert!((total - 0.567e9).abs() < 0.005e9, "{total}");
    }

    #[test]
    fn recompute_adds_one_forward_of_the_blocks() {
        let method = Method::Lora(lora(16));
        let all: Vec<Linear> = smollm2().linears().collect();
        let kept = training(&method, &all, &ONE_TOKEN, false);
        let again = training(&method, &all, &ONE_TOKEN, true);
        let ratio = flops(&again, Class::Linear) / flops(&kept, Class::Linear);
        assert!((ratio - 1.5).abs() < 1e-9);
        assert!((flops(&again, Class::Head) - flops(&kept, Class::Head)).abs() < 1e-9);
    }

    #[test]
    fn every_pass_holds_its_own_share_of_the_work() {
        let method = Method::Lora(lora(16));
        let all: Vec<Linear> = smollm2().linears().collect();
        let ops = training(&method, &all, &ONE_TOKEN, true);
        let at = |site, pass| -> f64 {
            ops.iter().filter(|o| (o.site, o.pass) == (site, pass)).map(|o| o.flops).sum()
        };
        // Down: 1536 → 576 with rank 16, 30 times; backward frozen dx, and four thin products for two.
        let (base, thin) = (30.0 * 2.0 * 1536.0 * 576.0, 30.0 * 2.0 * 16.0 * (1536.0 + 576.0));
        assert!((at(Site::Down, Pass::Forward) - base - thin).abs() < 1.0);
        assert!((at(Site::Down, Pass::Recompute) - base - thin).abs() < 1.0);
        assert!((at(Site::Down, Pass::Backward) - base - 2.0 * thin).abs() < 1.0);
        assert!((at(Site::Head, Pass::Forward) - 4.0 * 49_152.0 * 576.0).abs() < 1.0);
        assert!(ops.iter().any(|o| o.pass == Pass::Update && o.bytes > 0.0));
    }

    #[test]
    fn full_fine_tuning_adds_the_weights_gradients() {
        let full = training(&Method::Full, &[], &ONE_TOKEN, false);
        assert!((flops(&full, Class::Linear) - 6.0 * 106_168_320.0).abs() < 1.0);
        assert!((flops(&full, Class::Head) - 6.0 * 49_152.0 * 576.0).abs() < 1.0);
        assert!(flops(&full, Class::Lora).abs() < 1e-9);
    }

    #[test]
    fn the_gradient_stops_at_the_lowest_adapter() {
        let method = Method::Lora(lora(16));
        let top: Vec<Linear> = smollm2().linears().filter(|l| l.layer == 29).collect();
        let ops = training(&method, &top, &ONE_TOKEN, false);
        let expected = 2.0 * 106_168_320.0 * (1.0 + 1.0 / 30.0);
        assert!((flops(&ops, Class::Linear) - expected).abs() < 1.0);
    }

    #[test]
    fn attention_counts_segments_not_batches() {
        let method = Method::Lora(lora(16));
        let all: Vec<Linear> = smollm2().linears().collect();
        let volume = |segments: f64| Volume {
            tokens: 1024.0,
            squares: segments * (1024.0 / segments).powi(2),
            ..ONE_TOKEN
        };
        let one = flops(&training(&method, &all, &volume(1.0), false), Class::Attention);
        // 4·H·hd·(T² + T)/2 a layer, and 2.5 times that backward.
        let expected = 30.0 * 3.5 * 4.0 * 576.0 * (1024.0 * 1025.0 / 2.0);
        assert!((one - expected).abs() < 1.0);
        let four = flops(&training(&method, &all, &volume(4.0), false), Class::Attention);
        assert!(four < one / 3.9);
    }
}
