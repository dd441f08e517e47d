//! Where a run stands before its data are read: the base's shapes, the adapter, the machine, what an hour costs; and the
//! prediction from there.

use super::{Error, beside, history};
use crate::arch::source::Source;
use crate::arch::{Arch, Linear};
use crate::calibrate::{self, Computer};
use crate::config::{Config, Device, Method, Optimizer, Resolved};
use crate::error::Result;
use crate::estimate::amount::Kind;
use crate::estimate::carbon::Intensity;
use crate::estimate::history::Learned;
use crate::estimate::{self, Counts, Limits, Machine, Prediction, PriceUsed};
use crate::estimate::{machine, machines};
use crate::fs;
use crate::meter::process::{bare, resident};
use crate::model::adapter::Adapter;
use crate::ops::{device, gpu, head};
use crate::ranks::Place;
use fttrain_kernels::sys::cuda::{Card, card};

/// What a run is paid and judged by.
pub struct Terms {
    /// What an hour costs.
    pub price: PriceUsed,
    /// What the grid emits, where `[cost]` says which.
    pub grid: Option<Intensity>,
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
    /// Of this process among those of the run.
    pub place: Place,
    /// How many processes of the run compute on this one's card.
    pub(super) card_shared_by: usize,
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

impl Terms {
    /// Those of a config, for a new run on so many machines or one that goes on.
    pub(super) fn of(config: &Config, run: Option<&str>, machines: usize) -> Result<Self> {
        let mut price = estimate::price_used(&config.cost, jiff::Zoned::now().date())?.times(machines);
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
        let terms = Terms::of(&resolved.config, None, 1)?;
        Self::on(resolved, terms, Place::ALONE)
    }

    pub(super) fn on(mut resolved: Resolved, Terms { price, grid }: Terms, place: Place) -> Result<Self> {
        let config = &resolved.config;
        let limits = crate::meter::machine::limits().shared(place.beside, place.sharing);
        let threads = start_threads(Some(config.train.threads.unwrap_or(limits.cores)))?;
        let source = Source::locate(&config.base)?;
        let arch = source.arch()?;
        let adapter = match &config.method {
            Method::Full => None,
            Method::Lora(lora) | Method::Qlora { lora, .. } => {
                Some(Adapter::resolve(&arch, lora, config.train.loraplus_lr_ratio, config.train.seed)?)
            }
        };
        if let (Method::Lora(lora) | Method::Qlora { lora, .. }, Some(adapter)) =
            (&mut resolved.config.method, &adapter)
        {
            // A continued adapter brings its own.
            lora.r = Some(adapter.spec.r);
            lora.dora = Some(adapter.spec.dora);
            lora.rank_pattern.clone_from(&adapter.spec.rank_pattern);
            lora.modules_to_save = adapter.modules_to_save.iter().cloned().collect();
        }
        let adapts = |l: &Linear| adapter.as_ref().is_some_and(|a| a.adapts(&l.name));
        Ok(Self {
            adapted: arch.linears().filter(adapts).collect(),
            limits,
            place,
            card_shared_by: 1,
            price,
            grid,
            resolved,
            source,
            arch,
            adapter,
            threads,
        })
    }

    /// This machine's CPU, its rates at the shapes of a run with these counts; measured where they are not known yet. The
    /// second value is a warning.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn machine(&self, counts: &Counts) -> Result<(Machine, Option<String>)> {
        let cores = Computer::cores(self.threads);
        let (mut machine, warning) = self.measured(counts, machine::Kind::Cpu, &cores)?;
        let sheet = estimate::power::cpu(&machine.name);
        let threads = (machine.threads * self.place.size) as f64;
        machine.sheet_power_w = machine.sheet_power_w.or_else(|| Some(sheet?.watts_per_thread() * threads));
        Ok((machine, warning))
    }

    fn measured(
        &self,
        counts: &Counts,
        kind: machine::Kind,
        computer: &Computer,
    ) -> Result<(Machine, Option<String>)> {
        calibrate::machine(&self.ask(counts, kind), self.adapter.as_ref(), computer, &fs::home()?)
    }

    /// What of a machine of this kind a run with these counts asks for.
    pub fn ask<'a>(&'a self, counts: &'a Counts, kind: machine::Kind) -> calibrate::Ask<'a> {
        calibrate::Ask {
            arch: &self.arch,
            config: &self.resolved.config,
            adapted: &self.adapted,
            counts,
            logits_rows: head::chunk_rows(self.arch.vocab_size) as u64,
            kind,
        }
    }

    /// Opens the GPU that was chosen, or the CPU where `"auto"` chose one that cannot do what this run asks for.
    ///
    /// # Errors
    /// The GPU was asked for by name and cannot do it, or does not open (6).
    pub(super) fn open(&self, gpu: Option<usize>, notes: &mut Vec<String>) -> Result<candle_core::Device> {
        let Some(wanted) = gpu else { return Ok(candle_core::Device::Cpu) };
        if let Some(what) = self.beyond_gpus() {
            if self.resolved.config.train.device != Device::Auto {
                return Err(Error::NotOnGpu(what).into());
            }
            notes.push(format!("computing on the CPU: {what} does not run on a GPU yet"));
            return Ok(candle_core::Device::Cpu);
        }
        Ok(device::open(Some(wanted))?)
    }

