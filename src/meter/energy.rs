//! Energy from counters and from power: what a fault hides is not filled in, and no reading stands for a gap.

/// Energy from a cumulative counter that may be lost, reset or stand still: what was seen before the fault stays,
/// marked partial; nothing is extrapolated.
#[derive(Debug, Clone, Copy, Default)]
pub struct EnergyMeter {
    last: Option<(f64, f64)>,
    still_since_s: Option<f64>,
    total_j: Option<f64>,
    partial: bool,
}

/// Counters move every few milliseconds: one that does not for this long is broken.
const STILL_S: f64 = 5.0;

impl EnergyMeter {
    /// Takes the counter's value at a moment; gives the joules to add since the last.
    pub fn read(&mut self, at_s: f64, energy_j: Option<f64>) -> f64 {
        let Some(now) = energy_j.filter(|e| e.is_finite()) else {
            self.partial |= self.total_j.is_some();
            self.last = None;
            return 0.0;
        };
        if self.partial {
            return 0.0;
        }
        // A counter that appears in the middle of a run knows nothing of what came before.
        if self.last.is_none() && at_s > STILL_S {
            self.partial = true;
        }
        let total = self.total_j.get_or_insert(0.0);
        let Some((_, before)) = self.last.replace((at_s, now)) else {
            self.still_since_s = Some(at_s);
            return 0.0;
        };
        let used = now - before;
        if used < 0.0 {
            self.partial = true;
            return 0.0;
        }
        if used > 0.0 {
            self.still_since_s = Some(at_s);
        } else if self.still_since_s.is_some_and(|since| at_s - since > STILL_S) {
            self.partial = true;
        }
        *total += used;
        used
    }

    /// Joules seen; `None` = never measured.
    pub fn total_j(&self) -> Option<f64> {
        self.total_j
    }

    /// The counter did not cover the whole run.
    pub fn partial(&self) -> bool {
        self.partial
    }
}

/// A level integrated over time by trapezoids, such as power to energy; intervals longer than `longest_gap_s` are
/// left out.
#[derive(Debug, Clone, Copy)]
pub struct Integral {
    longest_gap_s: f64,
    last: Option<(f64, f64)>,
    sum: Option<f64>,
}

impl Integral {
    /// An empty one.
    pub fn new(longest_gap_s: f64) -> Self {
        Self { longest_gap_s, last: None, sum: None }
    }

    /// Takes the level at a moment.
    pub fn read(&mut self, at_s: f64, level: Option<f64>) {
        let Some(now) = level.filter(|l| l.is_finite()) else { return };
        let sum = self.sum.get_or_insert(0.0);
        if let Some((before_s, before)) = self.last.replace((at_s, now)) {
            let passed = at_s - before_s;
            if passed <= self.longest_gap_s {
                *sum += f64::midpoint(before, now) * passed;
            }
        }
    }

    /// The integral; `None` = no level was ever read.
    pub fn sum(&self) -> Option<f64> {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(readings: &[Option<f64>]) -> EnergyMeter {
        let mut meter = EnergyMeter::default();
        for (i, reading) in readings.iter().enumerate() {
            meter.read(i as f64, *reading);
        }
        meter
    }

    #[test]
    fn a_steady_counter_is_the_difference() {
        let meter = meter(&[Some(1000.0), Some(1010.0), Some(1025.0)]);
        assert_eq!(meter.total_j(), Some(25.0));
        assert!(!meter.partial());
    }

    #[test]
    fn a_counter_that_resets_or_is_lost_stays_at_what_it_saw() {
        for fault in [Some(3.0), None, Some(f64::NAN)] {
            let meter = meter(&[Some(1000.0), Some(1010.0), fault, Some(5000.0)]);
            assert_eq!(meter.total_j(), Some(10.0), "{fault:?}");
            assert!(meter.partial());
        }
    }

    #[test]
    fn a_counter_that_stands_still_is_partial() {
        assert!(meter(&[Some(7.0); 8]).partial());
        assert!(!meter(&[Some(7.0); 3]).partial());
    }

    #[test]
    fn a_counter_that_never_was_is_not_measured() {
        let meter = meter(&[None, None]);
        assert_eq!(meter.total_j(), None);
        assert!(!meter.partial());
    }

    #[test]
    fn power_is_integrated_and_never_over_a_gap() {
        let mut power = Integral::new(1.0);
        assert_eq!(power.sum(), None);
        for (at, watts) in [(0.0, 100.0), (0.5, 200.0), (1.0, 200.0)] {
            power.read(at, Some(watts));
        }
        assert_eq!(power.sum(), Some(175.0));
        power.read(100.0, Some(300.0));
        power.read(100.5, Some(300.0));
        assert_eq!(power.sum(), Some(325.0));
        power.read(101.0, None);
        assert_eq!(power.sum(), Some(325.0));
    }
}
