//! What the meter's thread gathers look by look, and what comes out of it at the end. Cumulative figures are shared
//! between the phases of an interval by wall time; nothing is filled in.

use super::energy::{EnergyMeter, Integral};
use super::measured::{Measured, PhaseTotal};
use super::phase::{Phase, Timeline};
use super::probe::{Closing, Reading};
use super::samples::{Sample, Samples};
use std::time::Duration;

/// A counter since its first reading; a dip between two looks is the looking's, not the counter's.
#[derive(Debug, Default, Clone, Copy)]
struct Counter {
    first: Option<u64>,
    last: u64,
}

impl Counter {
    fn read(&mut self, now: Option<u64>) {
        if let Some(now) = now {
            self.first.get_or_insert(now);
            self.last = self.last.max(now);
        }
    }

    fn total(&self) -> Option<u64> {
        self.first.map(|first| self.last.saturating_sub(first))
    }
}

/// A look at so much of the highest sum was at the peak.
const CLOSE: f64 = 0.95;

/// In a shorter run, s, the meter's first look weighs too much.
const SHORT_S: f64 = 5.0;

/// What the thread has gathered.
#[derive(Debug)]
pub(super) struct Record {
    looks: u64,
    last_s: f64,
    last_phase: Option<Phase>,
    last_totals: [u64; Phase::COUNT],
    longest_gap_s: f64,
    first_cpu_s: Option<f64>,
    last_cpu_s: Option<f64>,
    cpu_s: [f64; Phase::COUNT],
    package: EnergyMeter,
    gpu: EnergyMeter,
    energy_j: [f64; Phase::COUNT],
    busy: Integral,
    peak_rss: [Option<u64>; Phase::COUNT],
    peak: Option<u64>,
    peak_sum: Option<u64>,
    peak_pss: Option<u64>,
    /// Highest sum of resident bytes at a look that had proportional ones too.
    peak_sum_with_pss: Option<u64>,
    peak_device: Option<u64>,
    peak_group: Option<u64>,
    faults: Counter,
    read: Counter,
    write: Counter,
    samples: Samples,
    /// CPU seconds of the thread that gathers.
    pub(super) meter_cpu_s: Option<f64>,
    /// What the probe said at the end.
    pub(super) closing: Closing,
}

impl Record {
    /// Nothing yet; levels stand for at most `longest_gap_s`.
    pub(super) fn new(longest_gap_s: f64) -> Self {
        Self {
            looks: 0,
            last_s: 0.0,
            last_phase: None,
            last_totals: [0; Phase::COUNT],
            longest_gap_s: 0.0,
            first_cpu_s: None,
            last_cpu_s: None,
            cpu_s: [0.0; Phase::COUNT],
            package: EnergyMeter::default(),
            gpu: EnergyMeter::default(),
            energy_j: [0.0; Phase::COUNT],
            busy: Integral::new(longest_gap_s),
            peak_rss: [None; Phase::COUNT],
            peak: None,
            peak_sum: None,
            peak_pss: None,
            peak_sum_with_pss: None,
            peak_device: None,
            peak_group: None,
            faults: Counter::default(),
            read: Counter::default(),
            write: Counter::default(),
            samples: Samples::default(),
            meter_cpu_s: None,
            closing: Closing::default(),
        }
    }

    pub(super) fn take(&mut self, timeline: &Timeline, reading: &Reading) {
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
        let joules = self.package.read(at_s, reading.package_j) + self.gpu.read(at_s, reading.gpu_j);
        add_shares(&mut self.energy_j, joules, &shares);
        self.busy.read(at_s, reading.gpu_busy);
        self.faults.read(reading.major_faults);
        self.read.read(reading.read_bytes);
        self.write.read(reading.write_bytes);
        self.take_memory(reading, phase);
        self.samples.keep(Sample::new(at_s, phase.name(), reading, self.total_j()));
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
        self.peak = self.peak.max(reading.peak_rss_bytes);
        self.peak_sum = self.peak_sum.max(reading.rss_bytes);
        self.peak_pss = self.peak_pss.max(reading.pss_bytes);
        let with_pss = reading.rss_bytes.filter(|_| reading.pss_bytes.is_some());
        self.peak_sum_with_pss = self.peak_sum_with_pss.max(with_pss);
        self.peak_device = self.peak_device.max(reading.device_bytes);
        self.peak_group = self.peak_group.max(reading.group_bytes);
    }

    /// The highest memory of several processes together, and what was summed. Proportional memory is read at some of
    /// the looks: it holds where one of them was close to the peak.
    fn peak_tree(&self) -> Option<(u64, &'static str)> {
        let sum = self.peak_sum.filter(|_| self.closing.processes > 1)?;
        let is_close = self.peak_sum_with_pss.is_some_and(|seen| seen as f64 >= CLOSE * sum as f64);
        let proportional = self.peak_pss.filter(|_| is_close).map(|pss| (pss, "proportional memory"));
        Some(proportional.unwrap_or((sum, "resident memory")))
    }

    /// Looks that took too much of the time came less often than they were asked for: that is said where it was the rule.
    pub(super) fn say_if_sparse(&mut self, interval: Duration, late: u64) {
        if self.last_s > SHORT_S && late.saturating_mul(2) > self.looks {
            self.closing.warnings.push(format!(
                "the meter looked {:.1} times a second and not {:.1}, so as to take less than 0.5 % of the time",
                self.looks as f64 / self.last_s,
                1.0 / interval.as_secs_f64()
            ));
        }
    }

    fn total_j(&self) -> Option<f64> {
        let all = [self.package.total_j(), self.gpu.total_j()];
        all.into_iter().flatten().reduce(|a, b| a + b)
    }

