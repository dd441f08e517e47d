//! The grid of settings that the estimate is judged on, and a sample of it that fills the space evenly.

use crate::config::MethodFlag;
use serde::{Deserialize, Serialize};

/// One run of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// `full`, `lora` or `qlora`.
    pub method: MethodFlag,
    /// Which model.
    pub size: Size,
    /// `micro_batch_size`.
    pub batch: usize,
    /// `sequence_len`.
    pub sequence: usize,
    /// `lora_r`; 0 = no adapter.
    pub rank: usize,
    /// `gradient_checkpointing`.
    pub recompute: bool,
    /// On one thread, not on all cores.
    pub alone: bool,
}

/// Random models, made here from their shapes; speed and memory do not depend on what a weight says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// 4 layers of 256.
    Small,
    /// 8 layers of 512.
    Medium,
    /// The shapes of `SmolLM2`-135M.
    Smollm2,
    /// Half a billion: 26 layers of 1280.
    Half,
}

impl Size {
    /// All of them, the smallest first.
    pub const ALL: [Self; 4] = [Self::Small, Self::Medium, Self::Smollm2, Self::Half];

    /// Tokens of a micro-batch: beyond this a row takes longer than it teaches.
    fn most_tokens(self) -> usize {
        if self == Self::Half { 2048 } else { 4096 }
    }
}

/// How many runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Extent {
    /// A dozen runs of small models, minutes.
    Quick,
    /// Some fifty runs and repeats of all models, about an hour.
    Standard,
    /// Some hundred and fifty runs, hours.
    Full,
}

impl Extent {
    /// Runs of the grid, repeats not counted.
    pub fn rows(self) -> usize {
        match self {
            Self::Quick => 12,
            Self::Standard => 48,
            Self::Full => 144,
        }
    }

    /// Optimizer steps of a run; of the largest model two and a first one, for their memory.
    pub fn steps(self, cell: &Cell) -> usize {
        match (self, cell.size) {
            (_, Size::Half) => 3,
            (Self::Quick, _) => 6,
            (_, Size::Smollm2) if cell.batch * cell.sequence > LONG_STEP => 6,
            _ => 12,
        }
    }

    fn sizes(self) -> &'static [Size] {
        let all = &Size::ALL;
        if self == Self::Quick { all.get(..2).unwrap_or(all) } else { all }
    }
}

/// Tokens beyond which a step of the second largest model takes seconds.
const LONG_STEP: usize = 1024;

/// One cell in so many is run again at the end: what a run differs from itself by.
pub const REPEAT_EVERY: usize = 6;

const METHODS: [MethodFlag; 3] = [MethodFlag::Lora, MethodFlag::Full, MethodFlag::Qlora];
const BATCHES: [usize; 4] = [1, 2, 4, 8];
const SEQUENCES: [usize; 5] = [128, 256, 512, 1024, 2048];
const RANKS: [usize; 3] = [4, 16, 64];
/// Most users run on all cores: one row in four does not.
const ALONE: [bool; 4] = [false, false, true, false];

/// The `n`-th number of van der Corput's sequence in a base (Halton 1960): fills [0, 1) evenly, however many are taken.
fn corput(mut n: usize, base: usize) -> f64 {
    let (mut value, mut unit) = (0.0, 1.0);
    while n > 0 {
        unit /= base as f64;
        value += (n % base) as f64 * unit;
        n /= base;
    }
    value
}

fn pick<T: Copy>(of: &[T], at: f64) -> Option<T> {
    let steps = (0..of.len()).map(|i| (i + 1) as f64 / of.len() as f64);
    steps.zip(of).find(|(end, _)| at < *end).map(|(_, value)| *value)
}

/// Distinct cells that fill the grid evenly. On a GPU none is on one thread: what it computes takes no other time by it.
pub fn sample(extent: Extent, on_gpu: bool) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let cell = |n: usize| {
        Some(Cell {
            size: pick(extent.sizes(), corput(n, 2))?,
            method: pick(&METHODS, corput(n, 3))?,
            sequence: pick(&SEQUENCES, corput(n, 5))?,
            batch: pick(&BATCHES, corput(n, 7))?,
            recompute: pick(&[false, true], corput(n, 11))?,
            rank: pick(&RANKS, corput(n, 13))?,
            alone: pick(&ALONE, corput(n, 17))? && !on_gpu,
        })
    };
    for cell in (1..10_000).filter_map(cell) {
        let cell = if cell.method == MethodFlag::Full { Cell { rank: 0, ..cell } } else { cell };
        let fits = cell.batch * cell.sequence <= cell.size.most_tokens();
        if cells.len() < extent.rows() && fits && !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_holds_every_value_of_every_setting() {
        for extent in [Extent::Quick, Extent::Standard] {
            let cells = sample(extent, false);
            assert_eq!(cells.len(), extent.rows());
            let has = |wanted: &dyn Fn(&Cell) -> bool| cells.iter().any(wanted);
            for method in METHODS {
                assert!(has(&|c| c.method == method), "{extent:?} {method:?}");
            }
            for size in extent.sizes() {
                assert!(has(&|c| c.size == *size), "{extent:?} {size:?}");
            }
            for batch in BATCHES {
                assert!(has(&|c| c.batch == batch), "{extent:?} {batch}");
            }
            for way in [false, true] {
                assert!(has(&|c| c.recompute == way) && has(&|c| c.alone == way), "{extent:?} {way}");
            }
        }
        let standard = sample(Extent::Standard, false);
        for sequence in SEQUENCES {
            assert!(standard.iter().any(|c| c.sequence == sequence), "{sequence}");
        }
        for size in [Size::Smollm2, Size::Half] {
            for method in METHODS {
                assert!(standard.iter().any(|c| (c.size, c.method) == (size, method)), "{size:?} {method:?}");
            }
        }
    }

    #[test]
    fn a_larger_sample_goes_on_where_the_smaller_ended() {
        let (small, large) = (sample(Extent::Standard, false), sample(Extent::Full, false));
        assert_eq!(small, large[..small.len()]);
        assert_eq!(large.len(), Extent::Full.rows());
    }

    #[test]
    fn quick_keeps_to_small_models() {
        assert!(sample(Extent::Quick, false).iter().all(|c| matches!(c.size, Size::Small | Size::Medium)));
    }

    #[test]
    fn on_a_gpu_no_cell_differs_from_another_by_its_threads_alone() {
        for extent in [Extent::Quick, Extent::Full] {
            let cells = sample(extent, true);
            assert!(cells.len() == extent.rows() && cells.iter().all(|cell| !cell.alone));
            for (at, cell) in cells.iter().enumerate() {
                assert!(!cells[..at].contains(cell), "{cell:?}");
            }
        }
    }
}
