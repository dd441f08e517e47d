//! The meter's thread: looks at a probe ten times a second, gives each look to the phase it fell into, and at the end
//! closes the sums. The training thread only ever does [`Meter::enter`].

use super::phase::{Phase, Timeline};
use super::probe::{EnergyMeter, Probe, Reading};
use super::process::thread_cpu_s;
use crate::units::Seconds;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// One phase of a run, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseTotal {
    /// As [`Phase::name`].
    pub name: String,
    /// Seconds by the wall clock.
    pub wall_s: f64,
    /// CPU seconds of all threads; an interval that spans a change of phase is shared by wall time.
    pub cpu_s: Option<f64>,
    /// Highest resident bytes seen in it; a rise seen across a change of phase counts for both.
    pub peak_rss_bytes: Option<u64>,
    /// Joules, shared as CPU seconds are.
    pub energy_j: Option<f64>,
}

/// One look that was kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the start.
    pub at_s: f64,
    /// As [`Phase::name`].
    pub phase: String,
    /// Resident bytes: the most since the sample before.
    pub rss_bytes: Option<u64>,
    /// CPU seconds of the process so far.
    pub cpu_s: Option<f64>,
    /// Bytes on the accelerator.
    pub device_bytes: Option<u64>,
    /// Joules since the start.
    pub energy_j: Option<f64>,
}

/// What a run took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds by the monotonic clock: the sum of the phases.
    pub wall_s: f64,
    /// Phases that took any time, in the order of a run.
    pub phases: Vec<PhaseTotal>,
    /// Highest resident bytes of the process.
    pub peak_rss_bytes: Option<u64>,
    /// Highest bytes on the accelerator.
    pub peak_device_bytes: Option<u64>,
    /// CPU seconds of all threads since the meter's start.
    pub cpu_s: Option<f64>,
    /// Joules; `None` = not measured.
    pub energy_j: Option<f64>,
    /// The counter did not cover the whole run: `energy_j` is a part.
    pub energy_partial: bool,
    /// CPU seconds of the meter's own thread.
    pub meter_cpu_s: Option<f64>,
    /// Seconds that the machine slept; not in `wall_s`.
    pub suspended_s: Option<f64>,
    /// Longest time between two looks, s.
    pub longest_gap_s: f64,
    /// Looks in all; `samples` holds at most a thousand of them.
    pub looks: u64,
    /// Looks thinned evenly.
    pub samples: Vec<Sample>,
}

/// A running meter.
#[derive(Debug)]
pub struct Meter {
    shared: Arc<Shared>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<Record>>,
    suspended_before: Option<f64>,
}

#[derive(Debug, Default)]
struct Shared {
    timeline: Timeline,
    latest: Latest,
}

/// The last reading without a lock; `u64::MAX` = `None`.
#[derive(Debug)]
struct Latest([AtomicU64; 5]);

impl Default for Latest {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(u64::MAX)))
    }
}

impl Latest {
    fn store(&self, r: &Reading) {
        let float = |v: Option<f64>| v.map_or(u64::MAX, f64::to_bits);
        let whole = |v: Option<u64>| v.unwrap_or(u64::MAX);
        let words = [
            float(r.cpu_s),
            whole(r.rss_bytes),
            whole(r.peak_rss_bytes),
            whole(r.device_bytes),
            float(r.energy_j),
        ];
        for (slot, word) in self.0.iter().zip(words) {
            slot.store(word, Ordering::Release);
        }
    }

    fn load(&self) -> Reading {
        let [cpu, rss, peak, device, energy] =
            self.0.each_ref().map(|slot| Some(slot.load(Ordering::Acquire)).filter(|&w| w != u64::MAX));
        Reading {
            cpu_s: cpu.map(f64::from_bits),
            rss_bytes: rss,
            peak_rss_bytes: peak,
            device_bytes: device,
            energy_j: energy.map(f64::from_bits),
        }
    }
}

impl Meter {
    /// Ten looks a second: below the 0.5 % of a core that metering may cost.
    pub const INTERVAL: Duration = Duration::from_millis(100);

