//! What a run holds while it trains: the locked folder, the model with its trained tensors and optimizer, and the
//! files and ledger that it writes to.

use super::artifacts;
use super::budget::Spent;
use super::checkpoint::{Checkpoints, Manifest, SCHEMA};
use super::folder::{self, Holds};
use super::metrics::{self, EvalRecord, StepRecord};
use super::optimizer::AdamW;
use super::plan::{Options, Plan};
use super::schedule::Schedule;
use crate::arch::source::Source;
use crate::config::{Config, Method};
use crate::error::Result;
use crate::estimate::Prediction;
use crate::estimate::parts::Part;
use crate::fs::{self, Appender, RunLock};
use crate::ledger::{self, Book, Final, NewRun, Pulse, Record, RunRow, SharedBook, Status};
use crate::meter::tag::Tagged;
use crate::meter::{Meter, Reading};
use crate::model::adapter::peft;
use crate::model::build::{self, Trained};
use crate::model::weights::Loader;
use crate::model::{Decoder, Frozen, Params};
use crate::ops::host;
use crate::ops::matmul::Precision;
use candle_core::DType;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

/// A run that has started.
pub struct Session {
    /// The model.
    pub decoder: Decoder,
    /// Its trained tensors.
    pub params: Params,
    /// Their optimizer.
    pub optimizer: AdamW,
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
    /// What went wrong beside the run.
    pub warnings: Vec<String>,
    pub(super) held: Held,
    checkpoints: Checkpoints,
    metrics: Appender,
    evals: Appender,
    energy: Energy,
    pulse: Pulse,
    book: SharedBook,
    lock: RunLock,
}

/// Joules: what earlier processes took, and where this one's counter stood at its start.
struct Energy {
    earlier_j: Option<f64>,
    first_j: Option<f64>,
}

/// Tagged memory of what stands through the run and of what passes took.
pub(super) struct Held {
    _base: Tagged,
    _trained: Tagged,
    _moments: Tagged,
    _data: Tagged,
    pub(super) gradients: Tagged,
    pub(super) activations: Tagged,
    pub(super) logits: Tagged,
}

