//! Accelerators by their data sheets: peaks that nobody reaches, and the share of them that published runs reach.

use super::csv;
use super::error::Error;
use super::history::median;
use super::machine::{Evidence, Kind, Limits, Machine};
use super::prices::Row;
use super::published::{Published, Use};
use super::rates::Rate;
use super::work::{Class, Stored, Way};
use crate::error::Result;
use crate::units::BYTES_PER_GIB;

/// The shipped table; the columns are named in its first line.
const SHIPPED: &str = include_str!("sheets.csv");
/// Share of the bandwidth that element-wise kernels reach: typical of streaming kernels.
const BANDWIDTH_SHARE: f64 = 0.7;
/// Context, libraries' workspaces and the allocator's slack on a device: 0.4 to 0.8 GiB on CUDA 12.
const CONTEXT_BYTES: u64 = 640 << 20;
/// An accelerator's memory that a process cannot have: what the driver keeps.
const USABLE: f64 = 0.97;
/// Of a bf16 base's rate, on a quantised one, where no such run was published of a generation.
const QUANTISED_SHARE: f64 = 0.7;
/// The first compute capability that the kernels are compiled for: before it there is no bf16.
const LEAST_CAPABILITY: f64 = 8.0;
/// Share of the peak, where nothing at all was published.
const TYPICAL_SHARE: f64 = 0.4;

/// One accelerator.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// As the price table names it.
    pub name: String,
    /// Architecture: runs of one generation speak for another card of it.
    pub generation: String,
    /// What CUDA calls its instructions by; `None` = it is not CUDA's.
    pub compute_capability: Option<f64>,
    /// Dense bf16 products with f32 sums (fp16 where it has no bf16), FLOP/s.
    pub peak_flops_per_s: f64,
    /// Memory bandwidth, bytes/s.
    pub bytes_per_s: f64,
    /// Memory, GiB.
    pub vram_gib: f64,
    /// Board power, W.
    pub tdp_w: f64,
    /// Where the figures stand.
    pub source: String,
}

impl Sheet {
    /// Why this program does not compute on it; `None` = it does.
    pub fn lacks(&self) -> Option<String> {
        match self.compute_capability {
            Some(capability) if capability >= LEAST_CAPABILITY => None,
            Some(capability) => {
                Some(format!("its compute capability is {capability:.1}, below {LEAST_CAPABILITY:.1}"))
            }
            None => Some("it is not a CUDA device".into()),
        }
    }
}

/// All shipped sheets.
///
/// # Errors
/// None in a released program: a test reads every row.
pub fn shipped() -> Result<Vec<Sheet>> {
    Ok(csv::read("data sheets", SHIPPED, sheet)?)
}

fn sheet(row: &csv::Row<'_>) -> Result<Sheet, Error> {
    Ok(Sheet {
        name: row.text("accelerator")?.into(),
        generation: row.text("generation")?.into(),
        compute_capability: row.number("compute_capability")?,
        peak_flops_per_s: row.needed("peak_tflops")? * 1e12,
        bytes_per_s: row.needed("gb_per_s")? * 1e9,
        vram_gib: row.needed("vram_gib")?,
        tdp_w: row.needed("tdp_w")?,
        source: row.text("source")?.into(),
    })
}

/// The share of its peak that one published run reached.
#[derive(Debug, Clone, PartialEq)]
pub struct ShareAt {
    /// On the same generation.
    pub same: bool,
    /// How its frozen weights were kept.
    pub stored: Stored,
    /// Its products, by rows, output and input features.
    pub products: Vec<(Class, [u64; 3])>,
    /// Of the peak.
    pub share: f64,
}

/// What published runs reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Reached {
    /// Share of the peak with a bf16 or trained base.
    pub share: f64,
    /// Seconds of a launch.
    pub launch_s: f64,
    /// Scatter around these shares.
    pub spread: f64,
    /// Runs that say so, of this generation or, where there are none, of all.
    pub runs: usize,
    /// Each of them at its own shape: larger products reach more.
    pub at: Vec<ShareAt>,
    /// Whether they are of this generation.
    pub of_generation: bool,
}

