//! What a run holds while it trains: the locked folder, the model with its trained tensors and optimizer, and the
//! files and ledger that it writes to.

use super::anchor::Anchor;
use super::artifacts;
use super::budget::Spent;
use super::checkpoint::{Checkpoints, Manifest, SCHEMA};
use super::crew::Crew;
use super::entered::Entered;
use super::folder::{self, Holds};
use super::ground::Ground;
use super::learner::Learner;
use super::metrics::{self, EvalRecord, StepRecord};
use super::plan::{Options, Plan};
use super::schedule::Schedule;
use crate::arch::source::Source;
use crate::config::{Config, Method};
use crate::data::Summary;
use crate::error::Result;
use crate::estimate::Prediction;
use crate::estimate::parts::Part;
use crate::fs::{self, Appender, RunLock};
use crate::ledger::{self, Book, Record};
use crate::meter::Meter;
use crate::meter::process::bare;
use crate::meter::tag::Tagged;
use crate::model::Frozen;
use crate::model::adapter::peft;
use crate::model::decoder::Memory;
use crate::ops::device;
use crate::ops::matmul::Precision;
use candle_core::DType;
use fttrain_kernels::sys::memory::{give_back_pages, large};
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

/// A run that has started.
pub struct Session {
    /// The model with its optimizer.
    pub learner: Learner,
    /// Learning rates.
    pub schedule: Schedule,
    /// Of the ledger; a resumed run keeps its first.
    pub run_id: String,
    /// When its first process began, RFC 3339.
    pub started_at: String,
    /// Seconds that earlier processes of this run took, as far as the ledger heard of them.
    pub earlier_s: f64,
    /// Of these, seconds whose steps a kill took back.
    pub lost_s: f64,
    /// What the run was predicted to take, before its first step: what the measurement is held against.
    pub estimate: Prediction,
    /// Step and loss of the best evaluation.
    pub best: Option<(u64, f64)>,
    /// Evaluations since.
    pub bad_evals: u64,
    /// The newest checkpoint of this run.
    pub last_checkpoint: Option<PathBuf>,
    pub(super) held: Held,
    checkpoints: Checkpoints,
    records: Records,
    /// Joules that earlier processes took.
    earlier_j: Option<f64>,
    entered: Entered,
    lock: RunLock,
}

/// Tagged memory of what stands through the run and of what passes took.
pub(super) struct Held {
    _base: Tagged,
    _trained: Tagged,
    _moments: Tagged,
    _data: Tagged,
    _runtime: Tagged,
    gradients: Tagged,
    activations: Tagged,
    logits: Tagged,
    workspace: Tagged,
    /// Of gradients in small blocks, whose pages stay from step to step.
    small_gradients: u64,
    /// Bytes of large blocks before the first step.
    before: u64,
    /// Of all passes.
    most: Memory,
}

impl Held {
    /// A step's passes held so much at their highest. What large blocks took beside that, freed ones that are kept among
    /// them, is the ops' workspace.
    pub(super) fn passed(&mut self, memory: Memory) {
        self.most = self.most.max(memory);
        let taken = (large().resident as u64).saturating_sub(self.before);
        let mut parts = [
            (&mut self.activations, memory.activations),
            (&mut self.gradients, memory.gradients.max(self.small_gradients)),
            (&mut self.logits, memory.logits),
            (&mut self.workspace, taken.saturating_sub(self.most.bytes())),
        ];
        // Those that fall go first: no sum is of two moments.
        parts.sort_by_key(|(tag, bytes)| *bytes >= tag.bytes());
        for (tag, bytes) in parts {
            tag.resize(bytes);
        }
    }
}

