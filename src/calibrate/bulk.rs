//! What is measured once a machine, whatever the model: memory, disk, values drawn and quantised, power; of a GPU its own
//! memory and what a launch takes.

use super::rig::Rig;
use super::stopwatch::{Patience, Timed};
use crate::error::Result;
use crate::estimate::{Machine, phases};
use crate::fs;
use crate::meter;
use crate::model::adapter::pissa;
use crate::model::weights::drawn;
use crate::ops::{host, residual};
use fttrain_kernels::cpu::Nf4;
use fttrain_kernels::sys::memory::give_back_pages;
use rayon::prelude::*;
use std::io::{self, BufReader, Write};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// Floats of a buffer that is copied: 32 MiB, beyond the caches of most cores.
const COPY_FLOATS: usize = 8 << 20;
/// Bytes that are written to the disk and read back: more than a disk's own cache hides.
const DISK_BYTES: usize = 64 << 20;
/// Written at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of a buffer that is touched for the first time, and of those that are touched side by side: few, for a run that
/// measures its machine itself has them in its peak.
const FRESH_BYTES: usize = 4 << 20;
const FRESH_ROUND: usize = 32 << 20;
/// Bytes touched at most to see what pages cost that nobody used for a while: more than is likely to be at hand.
const FAR_BYTES: u64 = 6 << 30;
/// Rows of a weight that is decomposed, and how many of its singular values are wanted.
const DECOMPOSED: usize = 128;
const DECOMPOSED_RANK: usize = 16;
/// Values that are drawn and quantised, as rows of a matrix.
const VALUES: usize = 2 << 20;
const ROW: usize = 1024;
/// Floats of a buffer that is copied on a GPU: 256 MiB, beyond any cache; less where its memory is small.
const DEVICE_FLOATS: u64 = 64 << 20;
/// Floats of the smallest kernel.
const TINY: usize = 32;
/// How long power is watched, at rest and under load.
const POWER_WATCH: Duration = Duration::from_millis(1500);

/// Memory, for so long at most, values, and the disk under `home`.
///
/// # Errors
/// The disk under `home` cannot be written.
pub fn measure(machine: &mut Machine, home: &Path, patience: Patience, touched_for: Duration) -> Result<()> {
    // First, before anything else touches memory; what it frees is then at hand.
    machine.far_bytes_per_s = far(touched_for);
    machine.fresh_bytes_per_s = fresh();
    machine.copy_bytes_per_s = copy(patience)?;
    machine.elementwise_bytes_per_s = machine.copy_bytes_per_s;
    values(machine, patience)?;
    disk(machine, home, patience)
}

/// Seconds that the host takes to queue a kernel: of those that compute next to nothing.
///
/// # Errors
/// The device does not answer.
pub fn launch(machine: &mut Machine, rig: &Rig, patience: Patience) -> Result<()> {
    let (to, tiny) = (rig.filled(1, TINY)?, rig.filled(1, TINY)?);
    machine.launch_s = patience.time_on(rig, &mut || residual::add(&to, &tiny))?.typical_s;
    Ok(())
}

