//! Everything that is known, and refused, before the first expensive act: shapes, data, packs, the prediction.

use super::checkpoint::{Checkpoints, Manifest};
use super::crew::Crew;
use super::entered::Coming;
use super::folder::{self, Holds};
use super::ground::{Ground, Terms, powered};
use super::material::{Material, RetentionBatches, counts};
use super::schedule::Schedule;
use super::{Error, session};
use crate::config::{Config, Data, Method, Resolved};
use crate::data::packing::Epochs;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Batch, Sample, Summary};
use crate::error::Result;
use crate::estimate::{Machine, Parameters, Prediction};
use crate::meter::process::resident;
use crate::meter::{Meter, Phase};
use crate::ops::device::{self, Gpu};
use crate::ranks::{Met, Place};
use crate::{fs, ledger};
use fttrain_kernels::sys::memory::give_back_pages;
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

/// A run whose folder permits it, before anything of it is looked at.
pub struct Draft {
    /// The config with its text.
    resolved: Resolved,
    terms: Terms,
    /// Of this process among those of the run.
    place: Place,
    /// The GPU to compute on.
    gpu: Option<usize>,
    run_id: String,
    out: PathBuf,
    holds: Holds,
    overwrite: bool,
    resume: Option<(PathBuf, Manifest)>,
    notes: Vec<String>,
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
    /// That is moved aside.
    overwrite: bool,
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
    /// What the process had held at most before the model was loaded: its peak is never below that.
    pub held_bytes: u64,
    /// The checkpoint to go on from.
    pub resume: Option<(PathBuf, Manifest)>,
    /// SHA-256 of the base's weights.
    pub base_hash: String,
    /// Where it computes.
    pub device: candle_core::Device,
    /// What the user should be told.
    pub notes: Vec<String>,
}

impl Draft {
    /// Looks at the output folder, and writes nothing into it.
    ///
    /// # Errors
    /// The folder is in use or holds another run (8), its checkpoints cannot be gone on from (2, 4), or the price is not
    /// known (2).
    pub fn make(resolved: Resolved, options: &Options, place: Place) -> Result<Self> {
        let gpu = device::chosen(resolved.config.train.device, place.here)?;
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
        if let Some((_, Manifest { processes: then, .. })) = resume
            && then != place.size
        {
            return Err(Error::OtherProcesses { run: out, then, now: place.size }.into());
        }
        let terms = Terms::of(&resolved.config, goes_on.as_deref(), place.machines)?;
        Ok(Self {
            resolved,
            terms,
            place,
            gpu,
            run_id,
            out,
            holds,
            overwrite: options.overwrite,
            resume,
            notes,
        })
    }

    /// What the ledger is told before anything is done.
    pub(super) fn coming(&self) -> Coming<'_> {
        Coming {
            run_id: &self.run_id,
            out: &self.out,
            holds: self.holds,
            overwrite: self.overwrite,
            processes: self.place.size,
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
    pub fn plan(self, options: &Options, meter: &Meter, crew: &Crew<'_>) -> Result<Plan> {
        let Self { resolved, terms, place, gpu, run_id, out, holds, overwrite, resume, mut notes } = self;
        let mut ground = Ground::on(resolved, terms, place)?;
        let device = ground.open(gpu, &mut notes)?;
        let Met { on_card, note } = crew.open(&device, gpu)?;
        notes.extend(note);
        ground.card_shared_by = on_card;

        meter.enter(Phase::Tokenise);
        let Material { tokenizer, tokenizer_bytes, epochs, eval, retention, summary } =
            Material::gather(&ground)?;

        meter.enter(Phase::Calibrate);
        let mut counts = counts(&ground.resolved.config, &epochs, &eval, &retention);
        counts.tokenises = ground.resolved.config.data.reads_text() && !summary.from_cache;
        let gpu = gpu.filter(|_| device.is_cuda());
        let (mut machine, limits, warning) = ground.computer(&counts, gpu, &device)?;
        ground.limits = limits;
        let trained =
            Parameters::count(&ground.arch, &ground.resolved.config.method, &ground.adapted).trainable;
        machine.step_overhead_s += crew.exchange_s(trained, &device)?;
        // Probes have other sizes than a step: what they leave would stand beside it.
        give_back_pages();
        if let Some(gpu) = Gpu::new(&device) {
            gpu.give_back_memory()?;
        }
        ground.price = powered(&ground.price, &machine);

        meter.enter(Phase::Load);
        let taken: Vec<_> =
            meter.phases().into_iter().map(|(phase, s)| (phase.name().to_owned(), s)).collect();
        let prediction = ground.predict(&counts, &machine, &taken);
        let held_bytes = resident().1.unwrap_or(0);
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
            overwrite,
            tokenizer,
            tokenizer_bytes,
            epochs,
            eval,
            retention,
            summary,
            machine,
            prediction,
            held_bytes,
            resume,
            base_hash,
            device,
            notes,
        };
        plan.notes.extend(plan.inexact());
        let steps = plan.epochs.total_steps();
        plan.notes.extend(Schedule::new(&plan.config().train, steps).never_peaks());
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
            processes: self.ground.place.size,
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
        settings_hash(&self.ground.resolved, self.ground.place.size)
    }

    /// The checked config.
    pub fn config(&self) -> &Config {
        &self.ground.resolved.config
    }

    /// Bytes of the tokenised samples, training, evaluation and retention set, and of the tokenizer.
    pub fn data_bytes(&self) -> u64 {
        let of_sample = |s: &Sample| size_of::<Sample>() + 4 * (s.ids.capacity() + s.labels.capacity());
        let train = self.epochs.samples().iter().map(of_sample);
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
        self.goes_on_from_a_result() && done >= total
    }

    /// A finished run is gone on with from a checkpoint: from its first step it would be another one, over its result.
    ///
    /// # Errors
    /// There is none any more (4).
    pub fn refuse_lost_checkpoints(&self) -> Result<()> {
        if self.goes_on_from_a_result() && self.resume.is_none() {
            return Err(Error::NoCheckpoints(self.out.clone()).into());
        }
        Ok(())
    }

    /// A finished run that is not moved aside was asked to be resumed.
    fn goes_on_from_a_result(&self) -> bool {
        self.holds == Holds::Finished && !self.overwrite
    }
}

/// SHA-256 of the settings that decide the result, the number of processes among them.
pub(super) fn settings_hash(resolved: &Resolved, processes: usize) -> String {
    let settings = resolved.settings.iter().filter(|(key, _)| decides_the_result(key));
    let lines = settings.map(|(key, value)| format!("{key} = {value}\n"));
    let shared = (processes > 1).then(|| format!("processes = {processes}\n"));
    fs::sha256_bytes(lines.chain(shared).collect::<Vec<_>>().concat().as_bytes())
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
