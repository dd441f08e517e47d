//! The profiles that were measured here, one for each CPU or GPU, thread count, build and kernel path. A file that cannot
//! be read costs a new measurement, never a run.

use crate::estimate::Machine;
use crate::estimate::machine::Kind;
use crate::meter::machine::cpu_model;
use crate::ops::device;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// All profiles of a home folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profiles {
    schema: u32,
    machines: Vec<Machine>,
}

const SCHEMA: u32 = 3;
/// A profile file is some 100 KiB; beyond this it is something else.
const MOST_BYTES: u64 = 4 << 20;
/// Rates that a machine keeps, the newest.
const MOST_RATES: usize = 1500;
/// Whole-block measurements that it keeps.
const MOST_GLUE: usize = 40;

/// What a profile is valid for, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// A CPU, or a GPU.
    pub kind: Kind,
    /// CPU model as the system names it, or the card as its driver does.
    pub name: String,
    /// Threads that the engine uses; on a GPU always 1, for its rates are the same whatever the host does.
    pub threads: usize,
    /// Version of the program, and which build of it: other kernels have other rates.
    pub build: String,
    /// Kernel path: `amx`, `avx512`, `avx2`, `portable`; `cuda`.
    pub kernel: String,
    /// The wall clock, as a label.
    pub measured_at: String,
}

impl Provenance {
    /// Of this process's CPU, with `threads` workers.
    pub fn here(threads: usize) -> Self {
        Self {
            kind: Kind::Cpu,
            name: cpu_model(),
            threads,
            build: format!("{} {}", env!("CARGO_PKG_VERSION"), build_mark().unwrap_or_default()),
            kernel: fttrain_kernels::cpu::path().name().into(),
            measured_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }
    }

    /// Of this process on a card of this name.
    pub fn of_card(name: &str) -> Self {
        Self { kind: Kind::Accelerator, name: name.into(), kernel: device::CUDA.into(), ..Self::here(1) }
    }
}

/// Size and time of the program's file: two builds do not share both.
fn build_mark() -> Option<String> {
    let meta = std::fs::metadata(std::env::current_exe().ok()?).ok()?;
    let made = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(format!("{:x}-{:x}", meta.len(), made.as_secs()))
}

impl Default for Profiles {
    fn default() -> Self {
        Self { schema: SCHEMA, machines: Vec::new() }
    }
}

impl Profiles {
    /// The file's name in the home folder.
    pub const FILE: &str = "profile.json";

    /// Reads a file of profiles; what is wrong with it comes back as a warning, beside none.
    pub fn load(file: &Path) -> (Self, Option<String>) {
        let mut text = String::new();
        let read =
            std::fs::File::open(file).and_then(|opened| opened.take(MOST_BYTES).read_to_string(&mut text));
        let parsed = match read {
            Err(error) if error.kind() == ErrorKind::NotFound => return (Self::default(), None),
            Err(error) => Err(error.to_string()),
            Ok(_) => serde_json::from_str::<Self>(&text).map_err(|error| error.to_string()),
        };
        let fault = match parsed {
            Ok(profiles) if profiles.schema == SCHEMA => {
                if profiles.machines.iter().all(Machine::is_sound) {
                    return (profiles, None);
                }
                "a rate in it is not above 0".to_owned()
            }
            Ok(profiles) => format!("its schema is {}, not {SCHEMA}", profiles.schema),
            Err(error) => error,
        };
        let warning = format!("{}: {fault}; the machine is measured anew", file.display());
        (Self::default(), Some(warning))
    }

    /// The profile of a machine by its provenance, whenever it was made.
    pub fn find(&self, provenance: &Provenance) -> Option<&Machine> {
        let Provenance { kind, name, threads, build, kernel, .. } = provenance;
        self.machines
            .iter()
            .find(|m| is(m, *kind, name, *threads) && (&m.build, &m.kernel) == (build, kernel))
    }

    /// Drops the profile of a machine that was measured anew as a whole.
    pub fn forget(&mut self, machine: &Machine) {
        self.machines.retain(|m| !is(m, machine.kind, &machine.name, machine.threads));
    }

    /// Adds a profile, or renews the one of the same machine: shapes that only the old one has are kept.
    pub fn insert(&mut self, mut new: Machine) -> &Machine {
        let same = |m: &Machine| is(m, new.kind, &new.name, new.threads) && m.kernel == new.kernel;
        if let Some(at) = self.machines.iter().position(|m| same(m) && m.build == new.build) {
            let mut old = self.machines.swap_remove(at);
            old.rates.retain(|rate| !new.rates.iter().any(|r| r.is_same(rate)));
            old.glue.retain(|glue| !new.glue.contains(glue));
            new.rates.splice(0..0, old.rates);
            new.glue.splice(0..0, old.glue);
            new.rates.drain(..new.rates.len().saturating_sub(MOST_RATES));
            new.glue.drain(..new.glue.len().saturating_sub(MOST_GLUE));
            new.power_w = new.power_w.or(old.power_w);
            new.idle_power_w = new.idle_power_w.or(old.idle_power_w);
        }
        // A build that was replaced will not come back.
        self.machines.retain(|m| !(is(m, new.kind, &new.name, new.threads) && m.kernel == new.kernel));
        self.machines.push(new);
        // One was pushed just now.
        &self.machines[self.machines.len() - 1]
    }