impl Session {
    /// Takes the folder, enters the run into the ledger, which hears of it every second from then on, loads the
    /// model, and goes on from the plan's checkpoint.
    ///
    /// # Errors
    /// The folder is in use (8); weights or checkpoint are broken (4); the disk fails (5).
    pub fn start(plan: &Plan, options: &Options, meter: &Meter) -> Result<Self> {
        let resuming = plan.resume.is_some();
        if plan.holds != Holds::Nothing && !resuming && options.overwrite {
            folder::move_aside(&plan.out)?;
        }
        fs::create_folders(&plan.out)?;
        let lock = RunLock::acquire(&plan.out)?;
        let mut warnings: Vec<String> = lock.warning().into_iter().collect();
        // First of all: with it, whatever follows can be resumed.
        fs::write_durable(&plan.out.join(folder::CONFIG), plan.ground.resolved.toml.as_bytes())?;
        let checkpoints = Checkpoints::open(&plan.out)?;
        if resuming && plan.holds == Holds::Finished {
            // It goes on: until it is finished again, nothing says that it is.
            fs::remove_file(&plan.out.join(folder::REPORT))?;
        }
        let estimate = Estimate::keep(plan, resuming)?;
        let (mut book, warning) = Book::open(&fs::home()?, &plan.out);
        warnings.extend(warning.map(|w| w.to_string()));
        let (run_id, earlier) = enter(plan, &mut book, &estimate, &mut warnings);
        let started_at = earlier.as_ref().map_or_else(ledger::now, |run| run.started_at.clone());
        let kept = plan.resume.as_ref().map(|(_, manifest)| manifest);
        let before = before(earlier.as_ref(), kept);
        let book = SharedBook::new(book);
        let mut pulse = Pulse::start(book.clone(), &run_id, meter.watch(), &plan.ground.price, &before);
        let made = load(plan, &mut warnings)
            .and_then(|(decoder, params)| Ok((AdamW::new(&params, &plan.config().train)?, decoder, params)));
        let (optimizer, decoder, params) = match made {
            Ok(made) => made,
            Err(error) => {
                pulse.stop();
                let wall_s = before.wall_s + meter.elapsed().0;
                let end = Final {
                    finished_at: ledger::now(),
                    step: before.step,
                    wall_s,
                    cost_usd: plan.ground.price.bill(wall_s).map(|bill| bill.cost_usd),
                    energy_j: before.energy_j,
                    loss: before.loss,
                    report_json: None,
                };
                // The error that is returned says more than a ledger that cannot be written.
                let _ = book.lock().finish_run(&run_id, Status::Failed, &end);
                return Err(error);
            }
        };
        let held = Held {
            _base: Tagged::new(Part::BaseWeights, decoder.frozen_bytes()),
            _trained: Tagged::new(Part::Adapter, 4 * params.count()),
            _moments: Tagged::new(Part::Moments, optimizer.bytes()),
            _data: Tagged::new(Part::Data, plan.data_bytes()),
            gradients: Tagged::new(Part::Gradients, 0),
            activations: Tagged::new(Part::Activations, 0),
            logits: Tagged::new(Part::Logits, 0),
        };
        let kept_s = kept.map_or(0.0, |manifest| manifest.wall_s);
        let kept = kept.map(|manifest| manifest.step);
        let is_killed = earlier.is_some_and(|run| run.status == Status::Killed);
        let mut session = Self {
            decoder,
            params,
            optimizer,
            schedule: Schedule::new(&plan.config().train, plan.epochs.total_steps()),
            run_id,
            started_at,
            earlier_s: before.wall_s,
            lost_s: if is_killed { before.wall_s - kept_s } else { 0.0 },
            estimate: estimate.prediction,
            best: None,
            bad_evals: 0,
            last_checkpoint: None,
            warnings,
            held,
            checkpoints,
            metrics: records::<StepRecord>(&plan.out.join("metrics.jsonl"), kept)?,
            evals: records::<EvalRecord>(&plan.out.join("eval.jsonl"), kept)?,
            energy: Energy { earlier_j: before.energy_j, first_j: meter.latest().counted_j() },
            pulse,
            book,
            lock,
        };
        if let Some((path, manifest)) = &plan.resume {
            session.restore(plan, path, manifest)?;
        }
        Ok(session)
    }

    fn restore(&mut self, plan: &Plan, path: &Path, manifest: &Manifest) -> Result<()> {
        let read = |name: &str| Checkpoints::read(path, manifest, name);
        artifacts::restore(&self.params, &read(artifacts::weights_name(plan))?)?;
        self.optimizer.restore(&read("optimizer.safetensors")?, manifest.step)?;
        self.best = manifest.best;
        self.bad_evals = manifest.bad_evals;
        self.last_checkpoint = Some(path.to_owned());
        Ok(())
    }

    /// Puts the trained tensors of the best evaluation back, where a checkpoint of it stands.
    pub fn restore_best(&mut self, plan: &Plan) -> Result<()> {
        let Some((step, _)) = self.best else { return Ok(()) };
        let Some((path, manifest)) = self.checkpoints.of_step(step)? else { return Ok(()) };
        let bytes = Checkpoints::read(&path, &manifest, artifacts::weights_name(plan))?;
        artifacts::restore(&self.params, &bytes)
    }