    /// What this run is computed on, at its shapes: the machine, what a process may take of it, and a warning. A GPU is
    /// measured on the `device` that it was opened as.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn computer(
        &self,
        counts: &Counts,
        gpu: Option<usize>,
        device: &candle_core::Device,
    ) -> Result<(Machine, Limits, Option<String>)> {
        let Some(nth) = gpu.filter(|_| self.beyond_gpus().is_none()) else {
            let (machine, warning) = self.machine(counts)?;
            return Ok((machine, self.limits.clone(), warning));
        };
        let found = match card(nth) {
            Some(card) => self.on_card(counts, nth, &card, device)?,
            None => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let warning = format!(
            "cuda:{nth} could not be measured and has no data sheet: the prediction is for this machine's CPU"
        );
        Ok((self.machine(counts)?.0, self.limits.clone(), Some(warning)))
    }

    /// A card: measured, or by its data sheet where it does not let itself be measured; `None` where it has none.
    fn on_card(
        &self,
        counts: &Counts,
        nth: usize,
        card: &Card,
        device: &candle_core::Device,
    ) -> Result<Option<(Machine, Limits, Option<String>)>> {
        let limits = machines::limits_of_card(&card.name, card.bytes / self.card_shared_by as u64)?;
        let why = if device.is_cpu() {
            "it was not opened".into()
        } else {
            let computer = Computer::gpu(nth, card.clone(), device, self.threads);
            match self.measured(counts, machine::Kind::Accelerator, &computer) {
                Ok((machine, warning)) => return Ok(Some((machine, limits, warning))),
                Err(error) => error.to_string(),
            }
        };
        let warning = format!(
            "{} is predicted by its data sheet and by what others published: nothing of it was measured ({why})",
            card.name
        );
        let known = machines::of_card(&card.name)?;
        Ok(known.map(|machine| (machine, limits, Some(warning))))
    }

    /// What a run of another process will be computed on by this config: a GPU is opened here for as long as it takes to
    /// measure it, because its memory is the other's. The notes say what is not as it was asked for.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn ahead(&self, counts: &Counts) -> Result<(Machine, Limits, Vec<String>)> {
        let gpu = device::chosen(self.resolved.config.train.device, 0);
        let wanted = gpu.as_ref().ok().copied().flatten().filter(|_| self.beyond_gpus().is_none());
        let opened = device::open(wanted);
        let device = opened.as_ref().unwrap_or(&candle_core::Device::Cpu);
        let (machine, limits, warning) = self.computer(counts, wanted, device)?;
        let faults = [gpu.err(), opened.err()].into_iter().flatten().map(|error| error.to_string());
        Ok((machine, limits, warning.into_iter().chain(faults).collect()))
    }

    /// What of this run only the CPU does.
    pub fn beyond_gpus(&self) -> Option<&'static str> {
        match (&self.resolved.config.method, &self.adapter) {
            (Method::Full, _) if self.resolved.config.train.bf16_weights => {
                Some("`master_weights = \"bf16\"`")
            }
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
        Learned::from(&history::of(&self.arch, machine, self.place.size as u64))
    }

    /// Predicts a run of this process; `taken` are the phases that are over by the clock.
    pub(super) fn predict(&self, counts: &Counts, machine: &Machine, taken: &[(String, f64)]) -> Prediction {
        let spot = Spot { machine, limits: &self.limits, price: &self.price };
        // What the process has held says nothing of a device's memory.
        let is_host = machine.kind == machine::Kind::Cpu;
        let resident_bytes = if is_host { resident().1.unwrap_or(0) } else { 0 };
        self.foretell(counts, spot, &self.learned(machine), taken, resident_bytes)
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
        let Spot { machine, limits, price } = spot;
        let price = powered(price, machine);
        estimate::predict(&estimate::Inputs {
            arch: &self.arch,
            config: &self.resolved.config,
            adapted: &self.adapted,
            counts,
            machine,
            // A cap on memory decides about recompute, and which settings are named, as a smaller machine would.
            limits: &limits.capped(&self.resolved.config.budget),
            price: &price,
            learned,
            taken,
            logits_rows: head::chunk_rows(self.arch.vocab_size) as u64,
            file_bytes: self.source.gguf_bytes(),
            resident_bytes,
        })
    }
}

/// The price with the power that electricity is paid by on a machine.
pub(super) fn powered(price: &PriceUsed, machine: &Machine) -> PriceUsed {
    let mut price = price.clone();
    match machine.power_w {
        Some(watts) => price.set_power(Some(watts), Kind::Predicted),
        None => price.set_power(machine.sheet_power_w, Kind::Modelled),
    }
    price
}

/// Sizes the one pool of workers, once a process, and chooses the kernels. The caller becomes one of the workers, so it is
/// to be the thread that computes later on.
///
/// # Errors
/// `FTTRAIN_KERNEL` names a path that this CPU cannot run (2).
pub fn start_threads(wanted: Option<usize>) -> Result<usize> {
    let threads = wanted.unwrap_or_else(|| crate::meter::machine::limits().cores);
    // The caller works too: a thread that only waits for the others costs a switch to it and back with every product. A
    // second run in one process keeps the pool of the first.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
    if let Ok(name) = std::env::var("FTTRAIN_KERNEL") {
        fttrain_kernels::cpu::force(&name).map_err(Error::Kernel)?;
    }
    // Chosen here, on no worker of the pool: the choice may try products, which workers take part in.
    fttrain_kernels::cpu::path();
    // Asked here for the first time, with the workers' stacks and before there is a model or a text.
    bare();
    Ok(threads)
}