/// Learns what share of its peak a generation reaches, from the rows to fit on.
pub fn reached(generation: &str, sheets: &[Sheet], published: &[Published]) -> Reached {
    let found = |name: &str| sheets.iter().find(|s| s.name == name);
    let launch = published.iter().filter(|row| row.used == Use::Launch);
    let launch_s =
        launch.filter_map(|row| Some(row.launch_s(&ideal(found(&row.accelerator)?)))).fold(0.0, f64::max);
    // Share of the peak of one row, by a machine that reaches it all.
    let share = |row: &Published| {
        let sheet = found(&row.accelerator)?;
        Some(ShareAt {
            same: sheet.generation == generation,
            stored: row.stored(),
            products: row.products(),
            share: row.share(&ideal(sheet))?,
        })
    };
    let all: Vec<ShareAt> = published.iter().filter(|row| row.used == Use::Fit).filter_map(share).collect();
    let of = |same: bool| -> Vec<f64> {
        let wanted = all.iter().filter(|at| at.stored != Stored::Quantised && (at.same || !same));
        wanted.map(|at| at.share).collect()
    };
    let mut own = of(true);
    let of_generation = !own.is_empty();
    if !of_generation {
        own = of(false);
    }
    let spread = match own.iter().copied().reduce(f64::max).zip(own.iter().copied().reduce(f64::min)) {
        Some((high, low)) if own.len() > 1 => (high / low).sqrt() - 1.0,
        _ => 0.0,
    };
    let share = if own.is_empty() { TYPICAL_SHARE } else { median(&mut own) };
    Reached {
        share,
        launch_s,
        spread,
        runs: own.len(),
        at: all.into_iter().filter(|at| at.same || !of_generation).collect(),
        of_generation,
    }
}

/// A machine that reaches its peaks, without launches.
fn ideal(sheet: &Sheet) -> Machine {
    let mut machine = Machine::assumed(sheet.name.clone(), 1);
    machine.kind = Kind::Accelerator;
    machine.evidence = Evidence::Sheet;
    for class in [Class::Linear, Class::Head, Class::Attention] {
        machine.class_rates.insert(class, sheet.peak_flops_per_s);
    }
    machine.elementwise_bytes_per_s = BANDWIDTH_SHARE * sheet.bytes_per_s;
    machine.copy_bytes_per_s = BANDWIDTH_SHARE * sheet.bytes_per_s;
    machine.baseline_bytes = CONTEXT_BYTES;
    machine.sheet_power_w = Some(sheet.tdp_w);
    machine
}

/// The machine that a sheet and published runs make.
pub fn machine(sheet: &Sheet, sheets: &[Sheet], published: &[Published]) -> Machine {
    let reached = reached(&sheet.generation, sheets, published);
    let mut machine = ideal(sheet);
    for rate in machine.class_rates.values_mut() {
        *rate *= reached.share;
    }
    let mut at = reached.at.clone();
    if !at.iter().any(|at| at.stored == Stored::Quantised) {
        // Weights of few bits are unpacked on the way.
        let slower = |at: &ShareAt| ShareAt {
            stored: Stored::Quantised,
            share: QUANTISED_SHARE * at.share,
            ..at.clone()
        };
        at.extend(reached.at.iter().map(slower));
    }
    for ShareAt { stored, products, share, .. } in at {
        let per_s = sheet.peak_flops_per_s * share;
        // A device multiplies in bf16 what is kept in f32. Attention reads no weight.
        let kept =
            if stored == Stored::Quantised { &[Stored::Quantised][..] } else { &[Stored::Bf16, Stored::F32] };
        let read = |class: &Class| stored != Stored::Quantised || *class != Class::Attention;
        for (class, [m, n, k]) in products.into_iter().filter(|(class, _)| read(class)) {
            for way in [Way::Forward, Way::Backward, Way::Trained] {
                let rate = |stored| Rate { class, way, stored, m, n, k, rank: 0, per_s };
                machine.rates.extend(kept.iter().map(|stored| rate(*stored)));
            }
        }
    }
    machine.launch_s = reached.launch_s;
    // Runs of another generation say less.
    machine.spread = if reached.of_generation { reached.spread } else { 2.0 * reached.spread };
    let whose = if reached.of_generation { sheet.generation.as_str() } else { "other generations" };
    let runs = if reached.runs == 1 { "run" } else { "runs" };
    machine.kernel = format!("{:.0} % in {} {runs} of {whose}", 100.0 * reached.share, reached.runs);
    machine
}

/// The sheet of an accelerator, in any case.
pub fn find<'a>(sheets: &'a [Sheet], name: &str) -> Option<&'a Sheet> {
    sheets.iter().find(|s| s.name.eq_ignore_ascii_case(name))
}

