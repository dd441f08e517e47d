//! Everything that is known, and refused, before the first expensive act: shapes, data, packs, the prediction.

use super::checkpoint::{Checkpoints, Manifest};
use super::entered::Coming;
use super::folder::{self, Holds};
use super::{Error, beside, history, session};
use crate::arch::source::Source;
use crate::arch::{Arch, Linear};
use crate::config::{Config, Data, Device, Method, Optimizer, Resolved};
use crate::data::packing::{self, Epochs, Length, Order};
use crate::data::prepare::Retention;
use crate::data::tokenizer::Tokenizer;
use crate::data::{self, Batch, Summary};
use crate::error::Result;
use crate::estimate::amount::Kind;
use crate::estimate::carbon::Intensity;
use crate::estimate::history::Learned;
use crate::estimate::{self, Counts, Limits, Machine, Prediction, PriceUsed};
use crate::meter::process::{bare, resident};
use crate::meter::{Meter, Phase};
use crate::model::adapter::Adapter;
use crate::ops::{device, gpu, head};
use crate::{calibrate, fs, ledger};
use std::path::{Path, PathBuf};

/// What the command line says beside the config.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A run in the output folder is moved aside.
    pub overwrite: bool,
    /// A run in the output folder is gone on with.
    pub resume: bool,
    /// Resume although the data changed.
    pub accept_data_change: bool,
    /// Resume although the base changed.
    pub accept_base_change: bool,
}

/// What a run is paid and judged by.
pub struct Terms {
    /// What an hour costs.
    pub price: PriceUsed,
    /// What the grid emits, where `[cost]` says which.
    pub grid: Option<Intensity>,
}

/// A run whose folder permits it, before anything of it is looked at.
pub struct Draft {
    /// The config with its text.
    resolved: Resolved,
    terms: Terms,
    /// The GPU to compute on.
    gpu: Option<usize>,
    run_id: String,
    out: PathBuf,
    holds: Holds,
    overwrite: bool,
    resume: Option<(PathBuf, Manifest)>,
    notes: Vec<String>,
}

/// What is known of a run without its data.
pub struct Ground {
    /// The config with its text.
    pub resolved: Resolved,
    /// The base's files.
    pub source: Source,
    /// The base's shapes.
    pub arch: Arch,
    /// `None` in full fine-tuning.
    pub adapter: Option<Adapter>,
    /// Linears that get an adapter.
    pub adapted: Vec<Linear>,
    /// Worker threads.
    pub threads: usize,
    /// What this process may use.
    pub limits: Limits,
    /// What an hour costs.
    pub price: PriceUsed,
    /// What the grid emits, where `[cost]` says which.
    pub grid: Option<Intensity>,
}

/// A machine that a run is predicted on, with what it allows and costs.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'a> {
    /// How fast.
    pub machine: &'a Machine,
    /// How much memory.
    pub limits: &'a Limits,
    /// What an hour costs.
    pub price: &'a PriceUsed,
}

/// A run that may start.
pub struct Plan {
    /// Config, base and method.
    pub ground: Ground,
    /// Of the ledger.
    pub run_id: String,
    /// The run's folder.
    pub out: PathBuf,
    /// What stands in it.
    pub holds: Holds,
    /// The base's tokenizer.
    pub tokenizer: Tokenizer,
    /// By how much the process grew when it was opened.
    tokenizer_bytes: u64,
    /// Training samples in their order.
    pub epochs: Epochs,
    /// Evaluation micro-batches; empty = no evaluation.
    pub eval: Vec<Batch>,
    /// What is not to be forgotten.
    pub retention: RetentionBatches,
    /// What the data turned out to be.
    pub summary: Summary,
    /// The machine's measured rates.
    pub machine: Machine,
    /// What the run will take.
    pub prediction: Prediction,
    /// The checkpoint to go on from.
    pub resume: Option<(PathBuf, Manifest)>,
    /// SHA-256 of the base's weights.
    pub base_hash: String,
    /// Where it computes.
    pub device: candle_core::Device,
    /// What the user should be told.
    pub notes: Vec<String>,
}

/// The two halves of the retention set as micro-batches.
#[derive(Debug, Clone, Default)]
pub struct RetentionBatches {
    /// Evaluated before and after; empty = there is no such set.
    pub judged: Vec<Batch>,
    /// A sample each, for EWC; empty where nothing asks for them.
    pub kept: Vec<Batch>,
}

