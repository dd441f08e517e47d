//! Process 0 and those that work for it: it decides what is done next and tells the others, who do it with it and decide
//! nothing. What they have read, and at each commit what they have learned, is compared.

use super::error::Error;
use super::evaluate::evaluate;
use super::ground::{Ground, Terms};
use super::learner::Learner;
use super::material::Material;
use super::plan::{Plan, settings_hash};
use super::schedule::Schedule;
use super::step::Descent;
use super::{session, stop::Stop};
use crate::config::Resolved;
use crate::error::{Kind, Result};
use crate::estimate::PriceUsed;
use crate::meter::process;
use crate::model::adapter::peft;
use crate::ops::device;
use crate::ranks::{self, Met, Ranks, Sum};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::time::Instant;

/// What all processes do next.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// Read the config and open what it is computed on.
    Open,
    /// Sum so many values, so often: what an exchange takes.
    Exchange { values: usize, times: usize },
    /// Read the data and load the model.
    Start { prefers_bf16: bool, recompute: bool },
    /// Compare base, data and config.
    Compare,
    /// Take over the trained tensors of process 0.
    Weights,
    /// Take over its optimizer's state after so many updates.
    Optimizer { steps: u64 },
    /// Take this optimizer step, from 0.
    Step(u64),
    /// The loss on held-out rows.
    Evaluate,
    /// The loss on what is not to be forgotten.
    Retain,
    /// Compare the trained tensors.
    Agree,
    /// It is over.
    End,
}

/// What a process took, or all of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Peak memory: of all, that of the process with most.
    pub peak_bytes: u64,
    /// CPU time.
    pub cpu_s: f64,
}

/// The other processes of a run, as process 0 has them. When it is dropped they end.
pub struct Crew<'a> {
    /// All of them.
    pub ranks: &'a Ranks,
    is_over: Cell<bool>,
    is_amid: Cell<bool>,
}

impl<'a> Crew<'a> {
    /// The processes that were launched with this one.
    pub fn new(ranks: &'a Ranks) -> Self {
        Self { ranks, is_over: Cell::new(false), is_amid: Cell::new(false) }
    }

    /// The others open what they compute on, and all settle how gradients are summed there, on the GPU `nth` or the CPU.
    ///
    /// # Errors
    /// Nothing sums them there (6), or they do not compute on the same (5).
    pub(super) fn open(&self, device: &Device, nth: Option<usize>) -> Result<Met> {
        self.with(&Task::Open, || self.ranks.meet(device, nth))
    }

    /// Seconds that gradients of so many values take to be summed where they are computed: the median of a few times; 0
    /// without others.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn exchange_s(&self, values: u64, device: &Device) -> Result<f64> {
        const TIMES: usize = 5;
        if self.ranks.is_alone() {
            return Ok(0.0);
        }
        let tried = usize::try_from(values).unwrap_or(usize::MAX).min(MOST_AT_ONCE);
        let task = Task::Exchange { values: tried, times: TIMES };
        let mut seconds = self.with(&task, || exchange(self.ranks, device, tried, TIMES))?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[TIMES / 2] * values as f64 / tried.max(1) as f64)
    }

    /// The others begin to load what this run needs.
    ///
    /// # Errors
    /// A fault of the program.
    pub(super) fn start(&self, plan: &Plan) -> Result<()> {
        self.tell(&Task::Start {
            prefers_bf16: session::prefers_bf16(plan),
            recompute: plan.prediction.recompute,
        })
    }

    /// All have the same base, data and config.
    ///
    /// # Errors
    /// They have not (5).
    pub(super) fn compare(&self, plan: &Plan) -> Result<()> {
        let hashes = [&plan.base_hash, &plan.summary.sha256, &plan.settings_hash()];
        self.with(&Task::Compare, || compare(self.ranks, hashes))
    }

    /// Gives the others the trained tensors.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn weights(&self, learner: &Learner) -> Result<()> {
        self.send(&Task::Weights, |bytes| peft::write_tensors(&learner.params, bytes))
    }

    /// Gives the others the optimizer's state after so many updates.
    ///
    /// # Errors
    /// A fault of an op.
    pub(super) fn optimizer(&self, learner: &Learner, steps: u64) -> Result<()> {
        self.send(&Task::Optimizer { steps }, |bytes| learner.optimizer.write(bytes))
    }

    fn send(&self, task: &Task, write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        write(&mut bytes).map_err(|e| Error::State(e.to_string()))?;
        self.tell(task)?;
        self.ranks.bytes(bytes);
        Ok(())
    }

    /// Takes a step, as the others do.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn step<T>(&self, k: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.with(&Task::Step(k), work)
    }

    /// Evaluates, as the others do.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn evaluate<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.with(&Task::Evaluate, work)
    }

    /// Evaluates what is not to be forgotten, as the others do.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn retain<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.with(&Task::Retain, work)
    }

    fn with<T>(&self, task: &Task, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.tell(task)?;
        self.is_amid.set(!self.ranks.is_alone());
        let done = work();
        // A fault that all find leaves them together; any other one, or a panic, does not.
        let is_alone = done.as_ref().is_err_and(|error| !is_shared(task, error.kind));
        self.is_amid.set(self.is_amid.get() && is_alone);
        done
    }

    /// All have learned the same.
    ///
    /// # Errors
    /// They have not (5).
    pub(super) fn agree(&self, learner: &Learner) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        self.with(&Task::Agree, || agree(self.ranks, learner))
    }

    /// Whether the others wait for what this process broke off: they can only be ended.
    pub fn is_amid(&self) -> bool {
        self.is_amid.get()
    }

    /// The others end. What all took together, where this one took `own`.
    pub fn end(&self, own: Taken) -> Taken {
        if self.is_amid.get() || self.is_over.replace(true) || self.tell(&Task::End).is_err() {
            return own;
        }
        own.of_all(self.ranks)
    }

    fn tell(&self, task: &Task) -> Result<()> {
        self.ranks.tell(task)
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        self.end(Taken::default());
    }
}

