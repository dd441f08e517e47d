//! The meter's thread: looks at a probe ten times a second and gives each look to the phase it fell into. The training
//! thread only ever does [`Meter::enter`].

use super::latest::Latest;
use super::measured::Measured;
use super::phase::{Phase, Timeline};
use super::probe::{Probe, Reading};
use super::process::thread_cpu_s;
use super::record::{Record, seconds};
use crate::units::Seconds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Share of a core that looks may take, in the mean since the start; the rest up to half a percent is for the last one.
const SHARE: f64 = 0.004;
/// Between two looks, however dear they are.
const LONGEST_WAIT_S: f64 = 10.0;

/// A running meter.
#[derive(Debug)]
pub struct Meter {
    shared: Arc<Shared>,
    /// A look is wanted now; closed, the last one is.
    wake: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<Record>>,
    suspended_before: Option<f64>,
}

#[derive(Debug)]
struct Shared {
    timeline: Timeline,
    latest: Latest,
    /// Where the packages' counter stood at the first look, J.
    first_package_j: Option<f64>,
}

impl Shared {
    fn joules(&self) -> Option<f64> {
        let reading = self.latest.load();
        let package = reading.package_j.zip(self.first_package_j).map(|(now, first)| (now - first).max(0.0));
        let known = [package, reading.gpu_j].into_iter().flatten();
        known.reduce(|sum, joules| sum + joules)
    }
}

impl Meter {
    /// Ten looks a second: below the 0.5 % of a core that metering may cost.
    pub const INTERVAL: Duration = Duration::from_millis(100);

    /// Takes a first look, which counters count from, then starts the clock in a phase, and the thread; without a
    /// thread only the clock runs.
    pub fn start(mut probe: Box<dyn Probe>, interval: Duration, phase: Phase) -> Self {
        // A probe that panics does so again in its thread, and costs no more than its figures.
        let first = catch_unwind(AssertUnwindSafe(|| probe.sample())).unwrap_or_default();
        let shared = Arc::new(Shared {
            timeline: Timeline::start(phase),
            latest: Latest::default(),
            first_package_j: first.package_j,
        });
        shared.latest.store(&first);
        let (wake, woken) = mpsc::channel::<()>();
        let theirs = Arc::clone(&shared);
        let run = move || {
            let mut record = Record::new(longest_gap_s(interval));
            let (mut reading, mut late) = (first, 0);
            loop {
                record.take(&theirs.timeline, &reading);
                let wait = wait(interval, seconds(theirs.timeline.elapsed_ns()), thread_cpu_s());
                late += u64::from(wait > interval);
                match woken.recv_timeout(wait) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => reading = probe.sample(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                theirs.latest.store(&reading);
            }
            record.take(&theirs.timeline, &probe.sample());
            record.closing = probe.close();
            record.say_if_sparse(interval, late);
            record.meter_cpu_s = thread_cpu_s();
            record
        };
        let thread = std::thread::Builder::new().name("meter".into()).spawn(run);
        Self { shared, wake: Some(wake), thread: thread.ok(), suspended_before: asleep_s() }
    }

    /// Enters a phase; a clock reading and two atomic operations.
    pub fn enter(&self, phase: Phase) {
        self.shared.timeline.enter(phase);
    }

    /// Wall time since the start.
    pub fn elapsed(&self) -> Seconds {
        Seconds(seconds(self.shared.timeline.elapsed_ns()))
    }

    /// The last look: no older than an interval, unless looks are dear.
    pub fn latest(&self) -> Reading {
        self.shared.latest.load()
    }

    /// Joules from the start to the last look, by all counters there are.
    pub fn joules(&self) -> Option<f64> {
        self.shared.joules()
    }

    /// Wall seconds of each phase so far.
    pub fn phases(&self) -> Vec<(Phase, f64)> {
        let totals = self.shared.timeline.totals_ns();
        Phase::ALL.into_iter().zip(totals.map(seconds)).filter(|(_, s)| *s > 0.0).collect()
    }

    /// Has a look taken now, not at the end of the interval: something began that may be over by then.
    pub fn look(&self) {
        // Where the thread is gone, so are its figures.
        let _ = self.wake.as_ref().map(|wake| wake.send(()));
    }

    /// A second pair of eyes, for a thread that only looks.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.shared))
    }

    /// Stops the clock, then the thread after a last look, and closes the sums.
    pub fn finish(mut self) -> Measured {
        let totals = self.shared.timeline.finish();
        let suspended_s = self
            .suspended_before
            .zip(asleep_s())
            .map(|(before, now)| (now - before).max(0.0))
            // Two clocks are never read at the same instant.
            .map(|s| if s < 0.01 { 0.0 } else { s });
        self.join().close(totals, suspended_s)
    }

    fn join(&mut self) -> Record {
        drop(self.wake.take());
        let record = self.thread.take().and_then(|thread| thread.join().ok());
        record.unwrap_or_else(|| {
            let mut nothing = Record::new(0.0);
            nothing.closing.warnings.push("the meter's thread failed: only the clock was read".into());
            nothing
        })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.join();
    }
}

/// Sees what a [`Meter`] sees, from another thread and without a lock.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Shared>);

impl Watch {
    /// Wall time since the meter's start.
    pub fn elapsed(&self) -> Seconds {
        Seconds(seconds(self.0.timeline.elapsed_ns()))
    }

    /// The phase the run is in.
    pub fn phase(&self) -> Phase {
        self.0.timeline.phase()
    }

    /// The meter's last look.
    pub fn latest(&self) -> Reading {
        self.0.latest.load()
    }

    /// Joules from the start to the last look, by all counters there are.
    pub fn joules(&self) -> Option<f64> {
        self.0.joules()
    }
}