    pub(super) fn close(self, totals: [u64; Phase::COUNT], suspended_s: Option<f64>) -> Measured {
        let energy_j = self.total_j();
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
        let tree = self.peak_tree();
        let peak_tree = tree.map(|(bytes, _)| bytes);
        Measured {
            wall_s: phases.iter().map(|p| p.wall_s).sum(),
            phases,
            peak_rss_bytes: self.peak.max(peak_tree).or(self.peak_sum),
            largest_process_bytes: self.peak,
            peak_tree_bytes: peak_tree,
            tree_memory_source: tree.map(|(_, source)| source.into()),
            peak_device_bytes: self.peak_device,
            device_memory_source: self.closing.device_memory_source,
            cpu_s: self.first_cpu_s.zip(self.last_cpu_s).map(|(first, last)| last - first),
            major_faults: self.faults.total(),
            read_bytes: self.read.total(),
            write_bytes: self.write.total(),
            peak_group_bytes: self.peak_group,
            group_peak_bytes: self.closing.group_peak_bytes,
            group_limit_bytes: self.closing.group_limit_bytes,
            package_j: self.package.total_j(),
            gpu_j: self.gpu.total_j(),
            energy_j,
            package_partial: self.package.partial(),
            gpu_busy_s: self.busy.sum(),
            devices: self.closing.devices,
            processes: self.closing.processes,
            meter_cpu_s: self.meter_cpu_s,
            suspended_s,
            longest_gap_s: self.longest_gap_s,
            looks: self.looks,
            warnings: self.closing.warnings,
            samples: self.samples.into_kept(),
        }
    }
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
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

    fn reading(cpu: f64, rss: u64, package: Option<f64>) -> Reading {
        Reading { cpu_s: Some(cpu), rss_bytes: Some(rss), package_j: package, ..Reading::default() }
    }

    fn closed(script: &[Reading], closing: Closing) -> Measured {
        let timeline = Timeline::start(Phase::Train);
        let mut record = Record::new(1.0);
        for reading in script {
            record.take(&timeline, reading);
        }
        record.closing = closing;
        record.close(timeline.finish(), None)
    }

    fn record(script: &[Reading]) -> Measured {
        closed(script, Closing::default())
    }

    #[test]
    fn nothing_measured_is_none_and_not_zero() {
        let measured = record(&[Reading::default(); 3]);
        assert_eq!((measured.cpu_s, measured.energy_j), (None, None));
        assert_eq!((measured.peak_rss_bytes, measured.major_faults, measured.read_bytes), (None, None, None));
        assert_eq!((measured.gpu_busy_s, measured.peak_group_bytes), (None, None));
        assert_eq!(measured.phases[0].cpu_s, None);
        assert!(!measured.package_partial);
    }

    #[test]
    fn counters_are_differences_from_the_first_look() {
        let with = |cpu, rss, joules, faults| Reading {
            major_faults: Some(faults),
            ..reading(cpu, rss, Some(joules))
        };
        let measured = record(&[with(5.0, 10, 100.0, 7), with(6.0, 30, 150.0, 9), with(8.5, 20, 175.0, 8)]);
        assert_eq!(measured.cpu_s, Some(3.5));
        assert_eq!((measured.energy_j, measured.package_j, measured.gpu_j), (Some(75.0), Some(75.0), None));
        assert_eq!((measured.peak_rss_bytes, measured.major_faults), (Some(30), Some(2)));
        let cpu: f64 = measured.phases.iter().filter_map(|p| p.cpu_s).sum();
        assert!((cpu - 3.5).abs() < 1e-9);
    }

    #[test]
    fn energy_is_the_sum_of_all_counters() {
        let both = |package, gpu| Reading { gpu_j: Some(gpu), ..reading(0.0, 1, Some(package)) };
        let measured = record(&[both(100.0, 0.0), both(110.0, 40.0)]);
        assert_eq!(
            (measured.package_j, measured.gpu_j, measured.energy_j),
            (Some(10.0), Some(40.0), Some(50.0))
        );
        let phases: f64 = measured.phases.iter().filter_map(|p| p.energy_j).sum();
        assert!((phases - 50.0).abs() < 1e-9);
    }

    #[test]
    fn a_counter_that_is_lost_leaves_partial_energy() {
        let measured = record(&[
            reading(0.0, 1, Some(100.0)),
            reading(0.1, 1, Some(110.0)),
            reading(0.2, 1, None),
            reading(0.3, 1, Some(900.0)),
        ]);
        assert_eq!(measured.energy_j, Some(10.0));
        assert!(measured.package_partial);
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
    fn several_processes_peak_by_their_proportional_memory_where_it_can_be_read() {
        let look = |rss, pss, largest| Reading {
            pss_bytes: pss,
            peak_rss_bytes: Some(largest),
            ..reading(0.0, rss, None)
        };
        let tree = || Closing { processes: 3, ..Closing::default() };
        let shared = closed(&[look(880, Some(600), 400), look(900, None, 400)], tree());
        assert_eq!((shared.peak_tree_bytes, shared.peak_rss_bytes), (Some(600), Some(600)));
        let source = |m: &Measured| m.tree_memory_source.clone().unwrap_or_default();
        assert!(source(&shared).starts_with("proportional"));
        for late in [look(900, None, 400), look(500, Some(300), 400)] {
            let summed = closed(&[look(900, None, 400), late], tree());
            assert_eq!((summed.peak_tree_bytes, summed.peak_rss_bytes), (Some(900), Some(900)));
            assert!(source(&summed).starts_with("resident"));
        }
        let alone = record(&[look(350, Some(300), 400)]);
        assert_eq!((alone.peak_tree_bytes, alone.peak_rss_bytes), (None, Some(400)));
    }
}