/// Values that are summed at once where it is only measured.
const MOST_AT_ONCE: usize = 1 << 26;

fn exchange(ranks: &Ranks, device: &Device, values: usize, times: usize) -> Result<Vec<f64>> {
    let one = |_| {
        let zeros = Tensor::zeros(values, DType::F32, device)?;
        device.synchronize()?;
        let begun = Instant::now();
        let _sums = ranks.begin_sum(vec![zeros])?.map(Sum::wait).transpose()?;
        device.synchronize()?;
        Ok(begun.elapsed().as_secs_f64())
    };
    (0..times).map(one).collect()
}

fn compare(ranks: &Ranks, hashes: [&String; 3]) -> Result<()> {
    // All three, whatever the first says: the others ask for all.
    let agreed = hashes.map(|hash| ranks.agree(hash));
    let mut named = ["the base model", "the training data", "the config"].into_iter().zip(agreed);
    named.find(|(_, agreed)| !agreed).map_or(Ok(()), |(what, _)| Err(ranks::Error::Differs(what).into()))
}

fn agree(ranks: &Ranks, learner: &Learner) -> Result<()> {
    if ranks.agree(&learner.digest()?) {
        return Ok(());
    }
    Err(ranks::Error::Differs("what was learned").into())
}

impl Taken {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bytes are whole numbers below 2⁵³.
    fn of_all(self, ranks: &Ranks) -> Self {
        Self { peak_bytes: ranks.largest(self.peak_bytes as f64) as u64, cpu_s: ranks.sum(self.cpu_s) }
    }
}

/// A process that works for process 0, before it loads anything.
struct Opened {
    ground: Ground,
    gpu: Option<usize>,
    device: Device,
}

/// What it holds then.
struct Follower {
    ground: Ground,
    material: Material,
    learner: Learner,
    schedule: Schedule,
    base_hash: String,
    recompute: bool,
}

/// How far it is.
enum Stage {
    Launched,
    Open(Box<Opened>),
    Started(Box<Follower>),
}

