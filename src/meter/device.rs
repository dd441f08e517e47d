//! One accelerator at the end of a run, and what makes its figures doubtful.

use serde::{Deserialize, Serialize};

/// One accelerator in all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceTotal {
    /// As the driver names it.
    pub name: String,
    /// Joules by its counter; `None` = it has none.
    pub energy_j: Option<f64>,
    /// The counter did not cover the whole run.
    pub energy_partial: bool,
    /// Joules by power over time, as a cross-check.
    pub integrated_j: Option<f64>,
    /// Seconds in which it computed.
    pub busy_s: Option<f64>,
    /// Most bytes of the run on it.
    pub peak_bytes: Option<u64>,
    /// Highest temperature, °C.
    pub hottest_c: Option<u64>,
    /// Lowest clock while it computed, MHz.
    pub slowest_mhz: Option<u64>,
    /// Why its clock was held down, if it was.
    pub throttled: Vec<String>,
    /// Most processes on it that are not the run's.
    pub others: u64,
    /// Seconds after the start at which it was lost.
    pub lost_at_s: Option<f64>,
    /// It is cut into slices.
    pub is_sliced: bool,
}

/// Beyond this the counter and the integrated power contradict each other.
const DISAGREEMENT: f64 = 0.05;
/// Below this the counter's own resolution is more than that.
const LEAST_J: f64 = 20.0;
impl DeviceTotal {
    /// Whether something else than the run had a part in its figures: not to be learned from.
    pub fn is_disturbed(&self) -> bool {
        self.others > 0 || !self.throttled.is_empty() || self.lost_at_s.is_some() || self.is_sliced
    }

    /// What the reader must know before trusting its figures.
    pub(super) fn doubts(&self) -> Vec<String> {
        let mut all = Vec::new();
        let name = &self.name;
        if let Some(at) = self.lost_at_s {
            all.push(format!("{name} was lost after {at:.1} s: its figures end there"));
        } else if self.energy_partial {
            all.push(format!("{name}: its energy counter stood still or was reset; what it saw is a part"));
        } else if let (Some(counted), Some(integrated)) = (self.energy_j, self.integrated_j)
            && counted.max(integrated) > LEAST_J
            && (integrated - counted).abs() > DISAGREEMENT * counted
        {
            all.push(format!(
                "{name}: {counted:.0} J by its counter, {integrated:.0} J by its power over time; the counter is taken"
            ));
        }
        if !self.throttled.is_empty() {
            all.push(format!("{name} was throttled: {}", self.throttled.join(", ")));
        }
        if self.others > 0 {
            all.push(format!("{name} was shared: up to {} processes on it are not the run's", self.others));
        }
        if self.is_sliced {
            all.push(format!("{name} is cut into slices: power and use are those of the whole device"));
        }
        all
    }
}
