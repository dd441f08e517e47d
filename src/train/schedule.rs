//! The learning rate over the steps, as transformers computes it.

use crate::config::{LrScheduler, Train, Warmup};
use std::f64::consts::PI;

/// The learning rate of every update of a run.
#[derive(Debug, Clone)]
pub struct Schedule {
    peak: f64,
    kind: LrScheduler,
    floor: f64,
    warmup: u64,
    total: u64,
}

impl Schedule {
    /// For a run of `total` updates.
    pub fn new(train: &Train, total: u64) -> Self {
        let warmup = match train.warmup {
            Warmup::Steps(steps) => steps,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // A share of a number of steps.
            Warmup::Ratio(share) => (share * total as f64).ceil() as u64,
        };
        Self {
            peak: train.learning_rate,
            kind: train.lr_scheduler,
            floor: train.cosine_min_lr_ratio,
            warmup,
            total,
        }
    }

    /// A warning where the run ends before the warm-up does.
    pub fn never_peaks(&self) -> Option<String> {
        (self.warmup >= self.total && self.warmup > 0).then(|| {
            format!(
                "the learning rate never reaches its peak: it warms up for {} of {} steps",
                self.warmup, self.total
            )
        })
    }

    /// The rate of update `k`, from 0: under warm-up the first is 0.
    pub fn lr_at(&self, k: u64) -> f64 {
        if k < self.warmup {
            return self.peak * k as f64 / self.warmup as f64;
        }
        let left = (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let factor = match self.kind {
            LrScheduler::Constant => 1.0,
            LrScheduler::Linear => self.total.saturating_sub(k) as f64 / left,
            LrScheduler::Cosine => {
                let progress = (k - self.warmup) as f64 / left;
                let half_cosine = (0.5 * (1.0 + (PI * progress).cos())).max(0.0);
                half_cosine * (1.0 - self.floor) + self.floor
            }
        };
        self.peak * factor
    }
}
