//! One prediction from all inputs: counts to work, work to time, time to money, shapes to memory, each with bounds.

use super::fit::{self, FullBatch};
use super::history::Learned;
use super::interval::Interval;
use super::levers::{Lever, Search};
use super::machine::{self, Evidence, Limits, Machine};
use super::memory::{BaseType, Layout, Load};
use super::money::{PhaseCost, PriceUsed};
use super::parameters::Parameters;
use super::parts::{self, MemoryPart};
use super::rates::Blocks;
use super::trained::{Trained, Update};
use super::work::{Class, Model, Op};
use super::{Counts, Quantities, basis, phases, sum, time};
use crate::arch::{Arch, Linear};
use crate::config::{Config, Method};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that a prediction follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Shapes.
    pub arch: &'a Arch,
    /// The run.
    pub config: &'a Config,
    /// Linears that get an adapter; empty in full fine-tuning.
    pub adapted: &'a [Linear],
    /// The packed data.
    pub counts: &'a Counts,
    /// How fast.
    pub machine: &'a Machine,
    /// How much memory, capped by the budget already.
    pub limits: &'a Limits,
    /// What an hour costs.
    pub price: &'a PriceUsed,
    /// What finished runs on this machine taught, or a pilot.
    pub learned: &'a Learned,
    /// Phases that are over by the clock, with their seconds; empty where nothing has started.
    pub taken: &'a [(String, f64)],
    /// Rows of logits that the head keeps at once.
    pub logits_rows: u64,
    /// Bytes of a GGUF base's tensors, whose types QLoRA keeps; `None` = another base, in values of 2 bytes.
    pub file_bytes: Option<u64>,
    /// What the process that will run has held at its highest so far; 0 where another one will.
    pub resident_bytes: u64,
}

/// What a run is predicted to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Parameters of the base.
    pub parameters: u64,
    /// Of them or beside them, trained.
    pub trainable: u64,
    /// FLOPs of a mean optimizer step.
    pub flops_per_step: f64,
    /// FLOPs of training by op class.
    pub flops: BTreeMap<String, f64>,
    /// All that training computes, op by op.
    #[serde(skip)]
    pub work: Vec<Op>,
    /// The six quantities, corrected by past runs.
    pub predicted: Quantities,
    /// As they follow from counts and rates alone; what past runs are compared with.
    pub uncorrected: Quantities,
    /// Seconds of the phases, likewise.
    pub uncorrected_phases: Vec<(String, f64)>,
    /// Seconds of training by op class.
    #[serde(default)]
    pub classes: Vec<ClassSeconds>,
    /// Bounds, by the quantity's key.
    pub interval: BTreeMap<String, Interval>,
    /// What each quantity rests on, by its key.
    pub basis: BTreeMap<String, String>,
    /// Figures from data sheets, by the quantity's key; never among `predicted`.
    pub modelled: BTreeMap<String, f64>,
    /// The peak by parts; they sum to it.
    pub memory_parts: Vec<MemoryPart>,
    /// Time and money by phases; they sum to the whole.
    pub phases: Vec<PhaseCost>,
    /// Activations are recomputed in the backward pass.
    pub recompute: bool,
    /// The nearest settings that fit, or that cost less where the budget's caps are crossed; else empty.
    pub levers: Vec<Lever>,
    /// The same run in full, with LoRA and with QLoRA.
    pub methods: Vec<Lever>,
    /// Set where no micro-batch can be as large as the config states.
    pub full_batch: Option<FullBatch>,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
    /// Peak of the process that merges base and adapter afterwards; `None` = there is nothing to merge.
    #[serde(default)]
    pub merge_bytes: Option<u64>,
    /// Bytes that the output folder may take.
    pub disk_bytes: u64,
    /// The machine's name.
    pub machine: String,
    /// Where it computes.
    #[serde(default)]
    pub kind: machine::Kind,
    /// Threads that it is for.
    #[serde(default)]
    pub threads: usize,
    /// Build of the program that measured it.
    pub build: String,
    /// How its numbers came about.
    pub evidence: Evidence,
    /// What past runs taught.
    pub learned: Learned,
    /// Memory and cores that the verdict is about.
    pub limits: Limits,
    /// The price with its origin.
    pub price: PriceUsed,
    /// The counts it follows from.
    pub counts: Counts,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What the ops of a class take over all of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassSeconds {
    /// Which.
    pub class: Class,
    /// Seconds, corrected by past runs.
    pub predicted_s: f64,
    /// Seconds as they follow from counts and rates alone.
    pub uncorrected_s: f64,
}

