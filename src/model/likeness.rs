//! How alike two models are on a few texts, by their logits: for what was written against what it was made from.

use super::Decoder;
use crate::data::{Batch, IGNORE, Sample};
use crate::error::Result;
use crate::ops::host;
use serde::Serialize;

/// What two models' logits on the same tokens have in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Likeness {
    /// Positions compared.
    pub positions: usize,
    /// The largest difference between two logits.
    pub max_abs: f32,
    /// Kullback-Leibler divergence of the second from the first, mean over positions, in nats.
    pub kl: f64,
    /// Share of positions whose likeliest token is the same.
    pub same_top: f64,
    /// Mean loss of the texts' next tokens under the first.
    pub loss_before: f64,
    /// The same under the second.
    pub loss_after: f64,
}

/// Logits of a model on texts, `[T, V]` each.
pub struct Logits {
    vocabulary: usize,
    texts: Vec<(Vec<u32>, Vec<f32>)>,
}

impl Logits {
    /// Runs the model over each text.
    pub fn of(decoder: &Decoder, texts: &[Vec<u32>]) -> Result<Self> {
        let mut all = Vec::new();
        let mut vocabulary = 0;
        for ids in texts.iter().filter(|ids| !ids.is_empty()) {
            let sample = Sample { ids: ids.clone(), labels: vec![IGNORE; ids.len()] };
            let logits = decoder.logits(&Batch::new([&sample], 0))?;
            vocabulary = logits.dim(1)?;
            all.push((ids.clone(), host::read(&logits)?.to_vec()));
        }
        Ok(Self { vocabulary, texts: all })
    }

    /// How alike `other`, of the same texts, is.
    pub fn likeness(&self, other: &Self) -> Likeness {
        let mut found = Likeness {
            positions: 0,
            max_abs: 0.0,
            kl: 0.0,
            same_top: 0.0,
            loss_before: 0.0,
            loss_after: 0.0,
        };
        let mut targets = 0_u32;
        for ((ids, a), (_, b)) in self.texts.iter().zip(&other.texts) {
            let rows = a.chunks_exact(self.vocabulary).zip(b.chunks_exact(self.vocabulary));
            for (at, (a, b)) in rows.enumerate() {
                // Of two numbers of which one is none, the difference is none either: it is shown, not passed over.
                let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                found.max_abs =
                    apart.fold(found.max_abs, |most, x| if x > most || x.is_nan() { x } else { most });
                let (log_a, log_b) = (log_softmax(a), log_softmax(b));
                found.kl += log_a.iter().zip(&log_b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
                found.same_top += f64::from(u8::from(largest(a) == largest(b)));
                found.positions += 1;
                if let Some(next) = ids.get(at + 1).and_then(|&id| usize::try_from(id).ok()) {
                    found.loss_before -= log_a.get(next).copied().unwrap_or_default();
                    found.loss_after -= log_b.get(next).copied().unwrap_or_default();
                    targets += 1;
                }
            }
        }
        let positions = found.positions.max(1) as f64;
        found.kl /= positions;
        found.same_top /= positions;
        found.loss_before /= f64::from(targets.max(1));
        found.loss_after /= f64::from(targets.max(1));
        found
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total = row.iter().map(|&x| (f64::from(x) - top).exp()).sum::<f64>().ln();
    row.iter().map(|&x| f64::from(x) - top - total).collect()
}

fn largest(row: &[f32]) -> Option<usize> {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(rows: &[f32]) -> Logits {
        Logits { vocabulary: 2, texts: vec![(vec![0, 1], rows.to_vec())] }
    }

    #[test]
    fn figures_are_those_of_the_formula() {
        // Two positions over two tokens: p = (1/2, 1/2) against q = (3/4, 1/4), then the same row twice.
        let a = logits(&[0.0, 0.0, 1.0, 0.0]);
        let b = logits(&[3f32.ln(), 0.0, 1.0, 0.0]);
        let found = a.likeness(&b);
        let kl = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((found.kl - kl / 2.0).abs() < 1e-6, "{found:?}");
        assert!((found.max_abs - 3f32.ln()).abs() < 1e-6);
        assert_eq!(found.positions, 2);
        assert!((found.loss_before - 2f64.ln()).abs() < 1e-6 && (found.loss_after - 4f64.ln()).abs() < 1e-6);
        let same = a.likeness(&a);
        assert!(same.kl.abs() < 1e-12 && same.same_top > 0.99, "{same:?}");
    }
}
