//! Accelerators of a run: energy by their own counters with power integrated beside it as a cross-check, memory, busy
//! time, and whatever makes their figures doubtful (a device that is lost, throttles, is shared). Knows no driver.

use super::device::DeviceTotal;
use super::energy::{EnergyMeter, Integral};
use super::probe::Reading;
use super::{nvml, procfs};
use std::collections::BTreeSet;

/// The figures that a driver gives at every look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Quick {
    /// Bytes in use on the device, by whomever.
    pub used_bytes: Option<u64>,
    /// Joules since some fixed moment.
    pub energy_j: Option<f64>,
    /// W now.
    pub power_w: Option<f64>,
    /// Share of the driver's last sample in which a kernel ran, 0 … 1.
    pub busy: Option<f64>,
}

/// The figures that cost more, once a second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slow {
    /// Process numbers with their bytes, where the driver tells them.
    pub processes: Option<Vec<(u32, Option<u64>)>>,
    /// Clock of the multiprocessors, MHz.
    pub clock_mhz: Option<u64>,
    /// °C.
    pub temperature_c: Option<u64>,
    /// Why the clock is below what it could be; idle and chosen clocks are no reasons.
    pub throttled: Vec<&'static str>,
    /// The device is cut into slices: its figures are those of the whole.
    pub is_sliced: bool,
}

/// The device does not answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// What reads accelerators.
pub trait Driver: Send {
    /// Names of the devices, in the driver's order.
    fn names(&mut self) -> Vec<String>;
    /// Reads what is cheap.
    fn quick(&mut self, device: usize) -> Result<Quick, Gone>;
    /// Reads the rest.
    fn slow(&mut self, device: usize) -> Result<Slow, Gone>;
}

/// Between two looks at what costs more.
const SLOW_S: f64 = 1.0;

/// All accelerators of a machine.
pub struct Gpus {
    driver: Box<dyn Driver>,
    devices: Vec<Device>,
    /// The driver's process numbers are this process's: not inside a container.
    knows_processes: bool,
    by_process: bool,
    next_slow_s: f64,
}

struct Device {
    total: DeviceTotal,
    counter: EnergyMeter,
    power: Integral,
    busy: Integral,
    used_before: Option<u64>,
    slow: Slow,
}

impl Gpus {
    /// All devices of a driver; `None` where it has none.
    pub fn new(mut driver: Box<dyn Driver>, knows_processes: bool, longest_gap_s: f64) -> Option<Self> {
        let device = |name| Device {
            total: DeviceTotal { name, ..DeviceTotal::default() },
            counter: EnergyMeter::default(),
            power: Integral::new(longest_gap_s),
            busy: Integral::new(longest_gap_s),
            used_before: None,
            slow: Slow::default(),
        };
        let devices: Vec<Device> = driver.names().into_iter().map(device).collect();
        (!devices.is_empty()).then_some(Self {
            driver,
            devices,
            knows_processes,
            by_process: false,
            next_slow_s: 0.0,
        })
    }

    /// Adds the devices' figures to a reading; `own` are the run's processes.
    pub fn read(&mut self, now_s: f64, own: &[u32], reading: &mut Reading) {
        let is_slow = now_s >= self.next_slow_s;
        if is_slow {
            self.next_slow_s = now_s + SLOW_S;
        }
        let (mut power, mut busy, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (index, device) in self.devices.iter_mut().enumerate() {
            if device.total.lost_at_s.is_some() {
                continue;
            }
            let answer = self.driver.quick(index).and_then(|quick| {
                if is_slow {
                    device.slow = self.driver.slow(index)?;
                }
                Ok(quick)
            });
            let Ok(quick) = answer else {
                device.lose(now_s);
                continue;
            };
            device.counter.read(now_s, quick.energy_j);
            device.power.read(now_s, quick.power_w);
            device.busy.read(now_s, quick.busy);
            device.judge(own, self.knows_processes, quick.busy);
            let share = device.share(own, self.knows_processes, quick.used_bytes);
            self.by_process |= share.is_some_and(|(_, by_process)| by_process);
            let share = share.map(|(bytes, _)| bytes);
            device.total.peak_bytes = device.total.peak_bytes.max(share);
            bytes.extend(share);
            power.extend(quick.power_w);
            busy.extend(quick.busy);
        }
        reading.device_bytes = (!bytes.is_empty()).then(|| bytes.iter().sum());
        reading.gpu_power_w = (!power.is_empty()).then(|| power.iter().sum());
        // A device that is gone computes nothing: the mean is over all.
        reading.gpu_busy =
            (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / self.devices.len().max(1) as f64);
        reading.gpu_clock_mhz = self.living().filter_map(|d| d.slow.clock_mhz).max();
        reading.gpu_temperature_c = self.living().filter_map(|d| d.slow.temperature_c).max();
        let is_whole = self.devices.iter().all(|d| d.counter.total_j().is_some() && !d.counter.partial());
        reading.gpu_j = is_whole.then(|| self.devices.iter().filter_map(|d| d.counter.total_j()).sum());
    }

    fn living(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|d| d.total.lost_at_s.is_none())
    }

