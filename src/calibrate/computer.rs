//! What is measured: this machine's cores, or a GPU with the host that feeds it.

use super::probe::{Probe, Setting};
use super::profile::{Profiles, Provenance};
use super::rig::Rig;
use super::shapes;
use super::stopwatch::Patience;
use super::{bulk, program};
use crate::error::Result;
use crate::estimate::machine::{Evidence, Kind};
use crate::estimate::work::{Class, Stored, Way};
use crate::estimate::{Machine, machines, sheets};
use crate::meter::gpu::Gauge;
use crate::meter::process::bare;
use crate::meter::rapl::Rapl;
use candle_core::Device;
use fttrain_kernels::sys::cuda::Card;
use std::path::Path;
use std::time::Duration;

/// A product that takes next to no memory.
const FIRST: Probe =
    Probe { class: Class::Linear, way: Way::Forward, stored: Stored::Bf16, m: 64, n: 64, k: 64, rank: 0 };
const ALONE: Setting = Setting { heads: 1, kv_heads: 1, tokens: 64, layers: 1 };

/// One of them.
#[derive(Debug, Clone)]
pub struct Computer {
    rig: Rig,
    /// `None` = the cores.
    gpu: Option<Gpu>,
    threads: usize,
}

#[derive(Debug, Clone)]
struct Gpu {
    /// From 0.
    nth: usize,
    card: Card,
}

impl Computer {
    /// This machine's cores, with so many workers.
    pub fn cores(threads: usize) -> Self {
        Self { rig: Rig::CPU, gpu: None, threads }
    }

    /// The `nth` GPU, which was opened as `device`; the host has so many workers.
    pub fn gpu(nth: usize, card: Card, device: &Device, threads: usize) -> Self {
        Self { rig: Rig::on(device, card.bytes), gpu: Some(Gpu { nth, card }), threads }
    }

    /// A GPU that the CPU plays, with so little memory that its copies take a moment.
    #[cfg(test)]
    pub(super) fn played(name: &str, threads: usize) -> Self {
        let card = Card { name: name.into(), bytes: 256 << 20, uuid: None };
        let rig = Rig::queue(&Device::Cpu, card.bytes);
        Self { rig, gpu: Some(Gpu { nth: 0, card }), threads }
    }

    /// Where its probes run.
    pub(super) fn rig(&self) -> &Rig {
        &self.rig
    }

    /// What its profile is known by.
    pub(super) fn provenance(&self) -> Provenance {
        match &self.gpu {
            Some(gpu) => Provenance::of_card(&gpu.card.name),
            None => Provenance::here(self.threads),
        }
    }

    /// A machine of which nothing is measured yet but, of the cores, the process's own weight. A GPU has what its data sheet
    /// says, but no rates: those of a sheet would stand among measured ones.
    ///
    /// # Errors
    /// None in a released program.
    pub(super) fn blank(&self) -> Result<Machine> {
        let provenance = self.provenance();
        let mut machine = match &self.gpu {
            Some(gpu) => {
                let name = &gpu.card.name;
                let machine = machines::of_card(name)?.unwrap_or_else(|| sheets::unknown(name));
                Machine { rates: Vec::new(), bf16_base: true, ..machine }
            }
            None => Machine {
                bf16_base: fttrain_kernels::cpu::path().has_bf16(),
                ..Machine::assumed("", self.threads)
            },
        };
        weigh(&mut machine);
        machine.evidence = Evidence::Measured;
        machine.spread = 0.0;
        machine.threads = provenance.threads;
        (machine.name, machine.build, machine.kernel) =
            (provenance.name, provenance.build, provenance.kernel);
        Ok(machine)
    }

    /// Brings a kept profile up to date: what the process weighs now, on a GPU what was measured of the host since.
    pub(super) fn renew(&self, machine: &mut Machine, profiles: &Profiles) {
        weigh(machine);
        if let Some(host) = self.host(profiles) {
            machine.take_host(host);
        }
    }

    /// Of a GPU, the profile of its host.
    fn host<'a>(&self, profiles: &'a Profiles) -> Option<&'a Machine> {
        profiles.find(&Provenance::here(self.threads)).filter(|_| self.gpu.is_some())
    }

    /// What is measured once, whatever the model; the host of a GPU only where it was not before. Memory is touched for so
    /// long at most.
    ///
    /// # Errors
    /// The disk under `home` cannot be written; the device does not answer.
    pub(super) fn bulk(
        &self,
        machine: &mut Machine,
        profiles: &Profiles,
        home: &Path,
        patience: Patience,
        touched_for: Duration,
    ) -> Result<()> {
        if let Some(host) = self.host(profiles) {
            machine.take_host(host);
        } else {
            // First of all: fresh pages are those that nobody has touched.
            bulk::measure(machine, home, patience, touched_for)?;
            program::measure(machine, home, patience)?;
        }
        let Some(Gpu { nth, card }) = &self.gpu else { return Ok(()) };
        bulk::launch(machine, &self.rig, patience)?;
        // Libraries take what they need for themselves with their first product.
        FIRST.measure(&self.rig, ALONE, patience)?;
        if let Some(bytes) = Gauge::open(&card.name, *nth).and_then(|mut gauge| gauge.own_bytes()) {
            machine.baseline_bytes = bytes;
        }
        bulk::device(machine, &self.rig, card.bytes, patience)
    }

    /// What a calibration measures beside the shapes of runs.
    pub(super) fn grid(&self) -> Vec<Probe> {
        match self.gpu {
            Some(_) => shapes::grid_of_card(self.rig.bounds()),
            None => shapes::grid(),
        }
    }

    /// Power at rest and under load: of the packages, on a GPU its own and, where they can be read, theirs.
    ///
    /// # Errors
    /// The load's own.
    pub(super) fn power(&self, machine: &mut Machine, load: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut rapl = Rapl::open(Path::new("/sys/class/powercap"));
        let mut packages = |now_s: f64| rapl.as_mut()?.read(now_s);
        let Some(Gpu { nth, card }) = &self.gpu else { return bulk::power(machine, &mut packages, load) };
        let Some(mut gauge) = Gauge::open(&card.name, *nth) else { return Ok(()) };
        bulk::power(machine, &mut |now_s| Some(gauge.energy_j()? + packages(now_s).unwrap_or(0.0)), load)
    }

    /// The probe that is the load: a product, where a GPU draws most.
    pub(super) fn load(&self, grid: &[Probe]) -> Option<Probe> {
        let mut all = grid.iter().filter(|probe| self.gpu.is_none() || probe.class == Class::Linear);
        all.next().copied()
    }
}

/// What the process weighs by itself: this one, for another build's may weigh less.
fn weigh(machine: &mut Machine) {
    if let Some(bytes) = bare().filter(|_| machine.kind == Kind::Cpu) {
        machine.baseline_bytes = bytes;
    }
}
