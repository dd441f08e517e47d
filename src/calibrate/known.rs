//! The profile of this machine for a run: read where it was measured before, measured where it was not.

use super::probe::{Heads, Probe};
use super::profile::{Profiles, Provenance};
use super::shapes::{self, Ask};
use super::stopwatch::Patience;
use super::{bulk, program, whole};
use crate::error::Result;
use crate::estimate::Machine;
use crate::estimate::machine::Evidence;
use crate::fs;
use crate::meter::machine::cpu_model;
use crate::meter::process::bare;
use crate::model::adapter::Adapter;
use std::path::Path;
use std::time::{Duration, Instant};

/// A run waits no longer than this for its own shapes to be measured.
const QUICK: Duration = Duration::from_secs(4);
/// A calibration ends here, whatever of the grid is left.
const THOROUGH: Duration = Duration::from_secs(100);
/// For how long it touches memory.
const FAR: Duration = Duration::from_secs(8);
/// Heads of the grid's attention.
const GRID_HEADS: Heads = Heads { query: 8, key: 4 };

/// The machine's rates at the shapes of a run; new ones are kept under `home`. The second value is a warning.
///
/// # Errors
/// A fault of an op.
pub fn machine(
    ask: &Ask<'_>,
    adapter: Option<&Adapter>,
    threads: usize,
    home: &Path,
) -> Result<(Machine, Option<String>)> {
    let provenance = Provenance::here(threads);
    let (mut profiles, warning) = Profiles::load(&home.join(Profiles::FILE));
    let wanted = shapes::wanted(ask);
    let known = profiles.find(&cpu_model(), &provenance).cloned();
    let is_new = known.is_none();
    let mut machine = known.unwrap_or_else(|| blank(&provenance));
    weigh(&mut machine);
    let missing = shapes::lacking(&machine, &wanted);
    if missing.is_empty() {
        return Ok((machine, warning));
    }
    let until = Instant::now() + QUICK;
    let heads = Heads { query: ask.arch.heads, key: ask.arch.kv_heads };
    if is_new {
        // First of all: fresh pages are those that nobody has touched.
        // What is touched here counts in this process's peak: far pages are left to `fttrain calibrate`.
        bulk::measure(&mut machine, home, Patience::QUICK, Duration::ZERO)?;
        program::measure(&mut machine, home, Patience::QUICK)?;
    }
    let spread = probe(&mut machine, &missing, heads, Patience::QUICK, until)?;
    if is_new {
        machine.spread = spread;
    }
    machine.glue.extend(whole::glue(ask, adapter, &machine, Patience::QUICK)?);
    machine.measured_at = Some(provenance.measured_at.clone());
    let kept = keep(&mut profiles, &machine, home);
    Ok((machine, warning.or(kept.err().map(|e| format!("the machine's profile could not be kept: {e}")))))
}

/// Measures this machine over the grid and at the shapes of `asks`, and keeps the profile under `home`. `said` hears
/// how much is done.
///
/// # Errors
/// A fault of an op; `home` cannot be written.
pub fn calibrate(
    asks: &[(Ask<'_>, Option<&Adapter>)],
    threads: usize,
    home: &Path,
    said: &mut dyn FnMut(usize, usize),
) -> Result<Machine> {
    let provenance = Provenance::here(threads);
    let mut machine = blank(&provenance);
    let started = Instant::now();
    let patience = Patience::THOROUGH;
    bulk::measure(&mut machine, home, patience, FAR)?;
    program::measure(&mut machine, home, patience)?;
    for (ask, adapter) in asks {
        let heads = Heads { query: ask.arch.heads, key: ask.arch.kv_heads };
        probe(&mut machine, &shapes::wanted(ask), heads, patience, started + THOROUGH)?;
        machine.glue.extend(whole::glue(ask, *adapter, &machine, patience)?);
    }
    let grid = shapes::grid();
    let mut spreads = Vec::new();
    for (done, one) in grid.iter().enumerate() {
        if started.elapsed() > THOROUGH {
            break;
        }
        said(done, grid.len());
        spreads.push(probe(&mut machine, &[*one], GRID_HEADS, patience, started + THOROUGH)?);
    }
    machine.spread = crate::estimate::history::median(&mut spreads);
    let load = grid.first().copied();
    bulk::power(&mut machine, &mut || match load {
        Some(probe) => probe.measure(GRID_HEADS, Patience::QUICK).map(drop),
        None => Ok(()),
    })?;
    machine.evidence = Evidence::Calibrated;
    machine.measured_at = Some(provenance.measured_at);
    let (mut profiles, _) = Profiles::load(&home.join(Profiles::FILE));
    profiles.forget(&machine);
    keep(&mut profiles, &machine, home)?;
    Ok(machine)
}

/// A machine of which only the process's own weight is known.
fn blank(provenance: &Provenance) -> Machine {
    let mut machine = Machine::assumed(cpu_model(), provenance.threads);
    weigh(&mut machine);
    machine.evidence = Evidence::Measured;
    machine.build.clone_from(&provenance.build);
    machine.kernel.clone_from(&provenance.kernel);
    machine.bf16_base = fttrain_kernels::cpu::path().has_bf16();
    machine
}

/// What the process weighs by itself: this one, for another build's may weigh less.
fn weigh(machine: &mut Machine) {
    if let Some(bytes) = bare() {
        machine.baseline_bytes = bytes;
    }
}

/// Measures probes until the deadline, the first of them always; gives the middle of their scatter.
fn probe(
    machine: &mut Machine,
    probes: &[Probe],
    heads: Heads,
    patience: Patience,
    until: Instant,
) -> Result<f64> {
    let mut spreads = Vec::new();
    for (done, probe) in probes.iter().enumerate() {
        if done > 0 && Instant::now() > until {
            break;
        }
        let (rate, timed) = probe.measure(heads, patience)?;
        machine.rates.retain(|old| !old.is_same(&rate));
        machine.rates.push(rate);
        spreads.push(timed.spread);
    }
    Ok(crate::estimate::history::median(&mut spreads))
}

fn keep(profiles: &mut Profiles, machine: &Machine, home: &Path) -> Result<()> {
    profiles.insert(machine.clone());
    fs::create_folders(home)?;
    fs::write_durable(&home.join(Profiles::FILE), profiles.to_json().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Linear;
    use crate::estimate::Counts;
    use crate::estimate::fixture::{config, llama};
    use crate::model::adapter::Adapter;

    #[test]
    fn a_run_is_measured_once_and_found_again() {
        let home = tempfile::tempdir().unwrap();
        let (arch, config) = (llama(2, 256, 64, 128, 2, 1, true), config());
        let adapted: Vec<Linear> = arch.linears().collect();
        let counts = Counts::uniform(100, 32, &config);
        let ask = Ask { arch: &arch, config: &config, adapted: &adapted, counts: &counts, logits_rows: 64 };
        let crate::config::Method::Lora(lora) = &config.method else { unreachable!() };
        let adapter = Adapter::resolve(&arch, lora, None, 0).unwrap();
        let started = Instant::now();
        let (first, warning) = machine(&ask, Some(&adapter), 2, home.path()).unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "seconds, not minutes");
        assert_eq!((warning, first.evidence), (None, Evidence::Measured));
        assert!(first.rates.len() >= 10 && first.glue.len() == 1, "{first:?}");
        assert!(first.baseline_bytes > 1 << 20);
        let (second, _) = machine(&ask, Some(&adapter), 2, home.path()).unwrap();
        assert_eq!(second, first);
    }
}
