//! Energy of the CPU packages from Linux's powercap files. Often absent (virtual machines) or readable by root only:
//! then energy is not measured.

use std::path::{Path, PathBuf};

/// One counter, in microjoules, that starts again at 0 beyond its range.
#[derive(Debug)]
struct Domain {
    file: PathBuf,
    range_uj: u64,
    last_uj: u64,
    total_uj: u64,
}

/// All packages of the machine.
#[derive(Debug)]
pub struct Rapl {
    packages: Vec<Domain>,
    last_s: f64,
    lost: bool,
}

/// No package draws more: a longer gap than its range lasts at this power may hide a whole wrap.
const MOST_W: f64 = 2000.0;
/// A look may be late by this much.
const LATE_S: f64 = 1.0;

impl Rapl {
    /// Opens the packages below `root` (`/sys/class/powercap`); `None` where there is none or one cannot be read.
    ///
    /// Only domains named `package-N`: `psys` contains them, and `core`, `uncore`, `dram` are their parts.
    pub fn open(root: &Path) -> Option<Self> {
        let mut packages = Vec::new();
        for entry in std::fs::read_dir(root).ok()?.flatten() {
            let folder = entry.path();
            let Some(name) = read(&folder.join("name")) else {
                continue;
            };
            if !name.starts_with("package") {
                continue;
            }
            let file = folder.join("energy_uj");
            packages.push(Domain {
                last_uj: read(&file)?.parse().ok()?,
                range_uj: read(&folder.join("max_energy_range_uj"))?.parse().ok()?,
                file,
                total_uj: 0,
            });
        }
        // The same package shows up once more under the MMIO interface.
        packages.sort_by(|a, b| a.file.cmp(&b.file));
        if packages.iter().any(|p| is_mmio(&p.file)) && packages.iter().any(|p| !is_mmio(&p.file)) {
            packages.retain(|p| !is_mmio(&p.file));
        }
        (!packages.is_empty()).then_some(Self { packages, last_s: 0.0, lost: false })
    }

    /// Joules of all packages since the opening, at `now_s` seconds since then; `None` for good once a counter was
    /// lost, a gap was long enough to hide a wrap, or a counter that began anew (suspended, its driver loaded again) looks
    /// as if more had been used than any package can.
    pub fn read(&mut self, now_s: f64) -> Option<f64> {
        let gap_uj = (now_s - self.last_s) * MOST_W * 1e6;
        let most_uj = gap_uj + LATE_S * MOST_W * 1e6;
        self.last_s = now_s;
        for package in &mut self.packages {
            let now = read(&package.file).and_then(|text| text.parse().ok());
            let used = now.and_then(|n| difference(package.last_uj, n, package.range_uj));
            match (now, used) {
                (Some(now), Some(used)) if gap_uj < package.range_uj as f64 && used as f64 <= most_uj => {
                    package.last_uj = now;
                    package.total_uj = package.total_uj.saturating_add(used);
                }
                _ => self.lost = true,
            }
        }
        let total: u64 = self.packages.iter().map(|p| p.total_uj).sum();
        (!self.lost).then_some(total as f64 / 1e6)
    }
}

fn is_mmio(file: &Path) -> bool {
    file.to_string_lossy().contains("mmio")
}

/// Microjoules between two readings of a counter that wraps after `range`; `None` where it cannot have.
fn difference(before: u64, now: u64, range: u64) -> Option<u64> {
    if now >= before {
        Some(now - before)
    } else {
        // The counter shows 0 after `range`: one more than the distance to it.
        range.checked_sub(before)?.checked_add(now)?.checked_add(1)
    }
}

fn read(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Powercap(tempfile::TempDir);

    impl Powercap {
        fn new() -> Self {
            let all = Self(tempfile::tempdir().unwrap());
            for (folder, name) in [
                ("intel-rapl", "control"),
                ("intel-rapl:0", "package-0"),
                ("intel-rapl:0:0", "core"),
                ("intel-rapl:1", "psys"),
                ("intel-rapl-mmio:0", "package-0"),
            ] {
                let path = all.0.path().join(folder);
                fs::create_dir(&path).unwrap();
                fs::write(path.join("name"), format!("{name}\n")).unwrap();
                fs::write(path.join("max_energy_range_uj"), "262143328850\n").unwrap();
            }
            for folder in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl-mmio:0"] {
                all.set(folder, 1_000_000);
            }
            all
        }

        fn set(&self, folder: &str, uj: u64) {
            fs::write(self.0.path().join(folder).join("energy_uj"), format!("{uj}\n")).unwrap();
        }
    }

    #[test]
    fn only_packages_count_and_each_once() {
        let files = Powercap::new();
        let mut rapl = Rapl::open(files.0.path()).unwrap();
        assert_eq!(rapl.packages.len(), 1);
        files.set("intel-rapl:0", 4_500_000);
        files.set("intel-rapl:1", 999_000_000);
        assert_eq!(rapl.read(0.1), Some(3.5));
    }

    #[test]
    fn a_wrap_is_counted_through() {
        let files = Powercap::new();
        files.set("intel-rapl:0", 262_143_328_850 - 999_999);
        let mut rapl = Rapl::open(files.0.path()).unwrap();
        files.set("intel-rapl:0", 2_000_000);
        assert_eq!(rapl.read(0.1), Some(3.0));
    }

    #[test]
    fn a_counter_that_began_anew_is_lost_and_no_wrap() {
        let files = Powercap::new();
        files.set("intel-rapl:0", 200_000_000_000);
        let mut rapl = Rapl::open(files.0.path()).unwrap();
        files.set("intel-rapl:0", 5_000_000);
        assert_eq!(rapl.read(0.1), None);
    }

    #[test]
    fn a_gap_that_may_hide_a_wrap_loses_the_counter() {
        let files = Powercap::new();
        let mut rapl = Rapl::open(files.0.path()).unwrap();
        assert!(rapl.read(60.0).is_some());
        assert_eq!(rapl.read(1000.0), None);
        assert_eq!(rapl.read(1000.1), None, "and it stays lost");
    }

    #[test]
    fn a_counter_that_goes_away_is_lost() {
        let files = Powercap::new();
        let mut rapl = Rapl::open(files.0.path()).unwrap();
        fs::remove_file(files.0.path().join("intel-rapl:0/energy_uj")).unwrap();
        assert_eq!(rapl.read(0.1), None);
    }

    #[test]
    fn nothing_there_or_nothing_readable_is_not_measured() {
        assert!(Rapl::open(Path::new("/nonexistent")).is_none());
        let files = Powercap::new();
        fs::remove_file(files.0.path().join("intel-rapl:0/energy_uj")).unwrap();
        assert!(Rapl::open(files.0.path()).is_none());
    }
}
