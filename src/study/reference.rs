//! A fixed product, timed between runs: how fast the machine itself is at the moment.

use crate::calibrate::probe::{Probe, Setting};
use crate::calibrate::rig::Rig;
use crate::calibrate::stopwatch::Patience;
use crate::error::Result;
use crate::estimate::history::median;
use crate::estimate::work::{Class, Stored, Way};
use crate::ops::device;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The loop, with its first time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reference {
    first_s: f64,
    /// The GPU that it runs on, from 0; `None` = the CPU.
    #[serde(default)]
    gpu: Option<usize>,
}

const PATIENCE: Patience = Patience { budget: Duration::from_millis(250), least: 10 };
const PROBE: Probe =
    Probe { class: Class::Linear, way: Way::Forward, stored: Stored::F32, m: 256, n: 512, k: 512, rank: 0 };
/// On a GPU, where a product of the CPU's size would time the launch alone.
const PROBE_ON_GPU: Probe = Probe { stored: Stored::Bf16, m: 4096, n: 4096, k: 4096, ..PROBE };
const SETTING: Setting = Setting { heads: 1, kv_heads: 1, tokens: 1, layers: 1 };
/// A GPU's memory: what the loop needs of it, as far as a rig asks.
const BYTES: u64 = 1 << 30;

/// The first time stands behind every other: it is the middle of so many.
const FIRST: usize = 9;

fn time(rig: &Rig) -> Result<f64> {
    let probe = if rig.queues() { PROBE_ON_GPU } else { PROBE };
    let (rate, _) = probe.measure(rig, SETTING, PATIENCE)?;
    Ok(1.0 / rate.per_s)
}

/// A GPU is open only while the loop runs: to a run that is metered it would be another program on its device.
fn rig(gpu: Option<usize>) -> Result<Rig> {
    Ok(Rig::on(&device::open(gpu)?, BYTES))
}

impl Reference {
    /// Times it for the first time, on a GPU or on the CPU.
    ///
    /// # Errors
    /// A fault of an op; the GPU does not open (6).
    pub fn start(gpu: Option<usize>) -> Result<Self> {
        let rig = rig(gpu)?;
        let mut times = (0..FIRST).map(|_| time(&rig)).collect::<Result<Vec<_>>>()?;
        Ok(Self { first_s: median(&mut times), gpu })
    }

    /// Its time now over its first: above 1 the machine is slower.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn drift(self) -> Result<f64> {
        Ok(time(&rig(self.gpu)?)? / self.first_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_nothing_disturbs_is_as_fast_as_it_was() {
        let reference = Reference::start(None).unwrap();
        assert!((0.1..10.0).contains(&reference.drift().unwrap()));
        let twice = Reference { first_s: reference.first_s / 100.0, ..reference };
        assert!(twice.drift().unwrap() > 10.0, "its first time was a hundredth");
    }
}
