//! The phases of a run and how long each has taken, in integers, so that they sum to the whole exactly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What a run is doing; the wall time of all phases is the wall time of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Weights are read.
    Load,
    /// Text becomes tokens.
    Tokenise,
    /// The machine is measured.
    Calibrate,
    /// Optimizer steps.
    Train,
    /// Evaluations.
    Evaluate,
    /// Checkpoints and the result are written.
    Save,
    /// Reports are written.
    Report,
    /// Another program runs.
    Command,
    /// Nothing of the above.
    Idle,
}

impl Phase {
    /// How many there are.
    pub const COUNT: usize = 9;
    /// All, in the order of a run.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Load,
        Self::Tokenise,
        Self::Calibrate,
        Self::Train,
        Self::Evaluate,
        Self::Save,
        Self::Report,
        Self::Command,
        Self::Idle,
    ];

    /// The name in tables and JSON; the estimate's phases have the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Tokenise => "tokenise",
            Self::Calibrate => "calibrate",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Save => "save",
            Self::Report => "report",
            Self::Command => "command",
            Self::Idle => "idle",
        }
    }

    fn of(code: u64) -> Self {
        usize::try_from(code).ok().and_then(|i| Self::ALL.get(i).copied()).unwrap_or(Self::Idle)
    }
}

/// Nanoseconds fill the low 56 bits (2.3 years), the phase the high 8.
const NANOS: u64 = (1 << 56) - 1;

/// The clock of a run: which phase it is in, since when, and what all others took.
#[derive(Debug)]
pub struct Timeline {
    started: Instant,
    /// Phase and the nanosecond it was entered at, in one word: both change together.
    current: AtomicU64,
    totals: [AtomicU64; Phase::COUNT],
}

impl Timeline {
    /// Starts in a phase.
    pub fn start(phase: Phase) -> Self {
        Self { started: Instant::now(), current: AtomicU64::new(pack(phase, 0)), totals: Default::default() }
    }

    /// Nanoseconds since the start, by the monotonic clock.
    pub fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).map_or(NANOS, |ns| ns.min(NANOS))
    }

    /// Enters a phase: a clock reading and two atomic operations, no lock, no allocation.
    pub fn enter(&self, phase: Phase) {
        self.enter_at(phase, self.elapsed_ns());
    }

    fn enter_at(&self, phase: Phase, now: u64) {
        let before = self.current.swap(pack(phase, now), Ordering::AcqRel);
        let (left, since) = unpack(before);
        // Wraps where two threads enter at once in the wrong order: the sum stays exact, as differences telescope.
        self.totals[left as usize].fetch_add(now.wrapping_sub(since), Ordering::AcqRel);
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        unpack(self.current.load(Ordering::Acquire)).0
    }

    /// Nanoseconds of each phase up to now, in the order of [`Phase::ALL`].
    pub fn totals_ns(&self) -> [u64; Phase::COUNT] {
        let current = self.current.load(Ordering::Acquire);
        let mut totals = [0; Phase::COUNT];
        for (total, sum) in totals.iter_mut().zip(&self.totals) {
            *total = sum.load(Ordering::Acquire);
        }
        let (phase, since) = unpack(current);
        // A change between the two reads is counted by the next call.
        if self.current.load(Ordering::Acquire) == current {
            let open = self.elapsed_ns().saturating_sub(since);
            totals[phase as usize] = totals[phase as usize].wrapping_add(open);
        }
        totals
    }

    /// Ends the run: nanoseconds of each phase; their sum is the run's wall time.
    pub fn finish(&self) -> [u64; Phase::COUNT] {
        self.enter(Phase::Idle);
        let mut totals = [0; Phase::COUNT];
        for (total, sum) in totals.iter_mut().zip(&self.totals) {
            *total = sum.load(Ordering::Acquire);
        }
        totals
    }
}

fn pack(phase: Phase, ns: u64) -> u64 {
    u64::from(phase as u8) << 56 | (ns & NANOS)
}

fn unpack(word: u64) -> (Phase, u64) {
    (Phase::of(word >> 56), word & NANOS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_sum_to_the_last_timestamp_exactly() {
        let line = Timeline::start(Phase::Idle);
        for (phase, at) in [
            (Phase::Load, 100),
            (Phase::Train, 1_000_003),
            (Phase::Evaluate, 2_000_000_017),
            (Phase::Train, 2_000_000_018),
            (Phase::Idle, 5_000_000_000),
        ] {
            line.enter_at(phase, at);
        }
        let totals = line.totals.each_ref().map(|t| t.load(Ordering::Relaxed));
        assert_eq!(totals.iter().sum::<u64>(), 5_000_000_000);
        assert_eq!(totals[Phase::Evaluate as usize], 1);
        assert_eq!(totals[Phase::Idle as usize], 100);
        assert_eq!(totals[Phase::Load as usize], 1_000_003 - 100);
    }

    #[test]
    fn totals_grow_while_a_phase_is_open() {
        let line = Timeline::start(Phase::Idle);
        line.enter(Phase::Train);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(line.totals_ns()[Phase::Train as usize] >= 5_000_000);
        assert_eq!(line.phase(), Phase::Train);
    }

    #[test]
    fn threads_that_enter_at_once_lose_no_time() {
        let line = Timeline::start(Phase::Idle);
        std::thread::scope(|scope| {
            for phase in [Phase::Train, Phase::Evaluate] {
                let line = &line;
                scope.spawn(move || (0..10_000).for_each(|_| line.enter(phase)));
            }
        });
        line.enter_at(Phase::Idle, line.elapsed_ns());
        let end = unpack(line.current.load(Ordering::Relaxed)).1;
        let sum = line.totals.iter().fold(0u64, |all, t| all.wrapping_add(t.load(Ordering::Relaxed)));
        assert_eq!(sum, end);
    }

    #[test]
    fn every_phase_survives_packing() {
        for phase in Phase::ALL {
            assert_eq!(unpack(pack(phase, 12_345)), (phase, 12_345));
        }
        assert_eq!(Phase::of(200), Phase::Idle);
    }
}
