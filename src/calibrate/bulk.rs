//! What is measured once a machine, whatever the model: memory, disk, hashing, power.

use super::stopwatch::Patience;
use crate::error::Result;
use crate::estimate::Machine;
use crate::fs;
use crate::meter::rapl::Rapl;
use std::path::Path;
use std::time::{Duration, Instant};

/// Floats of a buffer that is copied: 32 MiB, beyond the caches of most cores.
const COPY_FLOATS: usize = 8 << 20;
/// Bytes that are written to the disk and read back.
const DISK_BYTES: usize = 16 << 20;
/// Bytes that are hashed.
const HASH_BYTES: usize = 4 << 20;
/// How long power is watched, at rest and under load.
const POWER_WATCH: Duration = Duration::from_millis(1500);

/// Memory, disk under `home`, and hashing.
///
/// # Errors
/// The disk under `home` cannot be written.
pub fn measure(machine: &mut Machine, home: &Path, patience: Patience) -> Result<()> {
    machine.fresh_bytes_per_s = fresh()?;
    machine.copy_bytes_per_s = copy(patience)?;
    machine.elementwise_bytes_per_s = machine.copy_bytes_per_s;
    let bytes = vec![7u8; HASH_BYTES];
    let timed = patience.time(&mut || {
        std::hint::black_box(fs::sha256_bytes(&bytes));
        Ok(())
    })?;
    machine.sha256_bytes_per_s = HASH_BYTES as f64 / timed.typical_s;
    disk(machine, home, patience)
}

/// Bytes read and written per second.
fn copy(patience: Patience) -> Result<f64> {
    let from = vec![1f32; COPY_FLOATS];
    let mut to = vec![0f32; COPY_FLOATS];
    let timed = patience.time(&mut || {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
        Ok(())
    })?;
    Ok(8.0 * COPY_FLOATS as f64 / timed.typical_s)
}

/// Bytes per second of a buffer's first touch: the system clears its pages. Buffers are kept until the end, for the
/// allocator would hand the same pages out again.
fn fresh() -> Result<f64> {
    let mut kept = Vec::new();
    let timed = Patience { budget: Duration::ZERO, least: 3 }.time(&mut || {
        kept.push(std::hint::black_box(vec![1u8; DISK_BYTES]));
        Ok(())
    })?;
    Ok(DISK_BYTES as f64 / timed.typical_s)
}

fn disk(machine: &mut Machine, home: &Path, patience: Patience) -> Result<()> {
    fs::create_folders(home)?;
    let (small, large) = (home.join("calibrate-small.tmp"), home.join("calibrate-large.tmp"));
    let bytes = vec![42u8; DISK_BYTES];
    let timed = patience.time(&mut || fs::write_durable(&small, b"fttrain"));
    let written =
        Patience { budget: Duration::ZERO, least: 2 }.time(&mut || fs::write_durable(&large, &bytes));
    let read = patience.time(&mut || fs::read_at_most(&large, u64::MAX).map(drop));
    for file in [&small, &large] {
        fs::remove_file(file)?;
    }
    machine.fsync_s = timed?.typical_s;
    machine.disk_write_bytes_per_s = DISK_BYTES as f64 / (written?.typical_s - machine.fsync_s).max(1e-6);
    machine.disk_bytes_per_s = DISK_BYTES as f64 / read?.typical_s;
    Ok(())
}

/// Watches the package's energy counter at rest and while `load` runs; nothing where it may not be read.
///
/// # Errors
/// The load's own.
pub fn power(machine: &mut Machine, load: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let Some(mut counter) = Rapl::open(Path::new("/sys/class/powercap")) else { return Ok(()) };
    let started = Instant::now();
    let mut read =
        || counter.read(started.elapsed().as_secs_f64()).map(|j| (started.elapsed().as_secs_f64(), j));
    let first = read();
    std::thread::sleep(POWER_WATCH);
    let rested = read();
    let until = Instant::now() + POWER_WATCH;
    while Instant::now() < until {
        load()?;
    }
    let worked = read();
    let watts = |a: Option<(f64, f64)>, b: Option<(f64, f64)>| {
        let ((t0, j0), (t1, j1)) = a.zip(b)?;
        Some((j1 - j0) / (t1 - t0)).filter(|w| w.is_finite() && *w > 0.0)
    };
    machine.idle_power_w = watts(first, rested);
    machine.power_w = watts(rested, worked);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory_and_a_disk_and_keeps_no_file_of_it() {
        let home = tempfile::tempdir().unwrap();
        let mut machine = Machine::assumed("test", 1);
        let patience = Patience { budget: Duration::ZERO, least: 1 };
        measure(&mut machine, home.path(), patience).unwrap();
        for rate in [machine.copy_bytes_per_s, machine.fresh_bytes_per_s, machine.disk_bytes_per_s] {
            assert!((1e6..1e13).contains(&rate), "{rate}");
        }
        assert!(machine.is_sound() && machine.fsync_s > 0.0);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