impl Terms {
    /// Those of a config, for a new run or one that goes on.
    fn of(config: &Config, run: Option<&str>) -> Result<Self> {
        let mut price = estimate::price_used(&config.cost, jiff::Zoned::now().date())?;
        let (beside, warning) = beside::beside(&config.cost, run);
        price.beside = beside;
        price.warnings.extend(warning);
        Ok(Self { price, grid: estimate::carbon::intensity(&config.cost.grid)? })
    }
}

impl Ground {
    /// Reads the base's shapes and resolves the adapter, the price and the limits.
    ///
    /// # Errors
    /// The base cannot be found or read, the adapter does not fit it, the price is unknown.
    pub fn lay(resolved: Resolved) -> Result<Self> {
        let terms = Terms::of(&resolved.config, None)?;
        Self::on(resolved, terms)
    }

    fn on(resolved: Resolved, Terms { price, grid }: Terms) -> Result<Self> {
        let config = &resolved.config;
        let threads = start_threads(config.train.threads)?;
        let source = Source::locate(&config.base)?;
        let arch = source.arch()?;
        let adapter = match &config.method {
            Method::Full => None,
            Method::Lora(lora) | Method::Qlora { lora, .. } => {
                Some(Adapter::resolve(&arch, lora, config.train.loraplus_lr_ratio, config.train.seed)?)
            }
        };
        let adapts = |l: &Linear| adapter.as_ref().is_some_and(|a| a.adapts(&l.name));
        Ok(Self {
            adapted: arch.linears().filter(adapts).collect(),
            limits: crate::meter::machine::limits(),
            price,
            grid,
            resolved,
            source,
            arch,
            adapter,
            threads,
        })
    }

    /// This machine's rates at the shapes of a run with these counts; measured where they are not known yet. The second
    /// value is a warning.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn machine(&self, counts: &Counts) -> Result<(Machine, Option<String>)> {
        let (mut machine, warning) =
            calibrate::machine(&self.ask(counts), self.adapter.as_ref(), self.threads, &fs::home()?)?;
        let sheet = estimate::power::cpu(&machine.name);
        machine.sheet_power_w =
            machine.sheet_power_w.or_else(|| Some(sheet?.watts_per_thread() * machine.threads as f64));
        Ok((machine, warning))
    }

    /// What of the machine a run with these counts asks for.
    pub fn ask<'a>(&'a self, counts: &'a Counts) -> calibrate::Ask<'a> {
        calibrate::Ask {
            arch: &self.arch,
            config: &self.resolved.config,
            adapted: &self.adapted,
            counts,
            logits_rows: head::chunk_rows(self.arch.vocab_size) as u64,
        }
    }

    /// Opens the GPU that was chosen, or the CPU where `"auto"` chose one that cannot do what this run asks for.
    ///
    /// # Errors
    /// The GPU was asked for by name and cannot do it, or does not open (6).
    fn open(&self, gpu: Option<usize>, notes: &mut Vec<String>) -> Result<candle_core::Device> {
        let Some(wanted) = gpu else { return Ok(candle_core::Device::Cpu) };
        if let Some(what) = self.beyond_gpus() {
            if self.resolved.config.train.device != Device::Auto {
                return Err(Error::NotOnGpu(what).into());
            }
            notes.push(format!("computing on the CPU: {what} does not run on a GPU yet"));
            return Ok(candle_core::Device::Cpu);
        }
        notes.push("the prediction is for this machine's CPU; `fttrain estimate --on` knows GPUs".into());
        Ok(device::open(Some(wanted))?)
    }

    /// What of this run only the CPU does.
    fn beyond_gpus(&self) -> Option<&'static str> {
        match (&self.resolved.config.method, &self.adapter) {
            (Method::Full, _) => Some("full fine-tuning"),
            (Method::Qlora { .. }, _) => Some("QLoRA"),
            (_, Some(adapter)) if adapter.spec.dora => Some("DoRA"),
            _ if self.resolved.config.train.optimizer != Optimizer::Adamw => {
                Some("an optimizer other than adamw")
            }
            _ if self.resolved.config.train.l2_sp > 0.0 || self.resolved.config.train.ewc > 0.0 => {
                Some("a pull towards the start (l2_sp, ewc)")
            }
            _ if self.arch.head_dim > gpu::attention::LARGEST_HEAD => {
                Some("attention with heads of more than 128 values")
            }
            _ => None,
        }
    }

    /// What finished runs of this model on a machine taught.
    pub fn learned(&self, machine: &Machine) -> Learned {
        Learned::from(&history::of(&self.arch, machine))
    }

    /// Predicts a run of this process; `taken` are the phases that are over by the clock.
    fn predict(&self, counts: &Counts, machine: &Machine, taken: &[(String, f64)]) -> Prediction {
        let spot = Spot { machine, limits: &self.limits, price: &self.price };
        self.foretell(counts, spot, &self.learned(machine), taken, resident().1.unwrap_or(0))
    }

    /// Predicts a run of another process on any machine.
    pub fn predict_on(&self, counts: &Counts, spot: Spot<'_>, learned: &Learned) -> Prediction {
        self.foretell(counts, spot, learned, &[], 0)
    }

    fn foretell(
        &self,
        counts: &Counts,
        spot: Spot<'_>,
        learned: &Learned,
        taken: &[(String, f64)],
        resident_bytes: u64,
    ) -> Prediction {
        let mut config = self.resolved.config.clone();
        if let (Method::Lora(lora) | Method::Qlora { lora, .. }, Some(adapter)) =
            (&mut config.method, &self.adapter)
        {
            // A continued adapter brings its own.
            lora.r = Some(adapter.spec.r);
            lora.dora = Some(adapter.spec.dora);
            lora.rank_pattern.clone_from(&adapter.spec.rank_pattern);
            lora.modules_to_save = adapter.modules_to_save.iter().cloned().collect();
        }
        let Spot { machine, limits, price } = spot;
        let price = powered(price, machine);
        estimate::predict(&estimate::Inputs {
            arch: &self.arch,
            config: &config,
            adapted: &self.adapted,
            counts,
            machine,
            // A cap on memory decides about recompute, and which settings are named, as a smaller machine would.
            limits: &limits.capped(&config.budget),
            price: &price,
            learned,
            taken,
            logits_rows: head::chunk_rows(self.arch.vocab_size) as u64,
            file_bytes: self.source.gguf_bytes(),
            keeps_file_types: self.source.is_gguf(),
            resident_bytes,
        })
    }
}

