//! Bytes that training holds beside activations: the trained tensors, their gradients, the optimizer's state.

use super::parameters::{rank, saved_whole, trains_head};
use super::{product, sum, wide};
use crate::arch::{Arch, Linear, Proj};
use crate::config::{Lora, LoraInit, Method, Optimizer, Train};
use fttrain_kernels::sys::memory::LARGE;

const F32: u64 = 4;
const BF16: u64 = 2;
/// bitsandbytes' blocks of 8-bit state.
const BLOCK: u64 = 256;

/// How trained tensors are kept and updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// The rule.
    pub optimizer: Optimizer,
    /// It keeps a momentum, where it may go without one (SGD).
    pub has_momentum: bool,
    /// The tensors are bf16.
    pub is_narrow: bool,
    /// Each gradient is used as soon as it is whole.
    pub in_backward: bool,
    /// Bytes that regularisers remember of a value: where it started, and its Fisher information.
    pub anchor_bytes: u64,
}

impl Update {
    /// Both moments and the tensors in f32, after the whole backward pass.
    pub const ADAMW: Self = Self {
        optimizer: Optimizer::Adamw,
        has_momentum: false,
        is_narrow: false,
        in_backward: false,
        anchor_bytes: 0,
    };

    /// What a config asks for; an adapter is always f32.
    pub fn of(method: &Method, train: &Train) -> Self {
        let is_narrow = *method == Method::Full && train.bf16_weights;
        let start = if is_narrow { BF16 } else { F32 };
        Self {
            optimizer: train.optimizer,
            has_momentum: train.momentum > 0.0,
            is_narrow,
            in_backward: train.optimizer_in_backward,
            anchor_bytes: match (train.l2_sp > 0.0, train.ewc > 0.0) {
                (false, false) => 0,
                (true, false) => start,
                (_, true) => start + F32,
            },
        }
    }

    /// Bytes of a trained value.
    pub fn value_bytes(self) -> u64 {
        if self.is_narrow { BF16 } else { F32 }
    }

    /// Bytes that the optimizer keeps of a tensor: AdamW two moments (in 8 bits from 4,096 values on, with a scale each
    /// for every 256), Adafactor the means of rows and columns, Lion one moment, SGD one where it has a momentum.
    fn state_bytes(self, shape: &[u64]) -> u64 {
        let n = product(shape);
        let in_8_bits = n >= wide(Optimizer::LEAST_IN_8_BITS);
        match (self.optimizer, shape) {
            (Optimizer::Adamw8bit, _) if in_8_bits => {
                product(&[2, sum(&[n, product(&[n.div_ceil(BLOCK), F32])])])
            }
            (Optimizer::Adamw | Optimizer::Adamw8bit, _) => product(&[2, n, F32]),
            (Optimizer::Adafactor, [rows, columns]) => product(&[sum(&[*rows, *columns]), F32]),
            (Optimizer::Sgd, _) if !self.has_momentum => 0,
            (Optimizer::Adafactor | Optimizer::Lion | Optimizer::Sgd, _) => product(&[n, F32]),
        }
    }

    /// Bytes that memory moves for a value at a step: the value read and written; its gradient read for the norm, read
    /// and zeroed; the state read and written. Adafactor reads gradients twice more, for its means and its scale.
    pub fn bytes_per_value(self) -> f64 {
        let state = match self.optimizer {
            Optimizer::Adamw => 2.0 * F32 as f64,
            Optimizer::Adamw8bit => 2.0 * (1.0 + F32 as f64 / BLOCK as f64),
            Optimizer::Sgd if !self.has_momentum => 0.0,
            Optimizer::Lion | Optimizer::Sgd => F32 as f64,
            Optimizer::Adafactor => 0.0,
        };
        let passes = if self.optimizer == Optimizer::Adafactor { 5.0 } else { 3.0 };
        // A pull reads the value and what is remembered of it, and adds to the gradient.
        let pulled = self.value_bytes() + self.anchor_bytes + 2 * F32;
        let pull = if self.anchor_bytes > 0 { pulled as f64 } else { 0.0 };
        2.0 * self.value_bytes() as f64 + passes * F32 as f64 + 2.0 * state + pull
    }
}

