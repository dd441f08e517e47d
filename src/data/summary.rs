//! What the data turned out to be: counts that people check before they pay for a run.

use crate::units::group_thousands;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Rows left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Skipped {
    /// How many.
    pub rows: u64,
    /// `file:line` of the first few.
    pub places: Vec<String>,
}

/// Counts of a prepared dataset; tokens are those of the training samples, before packing, in one epoch.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Summary {
    /// Rows read, training, evaluation and retention set.
    pub rows: u64,
    /// Training samples.
    pub train_samples: u64,
    /// Evaluation samples.
    pub eval_samples: u64,
    /// Rows left out, by reason.
    pub skipped: BTreeMap<String, Skipped>,
    /// Rows whose end was cut off.
    pub truncated: u64,
    /// Tokens.
    pub tokens: u64,
    /// Targets.
    pub loss_tokens: u64,
    /// `loss_tokens` / `tokens`.
    pub loss_token_share: f64,
    /// Tokens of the longest row, before anything was cut or left out.
    pub longest_tokens: u64,
    /// Mean tokens of a sample.
    pub mean_tokens: f64,
    /// Tokens of all evaluation samples.
    pub eval_tokens: u64,
    /// Targets of all evaluation samples.
    pub eval_loss_tokens: u64,
    /// Training samples that repeat an earlier one.
    pub duplicates: u64,
    /// Evaluation samples that are also trained on.
    pub overlap: u64,
    /// Samples that the retention set is judged by.
    pub retention_samples: u64,
    /// Samples of its other half that are replayed in each epoch.
    pub replayed_samples: u64,
    /// Rows whose text holds the name of a special token.
    pub special_text_rows: u64,
    /// What people should look at.
    pub warnings: Vec<String>,
    /// What people should know.
    pub notes: Vec<String>,
    /// SHA-256 over the files' SHA-256, in the config's order.
    pub sha256: String,
    /// How long it took, s.
    pub wall_s: f64,
    /// Every source came from the cache.
    pub from_cache: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = group_thousands;
        writeln!(
            f,
            "data: {} rows, {} training and {} evaluation samples{}",
            n(self.rows),
            n(self.train_samples),
            n(self.eval_samples),
            if self.from_cache { " (cached)" } else { "" }
        )?;
        writeln!(
            f,
            "  tokens {}, counted {} ({:.1} %), mean {:.0}, longest row {}",
            n(self.tokens),
            n(self.loss_tokens),
            100.0 * self.loss_token_share,
            self.mean_tokens,
            n(self.longest_tokens)
        )?;
        if self.retention_samples > 0 {
            writeln!(
                f,
                "  retention set: {} samples judged, {} replayed an epoch",
                n(self.retention_samples),
                n(self.replayed_samples)
            )?;
        }
        if self.truncated > 0 {
            writeln!(f, "  truncated {} rows", n(self.truncated))?;
        }
        for (reason, skipped) in &self.skipped {
            writeln!(f, "  left out {}: {reason} ({})", n(skipped.rows), skipped.places.join(", "))?;
        }
        if self.duplicates > 0 {
            writeln!(f, "  repeated {} samples", n(self.duplicates))?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}
