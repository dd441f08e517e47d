//! The loss on held-out rows.

use crate::data::Batch;
use crate::error::Result;
use crate::model::Decoder;

/// Σ token losses / Σ counted tokens over all batches, and the count; `None` where nothing is counted.
pub fn evaluate(decoder: &Decoder, batches: &[Batch]) -> Result<Option<(f64, u64)>> {
    let counted: u64 = batches.iter().map(|b| b.targets.len() as u64).sum();
    if counted == 0 {
        return Ok(None);
    }
    let mut sum = 0.0;
    for batch in batches {
        sum += decoder.loss(batch)?;
    }
    Ok(Some((sum / counted as f64, counted)))
}