    /// The first trained tensor in name order that holds a value that is not finite.
    pub fn not_finite(&self) -> Result<Option<String>> {
        for (_, param) in self.params.sorted() {
            if host::read(&param.value)?.iter().any(|value| !value.is_finite()) {
                return Ok(Some(param.name.clone()));
            }
        }
        Ok(None)
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
            config_hash: fs::sha256_bytes(plan.ground.resolved.toml.as_bytes()),
            data_hash: plan.summary.sha256.clone(),
            base_hash: plan.base_hash.clone(),
            build: build_name(),
            device: DEVICE.into(),
            dtype: frozen_of(plan).name().into(),
            files: Vec::new(),
        };
        // The records of these steps must not be younger than the checkpoint that a resume begins with.
        self.metrics.sync()?;
        self.evals.sync()?;
        let (name, text) = artifacts::description(plan)?;
        let (params, optimizer) = (&self.params, &self.optimizer);
        let path = self.checkpoints.commit(
            manifest,
            &mut [
                (artifacts::weights_name(plan), &mut |out| peft::write_tensors(params, out)),
                (name, &mut |out| out.write_all(text.as_bytes())),
                ("optimizer.safetensors", &mut |out| optimizer.write(out)),
            ],
        )?;
        let entered = self.book.lock().checkpoint(&self.run_id, step, &path);
        self.warn(entered);
        let limit = plan.config().schedule.save_total_limit;
        self.checkpoints.prune(limit, self.best.map(|(step, _)| step))?;
        self.last_checkpoint = Some(path);
        Ok(())
    }

    /// Appends a line of `metrics.jsonl`.
    pub fn record_step(&mut self, record: &StepRecord) -> Result<()> {
        self.metrics.line(&metrics::line(record)?)
    }

    /// Appends a line of `eval.jsonl`.
    pub fn record_eval(&mut self, record: &EvalRecord) -> Result<()> {
        self.evals.line(&metrics::line(record)?)
    }

    /// A step was taken: the next heartbeat says so.
    pub fn beat(&mut self, step: u64, loss: f64) {
        self.lock.beat();
        self.pulse.step(step, loss);
    }

    /// Joules of the whole run up to this look; `None` where nothing measures them.
    pub fn energy_j(&self, reading: &Reading) -> Option<f64> {
        let here = reading.counted_j().zip(self.energy.first_j).map(|(now, first)| (now - first).max(0.0))?;
        Some(here + self.energy.earlier_j.unwrap_or(0.0))
    }

    /// Ends the heartbeat and gives the run's records, for what is entered at its end.
    pub fn close(&mut self) -> MutexGuard<'_, Book> {
        self.pulse.stop();
        self.book.lock()
    }

    /// What the ledger has heard of the run, over all its processes.
    pub fn samples(&self) -> Vec<ledger::Sample> {
        let book = self.book.lock();
        book.ledger().and_then(|ledger| ledger.samples(&self.run_id, 0.0).ok()).unwrap_or_default()
    }

    /// What the user must be told since the last time.
    pub fn take_warnings(&mut self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.extend(self.pulse.warnings());
        warnings
    }

    fn warn(&mut self, outcome: Result<()>) {
        self.warnings.extend(outcome.err().map(|e| e.to_string()));
    }
}

/// Where this version computes.
pub const DEVICE: &str = "cpu";

/// Version and kernel path: a resume on another one is not bit-exact.
pub fn build_name() -> String {
    format!("{} {}", env!("CARGO_PKG_VERSION"), fttrain_kernels::cpu::path().name())
}

/// How this base is kept on a machine that prefers bf16, or does not. Beside four bits, what is not quantised stays in
/// 16 unless f32 is asked for; a GGUF file is quantised already.
pub fn frozen(config: &Config, source: &Source, prefers_bf16: bool) -> Frozen {
    let narrow = |bf16| if bf16 { DType::BF16 } else { DType::F32 };
    match config.method {
        Method::Full => Frozen::Dense(DType::F32),
        Method::Lora(_) => Frozen::Dense(narrow(config.base.bf16.unwrap_or(prefers_bf16))),
        Method::Qlora { .. } if source.is_gguf() => {
            let bf16 = config.base.bf16.unwrap_or(prefers_bf16);
            Frozen::AsStored { precision: if bf16 { Precision::Bf16 } else { Precision::F32 } }
        }
        Method::Qlora { double_quant, .. } => {
            Frozen::Nf4 { double_quant, others: narrow(config.base.bf16.unwrap_or(true)) }
        }
    }
}

pub(super) fn frozen_of(plan: &Plan) -> Frozen {
    frozen(plan.config(), &plan.ground.source, plan.machine.bf16_base)
}

