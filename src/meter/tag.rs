//! Accounting of tagged memory: how much each part of the estimate holds now, and held when all together were highest.
//! Counters only: an add and a sub are a few atomic operations.

pub use crate::estimate::parts::{Part, PartBytes};

use std::sync::atomic::{AtomicU64, Ordering};

const PARTS: usize = Part::ALL.len();

/// The counters of all parts.
#[derive(Debug)]
pub struct Account {
    current: [AtomicU64; PARTS],
    total: AtomicU64,
    total_peak: AtomicU64,
    at_peak: [AtomicU64; PARTS],
}

/// The process's account.
static PROCESS: Account = Account::new();

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

impl Account {
    /// All counters at 0.
    pub const fn new() -> Self {
        Self {
            current: [const { AtomicU64::new(0) }; PARTS],
            total: AtomicU64::new(0),
            total_peak: AtomicU64::new(0),
            at_peak: [const { AtomicU64::new(0) }; PARTS],
        }
    }

    /// Adds bytes to a part.
    pub fn add(&self, part: Part, bytes: u64) {
        self.current[part as usize].fetch_add(bytes, Ordering::AcqRel);
        let total = self.total.fetch_add(bytes, Ordering::AcqRel) + bytes;
        // Threads that add at the same instant may leave a mixture here; parts are added from one thread in practice.
        if total > self.total_peak.fetch_max(total, Ordering::AcqRel) {
            for (at_peak, current) in self.at_peak.iter().zip(&self.current) {
                at_peak.store(current.load(Ordering::Acquire), Ordering::Release);
            }
        }
    }

    /// Takes bytes from a part; never below 0.
    pub fn sub(&self, part: Part, bytes: u64) {
        let less = |now: u64| Some(now.saturating_sub(bytes));
        let order = (Ordering::AcqRel, Ordering::Acquire);
        // The closure never refuses, so neither does the update.
        let _ = self.current[part as usize].fetch_update(order.0, order.1, less);
        let _ = self.total.fetch_update(order.0, order.1, less);
    }

    /// Bytes of a part now.
    pub fn current(&self, part: Part) -> u64 {
        self.current[part as usize].load(Ordering::Acquire)
    }

    /// Bytes of every part now.
    pub fn now(&self) -> PartBytes {
        PartBytes(self.current.each_ref().map(|bytes| bytes.load(Ordering::Acquire)))
    }

    /// Bytes of every part at the moment when their sum was highest.
    pub fn at_peak(&self) -> PartBytes {
        PartBytes(self.at_peak.each_ref().map(|bytes| bytes.load(Ordering::Acquire)))
    }

    /// Tags bytes for as long as the guard lives.
    pub fn tagged(&'static self, part: Part, bytes: u64) -> Tagged {
        self.add(part, bytes);
        Tagged { account: self, part, bytes }
    }
}

/// Adds bytes to a part of the process's account.
pub fn add(part: Part, bytes: u64) {
    PROCESS.add(part, bytes);
}

/// Takes bytes from a part of the process's account.
pub fn sub(part: Part, bytes: u64) {
    PROCESS.sub(part, bytes);
}

/// The process's account.
pub fn process() -> &'static Account {
    &PROCESS
}

/// Bytes that count while this lives; keep it beside what it stands for.
#[derive(Debug)]
#[must_use = "the bytes are taken away when the guard is dropped"]
pub struct Tagged {
    account: &'static Account,
    part: Part,
    bytes: u64,
}

impl Tagged {
    /// Tags bytes in the process's account.
    pub fn new(part: Part, bytes: u64) -> Self {
        PROCESS.tagged(part, bytes)
    }

    /// Bytes it stands for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes the bytes it stands for, for buffers that grow.
    pub fn resize(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.account.add(self.part, bytes - self.bytes);
        } else {
            self.account.sub(self.part, self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        self.account.sub(self.part, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_add_and_take_away() {
        static ACCOUNT: Account = Account::new();
        let mut weights = ACCOUNT.tagged(Part::BaseWeights, 100);
        {
            let _saved = ACCOUNT.tagged(Part::Activations, 50);
            assert_eq!(ACCOUNT.current(Part::Activations), 50);
        }
        assert_eq!(ACCOUNT.current(Part::Activations), 0);
        weights.resize(120);
        assert_eq!((weights.bytes(), ACCOUNT.current(Part::BaseWeights)), (120, 120));
        weights.resize(10);
        drop(weights);
        assert_eq!(ACCOUNT.current(Part::BaseWeights), 0);
    }

    #[test]
    fn the_peak_of_the_sum_remembers_every_part() {
        static ACCOUNT: Account = Account::new();
        ACCOUNT.add(Part::BaseWeights, 100);
        ACCOUNT.add(Part::Activations, 500);
        ACCOUNT.sub(Part::Activations, 500);
        ACCOUNT.add(Part::Logits, 200);
        let held = |parts: PartBytes| parts.named().filter(|(_, bytes)| *bytes > 0).collect::<Vec<_>>();
        assert_eq!(held(ACCOUNT.at_peak()), [(Part::BaseWeights, 100), (Part::Activations, 500)]);
        assert_eq!(held(ACCOUNT.now()), [(Part::BaseWeights, 100), (Part::Logits, 200)]);
    }

    #[test]
    fn taking_more_than_there_is_stops_at_nothing() {
        static ACCOUNT: Account = Account::new();
        ACCOUNT.add(Part::Data, 1);
        ACCOUNT.sub(Part::Data, 5);
        assert_eq!(ACCOUNT.current(Part::Data), 0);
    }

    #[test]
    fn threads_lose_no_byte() {
        static ACCOUNT: Account = Account::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        drop(ACCOUNT.tagged(Part::Workspace, 3));
                    }
                });
            }
        });
        assert_eq!(ACCOUNT.current(Part::Workspace), 0);
    }
}