impl Draft {
    /// Looks at the output folder, and writes nothing into it.
    ///
    /// # Errors
    /// The folder is in use or holds another run (8), its checkpoints cannot be gone on from (2, 4), or the price is not
    /// known (2).
    pub fn make(resolved: Resolved, options: &Options) -> Result<Self> {
        let gpu = device::chosen(resolved.config.train.device)?;
        let run_id = ledger::new_run_id();
        let out = PathBuf::from(resolved.config.output.dir.to_string_lossy().replace("{run}", &run_id));
        let holds = folder::look(&out);
        let resume = (options.resume || resolved.config.output.auto_resume) && !options.overwrite;
        folder::permit(&out, holds, &Options { resume, ..options.clone() })?;
        refuse_own_inputs(&resolved.config, &out, options.overwrite)?;
        let mut notes = Vec::new();
        let resume = match holds {
            Holds::Nothing => None,
            _ if !resume => None,
            _ => find_checkpoint(&out, &resolved, &mut notes)?,
        };
        let goes_on = folder::run_id(&out).filter(|_| holds != Holds::Nothing && !options.overwrite);
        let terms = Terms::of(&resolved.config, goes_on.as_deref())?;
        Ok(Self { resolved, terms, gpu, run_id, out, holds, overwrite: options.overwrite, resume, notes })
    }

