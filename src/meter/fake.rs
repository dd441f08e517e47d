//! A probe that plays back a script, for tests of whatever meters.

use super::probe::{Probe, Reading};

/// Gives its readings in turn, and the last one for ever.
#[derive(Debug, Clone)]
pub struct Fake {
    script: Vec<Reading>,
    next: usize,
}

impl Fake {
    /// Plays `script` back; an empty one measures nothing.
    pub fn new(script: Vec<Reading>) -> Self {
        Self { script, next: 0 }
    }
}

impl Probe for Fake {
    fn sample(&mut self) -> Reading {
        let at = self.next.min(self.script.len().saturating_sub(1));
        self.next = self.next.saturating_add(1);
        self.script.get(at).copied().unwrap_or_default()
    }
}
