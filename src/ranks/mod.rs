//! The processes that share one run. Each takes its part of a step's micro-batches; messages go between them over MPI (the
//! feature `mpi`) or over TCP, gradients over MPI or, on GPUs, NCCL. Process 0 alone decides, writes and speaks. A run that
//! nobody launched several processes of is alone, and nothing here costs it anything.

mod launcher;
mod sockets;
mod sum;
mod world;

use crate::error::{self, Fault, Kind, Result};
use crate::ops::device;
use candle_core::{Device, Tensor};
use fttrain_kernels::sys::cuda::card;
use fttrain_kernels::sys::nccl::{self, Id};
use launcher::{Launched, Launcher};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sockets::{End, Ending, Sockets};
use std::cell::OnceCell;
use std::io;
use std::sync::Arc;
use sum::How;
use thiserror::Error;
use world::World;

pub use sum::Sum;

/// Why the processes cannot work together.
#[derive(Debug, Error)]
pub enum Error {
    /// A launcher started several, and this build has nothing to bring them together.
    #[error("{variable} says that {size} processes were started, and this build has no {lacks}")]
    NotBuilt {
        /// The launcher's variable.
        variable: &'static str,
        /// How many.
        size: usize,
        /// What it would take.
        lacks: &'static str,
    },
    /// MPI does not know of the others.
    #[error("{variable} says that {size} processes were started, and MPI knows of {known}")]
    Apart {
        /// The launcher's variable.
        variable: &'static str,
        /// How many.
        size: usize,
        /// By MPI.
        known: usize,
    },
    /// Nothing says where process 0 is.
    #[error("{variable} says that several processes were started, and nothing says where process 0 is")]
    Nowhere {
        /// The launcher's variable.
        variable: &'static str,
    },
    /// The others were not met.
    #[error("process {rank} of {size} {what} at {at}: {cause}")]
    Meeting {
        /// This process.
        rank: usize,
        /// How many there are.
        size: usize,
        /// What it did.
        what: &'static str,
        /// Host and port.
        at: String,
        /// Why it did not work.
        cause: io::Error,
    },
    /// Nothing sums gradients where these processes compute.
    #[error("processes that {variable} speaks of sum their gradients on GPUs, and {cause}")]
    NoSums {
        /// The launcher's variable.
        variable: &'static str,
        /// What is missing.
        cause: String,
    },
    /// A message that cannot be read.
    #[error("process 0 sent what this process cannot read: {0}")]
    Message(String),
    /// The processes do not learn from the same.
    #[error("{0} is not the same in all processes")]
    Differs(&'static str),
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotBuilt { .. } | Self::Apart { .. } | Self::Nowhere { .. } => Kind::Usage,
            Self::NoSums { .. } => Kind::Device,
            Self::Meeting { .. } | Self::Message(_) | Self::Differs(_) => Kind::Resource,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotBuilt { lacks: "MPI", .. } => {
                "build with `--features mpi`, on GPUs with `--features cuda`, or start one process".into()
            }
            Self::NotBuilt { .. } => {
                "on GPUs build with `--features cuda`; on CPUs start them by `mpirun -np N`; or start one process".into()
            }
            Self::Apart { .. } => {
                "start them by the `mpirun` of the MPI library that this program was built with (Slurm: `srun --mpi=pmix`)"
                    .into()
            }
            Self::Nowhere { .. } => "set MASTER_ADDR and MASTER_PORT to a host and a free port of process 0".into(),
            Self::Meeting { .. } => {
                "MASTER_ADDR is to name process 0's host, and the port behind MASTER_PORT to be free and open between the \
                 machines"
                    .into()
            }
            Self::NoSums { .. } => {
                "install NCCL 2.10 or newer and name its folder in LD_LIBRARY_PATH; on CPUs build with `--features mpi` and \
                 start them by `mpirun -np N`"
                    .into()
            }
            Self::Message(_) => "run the same build of this program on every machine".into(),
            Self::Differs(_) => "give every machine the same files, and the same build of this program".into(),
        })
    }
}

/// Where a process stands among those of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those of its machine.
    pub here: usize,
    /// How many are on its machine.
    pub beside: usize,
    /// How many, itself included, may use the same cores as it.
    pub sharing: usize,
    /// How many machines there are, where all have as many processes.
    pub machines: usize,
}

impl Place {
    /// One process.
    pub const ALONE: Self = Self { rank: 0, size: 1, here: 0, beside: 1, sharing: 1, machines: 1 };

    /// It decides, writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// This process's part of what all share out: every `size`-th.
    pub fn share<T>(self, all: &[T]) -> impl DoubleEndedIterator<Item = &T> + ExactSizeIterator {
        all.iter().skip(self.rank).step_by(self.size)
    }
}

/// How processes compute beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// How many compute on this process's card, itself included.
    pub on_card: usize,
    /// What the user is to be told.
    pub note: Option<String>,
}