    /// The devices in all, where their memory was read, and what makes a figure doubtful.
    pub fn close(&mut self) -> (Vec<DeviceTotal>, String, Vec<String>) {
        let totals: Vec<DeviceTotal> = self.devices.iter().map(Device::close).collect();
        let warnings = totals.iter().flat_map(DeviceTotal::doubts).collect();
        let source = match (self.by_process, self.knows_processes) {
            (true, _) => "the driver, by process",
            (false, true) => "use of the device above what it was before the start",
            (false, false) => {
                "use of the device above what it was before the start: in a container the driver's process \
                 numbers are not ours"
            }
        };
        (totals, source.into(), warnings)
    }
}

/// One device by itself, looked at now and then.
pub struct Gauge {
    driver: Box<dyn Driver>,
    device: usize,
    /// The driver's process numbers are this process's.
    knows_processes: bool,
}

impl Gauge {
    /// The `nth` GPU of CUDA's, by its name: the driver's own order may be another. `None` where it cannot be read.
    pub fn open(name: &str, nth: usize) -> Option<Self> {
        Self::of(nvml::open()?, name, nth, procfs::numbers_are_the_hosts())
    }

    fn of(mut driver: Box<dyn Driver>, name: &str, nth: usize, knows_processes: bool) -> Option<Self> {
        let names = driver.names();
        let is_it = |at: &usize| names.get(*at).is_some_and(|of| of == name);
        let device = Some(nth).filter(is_it).or_else(|| (0..names.len()).find(is_it))?;
        Some(Self { driver, device, knows_processes })
    }

    /// Joules since some fixed moment, where the device counts them.
    pub fn energy_j(&mut self) -> Option<f64> {
        self.driver.quick(self.device).ok()?.energy_j
    }

    /// Bytes of this process on it, where the driver tells them.
    pub fn own_bytes(&mut self) -> Option<u64> {
        let processes = self.driver.slow(self.device).ok()?.processes.filter(|_| self.knows_processes)?;
        processes.into_iter().find(|(pid, _)| *pid == std::process::id())?.1
    }
}

impl Device {
    fn lose(&mut self, now_s: f64) {
        self.total.lost_at_s = Some(now_s);
        self.counter.read(now_s, None);
    }

    fn judge(&mut self, own: &[u32], knows_processes: bool, busy: Option<f64>) {
        let total = &mut self.total;
        total.hottest_c = total.hottest_c.max(self.slow.temperature_c);
        if busy.is_some_and(|share| share > 0.5)
            && let Some(clock) = self.slow.clock_mhz
        {
            total.slowest_mhz = Some(total.slowest_mhz.map_or(clock, |slowest| slowest.min(clock)));
        }
        let reasons: BTreeSet<&str> = total.throttled.iter().map(String::as_str).collect();
        let new: Vec<String> =
            self.slow.throttled.iter().filter(|r| !reasons.contains(**r)).map(|r| (*r).to_owned()).collect();
        total.throttled.extend(new);
        total.is_sliced |= self.slow.is_sliced;
        let Some(processes) = &self.slow.processes else { return };
        let strangers = if knows_processes {
            processes.iter().filter(|(pid, _)| !own.contains(pid)).count()
        } else if self.used_before.is_none() {
            // Before the run has touched the device, every process on it is another's.
            processes.len()
        } else {
            0
        };
        total.others = total.others.max(u64::try_from(strangers).unwrap_or(u64::MAX));
    }