/// Bytes by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trained {
    /// The tensors; of an adapter that begins with a part of the base (`PiSSA`) its start, too: its files take it away
    /// again.
    pub values: u64,
    /// Gradients that stand at once at most.
    pub gradients: u64,
    /// Of them, those that stand before the way back through the blocks begins: the head's, and an adapter's small ones,
    /// whose pages stay from step to step.
    pub head_gradients: u64,
    /// Of them, a block's.
    pub block_gradients: u64,
    /// Of them, the embedding's where it is not the head, which comes last of all.
    pub input_gradients: u64,
    /// Gradients that stand at once where each is used as soon as it is whole.
    pub standing: u64,
    /// What the optimizer remembers.
    pub state: u64,
    /// What regularisers remember.
    pub anchor: u64,
}

impl Trained {
    /// Counts the trained tensors of a method, and what an update keeps of each.
    pub fn count(arch: &Arch, method: &Method, adapted: &[Linear], update: Update) -> Self {
        let shapes = shapes(arch, method, adapted);
        let all = shapes.iter().map(|shape| product(shape)).fold(0, u64::saturating_add);
        let standing = standing(arch, method, all);
        let at_once = if update.in_backward { standing } else { all };
        let table = product(&[wide(arch.vocab_size), wide(arch.hidden_size)]);
        let small = shapes.iter().map(|shape| product(shape)).filter(|n| product(&[*n, F32]) < wide(LARGE));
        let small = if *method == Method::Full { 0 } else { small.fold(0, u64::saturating_add) };
        let head = sum(&[small, if trains_head(method) { table } else { 0 }]);
        let input = if *method == Method::Full && !arch.tie_word_embeddings { table } else { 0 };
        let blocks = all.saturating_sub(sum(&[head, input]));
        let starts = starts(method, adapted);
        Self {
            values: sum(&[product(&[all, update.value_bytes()]), product(&[starts, F32])]),
            gradients: product(&[at_once, F32]),
            head_gradients: product(&[head, F32]),
            input_gradients: product(&[input, F32]),
            block_gradients: product(&[blocks / wide(arch.layers.len()).max(1), F32]),
            standing: product(&[standing, F32]),
            state: shapes.iter().map(|shape| update.state_bytes(shape)).fold(0, u64::saturating_add),
            anchor: product(&[all, update.anchor_bytes]),
        }
    }
}

/// Shapes of all trained tensors.
fn shapes(arch: &Arch, method: &Method, adapted: &[Linear]) -> Vec<Vec<u64>> {
    let wide_shape = |shape: &[usize]| shape.iter().copied().map(wide).collect::<Vec<_>>();
    let parameters = arch.parameters();
    let lora = match method {
        Method::Full => return parameters.iter().map(|p| wide_shape(&p.shape)).collect(),
        Method::Lora(lora) | Method::Qlora { lora, .. } => lora,
    };
    let mut shapes: Vec<Vec<u64>> = adapted.iter().flat_map(|linear| of_adapter(lora, linear)).collect();
    let saved = parameters.iter().filter(|p| saved_whole(&p.name, &lora.modules_to_save));
    shapes.extend(saved.map(|p| wide_shape(&p.shape)));
    if arch.tie_word_embeddings && trains_head(method) {
        shapes.push(vec![wide(arch.vocab_size), wide(arch.hidden_size)]);
    }
    shapes
}

fn of_adapter(lora: &Lora, linear: &Linear) -> Vec<Vec<u64>> {
    let (r, inputs, outputs) = (rank(lora, &linear.name), wide(linear.inputs), wide(linear.outputs));
    let mut shapes = vec![vec![r, inputs], vec![outputs, r]];
    if lora.dora == Some(true) {
        shapes.push(vec![outputs]);
    }
    shapes
}

/// Values of the starts that an adapter keeps because the base lost as much (`PiSSA`).
fn starts(method: &Method, adapted: &[Linear]) -> u64 {
    match method {
        Method::Lora(lora) if matches!(lora.init, LoraInit::Pissa { .. }) => {
            adapted.iter().map(|l| product(&[rank(lora, &l.name), wide(l.inputs + l.outputs)])).sum()
        }
        _ => 0,
    }
}

