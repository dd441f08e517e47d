//! Energy of a run part by part, each with how it is known: by a counter, by power over time, or modelled as the data
//! sheet's power times the time that the part was busy. What is neither is unknown, and so is then the whole.

use super::amount::Kind;
use super::power;
use serde::{Deserialize, Serialize};

/// Energy of one part of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnergyLine {
    /// `processor`, or the accelerator's name.
    pub part: String,
    /// J; `None` = unknown.
    pub energy_j: Option<f64>,
    /// Measured, modelled or unknown.
    pub kind: Kind,
    /// The counter, or the model with its source.
    pub source: String,
}

/// What was read of a part; `None` = it cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// J by its counter.
    pub counted_j: Option<f64>,
    /// The counter did not cover the whole run.
    pub is_partial: bool,
    /// J by its power over time.
    pub integrated_j: Option<f64>,
    /// Seconds in which it was busy; of a processor, of all its threads together.
    pub busy_s: Option<f64>,
}

/// The processor's energy; `model` is its name.
pub fn processor(model: &str, reading: Reading) -> EnergyLine {
    let line = |energy_j, kind, source| EnergyLine { part: "processor".into(), energy_j, kind, source };
    if let Some(counted) = reading.counted_j.filter(|_| !reading.is_partial) {
        let source = "the packages' own counters (RAPL), all programs on them".into();
        return line(Some(counted), Kind::Measured, source);
    }
    match reading.busy_s.zip(power::cpu(model)) {
        Some((busy_s, sheet)) => {
            let source = format!("CPU time × {}", sheet.said());
            line(Some(busy_s * sheet.watts_per_thread()), Kind::Modelled, source)
        }
        None => {
            line(None, Kind::Unknown, format!("no counter can be read, and no power of `{model}` is known"))
        }
    }
}

/// An accelerator's energy.
pub fn accelerator(name: &str, reading: Reading) -> EnergyLine {
    let line = |energy_j, kind, source| EnergyLine { part: name.into(), energy_j, kind, source };
    if let Some(counted) = reading.counted_j.filter(|_| !reading.is_partial) {
        return line(Some(counted), Kind::Measured, "its own counter".into());
    }
    if let Some(integrated) = reading.integrated_j {
        return line(Some(integrated), Kind::Measured, "its power over time".into());
    }
    match reading.busy_s.zip(power::gpu(name)) {
        Some((busy_s, sheet)) => {
            let source = format!("busy time × {}", sheet.said());
            line(Some(busy_s * sheet.watts), Kind::Modelled, source)
        }
        None => line(None, Kind::Unknown, "neither counter nor power can be read".into()),
    }
}

/// The whole: of the weakest kind, and unknown where a part is.
pub fn total(lines: &[EnergyLine]) -> (Option<f64>, Kind) {
    let kind = lines.iter().map(|l| l.kind).max().unwrap_or(Kind::Unknown);
    let energy_j = lines.iter().map(|l| l.energy_j).sum::<Option<f64>>();
    (energy_j.filter(|_| !lines.is_empty()), kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_wins_and_one_that_broke_does_not() {
        let counted = Reading { counted_j: Some(50.0), busy_s: Some(10.0), ..Reading::default() };
        let line = processor("AMD EPYC", counted);
        assert_eq!((line.energy_j, line.kind), (Some(50.0), Kind::Measured));
        let line = processor("AMD EPYC", Reading { is_partial: true, ..counted });
        assert_eq!(line.kind, Kind::Modelled);
        assert!((line.energy_j.unwrap() - 18.72).abs() < 1e-9);
        assert!(
            line.source.contains("1.87 W a busy thread") && line.source.contains("2023"),
            "{}",
            line.source
        );
    }

    #[test]
    fn an_accelerator_goes_by_counter_then_by_power_then_by_its_sheet() {
        let all = Reading {
            counted_j: Some(100.0),
            is_partial: false,
            integrated_j: Some(102.0),
            busy_s: Some(2.0),
        };
        let of = |reading| {
            let line = accelerator("Tesla T4", reading);
            (line.energy_j, line.kind)
        };
        assert_eq!(of(all), (Some(100.0), Kind::Measured));
        assert_eq!(of(Reading { is_partial: true, ..all }), (Some(102.0), Kind::Measured));
        let model = Reading { counted_j: None, integrated_j: None, ..all };
        assert_eq!(of(model), (Some(140.0), Kind::Modelled));
        assert_eq!(of(Reading::default()), (None, Kind::Unknown));
    }

    #[test]
    fn a_whole_with_an_unknown_part_is_unknown() {
        let known = accelerator("Tesla T4", Reading { counted_j: Some(1.0), ..Reading::default() });
        let unknown = processor("a riddle", Reading { busy_s: Some(1.0), ..Reading::default() });
        assert_eq!(total(std::slice::from_ref(&known)), (Some(1.0), Kind::Measured));
        assert_eq!(total(&[known, unknown]), (None, Kind::Unknown));
        assert_eq!(total(&[]), (None, Kind::Unknown));
    }
}
