//! What past runs teach: the ratio of measured to predicted, drawn towards 1 while runs are few.

use super::Quantities;
use serde::{Deserialize, Serialize};

/// One finished run on the machine at hand.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// [`super::Prediction::uncorrected`] of that run.
    pub predicted: Quantities,
    /// What was measured.
    pub measured: Quantities,
}

/// Mean and scatter of ln(measured / predicted).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Ratio {
    /// Runs that had both figures.
    pub runs: u32,
    /// Mean of the logarithms.
    pub mean_ln: f64,
    /// Their standard deviation; 0 below two runs.
    pub sd_ln: f64,
}

/// What all past runs teach.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Learned {
    /// Of the step's seconds.
    pub time: Ratio,
    /// Of the peak.
    pub memory: Ratio,
}

/// Runs that count; the program and the machine change.
const RECENT: usize = 20;

impl Ratio {
    fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let logs: Vec<f64> = pairs
            .filter(|(p, m)| p.is_finite() && m.is_finite() && *p > 0.0 && *m > 0.0)
            .map(|(p, m)| (m / p).ln())
            .collect();
        let n = logs.len() as f64;
        if logs.is_empty() {
            return Self::default();
        }
        let mean_ln = logs.iter().sum::<f64>() / n;
        let squares: f64 = logs.iter().map(|l| (l - mean_ln).powi(2)).sum();
        Self {
            runs: u32::try_from(logs.len()).unwrap_or(u32::MAX),
            mean_ln,
            sd_ln: if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 },
        }
    }

    /// What to multiply a prediction by: the mean ratio, with one run's weight given to "no correction".
    pub fn factor(&self) -> f64 {
        let n = f64::from(self.runs);
        (self.mean_ln * n / (n + 1.0)).exp()
    }

    /// Width of the interval of one more run; `None` below two runs.
    pub fn width(&self) -> Option<f64> {
        let n = f64::from(self.runs);
        (self.runs >= 2).then(|| (2.0 * self.sd_ln * (1.0 + 1.0 / n).sqrt()).exp() - 1.0)
    }
}

impl Learned {
    /// From past runs on this machine, oldest first.
    pub fn from(past: &[Past]) -> Self {
        let recent = &past[past.len().saturating_sub(RECENT)..];
        let pair = |read: fn(&Quantities) -> Option<f64>| {
            Ratio::of(recent.iter().filter_map(move |p| read(&p.predicted).zip(read(&p.measured))))
        };
        Self { time: pair(|q| q.step_s), memory: pair(|q| q.peak_memory_bytes.map(|b| b as f64)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(predicted: f64, measured: f64) -> Past {
        let step = |s| Quantities { step_s: Some(s), ..Quantities::default() };
        Past { predicted: step(predicted), measured: step(measured) }
    }

    #[test]
    fn nothing_learned_corrects_nothing() {
        let learned = Learned::from(&[]);
        assert!((learned.time.factor() - 1.0).abs() < 1e-12);
        assert_eq!(learned.time.width(), None);
    }

    #[test]
    fn many_runs_that_agree_are_believed_and_one_is_half_believed() {
        let one = Learned::from(&[past(1.0, 4.0)]).time;
        assert!((one.factor() - 2.0).abs() < 1e-12);
        assert_eq!(one.width(), None);
        let many = Learned::from(&[past(1.0, 4.0); 15]).time;
        assert!((many.factor() - 4f64.powf(15.0 / 16.0)).abs() < 1e-9);
        assert!(many.width().unwrap() < 1e-6);
    }

    #[test]
    fn figures_that_are_missing_or_broken_teach_nothing() {
        let mut broken = past(1.0, 2.0);
        broken.measured.step_s = None;
        let learned = Learned::from(&[broken, past(0.0, 1.0), past(1.0, f64::NAN)]);
        assert_eq!(learned.time.runs, 0);
    }

    #[test]
    fn scatter_widens() {
        let learned = Learned::from(&[past(1.0, 1.0), past(1.0, 2.0)]).time;
        let sd = 2f64.ln() / 2f64.sqrt();
        let expected = (2.0 * sd * 1.5f64.sqrt()).exp() - 1.0;
        assert!((learned.width().unwrap() - expected).abs() < 1e-9);
    }
}