impl Session {
    /// Takes the folder, tells the ledger what the run is made of, loads the model, and goes on from the plan's
    /// checkpoint.
    ///
    /// # Errors
    /// The folder is in use (8); weights or checkpoint are broken (4); the disk fails (5).
    pub fn start(
        plan: &Plan,
        options: &Options,
        meter: &Meter,
        mut entered: Entered,
        crew: &Crew<'_>,
    ) -> Result<Self> {
        let parts = crew.start(plan).and_then(|()| Parts::make(plan, options, meter, &mut entered));
        let parts = parts.and_then(|parts| crew.compare(plan).map(|()| parts));
        let parts = parts.inspect_err(|_| entered.fail(meter))?;
        let Parts { lock, checkpoints, records, estimate, learner } = parts;
        let held = Held {
            _base: Tagged::new(Part::BaseWeights, learner.decoder.frozen_bytes()),
            _trained: Tagged::new(Part::Adapter, learner.params.bytes()),
            _moments: Tagged::new(
                Part::Moments,
                learner.optimizer.bytes() + learner.anchor.as_ref().map_or(0, Anchor::bytes),
            ),
            _data: Tagged::new(Part::Data, plan.data_bytes()),
            _runtime: Tagged::new(Part::Runtime, bare().unwrap_or(0)),
            gradients: Tagged::new(Part::Gradients, 0),
            activations: Tagged::new(Part::Activations, 0),
            logits: Tagged::new(Part::Logits, 0),
            workspace: Tagged::new(Part::Workspace, 0),
            small_gradients: learner.params.small_gradients(),
            before: 0,
            most: Memory::default(),
        };
        let kept_s = plan.resume.as_ref().map_or(0.0, |(_, manifest)| manifest.wall_s);
        let before = entered.before.clone();
        let mut session = Self {
            learner,
            schedule: Schedule::new(&plan.config().train, plan.epochs.total_steps()),
            run_id: entered.run_id.clone(),
            started_at: entered.started_at.clone(),
            earlier_s: before.wall_s,
            lost_s: if entered.was_killed() { before.wall_s - kept_s } else { 0.0 },
            estimate: estimate.prediction,
            best: None,
            bad_evals: 0,
            last_checkpoint: None,
            held,
            checkpoints,
            records,
            earlier_j: before.energy_j,
            entered,
            lock,
        };
        if let Some((path, manifest)) = &plan.resume {
            let restored = session.restore(plan, path, manifest, crew);
            restored.inspect_err(|_| session.entered.fail(meter))?;
        }
        session.held.before = large().used as u64;
        Ok(session)
    }

    fn restore(&mut self, plan: &Plan, path: &Path, manifest: &Manifest, crew: &Crew<'_>) -> Result<()> {
        self.restore_weights(plan, path, manifest, crew)?;
        let step = manifest.step;
        Checkpoints::read(path, manifest, "optimizer.safetensors", |file, size| {
            self.learner.optimizer.restore(file, size, step)
        })?;
        crew.optimizer(&self.learner, step)?;
        self.best = manifest.best;
        self.bad_evals = manifest.bad_evals;
        self.last_checkpoint = Some(path.to_owned());
        Ok(())
    }

    /// Puts the trained tensors of the best evaluation back, where a checkpoint of it stands.
    pub fn restore_best(&mut self, plan: &Plan, crew: &Crew<'_>) -> Result<()> {
        let Some((step, _)) = self.best else { return Ok(()) };
        let Some((path, manifest)) = self.checkpoints.of_step(step)? else {
            self.entered.warnings.push(format!(
                "no checkpoint of step {step}, whose evaluation was the best, can be used: the result is the last step's"
            ));
            return Ok(());
        };
        self.restore_weights(plan, &path, &manifest, crew)
    }

    fn restore_weights(&self, plan: &Plan, path: &Path, manifest: &Manifest, crew: &Crew<'_>) -> Result<()> {
        Checkpoints::read(path, manifest, artifacts::weights_name(plan), |file, size| {
            peft::read_tensors(&self.learner.params, file, size)
        })?;
        crew.weights(&self.learner)
    }

    /// Commits a checkpoint after `step` steps, enters it into the ledger, and prunes older ones.
    pub fn commit(&mut self, plan: &Plan, step: u64, epoch: f64, spent: &Spent) -> Result<()> {
        let manifest = Manifest {
            schema: SCHEMA,
            step,
            epoch,
            wall_s: spent.wall_s,
            cost_usd: spent.cost_usd,
            energy_j: spent.energy_j,
            best: self.best,
            bad_evals: self.bad_evals,
            planned_steps: plan.epochs.total_steps(),
            config_hash: fs::sha256_bytes(plan.ground.resolved.toml.as_bytes()),
            data_hash: plan.summary.sha256.clone(),
            base_hash: plan.base_hash.clone(),
            build: build_name(),
            device: device::name(&plan.device).into(),
            dtype: frozen_of(plan).name().into(),
            processes: plan.ground.place.size,
            files: Vec::new(),
        };
        // The records of these steps must not be younger than the checkpoint that a resume begins with.
        self.records.sync()?;
        let (name, text) = artifacts::description(plan)?;
        let (params, optimizer) = (&self.learner.params, &self.learner.optimizer);
        let path = self.checkpoints.commit(
            manifest,
            &mut [
                (artifacts::weights_name(plan), &mut |out| peft::write_tensors(params, out)),
                (name, &mut |out| out.write_all(text.as_bytes())),
                ("optimizer.safetensors", &mut |out| optimizer.write(out)),
            ],
        )?;
        let entered = self.entered.book.lock().checkpoint(&self.run_id, step, &path);
        self.warn(entered);
        self.last_checkpoint = Some(path);
        let limit = plan.config().schedule.save_total_limit;
        self.checkpoints.prune(limit, self.best.map(|(step, _)| step))
    }