    /// What the ledger is told before anything is done.
    pub(super) fn coming(&self) -> Coming<'_> {
        Coming {
            run_id: &self.run_id,
            out: &self.out,
            holds: self.holds,
            overwrite: self.overwrite,
            kept: self.resume.as_ref().map(|(_, manifest)| manifest),
            resolved: &self.resolved,
            price: &self.terms.price,
        }
    }

    /// Reads shapes, tokenizer and data, measures the machine where it is not known yet, and predicts. Writes nothing
    /// into the output folder.
    ///
    /// # Errors
    /// Whatever can be refused before training.
    pub fn plan(self, options: &Options, meter: &Meter) -> Result<Plan> {
        let Self { resolved, terms, gpu, run_id, out, holds, resume, mut notes, .. } = self;
        let mut ground = Ground::on(resolved, terms)?;
        let device = ground.open(gpu, &mut notes)?;

        meter.enter(Phase::Tokenise);
        let Material { tokenizer, tokenizer_bytes, epochs, eval, retention, summary } =
            Material::gather(&ground)?;

        meter.enter(Phase::Calibrate);
        let counts = counts(&ground.resolved.config, &epochs, &eval, &retention);
        let (machine, warning) = ground.machine(&counts)?;
        // Probes have other sizes than a step: what they leave would stand beside it.
        fttrain_kernels::sys::memory::give_back_pages();
        ground.price = powered(&ground.price, &machine);

        meter.enter(Phase::Load);
        let taken: Vec<_> =
            meter.phases().into_iter().map(|(phase, s)| (phase.name().to_owned(), s)).collect();
        let prediction = ground.predict(&counts, &machine, &taken);
        notes.extend(warning);
        if fttrain_kernels::cpu::amx_is_refused() {
            notes.push("AMX gave wrong products when it was tried on this machine: it is not used".into());
        }
        let base_hash = ground.source.fingerprint()?;
        if let Some((_, manifest)) = &resume {
            if manifest.data_hash != summary.sha256 && !options.accept_data_change {
                return Err(Error::DataChanged(out).into());
            }
            if manifest.base_hash != base_hash && !options.accept_base_change {
                return Err(Error::BaseChanged(out).into());
            }
        }
        let mut plan = Plan {
            ground,
            run_id,
            out,
            holds,
            tokenizer,
            tokenizer_bytes,
            epochs,
            eval,
            retention,
            summary,
            machine,
            prediction,
            resume,
            base_hash,
            device,
            notes,
        };
        plan.notes.extend(plan.inexact());
        if plan.config().train.optimizer_in_backward {
            plan.notes.push(IN_BACKWARD.into());
        }
        Ok(plan)
    }
}

impl Plan {
    /// What the ledger is told of a run whose folder is its own.
    pub(super) fn coming(&self) -> Coming<'_> {
        Coming {
            run_id: &self.run_id,
            out: &self.out,
            holds: self.holds,
            overwrite: false,
            kept: self.resume.as_ref().map(|(_, manifest)| manifest),
            resolved: &self.ground.resolved,
            price: &self.ground.price,
        }
    }

    /// Why a resume will not be bit for bit what an unbroken run would have been.
    fn inexact(&self) -> Option<String> {
        let (_, then) = self.resume.as_ref()?;
        let now = [
            session::build_name(),
            device::name(&self.device).to_owned(),
            session::frozen_of(self).name().to_owned(),
        ];
        let then = [then.build.clone(), then.device.clone(), then.dtype.clone()];
        (then != now).then(|| {
            let [then, now] = [then, now].map(|all| all.join(", "));
            format!("not bit-exact: the checkpoint was made by {then}, this is {now}")
        })
    }

    /// SHA-256 of the settings that decide the result, wherever they come from and whatever watches the run.
    pub fn settings_hash(&self) -> String {
        settings_hash(&self.ground.resolved)
    }

    /// The checked config.
    pub fn config(&self) -> &Config {
        &self.ground.resolved.config
    }

    /// Bytes of the tokenised samples, training, evaluation and retention set, and of the tokenizer.
    pub fn data_bytes(&self) -> u64 {
        let train = self.epochs.samples().iter().map(|s| 4 * (s.ids.len() + s.labels.len()));
        let eval = self.eval.iter().chain(&self.retention.judged).chain(&self.retention.kept);
        let eval = eval.map(|b| 8 * (b.ids.len() + b.targets.len()));
        (train.sum::<usize>() + eval.sum::<usize>()) as u64 + self.tokenizer_bytes
    }

    /// Step from which the run goes on.
    pub fn first_step(&self) -> u64 {
        self.resume.as_ref().map_or(0, |(_, manifest)| manifest.step)
    }

    /// Everything was done before: the run is finished, and is not to take more steps than it was then.
    pub fn is_done(&self) -> bool {
        let total = self.epochs.total_steps();
        // A run that stopped early is finished before its last step.
        let done = folder::planned_steps(&self.out).unwrap_or_else(|| self.first_step());
        self.holds == Holds::Finished && self.resume.is_some() && done >= total
    }
}

