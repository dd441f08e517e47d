//! The profile of this machine for a run: read where it was measured before, measured where it was not.

use super::computer::Computer;
use super::probe::{Probe, Setting};
use super::profile::Profiles;
use super::rig::Rig;
use super::shapes::{self, Ask};
use super::stopwatch::Patience;
use super::whole;
use crate::error::Result;
use crate::estimate::Machine;
use crate::estimate::machine::Evidence;
use crate::fs;
use crate::model::adapter::Adapter;
use std::path::Path;
use std::time::{Duration, Instant};

/// A run waits no longer than this for its own shapes to be measured.
const QUICK: Duration = Duration::from_secs(4);
/// A calibration ends here, whatever of the grid is left.
const THOROUGH: Duration = Duration::from_secs(100);
/// For how long it touches memory.
const FAR: Duration = Duration::from_secs(8);
/// What the grid's probes have beside their shapes.
const GRID: Setting = Setting { heads: 8, kv_heads: 4, tokens: 8192, layers: usize::MAX };

/// The rates of a CPU or GPU at the shapes of a run; new ones are kept under `home`. The second value is a warning.
///
/// # Errors
/// A fault of an op.
pub fn machine(
    ask: &Ask<'_>,
    adapter: Option<&Adapter>,
    computer: &Computer,
    home: &Path,
) -> Result<(Machine, Option<String>)> {
    let (provenance, rig) = (computer.provenance(), computer.rig());
    let (mut profiles, warning) = Profiles::load(&home.join(Profiles::FILE));
    let wanted = shapes::wanted(ask, rig.bounds());
    let known = profiles.find(&provenance).cloned();
    let is_new = known.is_none();
    let mut machine = match known {
        Some(known) => known,
        None => computer.blank()?,
    };
    computer.renew(&mut machine, &profiles);
    let missing = shapes::lacking(&machine, &wanted);
    let tokens = ask.counts.tokens as f64 / ask.counts.micro_batches.max(1) as f64;
    let knows_glue = machine.knows_glue(tokens, &ask.model().blocks());
    if missing.is_empty() && knows_glue {
        return Ok((machine, warning));
    }
    let until = Instant::now() + QUICK;
    if is_new {
        // What is touched here counts in this process's peak: far pages are left to `fttrain calibrate`.
        computer.bulk(&mut machine, &profiles, home, Patience::QUICK, Duration::ZERO)?;
    }
    let spread = probe(&mut machine, rig, &missing, ask.setting(), Patience::QUICK, until)?;
    if is_new {
        machine.spread = spread;
    }
    let glue = if knows_glue { None } else { whole::glue(ask, adapter, &machine, rig, Patience::QUICK)? };
    if missing.is_empty() && glue.is_none() {
        return Ok((machine, warning));
    }
    machine.glue.extend(glue);
    machine.measured_at = Some(provenance.measured_at);
    let kept = keep(&mut profiles, &machine, home);
    Ok((machine, warning.or(kept.err().map(|e| format!("the machine's profile could not be kept: {e}")))))
}