/// Values of gradients that stand at once where each is used as soon as it is whole: those of a block, beside the embedding's
/// where the head shares it, because that is whole at the end only.
fn standing(arch: &Arch, method: &Method, all: u64) -> u64 {
    let table = product(&[wide(arch.vocab_size), wide(arch.hidden_size)]);
    if *method != Method::Full {
        let head = if trains_head(method) { table } else { 0 };
        return head.max(all.saturating_sub(head).div_ceil(wide(arch.layers.len()).max(1)));
    }
    let linear = |proj| {
        let l = arch.linear(0, proj);
        product(&[wide(l.inputs), wide(l.outputs)])
    };
    let block =
        Proj::ALL.into_iter().map(linear).fold(product(&[2, wide(arch.hidden_size)]), u64::saturating_add);
    if arch.tie_word_embeddings { sum(&[table, block]) } else { table.max(block) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{config, lora, smollm2};

    fn count(method: &Method, change: impl FnOnce(&mut Train)) -> Trained {
        let (arch, mut train) = (smollm2(), config().train);
        change(&mut train);
        let adapted: Vec<Linear> =
            if *method == Method::Full { Vec::new() } else { arch.linears().collect() };
        Trained::count(&arch, method, &adapted, Update::of(method, &train))
    }

    #[test]
    fn each_optimizer_keeps_what_it_is_known_for() {
        let state = |optimizer| count(&Method::Full, |train| train.optimizer = optimizer).state;
        let n = 134_515_008;
        // The 61 norms of 576 values stay in 32 bits.
        let (small, large) = (61 * 576, n - 61 * 576);
        assert_eq!(state(Optimizer::Adamw), 8 * n);
        assert_eq!(state(Optimizer::Adamw8bit), 8 * small + 2 * (large + large / 256 * 4));
        assert_eq!(state(Optimizer::Lion), 4 * n);
        assert_eq!(state(Optimizer::Sgd), 0);
        // Rows and columns: q, o 1,152; k, v 768; gate, up, down 2,112 in each block; the table; norms whole.
        let means = 30 * (2 * 1152 + 2 * 768 + 3 * 2112) + 49_152 + 576 + small;
        assert_eq!(state(Optimizer::Adafactor), 4 * means);
        assert_eq!(count(&Method::Full, |t| (t.optimizer, t.momentum) = (Optimizer::Sgd, 0.9)).state, 4 * n);
    }

    #[test]
    fn an_adapter_is_counted_as_parameters_are() {
        let of = count(&Method::Lora(lora(16)), |_| ());
        assert_eq!((of.values, of.gradients, of.state), (4_884_480 * 4, 4_884_480 * 4, 4_884_480 * 8));
    }

    #[test]
    fn pissa_keeps_what_its_files_take_away_again() {
        let of_lora = |init| count(&Method::Lora(Lora { init, ..lora(16) }), |_| ());
        let (plain, pissa) = (of_lora(LoraInit::Zero), of_lora(LoraInit::Pissa { rounds: None }));
        assert_eq!(pissa, Trained { values: 2 * plain.values, ..plain });
    }

    #[test]
    fn a_pull_remembers_the_start_and_ewc_how_much_depends_on_it() {
        let n = 134_515_008;
        let anchor = |change: fn(&mut Train)| count(&Method::Full, change).anchor;
        assert_eq!(anchor(|_| ()), 0);
        assert_eq!(anchor(|train| train.l2_sp = 0.1), 4 * n);
        assert_eq!(anchor(|train| train.ewc = 0.1), 8 * n);
        assert_eq!(anchor(|train| (train.l2_sp, train.ewc) = (0.1, 0.1)), 8 * n);
        assert_eq!(anchor(|train| (train.l2_sp, train.bf16_weights) = (0.1, true)), 2 * n);
        assert_eq!(count(&Method::Lora(lora(16)), |train| train.ewc = 0.1).anchor, 4_884_480 * 8);
        let moved = |change: fn(&mut Train)| {
            let mut train = config().train;
            change(&mut train);
            Update::of(&Method::Full, &train).bytes_per_value()
        };
        // Value and start are read, the gradient is read and written; EWC reads its information, too.
        let plain = moved(|_| ());
        assert!((moved(|train| train.l2_sp = 0.1) - plain - 16.0).abs() < 1e-12);
        assert!((moved(|train| train.ewc = 0.1) - plain - 20.0).abs() < 1e-12);
    }

    #[test]
    fn narrow_weights_and_early_updates_save_what_they_say() {
        let of = count(&Method::Full, |t| (t.bf16_weights, t.optimizer_in_backward) = (true, true));
        assert_eq!(of.values, 134_515_008 * 2);
        // The shared table, and one block of thirty with its two norms.
        assert_eq!(of.gradients, (49_152 * 576 + 106_168_320 / 30 + 2 * 576) * 4);
    }
}