/// SHA-256 of the settings that decide the result.
pub(super) fn settings_hash(resolved: &Resolved) -> String {
    let settings = resolved.settings.iter().filter(|(key, _)| decides_the_result(key));
    let lines = settings.map(|(key, value)| format!("{key} = {value}\n"));
    fs::sha256_bytes(lines.collect::<Vec<_>>().concat().as_bytes())
}

/// What a run gives up for the memory of its gradients.
const IN_BACKWARD: &str = "optimizer_in_backward: a tensor is updated as soon as its gradient is whole; one that is not \
                           finite stops the run when others of its step were updated already, and none of them is saved";

/// Settings that place, watch or keep a run and do not decide what comes out.
const BESIDE_THE_RESULT: [&str; 12] = [
    "auto_resume_from_checkpoints",
    "logging_steps",
    "mlflow_experiment_name",
    "mlflow_tracking_uri",
    "output_dir",
    "project",
    "purpose",
    "report_to",
    "sample_prompts",
    "save_steps",
    "save_total_limit",
    "threads",
];

/// Whether a setting, by its full name, has a part in what comes out.
pub fn decides_the_result(key: &str) -> bool {
    let beside = ["cost.", "budget.", "meter."];
    !BESIDE_THE_RESULT.contains(&key) && !beside.iter().any(|b| key.starts_with(b))
}

/// What a run learns from.
struct Material {
    tokenizer: Tokenizer,
    tokenizer_bytes: u64,
    epochs: Epochs,
    eval: Vec<Batch>,
    retention: RetentionBatches,
    summary: Summary,
}

impl Material {
    fn gather(ground: &Ground) -> Result<Self> {
        let config = &ground.resolved.config;
        let template = config.data.chat_template.as_deref();
        fttrain_kernels::sys::memory::give_back_pages();
        let before = resident().0.unwrap_or(0);
        let tokenizer = Tokenizer::open(&ground.source.tokenizer()?, &ground.arch, template)?;
        // Not what only reading its file took.
        fttrain_kernels::sys::memory::give_back_pages();
        let tokenizer_bytes = resident().0.map_or(0, |now| now.saturating_sub(before));
        let prepared = data::prepare(config, &tokenizer, Some(&fs::home()?.join("tokenised")))?;
        let Retention { judged, kept, replayed } = prepared.retention;
        let informing = if config.train.ewc > 0.0 { kept.as_slice() } else { &[] };
        Ok(Self {
            eval: packing::eval_batches(&prepared.eval, eval_tokens(config)),
            retention: RetentionBatches {
                judged: packing::eval_batches(&judged, eval_tokens(config)),
                kept: informing.iter().map(|sample| Batch::new([sample], 0)).collect(),
            },
            epochs: Epochs::replaying(prepared.train, kept, replayed, Order::from(config)),
            summary: prepared.summary,
            tokenizer,
            tokenizer_bytes,
        })
    }
}

/// The counts of the config's own data, packed.
///
/// # Errors
/// Tokenizer or data cannot be used.
pub fn counted(ground: &Ground) -> Result<(Counts, Summary)> {
    let material = Material::gather(ground)?;
    let Material { epochs, eval, retention, .. } = &material;
    Ok((counts(&ground.resolved.config, epochs, eval, retention), material.summary))
}

/// The result never takes the place of what it was made from, and nothing that is read is moved aside.
fn refuse_own_inputs(config: &Config, out: &Path, overwrite: bool) -> Result<()> {
    let adapter = match &config.method {
        Method::Full => None,
        Method::Lora(lora) | Method::Qlora { lora, .. } => lora.model_dir.as_deref(),
    };
    let models = [("base_model", Some(Path::new(&config.base.model))), ("lora_model_dir", adapter)];
    let Data { datasets, test_datasets, retention_datasets, .. } = &config.data;
    let lists = [
        ("datasets", datasets),
        ("test_datasets", test_datasets),
        ("retention_datasets", retention_datasets),
    ];
    let data = lists
        .into_iter()
        .flat_map(|(key, list)| list.iter().map(move |source| (key, Some(source.path.as_path()))));
    let Ok(folder) = out.canonicalize() else { return Ok(()) };
    for (key, input) in models.into_iter().chain(data) {
        let Some(input) = input.and_then(|input| input.canonicalize().ok()) else { continue };
        if input == folder {
            return Err(Error::OutputIsInput { key, folder }.into());
        }
        if overwrite && input.starts_with(&folder) {
            return Err(Error::OutputHoldsInput { key, folder, input }.into());
        }
    }
    Ok(())
}