impl Met {
    /// One process, or several on CPUs.
    const ALONE: Self = Self { on_card: 1, note: None };
}

/// The processes of a run, this one among them.
pub struct Ranks {
    place: Place,
    world: Option<Box<dyn World>>,
    /// Says that there are others.
    variable: &'static str,
    /// What sums gradients where they are computed; empty before [`Ranks::meet`], and where the host does.
    gpus: OnceCell<device::Sums>,
}

impl Ranks {
    /// A run in one process.
    pub fn alone() -> Self {
        Self { place: Place::ALONE, world: None, variable: "", gpus: OnceCell::new() }
    }

    /// Joins the processes that were launched with this one; to be called on the main thread, once.
    ///
    /// # Errors
    /// Several were launched, and this build or the MPI library cannot bring them together (2); they do not find each
    /// other (5).
    pub fn join() -> Result<Self> {
        let Some(launched) = launcher::launched(|name| std::env::var(name).ok()) else {
            return Ok(Self::alone());
        };
        let Launched { variable, size, .. } = launched;
        let world = bring_together(&launched)?;
        if world.size() != size {
            return Err(Error::Apart { variable, size, known: world.size() }.into());
        }
        let cores = allowed_cores();
        let (machine, here) = world.gather_here(cores);
        let place = Place {
            rank: world.rank(),
            size,
            here,
            beside: machine.len(),
            sharing: machine.iter().filter(|other| **other == cores).count(),
            machines: size.div_ceil(machine.len()),
        };
        Ok(Self { place, world: Some(world), variable, gpus: OnceCell::new() })
    }

    /// Settles how gradients are summed that are computed on this device, the GPU `nth` or the CPU; all processes do it,
    /// before the first sum. Ends them all where one of them alone fails.
    ///
    /// # Errors
    /// In all of them alike: they do not compute on the same kind of device (5); nothing sums gradients there (6).
    pub fn meet(&self, device: &Device, nth: Option<usize>) -> Result<Met> {
        let Some(world) = &self.world else { return Ok(Met::ALONE) };
        if !self.agree(device::name(device)) {
            return Err(Error::Differs("the kind of device").into());
        }
        let no_sums = |cause: String| Error::NoSums { variable: self.variable, cause };
        if device.is_cpu() {
            let on_host = world.sums_on_host().then_some(Met::ALONE);
            return on_host.ok_or_else(|| no_sums("they compute on CPUs".into()).into());
        }
        let on_card = on_card(&**world, nth);
        // Every process asks, whatever another found.
        let id = nccl::Nccl::open().and_then(|nccl| {
            let id = if self.place.is_first() { nccl.id()? } else { Id([0; Id::BYTES]) };
            Ok((nccl, id))
        });
        let shared = || (on_card > 1).then(|| format!("{on_card} of them share a GPU"));
        let why = id.as_ref().err().map(device::why_no_nccl).or_else(shared);
        if self.largest(if why.is_some() { 1.0 } else { 0.0 }) > 0.0 {
            let cause = why.unwrap_or_else(|| "another process has no NCCL, or shares its GPU".into());
            return if world.sums_on_host() {
                let note = Some(format!("gradients are summed by MPI, through the host: {cause}"));
                Ok(Met { on_card, note })
            } else {
                Err(no_sums(cause).into())
            };
        }
        if let Ok((nccl, id)) = id {
            let told = self.bytes(id.0.to_vec());
            let id =
                told.try_into().map_err(|_| Error::Message("a name of NCCL's of another length".into()))?;
            let joined = device::Sums::join(device, nccl, Id(id), self.place.rank, self.place.size);
            let joined = joined.inspect_err(|error| {
                // The others wait within NCCL.
                eprintln!("{error}");
                self.abort(error.kind as u8);
            });
            // A device has one run at a time.
            let _ = self.gpus.set(joined?);
        }
        Ok(Met { on_card, note: None })
    }

    /// Where this process stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// There are no others.
    pub fn is_alone(&self) -> bool {
        self.world.is_none()
    }

    /// Process 0 tells all others.
    ///
    /// # Errors
    /// The message cannot be written down: a fault of the program.
    pub fn tell<T: Serialize>(&self, message: &T) -> Result<()> {
        if let Some(world) = &self.world {
            let mut bytes = serde_json::to_vec(message).map_err(|e| {
                error::Error::new(Kind::Bug, format!("a message to the other processes: {e}"))
            })?;
            world.broadcast(&mut bytes);
        }
        Ok(())
    }

    /// What process 0 tells; waits for it.
    ///
    /// # Errors
    /// It is no such message.
    pub fn hear<T: DeserializeOwned>(&self) -> Result<T> {
        let bytes = self.bytes(Vec::new());
        Ok(serde_json::from_slice(&bytes).map_err(|e| Error::Message(e.to_string()))?)
    }