    /// Appends a line of `metrics.jsonl`.
    pub fn record_step(&mut self, record: &StepRecord) -> Result<()> {
        self.records.steps.line(&metrics::line(record)?)
    }

    /// Appends a line of `eval.jsonl`.
    pub fn record_eval(&mut self, record: &EvalRecord) -> Result<()> {
        self.records.evals.line(&metrics::line(record)?)
    }

    /// Appends a line of `retention.jsonl`.
    pub fn record_retention(&mut self, record: &EvalRecord) -> Result<()> {
        match &mut self.records.retention {
            Some(records) => records.line(&metrics::line(record)?),
            None => Ok(()),
        }
    }

    /// A step was taken: the next heartbeat says so.
    pub fn beat(&mut self, step: u64, loss: f64) {
        self.lock.beat();
        self.entered.step(step, loss);
    }

    /// Joules of the whole run up to the meter's last look; `None` where nothing measures them.
    pub fn energy_j(&self, meter: &Meter) -> Option<f64> {
        Some(meter.joules()? + self.earlier_j.unwrap_or(0.0))
    }

    /// Joules that earlier processes took; `None` where they were not metered.
    pub fn earlier_energy_j(&self) -> Option<f64> {
        self.earlier_j
    }

    /// Ends the heartbeat and gives the run's records, for what is entered at its end.
    pub fn close(&mut self) -> MutexGuard<'_, Book> {
        self.entered.stop();
        self.entered.book.lock()
    }

    /// What the ledger has heard of the run, over all its processes.
    pub fn samples(&self) -> Vec<ledger::Sample> {
        let book = self.entered.book.lock();
        book.ledger().and_then(|ledger| ledger.samples(&self.run_id, 0.0).ok()).unwrap_or_default()
    }

    /// What the user must be told since the last time.
    pub fn take_warnings(&mut self) -> Vec<String> {
        self.entered.take_warnings()
    }

    fn warn(&mut self, outcome: Result<()>) {
        self.entered.warnings.extend(outcome.err().map(|e| e.to_string()));
    }
}

/// What a run needs before it can begin.
struct Parts {
    lock: RunLock,
    checkpoints: Checkpoints,
    records: Records,
    estimate: Estimate,
    learner: Learner,
}

/// The files that a run appends to.
struct Records {
    /// `metrics.jsonl`
    steps: Appender,
    /// `eval.jsonl`
    evals: Appender,
    /// `retention.jsonl`, where there is a retention set.
    retention: Option<Appender>,
}

impl Records {
    /// Opens them and keeps what belongs to the first `kept` steps. Of the retention set only the base's stays: what
    /// comes at the end is measured again.
    fn open(plan: &Plan, kept: Option<u64>) -> Result<Self> {
        let retention = plan.out.join(folder::RETENTION);
        let has_retention = !plan.retention.judged.is_empty();
        Ok(Self {
            steps: records::<StepRecord>(&plan.out.join("metrics.jsonl"), kept)?,
            evals: records::<EvalRecord>(&plan.out.join("eval.jsonl"), kept)?,
            retention: has_retention
                .then(|| records::<EvalRecord>(&retention, kept.map(|_| 0)))
                .transpose()?,
        })
    }

    fn sync(&mut self) -> Result<()> {
        self.steps.sync()?;
        self.evals.sync()?;
        self.retention.as_mut().map_or(Ok(()), Appender::sync)
    }
}