    /// Starts the clock in [`Phase::Idle`] and the thread; without a thread only the clock runs.
    pub fn start(mut probe: Box<dyn Probe>, interval: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = mpsc::channel::<()>();
        let theirs = Arc::clone(&shared);
        let run = move || {
            let mut record = Record::default();
            loop {
                let reading = probe.sample();
                theirs.latest.store(&reading);
                record.take(&theirs.timeline, &reading);
                match stopped.recv_timeout(interval) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            record.take(&theirs.timeline, &probe.sample());
            record.meter_cpu_s = thread_cpu_s();
            record
        };
        let thread = std::thread::Builder::new().name("meter".into()).spawn(run);
        Self { shared, stop: Some(stop), thread: thread.ok(), suspended_before: asleep_s() }
    }

    /// Enters a phase; a clock reading and two atomic operations.
    pub fn enter(&self, phase: Phase) {
        self.shared.timeline.enter(phase);
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.shared.timeline.phase()
    }

    /// Wall time since the start.
    pub fn elapsed(&self) -> Seconds {
        Seconds(seconds(self.shared.timeline.elapsed_ns()))
    }

    /// The last look, at most one interval old.
    pub fn latest(&self) -> Reading {
        self.shared.latest.load()
    }

    /// Wall seconds of each phase so far.
    pub fn phases(&self) -> Vec<(Phase, f64)> {
        let totals = self.shared.timeline.totals_ns();
        Phase::ALL.into_iter().zip(totals.map(seconds)).filter(|(_, s)| *s > 0.0).collect()
    }

    /// Stops the thread after a last look and closes the sums.
    pub fn finish(mut self) -> Measured {
        let record = self.join();
        let totals = self.shared.timeline.finish();
        let suspended_s = self
            .suspended_before
            .zip(asleep_s())
            .map(|(before, now)| (now - before).max(0.0))
            // Two clocks are never read at the same instant.
            .map(|s| if s < 0.01 { 0.0 } else { s });
        record.close(totals, suspended_s)
    }

    fn join(&mut self) -> Record {
        drop(self.stop.take());
        let thread = self.thread.take();
        thread.and_then(|t| t.join().ok()).unwrap_or_default()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.join();
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
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

/// Kept samples; beyond it every second one goes.
const MOST_SAMPLES: usize = 1000;

/// What the thread has gathered.
#[derive(Debug, Default)]
struct Record {
    looks: u64,
    last_s: f64,
    last_phase: Option<Phase>,
    last_totals: [u64; Phase::COUNT],
    longest_gap_s: f64,
    first_cpu_s: Option<f64>,
    last_cpu_s: Option<f64>,
    cpu_s: [f64; Phase::COUNT],
    energy: EnergyMeter,
    energy_j: [f64; Phase::COUNT],
    peak_rss: [Option<u64>; Phase::COUNT],
    peak: Option<u64>,
    peak_device: Option<u64>,
    meter_cpu_s: Option<f64>,
    samples: Vec<Sample>,
    /// One look in so many is kept.
    stride: u64,
}

impl Record {
    fn take(&mut self, timeline: &Timeline, reading: &Reading) {
        let (totals, phase) = (timeline.totals_ns(), timeline.phase());
        let at_s = seconds(timeline.elapsed_ns());
        let shares = shares(&self.last_totals, &totals, phase);
        if self.looks > 0 {
            self.longest_gap_s = self.longest_gap_s.max(at_s - self.last_s);
        }
        if let Some(cpu) = reading.cpu_s {
            self.first_cpu_s.get_or_insert(cpu);
            let used = (cpu - self.last_cpu_s.unwrap_or(cpu)).max(0.0);
            self.last_cpu_s = Some(cpu.max(self.last_cpu_s.unwrap_or(cpu)));
            add_shares(&mut self.cpu_s, used, &shares);
        }
        let joules = self.energy.read(at_s, reading.energy_j);
        add_shares(&mut self.energy_j, joules, &shares);
        self.take_memory(reading, phase);
        self.keep(at_s, phase, reading);
        (self.looks, self.last_s) = (self.looks.saturating_add(1), at_s);
        (self.last_phase, self.last_totals) = (Some(phase), totals);
    }

    fn take_memory(&mut self, reading: &Reading, phase: Phase) {
        // The system's own peak sees what falls between two looks.
        let risen = reading.peak_rss_bytes.filter(|&p| Some(p) > self.peak && self.looks > 0);
        let seen = reading.rss_bytes.max(risen);
        for phase in [Some(phase), self.last_phase.filter(|_| risen.is_some())].into_iter().flatten() {
            let highest = &mut self.peak_rss[phase as usize];
            *highest = (*highest).max(seen);
        }
        self.peak = self.peak.max(reading.peak_rss_bytes).max(reading.rss_bytes);
        self.peak_device = self.peak_device.max(reading.device_bytes);
    }

    fn keep(&mut self, at_s: f64, phase: Phase, reading: &Reading) {
        self.stride = self.stride.max(1);
        let sample = Sample {
            at_s,
            phase: phase.name().into(),
            rss_bytes: reading.rss_bytes,
            cpu_s: reading.cpu_s,
            device_bytes: reading.device_bytes,
            energy_j: self.energy.total_j(),
        };
        match self.samples.last_mut() {
            // What is left out gives its memory to the one before, so that no peak is thinned away.
            Some(last) if !self.looks.is_multiple_of(self.stride) => {
                last.rss_bytes = last.rss_bytes.max(sample.rss_bytes);
                last.device_bytes = last.device_bytes.max(sample.device_bytes);
            }
            _ => self.samples.push(sample),
        }
        if self.samples.len() > MOST_SAMPLES {
            self.thin();
        }
    }

    fn thin(&mut self) {
        let mut kept: Vec<Sample> = Vec::with_capacity(MOST_SAMPLES);
        for (i, sample) in std::mem::take(&mut self.samples).into_iter().enumerate() {
            match kept.last_mut() {
                Some(last) if i % 2 == 1 => {
                    last.rss_bytes = last.rss_bytes.max(sample.rss_bytes);
                    last.device_bytes = last.device_bytes.max(sample.device_bytes);
                }
                _ => kept.push(sample),
            }
        }
        self.samples = kept;
        self.stride = self.stride.saturating_mul(2);
    }

    fn close(self, totals: [u64; Phase::COUNT], suspended_s: Option<f64>) -> Measured {
        let energy_j = self.energy.total_j();
        let phases: Vec<PhaseTotal> = Phase::ALL
            .into_iter()
            .filter(|&p| totals[p as usize] > 0)
            .map(|p| PhaseTotal {
                name: p.name().into(),
                wall_s: seconds(totals[p as usize]),
                cpu_s: self.first_cpu_s.map(|_| self.cpu_s[p as usize]),
                peak_rss_bytes: self.peak_rss[p as usize],
                energy_j: energy_j.map(|_| self.energy_j[p as usize]),
            })
            .collect();
        Measured {
            wall_s: phases.iter().map(|p| p.wall_s).sum(),
            phases,
            peak_rss_bytes: self.peak,
            peak_device_bytes: self.peak_device,
            cpu_s: self.first_cpu_s.zip(self.last_cpu_s).map(|(first, last)| last - first),
            energy_j,
            energy_partial: self.energy.partial(),
            meter_cpu_s: self.meter_cpu_s,
            suspended_s,
            longest_gap_s: self.longest_gap_s,
            looks: self.looks,
            samples: self.samples,
        }
    }
}

/// Each phase's share of the wall time between two looks; all to `phase` where none passed.
fn shares(before: &[u64; Phase::COUNT], now: &[u64; Phase::COUNT], phase: Phase) -> [f64; Phase::COUNT] {
    let mut shares = [0.0; Phase::COUNT];
    let passed = |i: usize| now[i].saturating_sub(before[i]) as f64;
    let all: f64 = (0..Phase::COUNT).map(passed).sum();
    for (i, share) in shares.iter_mut().enumerate() {
        *share = if all > 0.0 { passed(i) / all } else { f64::from(u8::from(i == phase as usize)) };
    }
    shares
}

fn add_shares(sums: &mut [f64; Phase::COUNT], amount: f64, shares: &[f64; Phase::COUNT]) {
    for (sum, share) in sums.iter_mut().zip(shares) {
        *sum += amount * share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::fake::Fake;
    use crate::meter::process::ProcessProbe;

    fn reading(cpu: f64, rss: u64, energy: Option<f64>) -> Reading {
        Reading {
            cpu_s: Some(cpu),
            rss_bytes: Some(rss),
            peak_rss_bytes: None,
            device_bytes: None,
            energy_j: energy,
        }
    }

    fn record(script: &[Reading]) -> Measured {
        let timeline = Timeline::start();
        timeline.enter(Phase::Train);
        let mut record = Record::default();
        for reading in script {
            record.take(&timeline, reading);
        }
        record.close(timeline.finish(), None)
    }

    #[test]
    fn phases_sum_to_the_wall_time() {
        let meter = Meter::start(Box::new(Fake::new(vec![])), Duration::from_millis(1));
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
    fn nothing_measured_is_none_and_not_zero() {
        let measured = record(&[Reading::default(); 3]);
        assert_eq!((measured.cpu_s, measured.energy_j), (None, None));
        assert_eq!(measured.peak_rss_bytes, None);
        assert_eq!(measured.phases[0].cpu_s, None);
        assert!(!measured.energy_partial);
    }

    #[test]
    fn counters_are_differences_from_the_first_look() {
        let measured = record(&[
            reading(5.0, 10, Some(100.0)),
            reading(6.0, 30, Some(150.0)),
            reading(8.5, 20, Some(175.0)),
        ]);
        assert_eq!(measured.cpu_s, Some(3.5));
        assert_eq!(measured.energy_j, Some(75.0));
        assert_eq!(measured.peak_rss_bytes, Some(30));
        let cpu: f64 = measured.phases.iter().filter_map(|p| p.cpu_s).sum();
        assert!((cpu - 3.5).abs() < 1e-9);
    }

    #[test]
    fn a_device_that_is_lost_leaves_partial_energy() {
        let measured = record(&[
            reading(0.0, 1, Some(100.0)),
            reading(0.1, 1, Some(110.0)),
            reading(0.2, 1, None),
            reading(0.3, 1, Some(900.0)),
        ]);
        assert_eq!(measured.energy_j, Some(10.0));
        assert!(measured.energy_partial);
    }

    #[test]
    fn the_systems_peak_sees_what_falls_between_two_looks() {
        let with_peak = |peak| Reading { peak_rss_bytes: Some(peak), ..reading(0.0, 10, None) };
        // The process had peaked at 500 before the meter started: that is not the phase's.
        let measured = record(&[with_peak(500), with_peak(500), with_peak(700)]);
        assert_eq!(measured.peak_rss_bytes, Some(700));
        let train = measured.phases.iter().find(|p| p.name == "train").unwrap();
        assert_eq!(train.peak_rss_bytes, Some(700));
        let quiet = record(&[with_peak(500), with_peak(500)]);
        let train = quiet.phases.iter().find(|p| p.name == "train").unwrap();
        assert_eq!(train.peak_rss_bytes, Some(10));
    }

    #[test]
    fn samples_are_thinned_without_losing_the_peak() {
        let script: Vec<Reading> =
            (0..12_345).map(|i| reading(f64::from(i), if i == 7_777 { 99 } else { 1 }, None)).collect();
        let measured = record(&script);
        assert_eq!(measured.looks, 12_345);
        assert!(measured.samples.len() <= MOST_SAMPLES && measured.samples.len() > 400);
        assert_eq!(measured.samples.iter().filter_map(|s| s.rss_bytes).max(), Some(99));
        assert!(measured.samples.windows(2).all(|w| w[0].at_s <= w[1].at_s));
    }

    #[test]
    fn the_latest_look_is_read_without_a_lock() {
        let meter = Meter::start(Box::new(Fake::new(vec![reading(1.5, 42, None)])), Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(20));
        let latest = meter.latest();
        assert_eq!((latest.cpu_s, latest.rss_bytes), (Some(1.5), Some(42)));
        assert_eq!((latest.energy_j, latest.device_bytes), (None, None));
    }

    #[test]
    fn a_probe_that_panics_costs_its_figures_and_not_the_run() {
        struct Broken;
        impl Probe for Broken {
            fn sample(&mut self) -> Reading {
                panic!("lost")
            }
        }
        let meter = Meter::start(Box::new(Broken), Duration::from_millis(1));
        meter.enter(Phase::Train);
        std::thread::sleep(Duration::from_millis(2));
        let measured = meter.finish();
        assert!(measured.wall_s >= 0.002);
        assert_eq!(measured.cpu_s, None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn metering_costs_less_than_half_a_percent() {
        let meter = Meter::start(Box::new(ProcessProbe::new()), Meter::INTERVAL);
        meter.enter(Phase::Train);
        std::thread::sleep(Duration::from_secs(1));
        let measured = meter.finish();
        let share = measured.meter_cpu_s.unwrap() / measured.wall_s;
        assert!(share < 0.005, "{share}");
        assert!(measured.looks >= 5 && measured.peak_rss_bytes.unwrap() > 1 << 20);
    }
}
