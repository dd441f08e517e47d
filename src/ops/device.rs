//! Where tensors live and, on a GPU, how the ops' kernels get there: the one place that knows whether the program was
//! built with CUDA. Elsewhere a [`Gpu`] is a value that ops ask a tensor for, and that nobody can have without CUDA.

use crate::config;
use crate::error::{self, Fault, Kind};
use candle_core::{DType, Device, Tensor};
use fttrain_kernels::cuda::{Address, Launch, Product};
use fttrain_kernels::sys::cuda::{Missing, gpus};
use fttrain_kernels::sys::nccl::{self, Id, Nccl};
use thiserror::Error;

/// Why a run cannot be where it was asked to be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// No GPU at all, and why.
    #[error("`device = \"cuda\"`: {}", why(.0))]
    Missing(Missing),
    /// Fewer GPUs than asked for.
    #[error("`device = \"cuda:{wanted}\"`: this machine has {count}, counted from 0")]
    NoSuch {
        /// From 0.
        wanted: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver refused to open it.
    #[error("`device = \"cuda:{wanted}\"`: {cause}")]
    Refused {
        /// From 0.
        wanted: usize,
        /// In the driver's words.
        cause: String,
    },
}

fn why(missing: &Missing) -> String {
    match missing {
        Missing::NotBuilt => "this build has no CUDA".into(),
        Missing::Driver => "no NVIDIA driver is installed".into(),
        Missing::OldDriver(version) => {
            format!("the NVIDIA driver is of CUDA {}.{}, 13.0 is needed", version / 1000, version % 1000 / 10)
        }
        Missing::Device => "there is a driver, but no GPU that this process may use".into(),
        Missing::Library(name) => format!("{name} was not found"),
        Missing::Failed(code) => format!("the NVIDIA driver does not start (CUDA error {code})"),
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn hint(&self) -> Option<String> {
        let otherwise = "use `device = \"cpu\"` or \"auto\"";
        Some(match self {
            Self::Missing(Missing::NotBuilt) => {
                format!("build with `--features cuda --config .cargo/cuda.toml`, or {otherwise}")
            }
            Self::Missing(Missing::Driver | Missing::OldDriver(_)) => {
                format!("install driver 580 or newer, or {otherwise}")
            }
            Self::Missing(Missing::Library(_)) => {
                format!(
                    "install the CUDA 13 libraries and name their folder in LD_LIBRARY_PATH, or {otherwise}"
                )
            }
            Self::Missing(Missing::Device) => {
                format!("look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or {otherwise}")
            }
            Self::Missing(Missing::Failed(_)) | Self::Refused { .. } => {
                format!("see what `nvidia-smi` says, or {otherwise}")
            }
            Self::NoSuch { .. } => format!("use a smaller number, or {otherwise}"),
        })
    }
}

/// The GPU that a run with this setting computes on, `None` for the CPU; `"auto"` is the first that can be used. Of
/// several processes on a machine the `nth`, from 0, takes the `nth` behind it.
///
/// # Errors
/// A GPU was asked for by name and cannot be had (6).
pub fn chosen(wanted: config::Device, nth: usize) -> Result<Option<usize>, Error> {
    match (wanted, gpus()) {
        (config::Device::Cpu, _) | (config::Device::Auto, Err(_)) => Ok(None),
        (config::Device::Cuda(_), Err(missing)) => Err(Error::Missing(missing)),
        (config::Device::Auto, Ok(count)) => Ok(Some(nth % count.max(1))),
        // A scheduler may show each process a GPU of its own.
        (config::Device::Cuda(0), Ok(1)) => Ok(Some(0)),
        (config::Device::Cuda(first), Ok(count)) => match first + nth {
            wanted if wanted >= count => Err(Error::NoSuch { wanted, count }),
            wanted => Ok(Some(wanted)),
        },
    }
}

/// Opens what [`chosen`] gave.
///
/// # Errors
/// The driver refuses (6).
pub fn open(chosen: Option<usize>) -> Result<Device, Error> {
    chosen.map_or(Ok(Device::Cpu), card::open)
}

/// A GPU's name in checkpoints and reports.
pub const CUDA: &str = "cuda";

/// A device's name in checkpoints and reports.
pub fn name(device: &Device) -> &'static str {
    if device.is_cuda() { CUDA } else { "cpu" }
}

pub use card::{Gpu, Summed, Sums};

/// Why GPUs of several processes cannot be summed over.
pub fn why_no_nccl(error: &nccl::Error) -> String {
    match error {
        nccl::Error::Missing => "NCCL was not found".into(),
        nccl::Error::Old(version) => {
            let (major, minor) = if *version < 10_000 {
                (version / 1000, version % 1000 / 100)
            } else {
                (version / 10_000, version % 10_000 / 100)
            };
            format!("NCCL {major}.{minor} is too old")
        }
        nccl::Error::Refused { call, why } => format!("NCCL refuses {call}: {why}"),
    }
}

#[cfg(feature = "cuda")]
mod card {
    use super::{Address, DType, Device, Error, Id, Launch, Nccl, Product, Tensor, error};
    use candle_core::{CudaDevice, Shape};
    use fttrain_kernels::cuda;

    pub(super) fn open(wanted: usize) -> Result<Device, Error> {
        let opened = Device::new_cuda(wanted).and_then(|device| {
            cuda::keep_memory(device.as_cuda_device()?)?;
            cuda::sum_in_f32(device.as_cuda_device()?)?;
            Ok(device)
        });
        opened.map_err(|e| Error::Refused { wanted, cause: e.to_string() })
    }

    /// Sums over the GPUs of several processes.
    pub struct Sums(cuda::Sums);