/// Until the next look: the interval, or longer where looks take more than their share of the time.
fn wait(interval: Duration, elapsed_s: f64, cpu_s: Option<f64>) -> Duration {
    // Whoever asks for looks at shorter intervals lets them take as much more.
    let share = SHARE * (Meter::INTERVAL.as_secs_f64() / interval.as_secs_f64()).max(1.0);
    let behind_s = cpu_s.unwrap_or(0.0) / share - elapsed_s;
    interval.max(Duration::from_secs_f64(behind_s.clamp(0.0, LONGEST_WAIT_S)))
}

/// The longest time that a level read at two looks may stand for: a few intervals, for a busy machine wakes a thread
/// late.
pub(super) fn longest_gap_s(interval: Duration) -> f64 {
    (3.0 * interval.as_secs_f64()).max(1.0)
}

/// Seconds that the machine has slept since it was booted: what the boot clock counts and the monotonic one does not.
#[cfg(target_os = "linux")]
fn asleep_s() -> Option<f64> {
    use nix::time::{ClockId, clock_gettime};
    let read = |clock| clock_gettime(clock).ok().map(Duration::from);
    let (boot, awake) = (read(ClockId::CLOCK_BOOTTIME)?, read(ClockId::CLOCK_MONOTONIC)?);
    Some(boot.as_secs_f64() - awake.as_secs_f64())
}

#[cfg(not(target_os = "linux"))]
fn asleep_s() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::fake::Fake;
    use crate::meter::process::ProcessProbe;

    fn start(probe: impl Probe + 'static) -> Meter {
        Meter::start(Box::new(probe), Duration::from_millis(1), Phase::Idle)
    }

    #[test]
    fn phases_sum_to_the_wall_time() {
        let meter = start(Fake::new(vec![]));
        for phase in Phase::ALL {
            meter.enter(phase);
            std::thread::sleep(Duration::from_millis(3));
        }
        let before = meter.elapsed().0;
        let measured = meter.finish();
        let sum: f64 = measured.phases.iter().map(|p| p.wall_s).sum();
        assert!((sum - measured.wall_s).abs() < 1e-9);
        assert!(measured.wall_s >= before && measured.phases.len() == Phase::COUNT);
        let train = measured.phases.iter().find(|p| p.name == "train").unwrap();
        assert!(train.wall_s >= 0.003 && train.wall_s < measured.wall_s / 2.0);
    }

    #[test]
    fn the_latest_look_is_read_without_a_lock() {
        let reading = Reading { cpu_s: Some(1.5), rss_bytes: Some(42), ..Reading::default() };
        let meter = start(Fake::new(vec![reading]));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(meter.latest(), reading);
    }

    #[test]
    fn joules_count_from_the_first_look_by_every_counter_that_answers() {
        let reading = |package_j, gpu_j| Reading { package_j, gpu_j, ..Reading::default() };
        let after = |script: Vec<Reading>| {
            let meter = start(Fake::new(script));
            std::thread::sleep(Duration::from_millis(20));
            (meter.joules(), meter.watch().joules())
        };
        let both = vec![reading(Some(1000.0), None), reading(Some(1050.0), Some(30.0))];
        assert_eq!(after(both), (Some(80.0), Some(80.0)));
        let card = vec![reading(None, None), reading(None, Some(30.0))];
        assert_eq!(
            after(card),
            (Some(30.0), Some(30.0)),
            "a card counts from the start, though it answers later"
        );
        assert_eq!(after(vec![]), (None, None));
    }

    #[test]
    fn a_look_is_taken_when_it_is_asked_for() {
        let meter = Meter::start(Box::new(Fake::new(vec![])), Duration::from_secs(60), Phase::Idle);
        meter.look();
        assert_eq!(meter.finish().looks, 3, "the first, this one, the last");
    }

    #[test]
    fn a_probe_that_panics_costs_its_figures_and_not_the_run() {
        struct Broken;
        impl Probe for Broken {
            fn sample(&mut self) -> Reading {
                panic!("lost")
            }
        }
        let meter = start(Broken);
        meter.enter(Phase::Train);
        std::thread::sleep(Duration::from_millis(2));
        let measured = meter.finish();
        assert!(measured.wall_s >= 0.002);
        assert_eq!(measured.cpu_s, None);
        assert!(measured.warnings[0].contains("failed"), "{:?}", measured.warnings);
    }

    #[test]
    fn looks_that_are_dear_are_taken_less_often() {
        let second = Meter::INTERVAL * 10;
        assert_eq!(wait(Meter::INTERVAL, 10.0, Some(0.01)), Meter::INTERVAL);
        assert_eq!(wait(Meter::INTERVAL, 10.0, None), Meter::INTERVAL);
        let dear = wait(Meter::INTERVAL, 10.0, Some(0.05)).as_secs_f64();
        assert!((dear - 2.5).abs() < 1e-9, "{dear}");
        assert_eq!(wait(second, 10.0, Some(1e9)), Duration::from_secs_f64(LONGEST_WAIT_S));
        let asked_for = wait(Meter::INTERVAL / 10, 10.0, Some(0.39));
        assert_eq!(asked_for, Meter::INTERVAL / 10, "ten times the looks, ten times the share");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn metering_costs_less_than_half_a_percent() {
        let probe = ProcessProbe::new(Meter::INTERVAL);
        let meter = Meter::start(Box::new(probe), Meter::INTERVAL, Phase::Train);
        std::thread::sleep(Duration::from_secs(1));
        let measured = meter.finish();
        let share = measured.overhead().unwrap();
        assert!(share < 0.005, "{share}");
        assert!(measured.looks >= 5 && measured.peak_rss_bytes.unwrap() > 1 << 20);
    }
}
