//! What a run computes: a list of ops, each with its shape, FLOPs and bytes, counted from shapes and token counts.
//!
//! Linears: 2·N·in·out forward, and 2·N·r·(in + out) where an adapter is on them; backward as much again for dx and
//! twice the adapter's, and once more for dW where the weight is trained. Attention: causal, by real segment lengths.
//! Head: counted tokens only, its softmax and loss inside its rate. Left out: embedding look-up, final norm.

mod class;
mod op;
mod site;

pub use class::{Class, Stored, Way};
pub use op::Op;
pub use site::{Pass, Site};

use super::parameters::{self, Parameters};
use super::rates::Blocks;
use super::trained::Update;
use crate::arch::{Arch, Linear, Proj};
use crate::config::Method;
use serde::{Deserialize, Serialize};

/// How much goes through the model in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
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
    /// How the frozen base is kept; in full fine-tuning, what products are rounded to.
    pub stored: Stored,
    /// How what is trained is updated.
    pub update: Update,
}

fn f(n: usize) -> f64 {
    n as f64
}

impl Model<'_> {
    fn layers(&self) -> f64 {
        f(self.arch.layers.len())
    }

    /// What lies between its ops depends on.
    pub fn blocks(&self) -> Blocks {
        Blocks::of(self.arch, self.method, self.stored)
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

    /// Mean rank of the adapters of one role.
    fn rank(&self, proj: Proj) -> f64 {
        let lora = match self.method {
            Method::Full => return 0.0,
            Method::Lora(lora) | Method::Qlora { lora, .. } => lora,
        };
        let ranks = self.adapted.iter().filter(|l| l.proj == proj).map(|l| parameters::rank(lora, &l.name));
        let (sum, count) = ranks.fold((0u64, 0u64), |(sum, count), r| (sum.saturating_add(r), count + 1));
        sum as f64 / count.max(1) as f64
    }

    /// `DoRA`: rows have trained lengths.
    fn has_lengths(&self) -> bool {
        match self.method {
            Method::Full => false,
            Method::Lora(l) | Method::Qlora { lora: l, .. } => l.dora == Some(true),
        }
    }

    /// Query-key pairs of all layers: half the squares, less where a sliding window cuts them.
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

    /// The topmost `layers` blocks; all adapters lie in them.
    fn through_blocks(&self, way: Way, pass: Pass, v: &Volume, layers: f64, ops: &mut Vec<Op>) {
        let m = v.tokens / v.calls.max(1.0);
        let adapted = |proj: Proj| f(self.adapted.iter().filter(|l| l.proj == proj).count()).min(layers);
        for proj in Proj::ALL {
            let l = self.arch.linear(0, proj);
            let shape = (m, f(l.outputs), f(l.inputs));
            let with = adapted(proj);
            for (count, rank) in [(layers - with, 0.0), (with, self.rank(proj))] {
                if count > 0.0 {
                    let op = |way| Op::linear(way, shape, rank, v.tokens * count, v.calls * count);
                    ops.push(op(way).at(Site::of(proj), pass));
                    if rank > 0.0 && way != Way::Forward && self.has_lengths() {
                        // The gradient of the lengths needs the layer's product once more.
                        ops.push(op(Way::Forward).at(Site::of(proj), pass));
                    }
                }
            }
        }
        let share = if self.layers() > 0.0 { layers / self.layers() } else { 0.0 };
        let (head_dim, calls) = (f(self.arch.head_dim), v.calls * layers);
        // One call is one head of one segment of the mean length, weighted by its work.
        let length = (v.squares / v.tokens.max(1.0)).max(1.0);
        let width = f(self.arch.heads) * head_dim;
        let attention = Op::attention(way, length, head_dim, width, self.pairs(v) * share, calls);
        ops.push(attention.at(Site::Attention, pass));
        let others = Op::elementwise(way, self.arch, m, v.tokens * layers, calls);
        ops.extend(others.map(|op| op.at(op.site, pass)));
    }

    /// Way of the blocks' backward pass.
    fn backward(&self) -> Way {
        if *self.method == Method::Full { Way::Trained } else { Way::Backward }
    }

    fn head(&self, v: &Volume, training: bool) -> Op {
        let m = v.targets / v.calls.max(1.0);
        let way = match (training, parameters::trains_head(self.method)) {
            (false, _) => Way::Forward,
            (true, false) => Way::Backward,
            (true, true) => Way::Trained,
        };
        let shape = (m, f(self.arch.vocab_size), f(self.arch.hidden_size));
        Op::head(way, shape, v.targets, v.calls)
    }

    /// Values of a mean trained tensor.
    fn mean_trained(&self, counted: &Parameters) -> f64 {
        let tensors = match self.method {
            Method::Full => self.layers() * f(Proj::ALL.len()),
            _ => 2.0 * f(self.adapted.len()),
        };
        counted.trainable as f64 / tensors.max(1.0)
    }

    /// The blocks forward and backward, with the forward pass again where they are recomputed.
    pub fn blocks_training(&self, v: &Volume, recompute: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        self.through_blocks(Way::Forward, Pass::Forward, v, self.layers(), &mut ops);
        if recompute {
            self.through_blocks(Way::Forward, Pass::Recompute, v, self.layers_backward(), &mut ops);
        }
        self.through_blocks(self.backward(), Pass::Backward, v, self.layers_backward(), &mut ops);
        ops
    }

    /// Loss and gradients.
    pub fn passes(&self, v: &Volume, recompute: bool) -> Vec<Op> {
        let mut ops = self.blocks_training(v, recompute);
        ops.push(self.head(v, true));
        ops
    }

    /// How much each trained value matters to what goes through: gradients, a call each, and their squares.
    pub fn information(&self, v: &Volume, counted: &Parameters) -> Vec<Op> {
        let mut ops = self.passes(v, true);
        let (values, each) = (counted.trainable as f64, self.mean_trained(counted));
        ops.push(Op::squares(self.update, values, each, v.calls));
        ops
    }

    /// Everything that training computes, updates included.
    pub fn training(&self, v: &Volume, steps: f64, counted: &Parameters, recompute: bool) -> Vec<Op> {
        let mut ops = self.passes(v, recompute);
        ops.push(Op::optimizer(self.update, counted.trainable as f64, self.mean_trained(counted), steps));
        ops
    }

    /// Everything that one evaluation computes.
    pub fn evaluation(&self, v: &Volume) -> Vec<Op> {
        let mut ops = Vec::new();
        self.through_blocks(Way::Forward, Pass::Forward, v, self.layers(), &mut ops);
        ops.push(self.head(v, false));
        ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{lora, smollm2};

    const ONE_TOKEN: Volume = Volume { tokens: 1.0, targets: 1.0, squares: 0.0, calls: 1.0 };

    fn flops(ops: &[Op], class: Class) -> f64 {
        ops.iter().filter(|o| o.class == class).map(|o| o.flops - o.adapter_flops).sum()
    }

    fn adapter_flops(ops: &[Op]) -> f64 {
        ops.iter().map(|o| o.adapter_flops).sum()
    }

    fn training(method: &Method, adapted: &[Linear], v: &Volume, recompute: bool) -> Vec<Op> {
        let arch = smollm2();
        let counted = Parameters::count(&arch, method, adapted);
        let model = Model { arch: &arch, method, adapted, stored: Stored::F32, update: Update::ADAMW };
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
        assert!((adapter_flops(&ops) - 6.0 * adapter).abs() < 1.0);
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
        assert!(adapter_flops(&full).abs() < 1e-9);
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