    impl Sums {
        /// Waits for all `size` processes, of which this one is `rank`.
        pub fn join(device: &Device, nccl: Nccl, id: Id, rank: usize, size: usize) -> error::Result<Self> {
            Ok(Self(cuda::Sums::join(device.as_cuda_device()?, nccl, id, rank, size)?))
        }

        /// Begins to sum f32 tensors in their places, of the same shapes in each process.
        pub fn begin(&self, tensors: Vec<Tensor>) -> error::Result<Summed> {
            Ok(Summed(self.0.begin(tensors)?))
        }
    }

    /// Tensors that become their sums.
    pub struct Summed(cuda::Begun);

    impl Summed {
        /// The sums, for what is computed from now on.
        pub fn wait(self) -> error::Result<Vec<Tensor>> {
            Ok(self.0.wait()?)
        }
    }

    /// The GPU that a tensor lies on.
    #[derive(Debug, Clone)]
    pub struct Gpu(CudaDevice);

    impl Gpu {
        /// `None` on the CPU.
        pub fn of(tensor: &Tensor) -> Option<Self> {
            Self::new(tensor.device())
        }

        /// `None` for the CPU.
        pub fn new(device: &Device) -> Option<Self> {
            device.as_cuda_device().ok().cloned().map(Self)
        }

        /// As candle knows it.
        pub fn device(&self) -> Device {
            Device::Cuda(self.0.clone())
        }

        /// Waits for it, and gives back what was kept of freed memory.
        pub fn give_back_memory(&self) -> error::Result<()> {
            Ok(cuda::give_back_memory(&self.0)?)
        }

        /// A tensor that a kernel is about to write.
        pub fn unwritten(&self, shape: impl Into<Shape>, dtype: DType) -> error::Result<Tensor> {
            Ok(cuda::unwritten(&self.0, shape.into(), dtype)?)
        }

        /// Where a tensor's values lie.
        pub fn address(&self, tensor: &Tensor) -> error::Result<Address> {
            Ok(cuda::address(tensor)?)
        }

        /// Puts a kernel on the stream.
        pub fn run(&self, launch: &Launch) -> error::Result<()> {
            Ok(cuda::run(&self.0, launch)?)
        }

        /// Puts a product on the stream.
        pub fn multiply(&self, product: &Product) -> error::Result<()> {
            Ok(cuda::multiply(&self.0, product)?)
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod card {
    use super::{Address, DType, Device, Error, Id, Launch, Missing, Nccl, Product, Tensor, error};
    use candle_core::Shape;
    use std::convert::Infallible;

    pub(super) fn open(_: usize) -> Result<Device, Error> {
        Err(Error::Missing(Missing::NotBuilt))
    }

    /// Sums over the GPUs of several processes: there are none without CUDA.
    pub struct Sums(Infallible);

    impl Sums {
        /// Refused.
        pub fn join(_: &Device, _: Nccl, _: Id, _: usize, _: usize) -> error::Result<Self> {
            Err(Error::Missing(Missing::NotBuilt).into())
        }

        /// Begins to sum f32 tensors in their places, of the same shapes in each process.
        pub fn begin(&self, _: Vec<Tensor>) -> error::Result<Summed> {
            match self.0 {}
        }
    }

    /// Tensors that become their sums: none, without CUDA.
    pub struct Summed(Infallible);

    impl Summed {
        /// The sums, for what is computed from now on.
        pub fn wait(self) -> error::Result<Vec<Tensor>> {
            match self.0 {}
        }
    }

    /// The GPU that a tensor lies on: none, without CUDA.
    #[derive(Debug, Clone)]
    pub struct Gpu(Infallible);

    impl Gpu {
        /// `None` on the CPU.
        pub fn of(_: &Tensor) -> Option<Self> {
            None
        }

        /// `None` for the CPU.
        pub fn new(_: &Device) -> Option<Self> {
            None
        }

        /// As candle knows it.
        pub fn device(&self) -> Device {
            match self.0 {}
        }

        /// Waits for it, and gives back what was kept of freed memory.
        pub fn give_back_memory(&self) -> error::Result<()> {
            match self.0 {}
        }

        /// A tensor that a kernel is about to write.
        pub fn unwritten(&self, _: impl Into<Shape>, _: DType) -> error::Result<Tensor> {
            match self.0 {}
        }

        /// Where a tensor's values lie.
        pub fn address(&self, _: &Tensor) -> error::Result<Address> {
            match self.0 {}
        }

        /// Puts a kernel on the stream.
        pub fn run(&self, _: &Launch) -> error::Result<()> {
            match self.0 {}
        }

        /// Puts a product on the stream.
        pub fn multiply(&self, _: &Product) -> error::Result<()> {
            match self.0 {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_the_way_out() {
        let all = [
            (Missing::NotBuilt, "this build has no CUDA", "--features cuda"),
            (Missing::Driver, "no NVIDIA driver", "580"),
            (Missing::OldDriver(12_080), "of CUDA 12.8, 13.0 is needed", "580"),
            (Missing::Device, "no GPU", "CUDA_VISIBLE_DEVICES"),
            (Missing::Library("cuBLAS"), "cuBLAS was not found", "LD_LIBRARY_PATH"),
            (Missing::Failed(803), "CUDA error 803", "nvidia-smi"),
        ];
        for (missing, fact, way) in all {
            let error = Error::Missing(missing);
            let hint = error.hint().unwrap();
            assert!(error.to_string().contains(fact) && hint.contains(way), "{error}, {hint}");
            assert!(hint.ends_with("use `device = \"cpu\"` or \"auto\""), "{hint}");
            assert_eq!(error.kind(), Kind::Device);
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(chosen(config::Device::Cpu, 1), Ok(None));
        assert!(open(None).unwrap().is_cpu());
    }
}
