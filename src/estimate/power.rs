//! What processors and accelerators draw at full load by their data sheets: the model behind energy that nobody can
//! measure. Leaves out memory, disks, fans and the power supply's losses.

use super::error::Error;
use super::{csv, sheets};

const SHIPPED: &str = include_str!("power.csv");

/// A part's power by its data sheet.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// The name that was looked for in the model's.
    pub pattern: String,
    /// W of the whole part at full load.
    pub watts: f64,
    /// Hardware threads that share it; 1 for an accelerator.
    pub threads: f64,
    /// Where the figure was read, and when it was published.
    pub source: String,
    is_cpu: bool,
}

impl Sheet {
    /// W of one hardware thread that is busy.
    pub fn watts_per_thread(&self) -> f64 {
        self.watts / self.threads
    }

    /// Figure and source in a few words.
    pub fn said(&self) -> String {
        let share = if self.is_cpu { " a busy thread" } else { " at full load" };
        format!("{:.2} W{share}, {}", self.watts_per_thread(), self.source)
    }
}

/// The sheet of a CPU by the name that the system gives it; the longest row that the name holds counts.
pub fn cpu(model: &str) -> Option<Sheet> {
    find(model, true)
}

/// The sheet of an accelerator by the name that its driver gives it: boards of their own power first, then what the
/// data sheets of the estimate say.
pub fn gpu(model: &str) -> Option<Sheet> {
    find(model, false).or_else(|| {
        let all = sheets::shipped().unwrap_or_default();
        let sheet = sheets::of_card(&all, model)?.clone();
        Some(Sheet {
            pattern: sheet.name,
            watts: sheet.tdp_w,
            threads: 1.0,
            source: sheet.source,
            is_cpu: false,
        })
    })
}

fn find(model: &str, is_cpu: bool) -> Option<Sheet> {
    let model = model.to_lowercase();
    let rows = shipped().unwrap_or_default().into_iter();
    rows.filter(|s| s.is_cpu == is_cpu && holds(&model, &s.pattern)).max_by_key(|s| s.pattern.len())
}

/// Whole words only: `L4` is not in `L40S`. A letter may follow a model's number, such as the P of one socket.
fn holds(model: &str, pattern: &str) -> bool {
    let pattern = pattern.to_lowercase();
    model.match_indices(&pattern).any(|(at, _)| {
        let before = model.get(..at).and_then(|s| s.chars().next_back());
        let after = model.get(at + pattern.len()..).and_then(|s| s.chars().next());
        let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let suffix = pattern.len() > 6 && after.is_some_and(|c| !c.is_ascii_digit());
        !is_word(before) && (!is_word(after) || suffix)
    })
}

fn shipped() -> Result<Vec<Sheet>, Error> {
    csv::read("power table", SHIPPED, |row| {
        Ok(Sheet {
            pattern: row.text("pattern")?.into(),
            watts: row.needed("watts")?,
            threads: row.number("threads")?.filter(|n| *n >= 1.0).unwrap_or(1.0),
            source: format!("{} ({})", row.text("source")?, row.text("as_of")?),
            is_cpu: row.text("part")? == "cpu",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_figure_a_source_and_a_date() {
        let rows = shipped().unwrap();
        assert!(rows.len() > 20);
        for row in &rows {
            assert!(row.watts > 0.0 && row.source.contains(':') && row.source.contains("(20"), "{row:?}");
            assert!((0.3..=700.0).contains(&row.watts_per_thread()), "{row:?}");
        }
    }

    #[test]
    fn names_are_matched_as_systems_write_them() {
        let per_thread = |name: &str| cpu(name).map(|s| s.watts_per_thread());
        assert_eq!(per_thread("AMD EPYC 9654P 96-Core Processor"), Some(360.0 / 192.0));
        assert_eq!(per_thread("AMD EPYC"), Some(1.872));
        assert_eq!(per_thread("Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz"), Some(270.0 / 80.0));
        assert_eq!(per_thread("Intel(R) Xeon(R) CPU @ 2.20GHz"), Some(3.642));
        assert_eq!(per_thread("unknown riscv64 CPU"), None);
        let watts = |name: &str| gpu(name).map(|s| s.watts);
        assert_eq!(watts("NVIDIA H100 80GB HBM3"), Some(700.0));
        assert_eq!(watts("NVIDIA H100 PCIe"), Some(350.0));
        assert_eq!(watts("NVIDIA L40S"), Some(350.0));
        assert_eq!(watts("NVIDIA L4"), Some(72.0));
        assert_eq!(watts("NVIDIA A100-SXM4-80GB"), Some(400.0));
        assert_eq!(watts("NVIDIA A100 80GB PCIe"), Some(300.0));
        assert_eq!(watts("NVIDIA GeForce RTX 4090"), Some(450.0));
        assert_eq!(watts("Tesla T4"), Some(70.0));
        assert_eq!(watts("NVIDIA T400"), None);
    }
}
