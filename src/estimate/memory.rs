//! Peak memory as a sum of named parts at the moment of a run when most stands, each of which the meter can hold a
//! measured figure against. What stands at which moment follows from the ops (`model/decoder.rs`, `model/block.rs`), and
//! the allocator keeps no more large blocks than once stood together.

use super::parameters::{Parameters, rank};
use super::trained::Trained;
use super::work::Stored;
use super::{Counts, product, sum, wide};
use crate::arch::{Arch, Linear};
use crate::config::{Lora, Method};
use fttrain_kernels::sys::memory::SLACK;

/// How the frozen base is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseType {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight.
    Bf16,
    /// 4 bits a weight of the blocks' linears and a scale per 64.
    Nf4 {
        /// Scales are kept in 8 bits with an f32 per 256 of them.
        double_quant: bool,
        /// Bytes of a weight of the rest: 2, or 4 where f32 was asked for.
        others: u64,
    },
    /// As it came in its file: GGUF block types.
    AsStored {
        /// Bytes of all tensors.
        bytes: u64,
    },
}

/// What the predicted memory depends on, beside the batch.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// Shapes.
    pub arch: &'a Arch,
    /// Full, LoRA or QLoRA.
    pub method: &'a Method,
    /// Linears with an adapter.
    pub adapted: &'a [Linear],
    /// Parameters under the method.
    pub parameters: Parameters,
    /// Bytes of what is trained, of its gradients and of the optimizer's state.
    pub trained: Trained,
    /// How the frozen base is kept.
    pub base: BaseType,
    /// What products round to bf16 is kept in it from the forward to the backward pass.
    pub narrow: bool,
    /// The machine multiplies in bf16 what is narrow; others widen both sides as they pack them.
    pub multiplies_bf16: bool,
    /// The memory is an accelerator's: the data stay with the host.
    pub on_device: bool,
    /// Values pass from op to op in bf16, as other trainers have them on accelerators; our ops pass f32.
    pub passes_bf16: bool,
    /// A step has several micro-batches.
    pub accumulates: bool,
    /// Gradients are summed with those of other processes.
    pub shares: bool,
    /// Rows of logits alive at once.
    pub logits_rows: u64,
    /// Resident bytes before anything is loaded.
    pub runtime_bytes: u64,
    /// Bytes of a value in the base's files.
    pub read_value: u64,
}

/// The micro-batch that memory is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tokens.
    pub tokens: u64,
    /// Counted targets.
    pub targets: u64,
}

const F32: u64 = 4;
/// Tokens whose logits are compared before and after the result is reopened: they ask for every weight, and two sets of
/// more of them would be the peak of a small run.
pub const COMPARED: usize = 8;
/// What the process grows by beside what it allocates in large blocks: code that only training runs, the ledger's cache,
/// threads, pages of small blocks. 12 to 17 MiB with models of four million to half a billion parameters.
const CODE_BYTES: u64 = 16 << 20;
/// The same of text that becomes tokens: its templates, caches of words, pages of small blocks.
const TEXT_BYTES: u64 = 14 << 20;
/// Id and label of a token, 4 bytes each.
const SAMPLE_BYTES_PER_TOKEN: u64 = 8;
/// Two vectors' headers and their allocations' slack, the sample's length and its place in an epoch.
const SAMPLE_BYTES_PER_ROW: u64 = 100;
/// The tokenizer's tables (both directions of the vocabulary, merges), by entry: 14 MiB for the 49,152 of SmolLM2.
const TOKENIZER_BYTES_PER_ENTRY: u64 = 300;
/// The tokenizer's files, by entry of the vocabulary: 72 of SmolLM2, rounded up.
const TOKENIZER_FILE_BYTES_PER_ENTRY: u64 = 80;

impl BaseType {
    /// How products read it.
    pub(crate) fn stored(self) -> Stored {
        match self {
            Self::F32 => Stored::F32,
            Self::Bf16 => Stored::Bf16,
            Self::Nf4 { .. } | Self::AsStored { .. } => Stored::Quantised,
        }
    }
}