    /// All of them, the newest last.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// Whether a profile is of this machine; one of a card is none of a CPU, whatever it is called.
fn is(machine: &Machine, kind: Kind, name: &str, threads: usize) -> bool {
    (machine.kind, machine.name.as_str(), machine.threads) == (kind, name, threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::rates::Rate;
    use crate::estimate::work::{Class, Stored, Way};

    fn provenance(threads: usize) -> Provenance {
        Provenance {
            kind: Kind::Cpu,
            name: "cpu".into(),
            threads,
            build: "1".into(),
            kernel: "avx2".into(),
            measured_at: "today".into(),
        }
    }

    fn measured(n: u64, flops_per_s: f64) -> Machine {
        let mut machine = Machine::assumed("cpu", 2);
        machine.build = "1".into();
        machine.kernel = "avx2".into();
        machine.rates = vec![Rate {
            class: Class::Linear,
            way: Way::Forward,
            stored: Stored::F32,
            m: 1,
            n,
            k: 1,
            rank: 0,
            per_s: flops_per_s,
        }];
        machine
    }

    #[test]
    fn a_profile_is_found_for_the_same_machine_only() {
        let mut all = Profiles::default();
        all.insert(measured(1, 1.0));
        assert!(all.find(&provenance(2)).is_some());
        let others = [
            Provenance { name: "other".into(), ..provenance(2) },
            Provenance { build: "2".into(), ..provenance(2) },
            Provenance { kernel: "avx512".into(), ..provenance(2) },
            Provenance { kind: Kind::Accelerator, ..provenance(2) },
            provenance(4),
        ];
        for other in others {
            assert!(all.find(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_card_and_a_cpu_of_one_name_and_build_are_kept_apart() {
        let mut all = Profiles::default();
        let card = Machine { kind: Kind::Accelerator, ..measured(1, 9.0) };
        all.insert(measured(1, 1.0));
        all.insert(card.clone());
        let of = |all: &Profiles, kind| Some(all.find(&Provenance { kind, ..provenance(2) })?.rates[0].per_s);
        assert_eq!((of(&all, Kind::Cpu), of(&all, Kind::Accelerator)), (Some(1.0), Some(9.0)));
        all.forget(&card);
        assert_eq!((of(&all, Kind::Cpu), of(&all, Kind::Accelerator)), (Some(1.0), None));
    }

    #[test]
    fn a_cards_provenance_is_its_name_and_the_build_and_no_number_of_threads() {
        let (card, cpu) = (Provenance::of_card("NVIDIA T"), Provenance::here(7));
        assert_eq!(
            (card.kind, card.name.as_str(), card.kernel.as_str()),
            (Kind::Accelerator, "NVIDIA T", "cuda")
        );
        assert_eq!((card.threads, &card.build), (1, &cpu.build));
        assert_ne!(card.kernel, cpu.kernel);
    }

    #[test]
    fn a_new_measurement_renews_its_shapes_and_keeps_the_others() {
        let mut all = Profiles::default();
        all.insert(measured(1, 1.0));
        all.insert(measured(2, 2.0));
        let merged = all.insert(measured(1, 3.0)).clone();
        assert_eq!(all.machines().len(), 1);
        let rates: Vec<f64> = merged.rates.iter().map(|r| r.per_s).collect();
        assert_eq!(rates, [2.0, 3.0]);
        let mut rebuilt = measured(7, 1.0);
        rebuilt.build = "2".into();
        assert_eq!(all.insert(rebuilt).rates.len(), 1, "another build's rates are not kept");
        assert_eq!(all.machines().len(), 1);
    }

    #[test]
    fn a_file_round_trips_and_a_missing_one_is_no_fault() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(Profiles::FILE);
        assert_eq!(Profiles::load(&file), (Profiles::default(), None));
        let mut all = Profiles::default();
        all.insert(measured(1, 1.5));
        std::fs::write(&file, all.to_json()).unwrap();
        assert_eq!(Profiles::load(&file), (all, None));
    }

    #[test]
    fn a_broken_file_is_named_and_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(Profiles::FILE);
        for text in ["", "{", "{\"schema\":9,\"machines\":[]}", "\u{0}"] {
            std::fs::write(&file, text).unwrap();
            let (none, warning) = Profiles::load(&file);
            assert_eq!(none, Profiles::default());
            assert!(warning.unwrap().contains("profile.json"));
        }
        let mut impossible = Profiles::default();
        impossible.insert(measured(1, -1.0));
        std::fs::write(&file, impossible.to_json()).unwrap();
        assert!(Profiles::load(&file).1.unwrap().contains("above 0"));
        let (_, warning) = Profiles::load(folder.path());
        assert!(warning.is_some(), "a folder is no profile");
    }
}
