//! The grid of settings that the estimate is judged on, and a sample of it that fills the space evenly.

use serde::{Deserialize, Serialize};

/// One run of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// `full` or `lora`.
    pub method: Method,
    /// Which model.
    pub size: Size,
    /// `micro_batch_size`.
    pub batch: usize,
    /// `sequence_len`.
    pub sequence: usize,
    /// `lora_r`.
    pub rank: usize,
    /// `gradient_checkpointing`.
    pub recompute: bool,
}

/// How it is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Every weight.
    Full,
    /// An adapter.
    Lora,
}

/// Random models of two sizes; speed and memory do not depend on what a weight says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// 4 layers of 256.
    Small,
    /// 8 layers of 512.
    Medium,
}

/// How many runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Extent {
    /// A dozen runs, minutes.
    Quick,
    /// Some fifty runs, about an hour.
    Standard,
    /// Some hundred and fifty runs.
    Full,
}

impl Extent {
    /// Runs of the grid.
    pub fn rows(self) -> usize {
        match self {
            Self::Quick => 12,
            Self::Standard => 48,
            Self::Full => 144,
        }
    }

    /// Optimizer steps of a run.
    pub fn steps(self) -> usize {
        if self == Self::Quick { 6 } else { 12 }
    }
}

const BATCHES: [usize; 4] = [1, 2, 4, 8];
const SEQUENCES: [usize; 4] = [128, 256, 512, 1024];
const RANKS: [usize; 3] = [4, 16, 64];
/// Tokens of a micro-batch: beyond this a row takes longer than it teaches.
const MOST_TOKENS: usize = 4096;

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

/// `rows` distinct cells that fill the grid evenly.
pub fn sample(rows: usize) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    let cell = |n: usize| {
        Some(Cell {
            method: pick(&[Method::Lora, Method::Full], corput(n, 2))?,
            size: pick(&[Size::Small, Size::Medium], corput(n, 13))?,
            batch: pick(&BATCHES, corput(n, 3))?,
            sequence: pick(&SEQUENCES, corput(n, 5))?,
            rank: pick(&RANKS, corput(n, 7))?,
            recompute: pick(&[false, true], corput(n, 11))?,
        })
    };
    for cell in (1..10_000).filter_map(cell) {
        let cell = if cell.method == Method::Full { Cell { rank: 0, ..cell } } else { cell };
        if cells.len() < rows && cell.batch * cell.sequence <= MOST_TOKENS && !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_sample_holds_every_value_of_every_setting() {
        let cells = sample(Extent::Quick.rows());
        assert_eq!(cells.len(), Extent::Quick.rows());
        for method in [Method::Full, Method::Lora] {
            for recompute in [false, true] {
                assert!(cells.iter().any(|c| (c.method, c.recompute) == (method, recompute)));
            }
        }
        for batch in BATCHES {
            assert!(cells.iter().any(|c| c.batch == batch), "{batch}");
        }
        assert!(cells.iter().any(|c| c.size == Size::Small) && cells.iter().any(|c| c.size == Size::Medium));
    }

    #[test]
    fn a_larger_sample_goes_on_where_the_smaller_ended() {
        let (small, large) = (sample(12), sample(144));
        assert_eq!(small, large[..12]);
        assert!(large.len() >= 100, "{}", large.len());
    }
}