/// The bare figures of a run.
pub(crate) struct Outline<'a> {
    pub(crate) layout: Layout<'a>,
    pub(crate) memory: fit::Peak,
    pub(crate) training: Vec<Op>,
    /// Seconds in which the first step touches memory that nobody touched before.
    touching_s: f64,
    /// Phases as they follow from counts and rates alone.
    pub(crate) plain: Vec<(String, f64)>,
    /// Phases corrected by past runs.
    pub(crate) phases: Vec<(String, f64)>,
    /// The six quantities, corrected by past runs.
    pub(crate) corrected: Quantities,
}

/// Counts to work, work to time and money, shapes to memory, for one micro-batch `load`.
pub(crate) fn outline<'a>(inputs: &Inputs<'a>, load: Load, recompute: Option<bool>) -> Outline<'a> {
    let parameters = Parameters::count(inputs.arch, &inputs.config.method, inputs.adapted);
    let layout = layout(inputs, parameters);
    let memory = fit::peak(inputs, &layout, load, recompute);
    let model = Model {
        arch: inputs.arch,
        method: &inputs.config.method,
        adapted: inputs.adapted,
        stored: layout.base.stored(),
        update: update(inputs),
    };
    let volume = inputs.counts.volume();
    let training = model.training(&volume, inputs.counts.steps as f64, &parameters, memory.recompute);
    let ops = phases::Ops {
        model: &model,
        training: &training,
        touching_s: touching(inputs, &memory),
        resident: sum(&memory.parts),
    };
    let plain = phases::phases(inputs, &layout, &ops, &Learned::default());
    let phases = phases::phases(inputs, &layout, &ops, inputs.learned);
    let touching_s = ops.touching_s;
    let learned_s = touching_s * inputs.learned.phase("train");
    let corrected = quantities(inputs, &phases, learned_s, sum(&memory.parts));
    Outline { layout, memory, training, touching_s, plain, phases, corrected }
}

/// Predicts a run.
pub fn predict(inputs: &Inputs<'_>) -> Prediction {
    let stated = inputs.config.train.gradient_checkpointing;
    let run = outline(inputs, fit::load(inputs), stated);
    let (counts, memory, parameters) = (inputs.counts, &run.memory, &run.layout.parameters);
    let search = || Search::new(inputs, memory.recompute);
    let does_fit = sum(&memory.parts) <= inputs.limits.memory_bytes;
    let levers = if does_fit { search().cheaper(&run) } else { search().fitting() };
    let flops: f64 = run.training.iter().map(|op| op.flops).sum();
    let classes = classes(inputs, &run);
    let (checkpoint_bytes, disk_bytes) = phases::disk(inputs.config, counts, &run.layout);
    Prediction {
        parameters: parameters.total,
        trainable: parameters.trainable,
        flops_per_step: flops / counts.steps.max(1) as f64,
        flops: by_class(&run.training),
        work: run.training,
        predicted: run.corrected,
        uncorrected: quantities(inputs, &run.plain, run.touching_s, memory.uncorrected),
        uncorrected_phases: run.plain.clone(),
        classes,
        interval: basis::intervals(inputs, &run.corrected),
        basis: basis::basis(inputs),
        modelled: basis::modelled(inputs.machine, &run.corrected),
        memory_parts: parts::named(memory.parts),
        phases: inputs.price.share(&run.phases),
        recompute: memory.recompute,
        levers,
        methods: search().methods(),
        full_batch: search().full_batch(),
        checkpoint_bytes,
        merge_bytes: run.layout.merging(),
        disk_bytes,
        machine: inputs.machine.name.clone(),
        kind: inputs.machine.kind,
        threads: inputs.machine.threads,
        build: inputs.machine.build.clone(),
        evidence: inputs.machine.evidence,
        learned: inputs.learned.clone(),
        limits: inputs.limits.clone(),
        price: inputs.price.clone(),
        counts: *counts,
        warnings: basis::warnings(inputs),
    }
}