/// Measures a CPU or GPU over the grid and at the shapes of `asks`, and keeps the profile under `home`. `said` hears how
/// much is done.
///
/// # Errors
/// A fault of an op; `home` cannot be written.
pub fn calibrate(
    asks: &[(Ask<'_>, Option<&Adapter>)],
    computer: &Computer,
    home: &Path,
    said: &mut dyn FnMut(usize, usize),
) -> Result<Machine> {
    let (provenance, rig) = (computer.provenance(), computer.rig());
    let (profiles, _) = Profiles::load(&home.join(Profiles::FILE));
    let mut machine = computer.blank()?;
    let started = Instant::now();
    let patience = Patience::THOROUGH;
    computer.bulk(&mut machine, &profiles, home, patience, FAR)?;
    for (ask, adapter) in asks {
        let wanted = shapes::wanted(ask, rig.bounds());
        probe(&mut machine, rig, &wanted, ask.setting(), patience, started + THOROUGH)?;
        machine.glue.extend(whole::glue(ask, *adapter, &machine, rig, patience)?);
    }
    let grid = computer.grid();
    let mut spreads = Vec::new();
    for (done, one) in grid.iter().enumerate() {
        if started.elapsed() > THOROUGH {
            break;
        }
        said(done, grid.len());
        spreads.push(probe(&mut machine, rig, &[*one], GRID, patience, started + THOROUGH)?);
    }
    machine.spread = crate::estimate::history::median(&mut spreads);
    let load = computer.load(&grid);
    computer.power(&mut machine, &mut || match load {
        Some(probe) => probe.measure(rig, GRID, Patience::QUICK).map(drop),
        None => Ok(()),
    })?;
    machine.evidence = Evidence::Calibrated;
    machine.measured_at = Some(provenance.measured_at);
    // Once more: a run may have kept its shapes meanwhile.
    let (mut profiles, _) = Profiles::load(&home.join(Profiles::FILE));
    profiles.forget(&machine);
    keep(&mut profiles, &machine, home)?;
    Ok(machine)
}

/// Measures probes until the deadline, the first of them always; gives the middle of their scatter.
fn probe(
    machine: &mut Machine,
    rig: &Rig,
    probes: &[Probe],
    setting: Setting,
    patience: Patience,
    until: Instant,
) -> Result<f64> {
    let mut spreads = Vec::new();
    for (done, probe) in probes.iter().enumerate() {
        if done > 0 && Instant::now() > until {
            break;
        }
        let (rate, timed) = probe.measure(rig, setting, patience)?;
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
    use crate::arch::{Arch, Linear};
    use crate::calibrate::Provenance;
    use crate::config::{Config, Method};
    use crate::estimate::Counts;
    use crate::estimate::fixture::{config, llama};
    use crate::estimate::machine::Kind;
    use crate::model::adapter::Adapter;

    /// A small run, and everything that an [`Ask`] of it refers to.
    struct Small {
        arch: Arch,
        config: Config,
        adapted: Vec<Linear>,
        counts: Counts,
        adapter: Adapter,
    }

    impl Small {
        fn new() -> Self {
            let (arch, config) = (llama(2, 256, 64, 128, 2, 1, true), config());
            let Method::Lora(lora) = &config.method else { unreachable!() };
            let adapter = Adapter::resolve(&arch, lora, None, 0).unwrap();
            let counts = Counts::uniform(100, 32, &config);
            Self { adapted: arch.linears().collect(), arch, config, counts, adapter }
        }

        fn on(&self, computer: &Computer, kind: Kind, home: &Path) -> Machine {
            let Self { arch, config, adapted, counts, adapter } = self;
            let ask = Ask { arch, config, adapted, counts, logits_rows: 64, kind };
            let (machine, warning) = machine(&ask, Some(adapter), computer, home).unwrap();
            assert_eq!(warning, None);
            machine
        }
    }

    #[test]
    fn a_run_is_measured_once_and_found_again() {
        let (home, small, cores) = (tempfile::tempdir().unwrap(), Small::new(), Computer::cores(2));
        let started = Instant::now();
        let first = small.on(&cores, Kind::Cpu, home.path());
        assert!(started.elapsed() < Duration::from_secs(20), "seconds, not minutes");
        assert_eq!(first.evidence, Evidence::Measured);
        assert!(first.rates.len() >= 10 && first.glue.len() == 1, "{first:?}");
        assert!(first.baseline_bytes > 1 << 20);
        assert_eq!(small.on(&cores, Kind::Cpu, home.path()), first);
    }

    #[test]
    fn a_gpu_is_measured_beside_its_host_and_found_again_whatever_the_threads() {
        let (home, small) = (tempfile::tempdir().unwrap(), Small::new());
        let card = "NVIDIA H100 80GB HBM3";
        let gpu = small.on(&Computer::played(card, 2), Kind::Accelerator, home.path());
        assert_eq!((gpu.kind, gpu.name.as_str(), gpu.threads), (Kind::Accelerator, card, 1));
        assert_eq!((gpu.evidence, gpu.kernel.as_str()), (Evidence::Measured, "cuda"));
        assert!(gpu.rates.len() >= 10 && gpu.glue.len() == 1 && gpu.is_sound(), "{gpu:?}");
        assert!(gpu.rates.iter().all(|rate| rate.per_s < 1e14), "none is the data sheet's");
        assert!(gpu.launch_s > 0.0 && gpu.sheet_power_w == Some(700.0) && gpu.baseline_bytes > 1 << 28);
        let tokenised = gpu.tokenise_tokens_per_s;
        assert!((tokenised - Machine::assumed("", 2).tokenise_tokens_per_s).abs() > 0.0, "of this host");
        assert_eq!(small.on(&Computer::played(card, 7), Kind::Accelerator, home.path()), gpu);

        let cpu = small.on(&Computer::cores(2), Kind::Cpu, home.path());
        assert_eq!((cpu.kind, cpu.launch_s), (Kind::Cpu, 0.0));
        let (profiles, _) = Profiles::load(&home.path().join(Profiles::FILE));
        assert_eq!(profiles.machines().len(), 2);
        assert_eq!(profiles.find(&Provenance::of_card(card)), Some(&gpu));
        // What was measured of the host since is the GPU's host, too.
        let again = small.on(&Computer::played(card, 2), Kind::Accelerator, home.path());
        assert_eq!((again.fsync_s, again.startup_s), (cpu.fsync_s, cpu.startup_s));
        assert_eq!((again.rates, again.copy_bytes_per_s), (gpu.rates, gpu.copy_bytes_per_s));
    }

    #[test]
    fn a_blocks_factor_is_over_its_ops_and_not_over_another_models_factor() {
        let (home, small) = (tempfile::tempdir().unwrap(), Small::new());
        let mut machine = small.on(&Computer::cores(2), Kind::Cpu, home.path());
        for glue in &mut machine.glue {
            glue.factor = 100.0;
        }
        let Small { arch, config, adapted, counts, adapter } = &small;
        let ask = Ask { arch, config, adapted, counts, logits_rows: 64, kind: Kind::Cpu };
        let glue = whole::glue(&ask, Some(adapter), &machine, &Rig::CPU, Patience::QUICK).unwrap();
        assert!(glue.unwrap().factor > 0.65, "{glue:?}");
    }

    #[test]
    fn a_card_without_a_sheet_is_measured_all_the_same() {
        let (home, small) = (tempfile::tempdir().unwrap(), Small::new());
        let gpu = small.on(&Computer::played("NVIDIA Nobody 1", 2), Kind::Accelerator, home.path());
        assert!(gpu.rates.len() >= 10 && gpu.is_sound(), "{gpu:?}");
        assert_eq!((gpu.kind, gpu.sheet_power_w), (Kind::Accelerator, None));
    }
}
