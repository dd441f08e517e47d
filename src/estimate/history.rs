//! What past runs teach: the ratio of measured to predicted, drawn towards 1 while runs are few. Middles in place of
//! means: one run on a throttled or shared machine does not decide.

use super::Quantities;
use super::work::Class;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One finished run on the machine at hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// [`super::Prediction::uncorrected`] of that run.
    pub predicted: Quantities,
    /// What was measured.
    pub measured: Quantities,
    /// Phases beside training: name, seconds predicted uncorrected, seconds measured.
    pub phases: Vec<(String, f64, f64)>,
    /// Op classes of a run that was profiled: seconds predicted uncorrected, seconds measured.
    pub classes: Vec<(Class, f64, f64)>,
}

/// Middle and scatter of ln(measured / predicted).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Ratio {
    /// Runs that had both figures.
    pub runs: u32,
    /// Median of the logarithms.
    pub middle_ln: f64,
    /// Their standard deviation, by the median distance from the middle; 0 below two runs.
    pub sd_ln: f64,
    /// Of a pilot of the very run that is predicted: believed whole, with a scatter of its own.
    #[serde(default)]
    pub of_pilot: bool,
}

/// What all past runs teach.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Learned {
    /// Of the step's seconds.
    pub time: Ratio,
    /// Of the peak.
    pub memory: Ratio,
    /// Of the phases beside training, by name.
    pub phases: BTreeMap<String, Ratio>,
    /// Of op classes, over that of all ops of the same run: which of them were slower than the rest.
    #[serde(default)]
    pub classes: BTreeMap<Class, Ratio>,
}

/// Runs that count; the program and the machine change.
const RECENT: usize = 20;
/// Median distance of a normal distribution in standard deviations, inverted.
const SD_OF_MAD: f64 = 1.4826;
/// What a phase may be corrected by at most: short phases scatter.
const MOST_OF_A_PHASE: f64 = 10.0;
/// What a class may be moved against the others at most.
const MOST_OF_A_CLASS: f64 = 3.0;

/// The middle value, of two middle ones the mean; 0 of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    if n % 2 == 1 { at(n / 2) } else { f64::midpoint(at((n / 2).saturating_sub(1)), at(n / 2)) }
}