impl Layout<'_> {
    /// Bytes of a value that passes from op to op.
    fn value(&self) -> u64 {
        if self.passes_bf16 { 2 } else { F32 }
    }

    /// Bytes of the frozen base.
    pub fn base_bytes(&self) -> u64 {
        let p = &self.parameters;
        match self.base {
            BaseType::F32 => product(&[p.frozen, F32]),
            BaseType::Bf16 => product(&[p.frozen, 2]),
            BaseType::AsStored { bytes } => bytes,
            BaseType::Nf4 { double_quant, others } => {
                let linear = p.frozen_linear;
                let scales = if double_quant {
                    sum(&[linear / 64, product(&[linear / (64 * 256), F32])])
                } else {
                    product(&[linear / 64, F32])
                };
                let rest = product(&[p.frozen.saturating_sub(linear), others]);
                sum(&[linear / 2, scales, rest])
            }
        }
    }

    /// Values that loading quantises.
    pub fn quantised_values(&self) -> u64 {
        match self.base {
            BaseType::Nf4 { .. } => self.parameters.frozen_linear,
            BaseType::F32 | BaseType::Bf16 | BaseType::AsStored { .. } => 0,
        }
    }

    /// Bytes of a value that products read again.
    fn product_value(&self) -> u64 {
        if self.narrow { 2 } else { self.value() }
    }

    /// Bytes of a value in a side that is packed for a product.
    fn packed_value(&self) -> u64 {
        if self.narrow && self.multiplies_bf16 { 2 } else { F32 }
    }

    /// Bytes that one layer saves for a token.
    fn saved_bytes(&self) -> u64 {
        let a = self.arch;
        let (d, f) = (wide(a.hidden_size), wide(a.intermediate_size));
        let (h, hd) = (wide(a.heads), wide(a.head_dim));
        let (q, kv) = (product(&[h, hd]), product(&[wide(a.kv_heads), hd]));
        // q, k, v and attention's output, gate and up; inputs and scales of the two norms, attention's log-sums, x·Aᵀ of
        // each adapter; with norms on heads, also their inputs and scales.
        let heads = sum(&[h, wide(a.kv_heads)]);
        let qk_norm = if a.qk_norm { sum(&[q, kv, heads]) } else { 0 };
        let products = sum(&[q, kv, f]);
        let others = sum(&[product(&[2, d]), 2, h, qk_norm, self.adapter_floats()]);
        sum(&[product(&[2, products, self.product_value()]), product(&[others, self.value()])])
    }

    fn lora(&self) -> Option<&Lora> {
        match self.method {
            Method::Full => None,
            Method::Lora(lora) | Method::Qlora { lora, .. } => Some(lora),
        }
    }

    /// Σ r over the adapted linears of the layer with most.
    fn adapter_floats(&self) -> u64 {
        let Some(lora) = self.lora() else { return 0 };
        let mut by_layer = vec![0u64; self.arch.layers.len()];
        for linear in self.adapted {
            if let Some(sum) = by_layer.get_mut(linear.layer) {
                *sum = sum.saturating_add(rank(lora, &linear.name));
            }
        }
        by_layer.into_iter().max().unwrap_or(0)
    }

    /// Bytes that the blocks keep between forward and backward: when the head runs, on the way back through the last block,
    /// and through the first.
    fn activations(&self, load: Load, recompute: bool) -> [u64; 3] {
        let layers = wide(self.arch.layers.len());
        let row = product(&[wide(self.arch.hidden_size), self.value()]);
        let one = self.saved_bytes();
        let [head, last, first] = if recompute {
            let inputs = product(&[layers, row]);
            [inputs, sum(&[inputs, one]), sum(&[row, one])]
        } else {
            [product(&[layers, one]), product(&[layers, one]), one]
        };
        [head, last, first].map(|bytes| product(&[load.tokens, bytes]))
    }

    fn logits(&self, load: Load) -> u64 {
        let rows = load.targets.min(self.logits_rows);
        product(&[rows, wide(self.arch.vocab_size), F32])
    }

    /// Beside a chunk of logits: the last block's output, counted rows of it, these normed, and their gradients; the
    /// chunk as products read it on its way back.
    fn beside_logits(&self, load: Load) -> u64 {
        let row = product(&[wide(self.arch.hidden_size), F32]);
        let slopes = product(&[self.logits(load) / F32, self.packed_value()]);
        sum(&[product(&[load.tokens, row]), product(&[load.targets, 3, row]), slopes])
    }

    /// Beside what a block saved, on its way back, at the gradients of gate and up: both, their inputs' gradient, the normed
    /// input, dy, and both as products read them, while gate and up themselves are gone. With dropout the way back through
    /// `down` holds more: the gradient on its way through the adapter, before and after its mask, beside the sum.
    fn beside_block(&self, load: Load) -> u64 {
        let (d, f) = (wide(self.arch.hidden_size), wide(self.arch.intermediate_size));
        let (kept, packed) = (self.product_value(), self.packed_value());
        let mlp = sum(&[product(&[12, d]), product(&[8, f]), product(&[2, packed - kept, f])]);
        let masked = sum(&[product(&[sum(&[12, kept]), f]), product(&[sum(&[4, packed]), d])]);
        let drops = self.lora().is_some_and(|lora| lora.dropout > 0.0);
        product(&[load.tokens, if drops { mlp.max(masked) } else { mlp }])
    }

    /// Beside the base while a block runs forward and nothing is kept: what it would save, its input and output, and gate
    /// and up in f32 or the activation and its packed copy.
    fn passing(&self, load: Load) -> u64 {
        let (d, f) = (wide(self.arch.hidden_size), wide(self.arch.intermediate_size));
        // In bf16, however it is packed: gate in both types and up in f32, of which what is kept is counted already; on an
        // accelerator, which writes what is kept, the activation.
        let act = match (self.narrow, self.on_device) {
            (true, true) => 2,
            (true, false) => 6,
            (false, _) => 8,
        };
        let act = product(&[act, f]);
        product(&[load.tokens, sum(&[self.saved_bytes(), product(&[12, d]), act])])
    }

    /// An accelerator's transients in a block's backward: the gradient of what came of gate and up in f32, theirs as they
    /// are kept, dy and the norm's side of it (of other trainers four buffers of either width), and the weight that is at
    /// work: its gradient, its copy in bf16, or what was taken apart of it.
    fn on_device(&self, load: Load) -> u64 {
        let (d, f) = (wide(self.arch.hidden_size), wide(self.arch.intermediate_size));
        let widths = if self.passes_bf16 {
            product(&[4, sum(&[d, f]), self.value()])
        } else {
            let kept = self.product_value();
            let mlp = sum(&[product(&[sum(&[F32, 2 * kept]), f]), product(&[4, F32, d])]);
            // With dropout the way back through `down` holds the activation and the gradient on its way through the adapter,
            // before and after its mask.
            let masked = sum(&[product(&[sum(&[kept, 2 * F32]), f]), product(&[sum(&[F32, kept]), d])]);
            let drops = self.lora().is_some_and(|lora| lora.dropout > 0.0);
            if drops { mlp.max(masked) } else { mlp }
        };
        let rows = product(&[load.tokens, widths]);
        let p = &self.parameters;
        let weight = match (self.method, self.base) {
            (Method::Full, _) => product(&[p.largest_trainable, F32]),
            (_, BaseType::Nf4 { .. } | BaseType::AsStored { .. }) => {
                product(&[self.taken_apart(), self.product_value()])
            }
            _ => 0,
        };
        sum(&[rows, weight, product(&[p.trainable, 2])])
    }

    /// What sums with other processes hold of gradients, twice each: the largest group's and a block's.
    fn exchanged(&self) -> u64 {
        let Trained { head_gradients: head, block_gradients: block, input_gradients: input, .. } =
            self.trained;
        if self.shares { product(&[2, sum(&[head.max(block).max(input), block])]) } else { 0 }
    }

    /// Values of the largest matrix that is kept in blocks: NF4 are the blocks' linears, a file's own types are all.
    fn taken_apart(&self) -> u64 {
        let linears = self.arch.linears().map(|linear| product(&[wide(linear.outputs), wide(linear.inputs)]));
        match self.base {
            BaseType::Nf4 { .. } => linears.max().unwrap_or(0),
            _ => self.parameters.largest,
        }
    }

    /// The process by itself.
    fn runtime(&self) -> u64 {
        sum(&[self.runtime_bytes, if self.on_device { 0 } else { CODE_BYTES }])
    }

    fn tokenizer(&self) -> u64 {
        product(&[wide(self.arch.vocab_size), TOKENIZER_BYTES_PER_ENTRY])
    }

    fn data(&self, counts: &Counts) -> u64 {
        if self.on_device {
            return 0;
        }
        sum(&[
            product(&[counts.data_tokens, SAMPLE_BYTES_PER_TOKEN]),
            product(&[counts.rows, SAMPLE_BYTES_PER_ROW]),
            self.tokenizer(),
        ])
    }

    /// Peak of a process that merges base and adapter: it holds one model at a time in f32 to compare their logits, and a
    /// tensor twice while it loads. `None` = there is nothing to merge.
    pub fn merging(&self) -> Option<u64> {
        let p = &self.parameters;
        let values = sum(&[p.total, p.trainable, product(&[2, p.largest])]);
        let is_full = matches!(self.method, Method::Full);
        (!is_full).then(|| sum(&[product(&[values, F32]), self.tokenizer(), self.runtime()]))
    }

    /// Activations, gradients, workspace and logits at each moment of a step that may hold most: at the head, on the way
    /// back through the last block and through the first, and at its end. Gradients of a step's earlier micro-batches stand throughout.
    fn moments(&self, load: Load, recompute: bool) -> Vec<[u64; 4]> {
        let [at_head, at_last, at_first] = self.activations(load, recompute);
        let logits = self.logits(load);
        let whole = self.trained.gradients;
        if self.on_device {
            let beside = self.on_device(load);
            // Other trainers' allocators keep the logits' room, which ours are done with.
            if self.passes_bf16 {
                return vec![[at_last, whole, beside, logits]];
            }
            return vec![[at_head, whole, self.beside_logits(load), logits], [at_last, whole, beside, 0]];
        }
        let head = if self.accumulates { whole } else { self.trained.head_gradients.min(whole) };
        let one = sum(&[head, self.trained.block_gradients]).min(whole);
        // The allocator keeps so much beside the peak of what was freed: at the head of what blocks pass on, behind it of
        // what they saved, too.
        let kept = |freed: &[u64]| sum(freed).min(wide(SLACK));
        let beside = self.beside_block(load);
        let passed = if recompute { self.passing(load) } else { 0 };
        let at_logits = sum(&[self.beside_logits(load), kept(&[beside, passed])]);
        let kept = kept(&[at_last, beside]);
        let block = sum(&[beside, kept, self.exchanged()]);
        let row = product(&[load.tokens, wide(self.arch.hidden_size), F32]);
        vec![
            [at_head, head, at_logits, logits],
            [at_last, one, block, 0],
            [at_first, whole.saturating_sub(self.trained.input_gradients), block, 0],
            [0, whole, sum(&[row, kept, self.exchanged()]), 0],
        ]
    }

    /// The parts of the phase with the highest sum: load, train, evaluate or save.
    ///
    /// Loading holds one tensor twice, as read and as kept. Gradients are gone where no step is under way; saving holds one
    /// tensor of the file, as read and as widened, and the logits that are compared.
    pub fn peak(&self, counts: &Counts, load: Load, recompute: bool) -> [u64; 9] {
        let (base, trained) = (self.base_bytes(), self.trained);
        let text = if counts.tokenises && !self.on_device { TEXT_BYTES } else { 0 };
        let (data, runtime) = (self.data(counts), sum(&[self.runtime(), text]));
        let beside = |remembered: u64, [activations, gradients, workspace, logits]: [u64; 4]| {
            [base, trained.values, gradients, remembered, activations, workspace, logits, data, runtime]
        };
        let remembered = sum(&[trained.state, trained.anchor]);
        let parts = |moment: [u64; 4]| beside(remembered, moment);
        let read = |values: u64| product(&[values, self.read_value]);
        // The embedding is read first of all, when nothing else is there; the head, where it is another matrix, last.
        let loading = [base, trained.values, 0, 0, 0, read(self.parameters.largest_behind), 0, data, runtime];
        let table = product(&[wide(self.arch.vocab_size), wide(self.arch.hidden_size)]);
        let beginning = [base.min(product(&[table, F32])), 0, 0, 0, 0, read(table), 0, data, runtime];
        let judged = counts.eval.max_batch_tokens.max(counts.retention.max_batch_tokens);
        let eval = Load { tokens: judged, targets: judged };
        let read_back = product(&[2, self.parameters.largest_trainable, F32]);
        let compared = product(&[2, wide(COMPARED), wide(self.arch.vocab_size), F32]);
        let mut phases: Vec<[u64; 9]> = self.moments(load, recompute).into_iter().map(parts).collect();
        phases.extend([loading, beginning]);
        phases.push(parts([0, 0, self.passing(eval), 0]));
        phases.push(parts([0, 0, self.beside_logits(eval), self.logits(eval)]));
        phases.push(parts([0, 0, read_back, compared]));
        if counts.fisher.passes > 0 {
            phases.extend(self.informing(counts).into_iter().map(|moment| beside(trained.anchor, moment)));
        }
        phases.into_iter().max_by_key(|parts| sum(parts)).unwrap_or(loading)
    }

    /// As [`Self::moments`] while EWC asks how much the retention set depends on each weight: a sample at a time,
    /// recomputed, each gradient squared as soon as it is whole, before the optimizer has a state.
    fn informing(&self, counts: &Counts) -> Vec<[u64; 4]> {
        let sample = counts.fisher.max_batch_tokens;
        let mut moments = self.moments(Load { tokens: sample, targets: sample }, true);
        for [_, gradients, ..] in &mut moments {
            *gradients = (*gradients).min(self.trained.standing);
        }
        moments
    }

    /// Bytes of one checkpoint: trained tensors and the optimizer's state.
    pub fn checkpoint_bytes(&self) -> u64 {
        sum(&[self.trained.values, self.trained.state])
    }

    /// Bytes of the run's result: trained tensors, and the tokenizer beside them.
    pub fn result_bytes(&self) -> u64 {
        sum(&[self.trained.values, product(&[wide(self.arch.vocab_size), TOKENIZER_FILE_BYTES_PER_ENTRY])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::fixture::{lora, smollm2};
    use crate::estimate::trained::Update;

    const LOAD: Load = Load { tokens: 1024, targets: 700 };

    fn parts(method: &Method, base: BaseType, load: Load, recompute: bool) -> [u64; 9] {
        let narrow = !matches!(base, BaseType::F32);
        let arch = smollm2();
        let adapted: Vec<Linear> = match method {
            Method::Full => Vec::new(),
            _ => arch.linears().collect(),
        };
        let layout = Layout {
            arch: &arch,
            method,
            adapted: &adapted,
            parameters: Parameters::count(&arch, method, &adapted),
            trained: Trained::count(&arch, method, &adapted, Update::ADAMW),
            base,
            narrow,
            multiplies_bf16: narrow,
            on_device: false,
            passes_bf16: false,
            accumulates: false,
            shares: false,
            logits_rows: 256,
            runtime_bytes: 10,
            read_value: 2,
        };
        layout.peak(&Counts::default(), load, recompute)
    }

    #[test]
    fn the_parts_of_smollm2_follow_from_its_shapes() {
        let [base, adapter, gradients, moments, activations, workspace, logits, data, runtime] =
            parts(&Method::Lora(lora(16)), BaseType::F32, LOAD, false);
        assert_eq!(base, 134_515_008 * 4);
        assert_eq!(adapter, 4_884_480 * 4);
        assert_eq!(moments, 2 * adapter);
        // At the head, of gradients only pages of small ones: A of what reads 576 values, B of what gives no more.
        assert_eq!(gradients, 30 * (6 * 576 + 3 * 576 + 2 * 192) * 16 * 4);
        // 2·576 + 2 + 2·576 + 2·192 + 9 + 2·1536 + 7·16 = 5883 floats a token and layer.
        assert_eq!(activations, 1024 * 30 * 5883 * 4);
        assert_eq!(logits, 256 * 49_152 * 4);
        let block = 1024 * (12 * 576 + 8 * 1536);
        assert_eq!(
            workspace,
            (1024 + 3 * 700) * 576 * 4 + logits + block,
            "the head's, and what blocks freed"
        );
        assert_eq!((data, runtime), (49_152 * 300, 10 + (16 << 20)));
    }

    /// Inputs of norms, x·Aᵀ and what is per head stay in f32.
    #[test]
    fn bf16_halves_what_products_read() {
        let lora = Method::Lora(lora(16));
        let [_, _, _, _, activations, workspace, logits, ..] = parts(&lora, BaseType::Bf16, LOAD, false);
        let bytes = 2 * (2 * 576 + 2 * 192 + 2 * 1536) + 4 * (2 * 576 + 2 + 9 + 7 * 16);
        assert_eq!(activations, 1024 * 30 * bytes);
        assert_eq!(workspace, (1024 + 3 * 700) * 576 * 4 + logits / 2 + 1024 * (12 * 576 + 8 * 1536));
    }

    /// 4 bytes instead of 2 of each logit's slope, and of the gradients of gate and up.
    #[test]
    fn a_machine_without_bf16_packs_in_f32() {
        let (arch, method) = (smollm2(), Method::Lora(lora(16)));
        let adapted: Vec<Linear> = arch.linears().collect();
        let layout = |multiplies_bf16| Layout {
            arch: &arch,
            method: &method,
            adapted: &adapted,
            parameters: Parameters::count(&arch, &method, &adapted),
            trained: Trained::count(&arch, &method, &adapted, Update::ADAMW),
            base: BaseType::Bf16,
            narrow: true,
            multiplies_bf16,
            on_device: false,
            passes_bf16: false,
            accumulates: false,
            shares: false,
            logits_rows: 256,
            runtime_bytes: 10,
            read_value: 2,
        };
        let (wide, narrow) = (layout(false), layout(true));
        assert_eq!(wide.beside_logits(LOAD) - narrow.beside_logits(LOAD), 256 * 49_152 * 2);
        assert_eq!(wide.beside_block(LOAD) - narrow.beside_block(LOAD), 1024 * 4 * 1536);
        assert_eq!(
            wide.passing(LOAD),
            narrow.passing(LOAD),
            "gate and up are there before anything is packed"
        );
        let peak = |layout: Layout<'_>| sum(&layout.peak(&Counts::default(), LOAD, false));
        assert_eq!(peak(wide) - peak(narrow), 256 * 49_152 * 2 + 1024 * 4 * 1536);
    }

    #[test]
    fn saving_is_never_the_peak_of_a_full_fine_tune() {
        let at = |tokens| parts(&Method::Full, BaseType::F32, Load { tokens, targets: tokens }, true);
        let peaks: Vec<u64> = [256, 512, 1024].into_iter().map(|tokens| sum(&at(tokens))).collect();
        assert!(peaks.windows(2).all(|w| w[0] < w[1]), "it would not grow with the batch: {peaks:?}");
        assert!(at(256)[2] > 0, "gradients are alive at the peak");
    }

    /// Before the optimizer has a state, with the gradients of one block.
    #[test]
    fn a_long_row_that_is_not_to_be_forgotten_may_be_the_peak() {
        let (arch, method) = (smollm2(), Method::Full);
        let update = Update { anchor_bytes: 8, ..Update::ADAMW };
        let layout = Layout {
            arch: &arch,
            method: &method,
            adapted: &[],
            parameters: Parameters::count(&arch, &method, &[]),
            trained: Trained::count(&arch, &method, &[], update),
            base: BaseType::F32,
            narrow: false,
            multiplies_bf16: false,
            on_device: false,
            passes_bf16: false,
            accumulates: false,
            shares: false,
            logits_rows: 256,
            runtime_bytes: 10,
            read_value: 2,
        };
        let peak = |tokens| {
            let mut counts = Counts::default();
            (counts.fisher.passes, counts.fisher.max_batch_tokens) = (1, tokens);
            layout.peak(&counts, LOAD, true)
        };
        let (short, long) = (peak(1024), peak(1 << 15));
        let values = 134_515_008 * 4;
        assert_eq!((short[1], short[2], short[3]), (values, values, 4 * values), "that of training");
        assert_eq!((long[1], long[2], long[3]), (values, layout.trained.standing, 2 * values));
        assert!(long[4] > short[4] && long[2] < values / 3);
    }

    #[test]
    fn a_merge_holds_one_model_and_full_fine_tuning_needs_none() {
        let (arch, method) = (smollm2(), Method::Lora(lora(16)));
        let adapted: Vec<Linear> = arch.linears().collect();
        let layout = |method| {
            let parameters = Parameters::count(&arch, method, &adapted);
            let (base, on_device) = (BaseType::Bf16, false);
            let (arch, adapted) = (&arch, adapted.as_slice());
            let trained = Trained::count(arch, method, adapted, Update::ADAMW);
            Layout {
                arch,
                method,
                adapted,
                parameters,
                trained,
                base,
                narrow: true,
                multiplies_bf16: true,
                on_device,
                passes_bf16: false,
                accumulates: false,
                shares: false,
                logits_rows: 256,
                runtime_bytes: 10,
                read_value: 2,
            }
        };
        let values = 134_515_008 + 4_884_480 + 2 * 49_152 * 576;
        assert_eq!(layout(&method).merging(), Some(values * 4 + 49_152 * 300 + 10 + (16 << 20)));
        assert_eq!(layout(&Method::Full).merging(), None);
    }

    #[test]
    fn recompute_keeps_only_block_inputs_and_one_layer() {
        let kept = parts(&Method::Lora(lora(16)), BaseType::F32, LOAD, true);
        assert_eq!(kept[4], 1024 * 30 * 576 * 4, "at the head");
    }

    #[test]
    fn full_fine_tuning_holds_sixteen_bytes_a_parameter() {
        let full = parts(&Method::Full, BaseType::F32, LOAD, true);
        assert_eq!(full[0], 0);
        assert_eq!(full[1] + full[2] + full[3], 134_515_008 * 16);
    }

    #[test]
    fn four_bits_shrink_the_linears_only() {
        let one = |double_quant| {
            let method = Method::Qlora { lora: lora(16), double_quant };
            parts(&method, BaseType::Nf4 { double_quant, others: 2 }, LOAD, true)[0]
        };
        let (linear, rest) = (106_168_320, 134_515_008 - 106_168_320);
        assert_eq!(one(false), linear / 2 + linear / 64 * 4 + rest * 2);
        assert_eq!(one(true), linear / 2 + linear / 64 + linear / 16_384 * 4 + rest * 2);
    }

    #[test]
    fn memory_grows_with_the_batch_and_never_wraps() {
        let at = |tokens| {
            let load = Load { tokens, targets: tokens };
            sum(&parts(&Method::Lora(lora(16)), BaseType::F32, load, false))
        };
        let sizes: Vec<u64> = [1, 1 << 10, 1 << 20, 1 << 40, u64::MAX].into_iter().map(at).collect();
        assert!(sizes.windows(2).all(|w| w[0] < w[1]), "{sizes:?}");
        assert_eq!(sizes[4], u64::MAX);
    }
}