fn update(inputs: &Inputs<'_>) -> Update {
    Update::of(&inputs.config.method, &inputs.config.train)
}

fn layout<'a>(inputs: &Inputs<'a>, parameters: Parameters) -> Layout<'a> {
    let is_accelerator = inputs.machine.kind == machine::Kind::Accelerator;
    let bf16 = inputs.config.base.bf16.unwrap_or(inputs.machine.bf16_base || is_accelerator);
    let base = match (&inputs.config.method, inputs.file_bytes) {
        (Method::Qlora { .. }, Some(bytes)) => BaseType::AsStored { bytes },
        (Method::Qlora { double_quant, .. }, _) => {
            let others = if inputs.config.base.bf16 == Some(false) { 4 } else { 2 };
            BaseType::Nf4 { double_quant: *double_quant, others }
        }
        // Of a model that is trained whole nothing is frozen: this says what its products are rounded to.
        (Method::Lora(_) | Method::Full, _) if bf16 => BaseType::Bf16,
        (Method::Lora(_) | Method::Full, _) => BaseType::F32,
    };
    let narrow = match base {
        BaseType::F32 => false,
        BaseType::Bf16 => true,
        BaseType::Nf4 { others, .. } => others == 2,
        BaseType::AsStored { .. } => bf16,
    };
    Layout {
        arch: inputs.arch,
        method: &inputs.config.method,
        adapted: inputs.adapted,
        parameters,
        trained: Trained::count(inputs.arch, &inputs.config.method, inputs.adapted, update(inputs)),
        base,
        narrow,
        multiplies_bf16: inputs.machine.bf16_base || is_accelerator,
        on_device: is_accelerator,
        passes_bf16: false,
        accumulates: inputs.config.train.gradient_accumulation_steps > 1,
        shares: inputs.counts.shared.is_some(),
        logits_rows: inputs.logits_rows,
        runtime_bytes: inputs.machine.baseline_bytes,
        read_value: inputs.file_bytes.map_or(2, |bytes| bytes.div_ceil(parameters.total.max(1)).min(4)),
    }
}

/// The first step finds no page of gradients, moments, activations and workspace: the system clears them then.
fn touching(inputs: &Inputs<'_>, memory: &fit::Peak) -> f64 {
    if inputs.machine.kind == machine::Kind::Accelerator || inputs.counts.steps == 0 {
        return 0.0;
    }
    let [base, trained, gradients, moments, activations, workspace, logits, _data, _runtime] = memory.parts;
    let bytes = sum(&[gradients, moments, activations, workspace, logits]);
    inputs.machine.touch_s(sum(&[base, trained]), bytes)
}

fn quantities(inputs: &Inputs<'_>, phases: &[(String, f64)], touching_s: f64, peak: u64) -> Quantities {
    let wall_s: f64 = phases.iter().map(|(_, s)| s).sum();
    let train = phases.iter().find(|(n, _)| n == "train").map(|(_, s)| *s);
    let train = train.filter(|s| *s > 0.0 && inputs.counts.steps > 0);
    let counts = inputs.counts;
    // The pinned `step_s` is the median of steps that may differ in length.
    let middle = counts.middle_step_tokens() / counts.volume().tokens.max(1.0);
    Quantities {
        wall_s: Some(wall_s),
        step_s: train.map(|s| (s - touching_s).max(0.0) * middle),
        tokens_per_s: train.map(|s| counts.tokens as f64 / s),
        peak_memory_bytes: Some(peak),
        energy_j: inputs.machine.power_w.map(|w| w * wall_s),
        cost_usd: inputs.price.bill(wall_s).map(|b| b.cost_usd),
    }
}

fn classes(inputs: &Inputs<'_>, run: &Outline<'_>) -> Vec<ClassSeconds> {
    let blocks = Blocks::of(inputs.arch, &inputs.config.method, run.layout.base.stored());
    let plain = time::by_class(&run.training, inputs.machine, &blocks);
    let whole = inputs.learned.phase("train");
    let one = |(class, s): (Class, f64)| ClassSeconds {
        class,
        predicted_s: s * whole * inputs.learned.class(class),
        uncorrected_s: s,
    };
    plain.into_iter().map(one).collect()
}