fn load(plan: &Plan, warnings: &mut Vec<String>) -> Result<(Decoder, Params)> {
    let seed = plan.config().train.seed;
    let loader =
        Loader::open(&plan.ground.source.weights()?, &plan.ground.arch, seed, plan.ground.source.name())?;
    warnings.extend(loader.notes().iter().cloned());
    let trained = plan.ground.adapter.as_ref().map_or(Trained::Whole, Trained::Adapter);
    build::decoder(&plan.ground.arch, trained, frozen_of(plan), longest(plan), &loader)
}

/// Positions that the model is made for: what is trained on, and room for the answers to sample prompts.
pub fn longest(plan: &Plan) -> usize {
    plan.config().data.sequence_len.max(plan.ground.arch.max_position.min(4096))
}

/// The prediction that a run is held against, and its text.
struct Estimate {
    prediction: Prediction,
    text: String,
    is_new: bool,
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

/// How earlier processes left the run, as far as the ledger or its checkpoint knows.
fn before(earlier: Option<&RunRow>, kept: Option<&Manifest>) -> ledger::Sample {
    let kept_s = kept.map_or(0.0, |manifest| manifest.wall_s);
    ledger::Sample {
        wall_s: earlier.and_then(|run| run.wall_s).unwrap_or(0.0).max(kept_s),
        step: kept.map_or(0, |manifest| manifest.step),
        loss: earlier.and_then(|run| run.loss),
        energy_j: earlier.and_then(|run| run.energy_j).or(kept.and_then(|manifest| manifest.energy_j)),
        ..ledger::Sample::default()
    }
}

/// Enters the run into the ledger; one that goes on, under the id of its first start, with what is known of it.
fn enter(
    plan: &Plan,
    book: &mut Book,
    estimate: &Estimate,
    warnings: &mut Vec<String>,
) -> (String, Option<RunRow>) {
    let id_file = plan.out.join(folder::RUN_ID);
    let id = folder::run_id(&plan.out);
    let row = |id: &str| book.ledger()?.find(id).ok().filter(|row| row.run_id == id);
    let earlier = id.as_deref().and_then(row);
    let is_unknown = earlier.is_none() && book.ledger().is_some();
    if let Some(id) = id.as_ref().filter(|_| !is_unknown) {
        let text = Some(estimate.text.as_str()).filter(|_| estimate.is_new);
        warnings.extend(book.resume_run(id, text).err().map(|e| e.to_string()));
        if earlier.as_ref().is_some_and(|run| run.is_elsewhere(&plan.out)) {
            warnings.extend(book.moved(id, &plan.out).err().map(|e| e.to_string()));
        }
        return (id.clone(), earlier);
    }
    let config = plan.config();
    let run = NewRun {
        // A ledger that has never heard of the run takes it in under the name that it has.
        run_id: id.unwrap_or_else(|| plan.run_id.clone()),
        started_at: ledger::now(),
        output_dir: plan.out.to_string_lossy().into_owned(),
        config_toml: plan.ground.resolved.toml.clone(),
        config_hash: plan.settings_hash(),
        data_hash: plan.summary.sha256.clone(),
        base_hash: plan.base_hash.clone(),
        project: config.output.project.clone(),
        purpose: config.output.purpose.clone(),
        method: method_name(&config.method).into(),
        base: plan.ground.source.name().into(),
        prediction_json: Some(estimate.text.clone()),
        usd_per_hour: plan.ground.price.usd_per_hour,
    };
    warnings.extend(book.start_run(&run).err().map(|e| e.to_string()));
    warnings.extend(
        fs::write_durable(&id_file, format!("{}\n", run.run_id).as_bytes()).err().map(|e| e.to_string()),
    );
    (run.run_id, None)
}

/// The method's name in ledger and reports.
pub fn method_name(method: &Method) -> &'static str {
    match method {
        Method::Full => "full",
        Method::Lora(_) => "lora",
        Method::Qlora { .. } => "qlora",
    }
}

/// Opens a file of records and keeps those up to step `kept`; none where the run begins.
fn records<R: metrics::Record>(path: &Path, kept: Option<u64>) -> Result<Appender> {
    Appender::open_while(path, |line| {
        serde_json::from_slice::<R>(line).is_ok_and(|record| kept.is_some_and(|kept| record.step() <= kept))
    })
}
