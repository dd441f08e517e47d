//! A fixed product, timed between runs: how fast the machine itself is at the moment.

use crate::calibrate::probe::{Heads, Probe};
use crate::calibrate::stopwatch::Patience;
use crate::error::Result;
use crate::estimate::history::median;
use crate::estimate::work::{Class, Stored, Way};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The loop, with its first time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Reference {
    first_s: f64,
}

const PATIENCE: Patience = Patience { budget: Duration::from_millis(250), least: 10 };
const PROBE: Probe =
    Probe { class: Class::Linear, way: Way::Forward, stored: Stored::F32, m: 256, n: 512, k: 512, rank: 0 };

/// The first time stands behind every other: it is the middle of so many.
const FIRST: usize = 9;

fn time() -> Result<f64> {
    let (rate, _) = PROBE.measure(Heads { query: 1, key: 1 }, PATIENCE)?;
    Ok(1.0 / rate.per_s)
}

impl Reference {
    /// Times it for the first time.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn start() -> Result<Self> {
        let mut times = (0..FIRST).map(|_| time()).collect::<Result<Vec<_>>>()?;
        Ok(Self { first_s: median(&mut times) })
    }

    /// Its time now over its first: above 1 the machine is slower.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn drift(self) -> Result<f64> {
        Ok(time()? / self.first_s)
    }
}