fn by_class(ops: &[Op]) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for op in ops.iter().filter(|op| op.flops > 0.0) {
        *all.entry(op.class.name().to_owned()).or_insert(0.0) += op.flops - op.adapter_flops;
        if op.adapter_flops > 0.0 {
            *all.entry("lora".to_owned()).or_insert(0.0) += op.adapter_flops;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LoraInit, Optimizer};
    use crate::estimate::counts::EvalCounts;
    use crate::estimate::fixture::{Case, config, limits, llama_70b, price, smollm2};
    use crate::estimate::history::Past;
    use crate::estimate::rates::Rate;
    use crate::estimate::work::{Stored, Way};

    fn run(arch: &Arch, config: &Config, memory: u64, usd: Option<f64>) -> Prediction {
        let case = Case::new(arch.clone(), config.clone());
        Case { limits: limits(memory), price: price(usd), ..case }.predict()
    }

    #[test]
    fn an_adapter_that_begins_with_a_part_of_the_base_takes_its_decompositions_while_it_loads() {
        let load_s = |init: LoraInit| {
            let mut case = Case::new(smollm2(), config());
            let Method::Lora(lora) = &mut case.config.method else { panic!("not LoRA") };
            lora.init = init;
            case.machine.decompose_flops_per_s = 1e9;
            case.predict().phases.iter().find(|phase| phase.name == "load").unwrap().wall_s
        };
        let plain = load_s(LoraInit::Zero);
        // 30 blocks: q and o are 576 × 576, k and v 576 × 192, gate, up and down 576 × 1536.
        let exact = |n: f64, m: f64| n * n * m + 4.0 / 3.0 * n.powi(3) + 32.0 * n * n + 32.0 * n * m;
        let all = 30.0 * (2.0 * exact(576.0, 576.0) + 2.0 * exact(192.0, 576.0) + 3.0 * exact(576.0, 1536.0));
        assert!((load_s(LoraInit::Pissa { rounds: None }) - plain - all / 1e9).abs() < 1e-6);
        let iterated = load_s(LoraInit::Pissa { rounds: Some(4) }) - plain;
        assert!(0.0 < iterated && iterated < 0.5 * all / 1e9, "{iterated}");
    }

    #[test]
    fn parts_and_phases_sum_to_the_whole() {
        let p = run(&smollm2(), &config(), 64 << 30, Some(2.0));
        let parts: u64 = p.memory_parts.iter().map(|m| m.bytes).sum();
        assert_eq!(Some(parts), p.predicted.peak_memory_bytes);
        let wall: f64 = p.phases.iter().map(|f| f.wall_s).sum();
        assert!((wall - p.predicted.wall_s.unwrap()).abs() < 1e-9);
        let cost: f64 = p.phases.iter().filter_map(|f| f.cost_usd).sum();
        assert!((cost - p.predicted.cost_usd.unwrap()).abs() < 1e-12);
        assert_eq!(p.trainable, 4_884_480);
    }

    #[test]
    fn every_interval_holds_its_prediction() {
        let p = run(&smollm2(), &config(), 64 << 30, Some(2.0));
        let json = serde_json::to_value(&p).unwrap();
        assert_eq!(p.interval.len(), 5, "energy has none");
        for (key, bounds) in &p.interval {
            let value = json["predicted"][key].as_f64().unwrap();
            assert!(bounds.low < value && value < bounds.high, "{key}");
        }
    }

    #[test]
    fn what_nobody_measured_or_priced_is_null_not_zero() {
        let json = serde_json::to_value(run(&smollm2(), &config(), 64 << 30, None)).unwrap();
        assert!(json["predicted"]["energy_j"].is_null());
        assert!(json["predicted"]["cost_usd"].is_null());
        assert!(json["memory_parts"][0]["predicted_bytes"].is_u64());
        assert_eq!(json["modelled"], serde_json::json!({}));
    }

    #[test]
    fn a_sheets_power_is_modelled_and_never_predicted() {
        let mut case = Case::new(smollm2(), config());
        case.machine.sheet_power_w = Some(100.0);
        let p = case.predict();
        assert_eq!(p.predicted.energy_j, None);
        let expected = 100.0 * p.predicted.wall_s.unwrap();
        assert!((p.modelled["energy_j"] - expected).abs() < 1e-9);
    }

    #[test]
    fn auto_recomputes_only_when_memory_needs_it() {
        let (arch, mut config) = (smollm2(), config());
        config.train.micro_batch_size = 4;
        let roomy = run(&arch, &config, 64 << 30, None);
        assert!(!roomy.recompute);
        let needed = roomy.predicted.peak_memory_bytes.unwrap();
        let tight = run(&arch, &config, needed - 1, None);
        assert!(tight.recompute && tight.levers.is_empty());
        assert!(tight.predicted.peak_memory_bytes < roomy.predicted.peak_memory_bytes);
        assert!(tight.predicted.step_s > roomy.predicted.step_s);
        config.train.gradient_checkpointing = Some(false);
        let forced = run(&arch, &config, needed - 1, None);
        assert!(!forced.recompute);
        assert_eq!(forced.levers[0].setting, "gradient_checkpointing = true");
    }

    #[test]
    fn what_is_not_to_be_forgotten_costs_two_evaluations_and_ewc_a_pass() {
        let evaluating = |retention: u64, fisher: u64| {
            let mut case = Case::new(smollm2(), config());
            let set = EvalCounts {
                micro_batches: 10,
                tokens: 5_000,
                loss_tokens: 4_000,
                segment_squares: 1e6,
                max_batch_tokens: 500,
                passes: 0,
            };
            case.counts.retention = EvalCounts { passes: retention, ..set };
            case.counts.fisher = EvalCounts { passes: fisher, ..set };
            let p = case.predict();
            p.phases.iter().filter(|phase| phase.name == "evaluate").map(|phase| phase.wall_s).sum::<f64>()
        };
        let (none, once, twice) = (evaluating(0, 0), evaluating(1, 0), evaluating(2, 0));
        assert!(once > none && ((twice - none) / (once - none) - 2.0).abs() < 1e-9);
        let informed = evaluating(2, 1) - twice;
        assert!(
            informed > 2.0 * (once - none),
            "a pass forward, one forward again, one backward: {informed}"
        );
    }

    #[test]
    fn an_accelerator_of_twice_the_measured_rates_takes_half_the_time() {
        let ways = [Way::Forward, Way::Backward];
        let of = |per_s: f64| {
            let mut case = Case::new(smollm2(), config());
            case.machine.kind = machine::Kind::Accelerator;
            case.machine.step_overhead_s = 0.0;
            case.machine.launch_s = 1e-9;
            let rate = |(class, way)| {
                let per_s = if matches!(class, Class::Elementwise | Class::Optimizer) {
                    per_s / 100.0
                } else {
                    per_s
                };
                Rate { class, way, stored: Stored::Bf16, m: 2048, n: 576, k: 576, rank: 16, per_s }
            };
            let classes =
                [Class::Linear, Class::Attention, Class::Head, Class::Elementwise, Class::Optimizer];
            case.machine.rates = classes.into_iter().flat_map(|c| ways.map(|way| rate((c, way)))).collect();
            case.predict()
        };
        let (once, twice) = (of(1e14), of(2e14));
        let step = |p: &Prediction| p.predicted.step_s.unwrap();
        assert!((step(&once) / step(&twice) - 2.0).abs() < 1e-6, "{} {}", step(&once), step(&twice));
        assert_eq!(once.kind, machine::Kind::Accelerator);
        assert!(once.basis["step_s"].contains("measured"), "{}", once.basis["step_s"]);
    }

    #[test]
    fn full_fine_tuning_needs_more_than_lora() {
        let (arch, mut config) = (smollm2(), config());
        let lora = run(&arch, &config, 64 << 30, None);
        config.method = Method::Full;
        let full = run(&arch, &config, 64 << 30, None);
        assert!(full.predicted.peak_memory_bytes > lora.predicted.peak_memory_bytes);
        assert!(full.predicted.step_s > lora.predicted.step_s);
        assert_eq!(full.trainable, 134_515_008);
    }

    #[test]
    fn memory_and_step_grow_with_batch_and_length() {
        let arch = smollm2();
        let at = |batch, length| {
            let mut config = config();
            config.train.micro_batch_size = batch;
            config.data.sequence_len = length;
            let p = run(&arch, &config, u64::MAX, None).predicted;
            (p.peak_memory_bytes.unwrap(), p.step_s.unwrap())
        };
        for (small, large) in [((1, 512), (2, 512)), ((2, 512), (2, 1024)), ((2, 1024), (8, 2048))] {
            let (a, b) = (at(small.0, small.1), at(large.0, large.1));
            assert!(a.0 < b.0 && a.1 < b.1, "{small:?} {large:?}: {a:?} {b:?}");
        }
    }

    #[test]
    fn past_runs_correct_time_and_memory() {
        let mut case = Case::new(smollm2(), config());
        let first = case.predict();
        let mut measured = first.uncorrected;
        measured.step_s = measured.step_s.map(|s| 2.0 * s);
        measured.peak_memory_bytes = measured.peak_memory_bytes.map(|b| b + b / 10);
        let (phases, classes) = (Vec::new(), Vec::new());
        let past = Past { predicted: first.uncorrected, measured, phases, classes };
        case.learned = Learned::from(&vec![past; 19]);
        let p = case.predict();
        let ratio = p.predicted.step_s.unwrap() / first.predicted.step_s.unwrap();
        assert!((ratio - 2f64.powf(0.95)).abs() < 1e-6, "{ratio}");
        assert_eq!(p.uncorrected, first.uncorrected);
        let parts: u64 = p.memory_parts.iter().map(|m| m.bytes).sum();
        assert_eq!(Some(parts), p.predicted.peak_memory_bytes);
        assert!(p.predicted.peak_memory_bytes > first.predicted.peak_memory_bytes);
        assert_eq!(p.memory_parts[0], first.memory_parts[0]);
        assert!(p.interval["step_s"].high / p.predicted.step_s.unwrap() < 1.1);
    }

    #[test]
    fn an_absurd_batch_saturates() {
        let (arch, mut config) = (smollm2(), config());
        config.train.micro_batch_size = 1 << 40;
        config.data.sequence_len = 1 << 40;
        let p = run(&arch, &config, 16 << 30, Some(1e300));
        let full = p.full_batch.unwrap();
        assert_eq!(full.peak_memory_bytes, u64::MAX);
        assert!(full.levers.len() <= 2);
    }

    #[test]
    fn a_70b_model_is_predicted_in_under_a_tenth_of_a_second() {
        let (arch, config) = (llama_70b(), config());
        // The quickest of three: other tests run beside this one, and may take its core for a while.
        let took = (0..3).map(|_| {
            let start = std::time::Instant::now();
            let p = run(&arch, &config, 16 << 30, None);
            assert_eq!(p.parameters, 70_553_706_496);
            start.elapsed().as_millis()
        });
        let quickest = took.min().unwrap();
        assert!(quickest < 100, "{quickest} ms");
    }

    #[test]
    fn the_disk_holds_one_checkpoint_more_than_are_kept_and_the_result() {
        let (arch, mut config) = (smollm2(), config());
        config.train.max_steps = Some(100);
        config.schedule.save_steps = Some(10);
        config.schedule.save_total_limit = Some(2);
        let with = |config: &Config, checkpoints: u64, values: u64, state: u64| {
            let p = run(&arch, config, 64 << 30, None);
            assert_eq!(p.checkpoint_bytes, values + state);
            let result = values + 49_152 * 80;
            let all = checkpoints * (values + state) + result + phases::RECORD_BYTES;
            assert_eq!(p.disk_bytes, all + all / 20);
        };
        with(&config, 3, 4_884_480 * 4, 4_884_480 * 8);
        // The one at the end is the tenth, and not one more.
        config.schedule.save_total_limit = None;
        with(&config, 10, 4_884_480 * 4, 4_884_480 * 8);
        config.schedule.save_steps = Some(30);
        with(&config, 4, 4_884_480 * 4, 4_884_480 * 8);
        // Nothing beside the weights: the result is as large as a checkpoint.
        (config.method, config.train.optimizer) = (Method::Full, Optimizer::Sgd);
        with(&config, 4, 134_515_008 * 4, 0);
    }

    #[test]
    fn a_rank_beyond_the_smaller_dimension_is_a_warning() {
        let (arch, mut config) = (smollm2(), config());
        config.method = Method::Lora(crate::estimate::fixture::lora(200));
        let p = run(&arch, &config, 64 << 30, None);
        assert!(p.warnings.iter().any(|w| w.contains("192")), "{:?}", p.warnings);
    }
}
