//! The loss on held-out rows.

use crate::data::Batch;
use crate::error::Result;
use crate::model::Decoder;
use crate::ranks::Ranks;

/// Σ token losses / Σ counted tokens over all batches, each process taking its part of them, and the count; `None`
/// where nothing is counted.
pub fn evaluate(decoder: &Decoder, batches: &[Batch], ranks: &Ranks) -> Result<Option<(f64, u64)>> {
    let counted: u64 = batches.iter().map(|b| b.targets.len() as u64).sum();
    if counted == 0 {
        return Ok(None);
    }
    let mut sum = 0.0;
    for batch in ranks.place().share(batches) {
        sum += decoder.loss(batch)?;
    }
    Ok(Some((ranks.sum(sum) / counted as f64, counted)))
}