/// The price with the power that electricity is paid by on a machine.
fn powered(price: &PriceUsed, machine: &Machine) -> PriceUsed {
    let mut price = price.clone();
    match machine.power_w {
        Some(watts) => price.set_power(Some(watts), Kind::Predicted),
        None => price.set_power(machine.sheet_power_w, Kind::Modelled),
    }
    price
}

/// Sizes the one pool of workers, once a process, and chooses the kernels.
///
/// # Errors
/// `FTTRAIN_KERNEL` names a path that this CPU cannot run (2).
pub fn start_threads(wanted: Option<usize>) -> Result<usize> {
    let threads = wanted.unwrap_or_else(|| crate::meter::machine::limits().cores);
    // A second run in one process keeps the pool of the first.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    if let Ok(name) = std::env::var("FTTRAIN_KERNEL") {
        fttrain_kernels::cpu::force(&name).map_err(Error::Kernel)?;
    }
    // Asked here for the first time, with the workers' stacks and before there is a model or a text.
    bare();
    Ok(threads)
}

/// Tokens of an evaluation micro-batch: as large as a training one.
fn eval_tokens(config: &Config) -> usize {
    config.data.sequence_len.saturating_mul(config.train.micro_batch_size)
}

/// What the estimate needs to know of the packed data.
fn counts(config: &Config, epochs: &Epochs, eval: &[Batch], retention: &RetentionBatches) -> Counts {
    let plan = epochs.plan().counts();
    let mut counts = Counts {
        steps: plan.steps,
        micro_batches: plan.batches,
        tokens: plan.tokens,
        loss_tokens: plan.loss_tokens,
        segment_squares: plan.segment_squares as f64,
        max_batch_tokens: plan.max_batch_tokens,
        max_batch_targets: plan.max_batch_targets,
        max_segment: plan.longest_segment,
        rows: epochs.samples().len() as u64,
        data_tokens: epochs.samples().iter().map(|s| u64::from(Length::from(s).tokens)).sum(),
        assumed: !plan.exact,
        ..Counts::default()
    };
    for batch in eval {
        counts.eval.add(batch);
    }
    for batch in &retention.judged {
        counts.retention.add(batch);
    }
    for batch in &retention.kept {
        counts.fisher.add(batch);
    }
    counts.retention.passes = if retention.judged.is_empty() { 0 } else { 2 };
    counts.fisher.passes = u64::from(!retention.kept.is_empty());
    let others = [counts.eval, counts.retention, counts.fisher];
    counts.data_tokens += others.iter().map(|set| set.tokens).sum::<u64>();
    if !eval.is_empty() {
        counts.eval.passes = estimate::counts::eval_passes(counts.steps, config.schedule.eval_steps);
    }
    counts
}

/// The newest checkpoint that verifies, made with the same settings.
fn find_checkpoint(
    out: &Path,
    resolved: &Resolved,
    notes: &mut Vec<String>,
) -> Result<Option<(PathBuf, Manifest)>> {
    let old = crate::config::load(&out.join(folder::CONFIG), None, &[])?;
    let changed = crate::config::resume_conflicts(&old, resolved).into_iter().map(|difference| {
        let run = out.to_owned();
        crate::error::Error::from(Error::ConfigChanged {
            run,
            key: difference.key,
            old: difference.old,
            new: difference.new,
        })
    });
    if let Some(error) = changed.reduce(|mut all, one| {
        all.problems.extend(one.problems);
        all
    }) {
        return Err(error);
    }
    let found = Checkpoints::look(out).latest_or_refuse()?;
    for (path, why) in &found.skipped {
        notes.push(format!("skipped {}: {why}", path.display()));
    }
    if let Some((path, manifest)) = &found.taken {
        notes.push(format!("going on from {} (step {})", path.display(), manifest.step));
    }
    Ok(found.taken)
}
