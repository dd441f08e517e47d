//! The profiles that were measured here, one for each machine, thread count, build and kernel path. A file that cannot
//! be read costs a new measurement, never a run.

use super::quick::Provenance;
use crate::estimate::Machine;
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

const SCHEMA: u32 = 1;
/// A profile file is a few KiB; beyond this it is something else.
const MOST_BYTES: u64 = 1 << 20;

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

    /// The profile of a machine by its CPU name and provenance, whenever it was made.
    pub fn find(&self, cpu: &str, provenance: &Provenance) -> Option<&Machine> {
        self.machines.iter().find(|m| {
            m.name == cpu
                && m.threads == provenance.threads
                && m.build == provenance.build
                && m.kernel == provenance.kernel
        })
    }

    /// Adds a profile, or renews the one of the same machine: shapes and classes that only the old one has are kept.
    pub fn insert(&mut self, mut new: Machine) -> &Machine {
        let same = |m: &Machine| {
            (&m.name, m.threads, &m.build, &m.kernel) == (&new.name, new.threads, &new.build, &new.kernel)
        };
        if let Some(at) = self.machines.iter().position(same) {
            let old = self.machines.swap_remove(at);
            for rate in old.matmul {
                let known =
                    |r: &crate::estimate::machine::MatmulRate| (r.m, r.n, r.k) == (rate.m, rate.n, rate.k);
                if !new.matmul.iter().any(known) {
                    new.matmul.push(rate);
                }
            }
            for (class, rate) in old.class_rates {
                new.class_rates.entry(class).or_insert(rate);
            }
            new.power_w = new.power_w.or(old.power_w);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::machine::MatmulRate;
    use crate::estimate::work::Class;

    fn provenance(threads: usize) -> Provenance {
        Provenance { threads, build: "1".into(), kernel: "avx2".into(), measured_at: "today".into() }
    }

    fn measured(n: u64, flops_per_s: f64) -> Machine {
        let mut machine = Machine::assumed("cpu", 2);
        machine.build = "1".into();
        machine.kernel = "avx2".into();
        machine.matmul = vec![MatmulRate { m: 1, n, k: 1, flops_per_s }];
        machine
    }

    #[test]
    fn a_profile_is_found_for_the_same_machine_only() {
        let mut all = Profiles::default();
        all.insert(measured(1, 1.0));
        assert!(all.find("cpu", &provenance(2)).is_some());
        assert!(all.find("cpu", &provenance(4)).is_none());
        assert!(all.find("other", &provenance(2)).is_none());
        let newer = Provenance { build: "2".into(), ..provenance(2) };
        assert!(all.find("cpu", &newer).is_none());
    }

    #[test]
    fn a_new_measurement_renews_its_shapes_and_keeps_the_others() {
        let mut all = Profiles::default();
        let mut first = measured(1, 1.0);
        first.class_rates.insert(Class::Attention, 5.0);
        all.insert(first);
        all.insert(measured(2, 2.0));
        let merged = all.insert(measured(1, 3.0)).clone();
        assert_eq!(all.machines().len(), 1);
        let rates: Vec<f64> = merged.matmul.iter().map(|r| r.flops_per_s).collect();
        assert_eq!(rates, [3.0, 2.0]);
        assert_eq!(merged.class_rates[&Class::Attention].to_bits(), 5f64.to_bits());
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
