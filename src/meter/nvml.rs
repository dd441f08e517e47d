//! NVIDIA's management library, opened at run time: without a driver there are no accelerators, and that is no error.

use super::gpu::{Driver, Gone, Quick, Slow};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// What holds a clock down that nobody asked for.
const REASONS: [(ThrottleReasons, &str); 6] = [
    (ThrottleReasons::SW_POWER_CAP, "power cap"),
    (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "too warm"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "much too warm"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
    (ThrottleReasons::SYNC_BOOST, "held by another device"),
];

/// The devices that this process may use.
struct Library {
    nvml: Nvml,
    indices: Vec<u32>,
}

/// The library, where there is one and it knows a device.
pub(super) fn open() -> Option<Box<dyn Driver>> {
    let nvml = Nvml::init().ok()?;
    let count = nvml.device_count().ok()?;
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let is_visible = |index: &u32| {
        let uuid = nvml.device_by_index(*index).and_then(|d| d.uuid()).unwrap_or_default();
        visible.as_deref().is_none_or(|list| is_listed(list, *index, &uuid))
    };
    let indices: Vec<u32> = (0..count).filter(is_visible).collect();
    (!indices.is_empty()).then(|| Box::new(Library { nvml, indices }) as Box<dyn Driver>)
}

/// `CUDA_VISIBLE_DEVICES` names devices by number or by the beginning of their UUID.
fn is_listed(list: &str, index: u32, uuid: &str) -> bool {
    list.split(',').map(str::trim).any(|name| {
        name.parse::<u32>().map_or_else(|_| !name.is_empty() && uuid.starts_with(name), |n| n == index)
    })
}

impl Library {
    fn device(&self, device: usize) -> Result<Device<'_>, Gone> {
        let index = self.indices.get(device).ok_or(Gone)?;
        self.nvml.device_by_index(*index).map_err(|_| Gone)
    }
}

/// A figure, `None` where the device has none, and an error where there is no device any more.
fn figure<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, Gone> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized) => Err(Gone),
        Err(_) => Ok(None),
    }
}

impl Driver for Library {
    fn names(&mut self) -> Vec<String> {
        let name = |index: &u32| self.nvml.device_by_index(*index).and_then(|d| d.name());
        self.indices.iter().map(|i| name(i).unwrap_or_else(|_| "NVIDIA device".into())).collect()
    }

    fn quick(&mut self, device: usize) -> Result<Quick, Gone> {
        let device = self.device(device)?;
        Ok(Quick {
            used_bytes: figure(device.memory_info())?.map(|m| m.used),
            energy_j: figure(device.total_energy_consumption())?.map(|mj| mj as f64 / 1e3),
            power_w: figure(device.power_usage())?.map(|mw| f64::from(mw) / 1e3),
            busy: figure(device.utilization_rates())?.map(|u| f64::from(u.gpu) / 100.0),
        })
    }

    fn slow(&mut self, device: usize) -> Result<Slow, Gone> {
        let device = self.device(device)?;
        let reasons = figure(device.current_throttle_reasons())?.unwrap_or(ThrottleReasons::NONE);
        let processes = figure(device.running_compute_processes())?;
        Ok(Slow {
            processes: processes.map(|all| {
                let bytes = |used| match used {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                };
                all.into_iter().map(|p| (p.pid, bytes(p.used_gpu_memory))).collect()
            }),
            clock_mhz: figure(device.clock_info(Clock::SM))?.map(u64::from),
            temperature_c: figure(device.temperature(TemperatureSensor::Gpu))?.map(u64::from),
            throttled: REASONS
                .into_iter()
                .filter(|(r, _)| reasons.contains(*r))
                .map(|(_, word)| word)
                .collect(),
            is_sliced: figure(device.mig_mode())?.is_some_and(|mode| mode.current != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices_are_named_by_number_or_uuid() {
        assert!(is_listed("0, 2", 2, "GPU-5a"));
        assert!(!is_listed("0,2", 1, "GPU-5a"));
        assert!(is_listed("GPU-5", 1, "GPU-5a"));
        assert!(!is_listed("", 0, "GPU-5a"));
        assert!(!is_listed("-1", 0, "GPU-5a"));
    }

    #[test]
    fn a_device_without_a_figure_is_not_a_lost_device() {
        assert_eq!(figure::<u32>(Err(NvmlError::NotSupported)), Ok(None));
        assert_eq!(figure::<u32>(Err(NvmlError::GpuLost)), Err(Gone));
        assert_eq!(figure(Ok(3)), Ok(Some(3)));
    }
}