    /// Bytes of the run on the device, and whether they are by process.
    fn share(&mut self, own: &[u32], knows_processes: bool, used: Option<u64>) -> Option<(u64, bool)> {
        let above = used.map(|used| (used.saturating_sub(*self.used_before.get_or_insert(used)), false));
        let Some(listed) = self.slow.processes.as_ref().filter(|_| knows_processes) else { return above };
        let mut mine = listed.iter().filter(|(pid, _)| own.contains(pid)).map(|(_, bytes)| *bytes).peekable();
        // Where none of the run's processes is listed, the run is not on this device.
        mine.peek()?;
        mine.sum::<Option<u64>>().map(|bytes| (bytes, true)).or(above)
    }

    fn close(&self) -> DeviceTotal {
        DeviceTotal {
            energy_j: self.counter.total_j(),
            energy_partial: self.counter.partial(),
            integrated_j: self.power.sum(),
            busy_s: self.busy.sum(),
            ..self.total.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a device: each look is one of the script, the last for ever; `None` = gone.
    struct Script {
        quick: Vec<Option<Quick>>,
        slow: Slow,
        next: usize,
    }

    impl Driver for Script {
        fn names(&mut self) -> Vec<String> {
            vec!["NVIDIA Test".into()]
        }

        fn quick(&mut self, _: usize) -> Result<Quick, Gone> {
            let at = self.next.min(self.quick.len() - 1);
            self.next += 1;
            self.quick[at].clone().ok_or(Gone)
        }

        fn slow(&mut self, _: usize) -> Result<Slow, Gone> {
            Ok(self.slow.clone())
        }
    }

    fn look(energy_j: f64, power_w: f64, used: u64) -> Quick {
        Quick { used_bytes: Some(used), energy_j: Some(energy_j), power_w: Some(power_w), busy: Some(0.8) }
    }

    /// Ten looks a second over the script; the readings and what is closed.
    fn play(
        script: Vec<Option<Quick>>,
        slow: Slow,
        knows: bool,
    ) -> (Vec<Reading>, DeviceTotal, String, Vec<String>) {
        let looks = script.len();
        let driver = Script { quick: script, slow, next: 0 };
        let mut gpus = Gpus::new(Box::new(driver), knows, 1.0).unwrap();
        let readings = (0..looks).map(|i| {
            let mut reading = Reading::default();
            gpus.read(i as f64 * 0.1, &[7], &mut reading);
            reading
        });
        let readings = readings.collect();
        let (mut totals, source, warnings) = gpus.close();
        (readings, totals.remove(0), source, warnings)
    }

    fn steady(looks: u32) -> Vec<Option<Quick>> {
        (0..looks).map(|i| Some(look(f64::from(i) * 30.0, 300.0, 1 << 30))).collect()
    }

    #[test]
    fn a_healthy_device_agrees_with_itself() {
        let (readings, total, _, warnings) = play(steady(21), Slow::default(), true);
        assert_eq!(readings[20].gpu_j, Some(600.0));
        assert!((total.integrated_j.unwrap() - 600.0).abs() < 1e-6);
        assert!((total.busy_s.unwrap() - 1.6).abs() < 1e-9, "0.8 of two seconds");
        assert!(warnings.is_empty() && !total.is_disturbed(), "{warnings:?}");
    }

    #[test]
    fn a_device_lost_mid_run_keeps_what_it_saw_and_says_so() {
        let mut script = steady(11);
        script.extend([None, Some(look(9000.0, 300.0, 1 << 30))]);
        let (readings, total, _, warnings) = play(script, Slow::default(), true);
        assert_eq!(total.energy_j, Some(300.0));
        assert!(total.energy_partial && total.lost_at_s.is_some() && total.is_disturbed());
        assert_eq!((readings[12].gpu_j, readings[12].device_bytes), (None, None), "it does not come back");
        assert!(warnings[0].contains("lost after 1.1 s"), "{warnings:?}");
    }

    #[test]
    fn a_counter_that_is_reset_or_frozen_is_a_part() {
        let mut reset = steady(10);
        reset.push(Some(look(1.0, 300.0, 1 << 30)));
        let frozen = vec![Some(look(50.0, 300.0, 1 << 30)); 60];
        for script in [reset, frozen] {
            let (readings, total, _, warnings) = play(script, Slow::default(), true);
            assert!(total.energy_partial && readings.last().unwrap().gpu_j.is_none());
            assert!(warnings[0].contains("stood still or was reset"), "{warnings:?}");
            assert!(total.integrated_j.unwrap() > 250.0, "the power goes on being read");
        }
    }

    #[test]
    fn a_counter_that_contradicts_the_power_is_pointed_out() {
        let script = (0..21).map(|i| Some(look(f64::from(i) * 20.0, 300.0, 0))).collect();
        let (_, total, _, warnings) = play(script, Slow::default(), true);
        assert_eq!(total.energy_j, Some(400.0));
        assert!(warnings[0].contains("400 J by its counter, 600 J"), "{warnings:?}");
    }

    #[test]
    fn memory_is_the_processes_own_where_the_driver_knows_it() {
        let slow = Slow { processes: Some(vec![(7, Some(500)), (8, Some(300))]), ..Slow::default() };
        let (readings, total, source, warnings) = play(steady(3), slow, true);
        assert_eq!((readings[2].device_bytes, source.as_str()), (Some(500), "the driver, by process"));
        assert_eq!((total.others, total.peak_bytes), (1, Some(500)));
        assert!(warnings[0].contains("was shared: up to 1"), "{warnings:?}");
    }

    #[test]
    fn in_a_container_the_hosts_process_numbers_are_not_believed() {
        // Process 7 of the host is not ours, although it has our number.
        let slow = Slow { processes: Some(vec![(7, Some(999_999))]), ..Slow::default() };
        let script =
            vec![Some(look(0.0, 300.0, 100)), Some(look(30.0, 300.0, 700)), Some(look(60.0, 300.0, 400))];
        let (readings, total, source, _) = play(script, slow, false);
        assert_eq!((readings[1].device_bytes, total.peak_bytes), (Some(600), Some(600)));
        assert_eq!(total.others, 1, "it was there before the run was");
        assert!(source.contains("container"), "{source}");
    }

    #[test]
    fn throttling_and_slices_are_marked() {
        let slow =
            Slow { throttled: vec!["power cap"], is_sliced: true, clock_mhz: Some(900), ..Slow::default() };
        let (_, total, _, warnings) = play(steady(25), slow, true);
        assert_eq!(
            (total.throttled.as_slice(), total.slowest_mhz),
            (["power cap".to_owned()].as_slice(), Some(900))
        );
        assert!(warnings.iter().any(|w| w.contains("throttled: power cap")), "{warnings:?}");
        assert!(total.is_disturbed() && warnings.iter().any(|w| w.contains("slices")));
    }

    #[test]
    fn what_the_driver_does_not_tell_is_none() {
        let (readings, total, _, warnings) = play(vec![Some(Quick::default()); 3], Slow::default(), true);
        assert_eq!(readings[2], Reading::default());
        assert_eq!((total.energy_j, total.integrated_j, total.busy_s), (None, None, None));
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn one_device_is_known_by_its_name_and_this_process_by_its_number() {
        let listed = Slow {
            processes: Some(vec![(1, Some(5)), (std::process::id(), Some(600 << 20))]),
            ..Slow::default()
        };
        let gauge = |name: &str, nth, knows| {
            let driver = Script { quick: steady(1), slow: listed.clone(), next: 0 };
            Gauge::of(Box::new(driver), name, nth, knows)
        };
        assert!(gauge("Another", 0, true).is_none());
        let mut beyond = gauge("NVIDIA Test", 3, true).unwrap();
        assert_eq!((beyond.energy_j(), beyond.own_bytes()), (Some(0.0), Some(600 << 20)));
        assert_eq!(gauge("NVIDIA Test", 0, false).unwrap().own_bytes(), None, "of another's numbers");
        let driver = Script { quick: vec![None], slow: Slow::default(), next: 0 };
        let mut gone = Gauge::of(Box::new(driver), "NVIDIA Test", 0, true).unwrap();
        assert_eq!((gone.energy_j(), gone.own_bytes()), (None, None));
    }
}