/// The sheet of a card by its driver's name for it: the one with most words that are all among the name's, so that
/// `NVIDIA A100-SXM4-80GB` is the `A100-80GB`.
pub fn of_card<'a>(sheets: &'a [Sheet], name: &str) -> Option<&'a Sheet> {
    let words = |name: &str| -> Vec<String> {
        name.to_lowercase().split(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect()
    };
    let of_card = words(name);
    // Slower cards under the same name, or a part of one.
    let is_less = |sheet: &Sheet| {
        let pcie = (sheet.generation == "hopper").then_some("pcie");
        ["laptop", "mig", "nvl"].into_iter().chain(pcie).any(|word| of_card.iter().any(|of| of == word))
    };
    let fitting = sheets
        .iter()
        .filter(|sheet| words(&sheet.name).iter().all(|word| of_card.contains(word)) && !is_less(sheet));
    fitting.max_by_key(|sheet| words(&sheet.name).len())
}

/// What a process may take of one accelerator of this name and `vram_gib`.
pub fn limits(name: &str, vram_gib: f64) -> Limits {
    Limits {
        cores: 1,
        memory_bytes: super::rounded(vram_gib * BYTES_PER_GIB * USABLE),
        memory_source: format!("memory of one {name}"),
    }
}

/// An accelerator that no sheet is of, before anything of it is measured.
pub fn unknown(name: &str) -> Machine {
    let mut machine = Machine::assumed(name, 1);
    machine.kind = Kind::Accelerator;
    machine.class_rates.clear();
    machine.baseline_bytes = CONTEXT_BYTES;
    machine
}

/// Cores and bytes that a CPU row's instance name states: `(8 vCPU 32GB)`, `8vcpu-32gb`, `CPU.8V.32G`.
pub fn host_of(row: &Row) -> Option<(usize, u64)> {
    let text = row.instance.to_lowercase();
    let number_before = |unit: char| {
        let mut at = text.char_indices().filter(|(_, c)| *c == unit).map(|(at, _)| at);
        at.find_map(|at| {
            let before = text.get(..at)?.trim_end();
            let digits: String = before.chars().rev().take_while(char::is_ascii_digit).collect();
            digits.chars().rev().collect::<String>().parse::<u64>().ok()
        })
    };
    let cores = usize::try_from(number_before('v')?).ok().filter(|n| (1..=1024).contains(n))?;
    Some((cores, number_before('g')?.saturating_mul(1 << 30)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::prices::Table;
    use crate::estimate::published;

    #[test]
    fn every_accelerator_of_the_price_table_has_a_sheet_with_a_source() {
        let sheets = shipped().unwrap();
        for row in Table::shipped().unwrap().rows() {
            if let Some(name) = &row.accelerator {
                assert!(find(&sheets, name).is_some_and(|s| !s.source.is_empty()), "{name}");
            } else if !row.instance.contains("per vCPU") {
                let (cores, bytes) = host_of(row).unwrap_or_else(|| panic!("{}", row.instance));
                assert!((2..=64).contains(&cores) && bytes >= 8 << 30, "{}", row.instance);
            }
        }
    }

    #[test]
    fn a_card_has_the_sheet_that_its_driver_names() {
        let sheets = shipped().unwrap();
        let of = |name: &str| of_card(&sheets, name).map(|sheet| sheet.name.clone());
        for (name, sheet) in [
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA GH200 480GB", "GH200"),
            ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
            ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
            ("NVIDIA A10G", "A10G"),
            ("NVIDIA L40S", "L40S"),
            ("Tesla T4", "T4"),
            ("Tesla V100-SXM2-16GB", "V100"),
            ("NVIDIA RTX A6000", "A6000"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
            ("NVIDIA GeForce RTX 4090", "RTX-4090"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ] {
            assert_eq!(of(name).as_deref(), Some(sheet), "{name}");
        }
        assert_eq!(of("NVIDIA GeForce RTX 3060"), None);
        assert_eq!(of("NVIDIA L40"), None);
        for less in ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090 Laptop GPU"] {
            assert_eq!(of(less), None, "{less}");
        }
        assert_eq!(of("NVIDIA A100-PCIE-40GB").as_deref(), Some("A100-40GB"));
    }

    #[test]
    fn every_sheet_reaches_a_share_of_its_peak() {
        let (sheets, published) = (shipped().unwrap(), published::shipped().unwrap());
        for sheet in &sheets {
            let reached = reached(&sheet.generation, &sheets, &published);
            assert!((0.1..0.95).contains(&reached.share), "{} {reached:?}", sheet.name);
            assert!((0.0..1e-3).contains(&reached.launch_s), "{reached:?}");
            assert!(machine(sheet, &sheets, &published).is_sound());
        }
        let lacking = sheets.iter().filter(|sheet| sheet.lacks().is_some()).map(|s| s.name.as_str());
        assert_eq!(lacking.collect::<Vec<_>>(), ["T4", "V100", "MI300X"]);
        assert!(reached("ampere", &sheets, &published).of_generation);
        assert!(!reached("turing", &sheets, &published).of_generation);
    }
}