/// The memory of a device that has so many bytes of its own.
///
/// # Errors
/// The device does not answer.
pub fn device(machine: &mut Machine, rig: &Rig, bytes: u64, patience: Patience) -> Result<()> {
    let floats = usize::try_from((bytes / 64).min(DEVICE_FLOATS)).unwrap_or(0).max(TINY);
    let (to, from) = (rig.filled(1, floats)?, rig.filled(1, floats)?);
    let moved = 4.0 * floats as f64;
    let copied = patience.time_on(rig, &mut || {
        from.copy()?;
        Ok(())
    })?;
    machine.copy_bytes_per_s = 2.0 * moved / copied.typical_s;
    let added = patience.time_on(rig, &mut || residual::add(&to, &from))?;
    machine.elementwise_bytes_per_s = 3.0 * moved / added.typical_s;
    Ok(())
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

/// Bytes per second of a first touch by one thread: the system clears the pages. What was touched and freed before is given
/// back first, and the mean is taken over many buffers, for the first of them may find pages that the system has at hand.
fn fresh() -> f64 {
    give_back_pages();
    let started = Instant::now();
    let one = |_| std::hint::black_box(vec![1u8; FRESH_BYTES]);
    let kept: Vec<_> = (0..FRESH_ROUND / FRESH_BYTES).map(one).collect();
    let passed = started.elapsed().as_secs_f64();
    drop(kept);
    give_back_pages();
    FRESH_ROUND as f64 / passed.max(1e-9)
}

/// Bytes per second of a first touch by all threads, where much is touched: that of the last half. 0 where there is no time
/// for any.
fn far(patience: Duration) -> f64 {
    give_back_pages();
    let most = FAR_BYTES.min(meter::machine::limits().memory_bytes / 4);
    let started = Instant::now();
    let touch = |_| std::hint::black_box(vec![1u8; FRESH_BYTES]);
    let (mut kept, mut seconds) = (Vec::new(), Vec::new());
    while started.elapsed() < patience && ((seconds.len() + 1) * FRESH_ROUND) as u64 <= most {
        let begun = Instant::now();
        kept.push((0..FRESH_ROUND / FRESH_BYTES).into_par_iter().map(touch).collect::<Vec<_>>());
        seconds.push(begun.elapsed().as_secs_f64());
    }
    drop(kept);
    give_back_pages();
    let last = &seconds[seconds.len() / 2..];
    (last.len() * FRESH_ROUND) as f64 / last.iter().sum::<f64>().max(1e-9)
}

/// Values per second that become NF4, and that are drawn for a model without weights; FLOP/s of one that is decomposed.
fn values(machine: &mut Machine, patience: Patience) -> Result<()> {
    let rate = |timed: Timed| VALUES as f64 / timed.typical_s;
    let drawn = || drawn("calibrate.weight", &[VALUES], 0, 0.02);
    machine.draw_values_per_s = rate(patience.time(&mut || {
        std::hint::black_box(drawn());
        Ok(())
    })?);
    let values = drawn();
    machine.quantise_values_per_s = rate(patience.time(&mut || {
        let copy = |range: Range<usize>, out: &mut [f32]| out.copy_from_slice(&values[range]);
        std::hint::black_box(Nf4::encode((VALUES / ROW, ROW), true, copy));
        Ok(())
    })?);
    let weight = host::tensor(values[..DECOMPOSED * ROW].to_vec(), (DECOMPOSED, ROW))?;
    let how = pissa::How { rank: DECOMPOSED_RANK, scale: 1.0, rounds: None, seed: 0, module: "calibrate" };
    let timed = patience.time(&mut || pissa::start(&weight, &how).map(drop))?;
    let sides = (DECOMPOSED as u64, ROW as u64);
    machine.decompose_flops_per_s =
        phases::decomposing(sides, DECOMPOSED_RANK as u64, None) / timed.typical_s;
    Ok(())
}

fn disk(machine: &mut Machine, home: &Path, patience: Patience) -> Result<()> {
    fs::create_folders(home)?;
    let (small, large) = (home.join("calibrate-small.tmp"), home.join("calibrate-large.tmp"));
    let block = vec![42u8; BLOCK_BYTES];
    let mut all = |out: &mut dyn Write| (0..DISK_BYTES / BLOCK_BYTES).try_for_each(|_| out.write_all(&block));
    let timed = patience.time(&mut || fs::write_durable(&small, b"fttrain"));
    let written = Patience { budget: Duration::ZERO, least: 1 }
        .time(&mut || fs::write_durable_with(&large, &mut all).map(drop));
    let mut read = || {
        let file = fs::open_regular(&large).map(|file| BufReader::with_capacity(BLOCK_BYTES, file));
        let done = file.and_then(|mut file| io::copy(&mut file, &mut io::sink()));
        done.map_err(|cause| fs::Error::Io { operation: "read", path: large.clone(), cause })?;
        Ok(())
    };
    let read = patience.time(&mut read);
    for file in [&small, &large] {
        fs::remove_file(file)?;
    }
    machine.fsync_s = timed?.typical_s;
    machine.disk_write_bytes_per_s = DISK_BYTES as f64 / (written?.typical_s - machine.fsync_s).max(1e-6);
    machine.disk_bytes_per_s = DISK_BYTES as f64 / read?.typical_s;
    Ok(())
}

/// Watches an energy counter, J at so many seconds since the start, at rest and while `load` runs; nothing where it may not
/// be read.
///
/// # Errors
/// The load's own.
pub fn power(
    machine: &mut Machine,
    counter: &mut dyn FnMut(f64) -> Option<f64>,
    load: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let started = Instant::now();
    let mut read = || {
        let now_s = started.elapsed().as_secs_f64();
        Some((now_s, counter(now_s)?))
    };
    let Some(first) = read() else { return Ok(()) };
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
    machine.idle_power_w = watts(Some(first), rested);
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
        measure(&mut machine, home.path(), patience, Duration::from_millis(10)).unwrap();
        for rate in [machine.copy_bytes_per_s, machine.fresh_bytes_per_s, machine.disk_bytes_per_s] {
            assert!((1e6..1e13).contains(&rate), "{rate}");
        }
        assert!(machine.is_sound() && machine.fsync_s > 0.0);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_device_has_a_launch_and_memory_of_its_own() {
        let mut machine = Machine::assumed("test", 1);
        let patience = Patience { budget: Duration::ZERO, least: 1 };
        let (bytes, device_of) = (1 << 30, |bytes| Rig::queue(&candle_core::Device::Cpu, bytes));
        launch(&mut machine, &device_of(bytes), patience).unwrap();
        device(&mut machine, &device_of(bytes), bytes, patience).unwrap();
        assert!((1e-9..1e-3).contains(&machine.launch_s), "{}", machine.launch_s);
        for rate in [machine.copy_bytes_per_s, machine.elementwise_bytes_per_s] {
            assert!((1e8..1e12).contains(&rate), "{rate}");
        }
    }

    #[test]
    fn power_is_what_a_counter_grew_by_at_rest_and_at_work() {
        let (mut machine, mut is_loaded) = (Machine::assumed("test", 1), false);
        let loaded = std::cell::Cell::new(false);
        let mut joules = 0.0;
        let mut last_s = 0.0;
        let mut counter = |now_s: f64| {
            joules += (now_s - last_s) * if loaded.get() { 300.0 } else { 50.0 };
            last_s = now_s;
            Some(joules)
        };
        power(&mut machine, &mut counter, &mut || {
            loaded.set(true);
            is_loaded = true;
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        })
        .unwrap();
        assert!(is_loaded && (machine.idle_power_w.unwrap() - 50.0).abs() < 1e-6);
        assert!((machine.power_w.unwrap() - 300.0).abs() < 1e-6);
        let mut unread = Machine::assumed("test", 1);
        power(&mut unread, &mut |_| None, &mut || unreachable!("there is nothing to load for")).unwrap();
        assert_eq!((unread.power_w, unread.idle_power_w), (None, None));
    }
}