/// Does what process 0 tells until it is over. It alone is asked by signals to stop.
///
/// # Errors
/// What this process reads is broken, or an op fails. Faults that all processes find alike are left to process 0.
pub fn follow(resolved: impl Fn() -> Result<Resolved>, ranks: &Ranks) -> Result<()> {
    let _ignored = Stop::install()?;
    let mut stage = Stage::Launched;
    loop {
        let task = ranks.hear()?;
        let done = match (&task, &mut stage) {
            (Task::End, _) => {
                let peak_bytes = process::resident().1.unwrap_or(0);
                Taken { peak_bytes, cpu_s: process::cpu_s().unwrap_or(0.0) }.of_all(ranks);
                return Ok(());
            }
            (Task::Open, Stage::Launched) => {
                let opened = Opened::open(resolved()?, ranks)?;
                let met = ranks.meet(&opened.device, opened.gpu).map(|_| ());
                stage = Stage::Open(Box::new(opened));
                met
            }
            (Task::Exchange { values, times }, Stage::Open(opened)) => {
                exchange(ranks, &opened.device, *values, *times).map(|_| ())
            }
            (Task::Start { prefers_bf16, recompute }, _) => {
                let Stage::Open(opened) = std::mem::replace(&mut stage, Stage::Launched) else {
                    return Err(untimely(&task));
                };
                stage = Stage::Started(Box::new(opened.start(*prefers_bf16, *recompute)?));
                Ok(())
            }
            (task, Stage::Started(follower)) => follower.take(task, ranks),
            (task, _) => Err(untimely(task)),
        };
        done.or_else(|e| if is_shared(&task, e.kind) { Ok(()) } else { Err(e) })?;
    }
}

fn untimely(task: &Task) -> crate::error::Error {
    ranks::Error::Message(format!("{task:?} out of turn")).into()
}

/// Whether every process finds this fault of a task: it is one of a sum or of a comparison.
fn is_shared(task: &Task, kind: Kind) -> bool {
    match task {
        Task::Open => matches!(kind, Kind::Resource | Kind::Device),
        Task::Step(_) => kind == Kind::Diverged,
        Task::Compare | Task::Agree => kind == Kind::Resource,
        _ => false,
    }
}

impl Opened {
    fn open(resolved: Resolved, ranks: &Ranks) -> Result<Self> {
        let place = ranks.place();
        // What it costs is process 0's to know.
        let terms = Terms { price: PriceUsed::unknown(), grid: None };
        let ground = Ground::on(resolved, terms, place)?;
        let gpu = device::chosen(ground.resolved.config.train.device, place.here)?;
        let device = ground.open(gpu, &mut Vec::new())?;
        Ok(Self { ground, gpu, device })
    }

    fn start(self, prefers_bf16: bool, recompute: bool) -> Result<Follower> {
        let Self { ground, device, .. } = self;
        let material = Material::gather(&ground)?;
        let base_hash = ground.source.fingerprint()?;
        let learner = Learner::load(
            &ground,
            (&material.retention, &material.summary),
            &device,
            prefers_bf16,
            &|_| (),
            &mut Vec::new(),
        )?;
        let schedule = Schedule::new(&ground.resolved.config.train, material.epochs.total_steps());
        Ok(Follower { ground, material, learner, schedule, base_hash, recompute })
    }
}

impl Follower {
    fn take(&mut self, task: &Task, ranks: &Ranks) -> Result<()> {
        let Self { material, learner, .. } = self;
        match task {
            Task::Compare => {
                let settings = settings_hash(&self.ground.resolved, ranks.place().size);
                compare(ranks, [&self.base_hash, &material.summary.sha256, &settings])
            }
            Task::Weights => {
                let bytes = ranks.bytes(Vec::new());
                let read = peft::read_tensors(&learner.params, &mut bytes.as_slice(), bytes.len() as u64);
                Ok(read.map_err(Error::State)?)
            }
            Task::Optimizer { steps } => {
                let bytes = ranks.bytes(Vec::new());
                let read = learner.optimizer.restore(&mut bytes.as_slice(), bytes.len() as u64, *steps);
                Ok(read.map_err(Error::State)?)
            }
            Task::Step(k) => {
                let train = &self.ground.resolved.config.train;
                let (seed, recompute, lr) = (train.seed, self.recompute, self.schedule.lr_at(*k));
                let step = material.epochs.step(*k)?;
                let how = Descent { k: *k, seed, recompute, lr };
                learner.take(&step, how, train.optimizer_in_backward, ranks).map(|_| ())
            }
            Task::Evaluate => evaluate(&learner.decoder, &material.eval, ranks).map(|_| ()),
            Task::Retain => evaluate(&learner.decoder, &material.retention.judged, ranks).map(|_| ()),
            Task::Agree => agree(ranks, learner),
            Task::Open | Task::Exchange { .. } | Task::Start { .. } | Task::End => Err(untimely(task)),
        }
    }
}
