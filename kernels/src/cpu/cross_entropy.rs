//! Cross-entropy of rows of logits, which become the gradient in place.

use super::dispatch;
use super::math::{exp, fold, largest};
use rayon::prelude::*;

/// For each row of `logits` `[C, V]` with its target: returns `log Σ exp(l) − l[target]`, and, with `scales` `[C]`, turns
/// the row into its gradient `(softmax(l) − onehot(target))·scale`.
///
/// A row that holds NaN or +∞ gives a loss that is not finite; −∞ is a token that cannot come, and gives one only at
/// the target.
///
/// # Panics
/// When there are not as many scales as targets.
pub fn cross_entropy_rows(
    logits: &mut [f32],
    vocabulary: usize,
    targets: &[u32],
    scales: Option<&[f32]>,
) -> Vec<f32> {
    assert!(scales.is_none_or(|scales| scales.len() == targets.len()), "not a scale for each target");
    logits
        .par_chunks_mut(vocabulary)
        .zip(targets)
        .enumerate()
        .map(|(i, (row, &target))| one_row(row, target, scales.map(|scales| scales[i])))
        .collect()
}

dispatch! {
    fn one_row(row: &mut [f32], target: u32, scale: Option<f32>) -> f32 {
        let top = largest(row);
        let at_target = row[target as usize];
        let mut sums = [0f32; 32];
        for chunk in row.chunks_mut(32) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp::<FMA>(*x - top);
                *sum += *x;
            }
        }
        let sum = fold(sums);
        if let Some(scale) = scale {
            let by = scale / sum;
            for x in row.iter_mut() {
                *x *= by;
            }
            row[target as usize] -= scale;
        }
        sum.ln() + top - at_target
    }
}