impl Ratio {
    /// Of (predicted, measured) pairs; what is not above 0 is left out.
    pub fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut logs: Vec<f64> = pairs
            .filter(|(p, m)| p.is_finite() && m.is_finite() && *p > 0.0 && *m > 0.0)
            .map(|(p, m)| (m / p).ln())
            .collect();
        if logs.is_empty() {
            return Self::default();
        }
        let middle_ln = median(&mut logs);
        let mut distances: Vec<f64> = logs.iter().map(|l| (l - middle_ln).abs()).collect();
        Self {
            runs: u32::try_from(logs.len()).unwrap_or(u32::MAX),
            middle_ln,
            sd_ln: SD_OF_MAD * median(&mut distances),
            of_pilot: false,
        }
    }

    /// Of a pilot's one pair, with a relative scatter; nothing where a figure is not above 0.
    pub fn of_pilot(predicted: f64, measured: f64, scatter: f64) -> Self {
        let one = Self::of(std::iter::once((predicted, measured)));
        Self { sd_ln: scatter.ln_1p(), of_pilot: one.runs > 0, ..one }
    }

    /// What to multiply a prediction by: the middle ratio, with one run's weight given to "no correction".
    pub fn factor(&self) -> f64 {
        if self.of_pilot {
            return self.middle_ln.exp();
        }
        let n = f64::from(self.runs);
        (self.middle_ln * n / (n + 1.0)).exp()
    }

    /// A width without past runs, with the doubt whether the next one will be as the only one was.
    pub fn doubted(&self, cold: f64) -> f64 {
        (1.0 + cold) * self.factor().ln().abs().exp() - 1.0
    }

    /// Width of the interval of one more run, two standard deviations; `None` below two runs.
    pub fn width(&self) -> Option<f64> {
        if self.of_pilot {
            return Some((2.0 * self.sd_ln).exp_m1());
        }
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
        let mut names: Vec<&str> =
            recent.iter().flat_map(|p| &p.phases).map(|(name, _, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let phase = |name: &str| {
            let pairs = recent.iter().flat_map(|p| &p.phases).filter(|(n, _, _)| n == name);
            Ratio::of(pairs.map(|(_, predicted, measured)| (*predicted, *measured)))
        };
        Self {
            time: pair(|q| q.step_s),
            memory: pair(|q| q.peak_memory_bytes.map(|b| b as f64)),
            phases: names.into_iter().map(|name| (name.to_owned(), phase(name))).collect(),
            classes: classes(recent, |pairs| Ratio::of(pairs.iter().copied())),
        }
    }

    /// From a pilot whose times scatter by `scatter`; what it says of another run scatters by `transfer` at least, and its
    /// memory by no more: a machine that is shared changes the one and not the other.
    pub fn from_pilot(pilot: &Past, scatter: f64, transfer: f64) -> Self {
        let scatter = scatter.max(transfer);
        let one = |p: Option<f64>, m: Option<f64>, scatter| {
            p.zip(m).map_or_else(Ratio::default, |(p, m)| Ratio::of_pilot(p, m, scatter))
        };
        let bytes = |q: &Quantities| q.peak_memory_bytes.map(|b| b as f64);
        let phases = pilot.phases.iter();
        Self {
            time: one(pilot.predicted.step_s, pilot.measured.step_s, scatter),
            memory: one(bytes(&pilot.predicted), bytes(&pilot.measured), transfer),
            phases: phases.map(|(name, p, m)| (name.clone(), Ratio::of_pilot(*p, *m, scatter))).collect(),
            classes: classes(std::slice::from_ref(pilot), |pairs| {
                pairs.first().map_or_else(Ratio::default, |(p, m)| Ratio::of_pilot(*p, *m, scatter))
            }),
        }
    }

    /// What to multiply the seconds of a class by, beside what holds for all of them.
    pub fn class(&self, class: Class) -> f64 {
        let factor = self.classes.get(&class).map_or(1.0, Ratio::factor);
        factor.clamp(1.0 / MOST_OF_A_CLASS, MOST_OF_A_CLASS)
    }

    /// What to multiply a phase's prediction by; evaluation passes go as the training steps do.
    pub fn phase(&self, name: &str) -> f64 {
        let own = self.phases.get(name).map(Ratio::factor);
        match name {
            "train" => self.time.factor(),
            "evaluate" => own.unwrap_or_else(|| self.time.factor()),
            _ => own.unwrap_or(1.0),
        }
        .clamp(1.0 / MOST_OF_A_PHASE, MOST_OF_A_PHASE)
    }
}

/// The ratio of each class of the profiled runs, over that of all ops of its run.
fn classes(past: &[Past], ratio: impl Fn(&[(f64, f64)]) -> Ratio) -> BTreeMap<Class, Ratio> {
    let mut pairs: BTreeMap<Class, Vec<(f64, f64)>> = BTreeMap::new();
    for run in past {
        let sum = |of: fn(&(Class, f64, f64)) -> f64| run.classes.iter().map(of).sum::<f64>();
        let whole = sum(|c| c.2) / sum(|c| c.1);
        for (class, predicted, measured) in run.classes.iter().filter(|_| whole.is_finite()) {
            pairs.entry(*class).or_default().push((whole * predicted, *measured));
        }
    }
    pairs.into_iter().map(|(class, pairs)| (class, ratio(&pairs))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(predicted: f64, measured: f64) -> Past {
        let step = |s| Quantities { step_s: Some(s), ..Quantities::default() };
        let (predicted, measured) = (step(predicted), step(measured));
        Past { predicted, measured, phases: Vec::new(), classes: Vec::new() }
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
        // 2 / 2.2 and 2 · 2.2: what was predicted without it, and what it took, lie both inside.
        assert!((one.doubted(0.1) - 1.2).abs() < 1e-9);
        let many = Learned::from(&vec![past(1.0, 4.0); 15]).time;
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
        let sd = SD_OF_MAD * 2f64.ln() / 2.0;
        let expected = (2.0 * sd * 1.5f64.sqrt()).exp() - 1.0;
        assert!((learned.width().unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn one_throttled_run_among_many_changes_nothing() {
        let mut runs = vec![past(1.0, 1.1); 9];
        runs.push(past(1.0, 8.0));
        let (with, without) = (Learned::from(&runs).time, Learned::from(&vec![past(1.0, 1.1); 10]).time);
        assert!((with.factor() / without.factor() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_phase_learns_from_its_own_runs_and_evaluation_from_steps_until_then() {
        let mut run = past(1.0, 4.0);
        let learned = Learned::from(std::slice::from_ref(&run));
        assert!((learned.phase("evaluate") - 2.0).abs() < 1e-9);
        assert!((learned.phase("save") - 1.0).abs() < 1e-9);
        run.phases = vec![("save".into(), 1.0, 9.0)];
        assert!((Learned::from(&[run]).phase("save") - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_class_that_is_slower_than_the_rest_is_moved_and_the_whole_stays() {
        let mut run = past(1.0, 2.0);
        // Both classes took longer; attention three times as much as products did.
        run.classes = vec![(Class::Linear, 3.0, 4.0), (Class::Attention, 1.0, 4.0)];
        let learned = Learned::from_pilot(&run, 0.01, 0.01);
        assert!((learned.class(Class::Attention) / learned.class(Class::Linear) - 3.0).abs() < 1e-9);
        let whole = 3.0 * learned.class(Class::Linear) + learned.class(Class::Attention);
        assert!((whole - 4.0).abs() < 1e-9, "{whole}");
        assert!((learned.class(Class::Head) - 1.0).abs() < 1e-12);
        let half = Learned::from(&[run]).class(Class::Attention);
        assert!((half - 2f64.sqrt()).abs() < 1e-9, "one run of the ledger is half believed");
    }

    #[test]
    fn a_pilot_is_believed_whole() {
        let mut pilot = past(1.0, 4.0);
        pilot.predicted.peak_memory_bytes = Some(100);
        pilot.measured.peak_memory_bytes = Some(120);
        let learned = Learned::from_pilot(&pilot, 0.05, 0.02);
        assert!((learned.memory.factor() - 1.2).abs() < 1e-12);
        assert!((learned.memory.width().unwrap() - (1.02f64.powi(2) - 1.0)).abs() < 1e-12);
        assert!((learned.phase("train") - 4.0).abs() < 1e-12);
        assert!((learned.time.width().unwrap() - (1.05f64.powi(2) - 1.0)).abs() < 1e-12);
    }
}
