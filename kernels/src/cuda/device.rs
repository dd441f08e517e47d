//! candle's CUDA device, as launches need it: addresses of tensors, new ones without a value, kernels, and products by
//! cuBLAS. All work goes to the device's one stream, in the order of the calls.

use super::launch::{Address, Launch};
use super::product::Product;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
use candle_core::cuda_backend::cudarc::driver::{self, DevicePtr, LaunchConfig};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Shape, Storage, Tensor, bail};
use std::ffi::{c_int, c_void};

/// What `build.rs` compiled, by the names of the files.
static PTX: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// Keeps memory that is freed for later tensors: a driver gives it back to the system at every wait otherwise, and steps
/// ask for the same blocks again. Nothing changes on a device without pools.
///
/// # Errors
/// The driver refuses.
pub fn keep_memory(device: &CudaDevice) -> Result<()> {
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let Some(pool) = pool(device)? else { return Ok(()) };
    // SAFETY: the pool is the device's own, and the attribute is of 64 bits.
    unsafe { driver::result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast::<c_void>()).w() }
}

/// Sums of products stay in f32 where what they are written to is bf16: parts of one sum may be added in it otherwise.
///
/// # Errors
/// cuBLAS refuses.
pub fn sum_in_f32(device: &CudaDevice) -> Result<()> {
    let mode = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the device's own handle.
    unsafe { sys::cublasSetMathMode(*device.cublas_handle().handle(), mode) }.result().w()
}

/// Waits for the device and gives back what was kept of freed memory.
///
/// # Errors
/// The driver refuses.
pub fn give_back_memory(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().synchronize().w()?;
    let Some(pool) = pool(device)? else { return Ok(()) };
    // SAFETY: the pool is the device's own; what is in use stays.
    unsafe { driver::result::mem_pool::trim_to(pool, 0).w() }
}

/// Where a device's tensors come from; `None` of one without pools.
fn pool(device: &CudaDevice) -> Result<Option<CUmemoryPool>> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread().w()?;
    // SAFETY: the device is the context's own.
    unsafe { driver::result::device::get_default_mem_pool(context.cu_device()) }.w().map(Some)
}

/// Where a contiguous tensor's values begin.
///
/// # Errors
/// It is not contiguous, lies elsewhere or is of a kind that no kernel takes.
pub fn address(tensor: &Tensor) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((start, _))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected a contiguous CUDA tensor, got {:?} on {:?}", layout, tensor.device().location());
    };
    let stream = storage.device.cuda_stream();
    let base = match &storage.slice {
        CudaStorageSlice::U8(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::U32(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::BF16(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::F32(values) => values.device_ptr(&stream).0,
        CudaStorageSlice::F64(values) => values.device_ptr(&stream).0,
        _ => bail!("no kernel takes {:?}", tensor.dtype()),
    };
    Ok(Address(base + (start * tensor.dtype().size_in_bytes()) as u64))
}

/// A tensor whose values are whatever the memory holds: for kernels that write all of it.
///
/// # Errors
/// The device's memory does not suffice.
pub fn unwritten(device: &CudaDevice, shape: Shape, dtype: DType) -> Result<Tensor> {
    fn alloc<T: CudaDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr>(
        device: &CudaDevice,
        count: usize,
    ) -> Result<CudaStorage> {
        // SAFETY: plain numbers; a kernel writes them before anything reads them.
        let slice = unsafe { device.alloc::<T>(count)? };
        Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
    }
    let count = shape.elem_count();
    let storage = match dtype {
        DType::F32 => alloc::<f32>(device, count)?,
        DType::BF16 => alloc::<half::bf16>(device, count)?,
        DType::F64 => alloc::<f64>(device, count)?,
        _ => bail!("no kernel writes {dtype:?}"),
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// Puts a kernel on the device's stream.
///
/// # Errors
/// The driver refuses the PTX or the launch.
pub fn run(device: &CudaDevice, launch: &Launch) -> Result<()> {
    let Some((_, ptx)) = PTX.iter().find(|(file, _)| *file == launch.file) else {
        bail!("no file of kernels is called {}", launch.file);
    };
    let module = format!("fttrain_{}", launch.file);
    let function = device.get_or_load_custom_func(&launch.symbol(), &module, ptx)?;
    let values: Vec<u64> = launch.arguments.iter().map(|argument| argument.bits()).collect();
    let mut builder = function.builder();
    for value in &values {
        candle_core::cuda_backend::cudarc::driver::PushKernelArg::arg(&mut builder, value);
    }
    let [x, y] = launch.grid;
    let config = LaunchConfig { grid_dim: (x, y, 1), block_dim: (launch.threads, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the launch was made by this crate for this kernel, with addresses of tensors that its caller holds; the
    // tests run every kind of launch on an emulated device.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// Puts a product on the device's stream.
///
/// # Errors
/// cuBLAS refuses it; a side of more than 2³¹.
pub fn multiply(device: &CudaDevice, of: &Product) -> Result<()> {
    let side = |n: usize| c_int::try_from(n).map_err(candle_core::Error::wrap);
    let (m, n, k) = (side(of.shape.0)?, side(of.shape.1)?, side(of.shape.2)?);
    let kind = |is_bf16| if is_bf16 { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_32F };
    let (kind, out_kind) = (kind(of.is_bf16), kind(of.out_is_bf16));
    // cuBLAS counts by columns, where a row-major matrix is its own transpose: outᵀ = rightᵀ·leftᵀ.
    let turned = |turned: bool| {
        if turned { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N }
    };
    let (right_width, left_width) = (if of.right.1 { k } else { n }, if of.left.1 { m } else { k });
    let beta = if of.adds { 1.0_f32 } else { 0.0 };
    let pointer = |address: Address| address.0 as *const c_void;
    let handle = device.cublas_handle();
    // SAFETY: addresses of tensors that the caller holds, of these shapes and types; both factors are floats on the host.
    unsafe {
        result::gemm_ex(
            *handle.handle(),
            turned(of.right.1),
            turned(of.left.1),
            n,
            m,
            k,
            (&raw const of.scale).cast(),
            pointer(of.right.0),
            kind,
            right_width,
            pointer(of.left.0),
            kind,
            left_width,
            (&raw const beta).cast(),
            of.out.0 as *mut c_void,
            out_kind,
            n,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()
}