impl Parts {
    fn make(plan: &Plan, options: &Options, meter: &Meter, entered: &mut Entered) -> Result<Self> {
        let resuming = plan.resume.is_some();
        if plan.holds != Holds::Nothing && !resuming && options.overwrite {
            folder::move_aside(&plan.out)?;
        }
        fs::create_folders(&plan.out)?;
        let lock = RunLock::acquire(&plan.out)?;
        entered.warnings.extend(lock.warning());
        // First of all: with it, whatever follows can be resumed.
        fs::write_durable(&plan.out.join(folder::CONFIG), plan.ground.resolved.toml.as_bytes())?;
        let checkpoints = Checkpoints::open(&plan.out)?;
        if resuming && plan.holds == Holds::Finished {
            // It goes on: until it is finished again, nothing says that it is.
            fs::remove_file(&plan.out.join(folder::REPORT))?;
        }
        let estimate = Estimate::keep(plan, resuming)?;
        entered.prepared(plan, &estimate, meter);
        let enter = |phase| meter.enter(phase);
        let (ground, warnings) = (&plan.ground, &mut entered.warnings);
        let learner = Learner::load(
            ground,
            (&plan.retention, &plan.summary),
            &plan.device,
            prefers_bf16(plan),
            &enter,
            warnings,
        )?;
        // Files were hashed and tensors converted in buffers that no step asks for again.
        give_back_pages();
        let kept = plan.resume.as_ref().map(|(_, manifest)| manifest.step);
        Ok(Self { records: Records::open(plan, kept)?, lock, checkpoints, estimate, learner })
    }
}

/// Version and kernel path: a resume on another one is not bit-exact.
pub fn build_name() -> String {
    format!("{} {}", env!("CARGO_PKG_VERSION"), fttrain_kernels::cpu::path().name())
}

/// How this base is kept on a machine that prefers bf16, or does not; in full fine-tuning, how it is trained. Beside
/// four bits, what is not quantised stays in 16 unless f32 is asked for; a GGUF file is quantised already.
pub fn frozen(config: &Config, source: &Source, prefers_bf16: bool) -> Frozen {
    let narrow = |bf16| if bf16 { DType::BF16 } else { DType::F32 };
    let precision = |bf16| if bf16 { Precision::Bf16 } else { Precision::F32 };
    match config.method {
        Method::Full => Frozen::Trained {
            dtype: narrow(config.train.bf16_weights),
            precision: precision(config.base.bf16.unwrap_or(prefers_bf16)),
        },
        Method::Lora(_) => Frozen::Dense(narrow(config.base.bf16.unwrap_or(prefers_bf16))),
        Method::Qlora { .. } if source.is_gguf() => {
            Frozen::AsStored { precision: precision(config.base.bf16.unwrap_or(prefers_bf16)) }
        }
        Method::Qlora { double_quant, .. } => {
            Frozen::Nf4 { double_quant, others: narrow(config.base.bf16.unwrap_or(true)) }
        }
    }
}

pub(super) fn frozen_of(plan: &Plan) -> Frozen {
    frozen(plan.config(), &plan.ground.source, prefers_bf16(plan))
}

/// Whether the base is better kept in bf16 where it is computed on.
pub(super) fn prefers_bf16(plan: &Plan) -> bool {
    plan.machine.bf16_base || plan.device.is_cuda()
}

/// Positions that the model is made for: what is trained on, and room for the answers to sample prompts.
pub fn longest(ground: &Ground, data: &Summary) -> usize {
    let rows = usize::try_from(data.longest_tokens).unwrap_or(usize::MAX);
    ground.resolved.config.data.sequence_len.min(rows).max(ground.arch.max_position.min(4096))
}

/// The prediction that a run is held against, and its text.
pub(super) struct Estimate {
    prediction: Prediction,
    pub(super) text: String,
    pub(super) is_new: bool,
}

impl Estimate {
    /// The first estimate stands through every resume; more or fewer steps make another run of it.
    fn keep(plan: &Plan, resuming: bool) -> Result<Self> {
        let path = plan.out.join(folder::ESTIMATE);
        let first = || -> Option<(Prediction, String)> {
            let text = String::from_utf8(fs::read_at_most(&path, 16 << 20).ok()?).ok()?;
            Some((serde_json::from_str(&text).ok()?, text))
        };
        let kept = first().filter(|(old, _)| resuming && old.counts.steps == plan.prediction.counts.steps);
        if let Some((prediction, text)) = kept {
            return Ok(Self { prediction, text, is_new: false });
        }
        let text = serde_json::to_string_pretty(&plan.prediction).unwrap_or_default();
        fs::write_durable(&path, text.as_bytes())?;
        Ok(Self { prediction: plan.prediction.clone(), text, is_new: true })
    }
}

/// Opens a file of records and keeps those up to step `kept`; none where the run begins.
fn records<R: metrics::Record>(path: &Path, kept: Option<u64>) -> Result<Appender> {
    Appender::open_while(path, |line| {
        serde_json::from_slice::<R>(line).is_ok_and(|record| kept.is_some_and(|kept| record.step() <= kept))
    })
}