    /// The bytes of process 0, given to all.
    pub fn bytes(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some(world) = &self.world {
            world.broadcast(&mut bytes);
        }
        bytes
    }

    /// Σ over all processes.
    pub fn sum(&self, value: f64) -> f64 {
        let mut values = [value];
        if let Some(world) = &self.world {
            world.sum(&mut values);
        }
        values[0]
    }

    /// The largest of all processes.
    pub fn largest(&self, value: f64) -> f64 {
        let mut values = [value];
        if let Some(world) = &self.world {
            world.largest(&mut values);
        }
        values[0]
    }

    /// Whether all processes say the same.
    pub fn agree(&self, text: &str) -> bool {
        // 48 bits of a hash are a whole number in f64, and so is their opposite.
        let hash = crate::fs::sha256_bytes(text.as_bytes());
        let number = hash.get(..12).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let number = number.map_or(0.0, |n| n as f64);
        let (largest, smallest) = (self.largest(number), -self.largest(-number));
        // Exact: both are one of the numbers.
        largest.to_bits() == smallest.to_bits()
    }

    /// Begins to sum f32 tensors, of the same shapes in each process; `None` where there are no others.
    ///
    /// # Errors
    /// A fault of an op.
    pub fn begin_sum(&self, tensors: Vec<Tensor>) -> Result<Option<Sum<'_>>> {
        let how = match (&self.world, self.gpus.get()) {
            (None, _) => return Ok(None),
            (_, Some(gpus)) => How::Gpus(gpus.begin(tensors)?),
            (Some(world), None) => {
                let values = sum::values(&tensors)?;
                How::Host(tensors, world.begin_sum(values))
            }
        };
        Ok(Some(Sum(how)))
    }

    /// Ends the processes of the run at once, this one among them; returns where there are no others.
    pub fn abort(&self, code: u8) {
        if let Some(world) = &self.world {
            world.abort(code);
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // The others may be amid a sum, where MPI's own end would wait for them.
        if std::thread::panicking() {
            self.abort(Kind::Bug as u8);
        }
    }
}

/// By what this build has for such a launcher.
fn bring_together(launched: &Launched) -> Result<Box<dyn World>> {
    let Launched { by, variable, size, .. } = *launched;
    #[cfg(feature = "mpi")]
    if by != Launcher::Torchrun {
        let world = fttrain_kernels::sys::mpi::World::join();
        return Ok(Box::new(world.ok_or(Error::NotBuilt { variable, size, lacks: "MPI" })?));
    }
    // Gradients of processes that only TCP joins are summed by NCCL.
    if !cfg!(any(feature = "cuda", feature = "faults")) {
        let lacks = if cfg!(feature = "mpi") || by == Launcher::Torchrun { "CUDA" } else { "MPI" };
        return Err(Error::NotBuilt { variable, size, lacks }.into());
    }
    Ok(Box::new(Sockets::join(launched, sockets::PATIENCE, Arc::new(Exit))?))
}

/// How many processes of this machine compute on the same card as this one.
fn on_card(world: &dyn World, nth: Option<usize>) -> usize {
    let uuid = nth.and_then(card).and_then(|card| card.uuid);
    let hash = uuid.map(|uuid| crate::fs::sha256_bytes(&uuid));
    let number = hash.and_then(|hash| u64::from_str_radix(hash.get(..16)?, 16).ok());
    // Without it, the number: all processes see the same cards then, or each its own.
    let own = number.unwrap_or_else(|| nth.unwrap_or_default() as u64);
    let (all, _) = world.gather_here(own);
    all.iter().filter(|other| **other == own).count()
}

/// Ends a run whose processes are not all there any more: another thread may be amid a sum that never ends.
struct Exit;

impl Ending for Exit {
    fn end(&self, how: End) -> ! {
        if let End::Lost(rank) = how {
            eprintln!(
                "error: process {rank} of this run is gone, and with it the run; its last words say why"
            );
        }
        fttrain_kernels::sys::exit_now(how.code())
    }
}

/// A number that is the same for processes which may use the same cores.
fn allowed_cores() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap_or_default();
    let digits = crate::fs::sha256_bytes(allowed.as_bytes());
    digits.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_dealt_out_in_turn() {
        let of =
            |rank| Place { rank, size: 3, ..Place::ALONE }.share(&[0, 1, 2, 3]).copied().collect::<Vec<_>>();
        assert_eq!([of(0), of(1), of(2)], [vec![0, 3], vec![1], vec![2]]);
    }

    #[test]
    fn alone_everything_is_its_own() {
        let alone = Ranks::alone();
        assert!(alone.is_alone() && alone.place().is_first() && alone.agree("a"));
        assert_eq!(
            (alone.sum(2.5).to_bits(), alone.largest(-1.0).to_bits()),
            (2.5f64.to_bits(), (-1f64).to_bits())
        );
    }
}
