//! Reads and edits the values of contiguous CPU tensors, which candle's own interface only copies.

use crate::error::{Error, Kind, Result};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Shape, Storage, Tensor, WithDType};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, Range};

/// The values of a tensor: borrowed through candle's lock guard, or a GPU's copied here.
enum Read<G, T> {
    Borrowed { storage: G, range: Range<usize> },
    Copied(Vec<T>),
}

impl<G: Deref<Target = Storage>, T: WithDType> Deref for Read<G, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let (storage, range) = match self {
            Self::Borrowed { storage, range } => (storage, range),
            Self::Copied(values) => return values,
        };
        let values = match &**storage {
            Storage::Cpu(values) => T::cpu_storage_as_slice(values).ok(),
            _ => None,
        };
        values.map_or(&[], |values| &values[range.clone()]) // `read_as` made sure of the kind.
    }
}

/// Borrows the values of a contiguous f32 tensor; those on a GPU are copied, which waits for it.
///
/// # Errors
/// The tensor is of another kind: a fault of the program.
pub fn read(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    read_as(tensor)
}

/// The same of any kind.
///
/// # Errors
/// The tensor is of another kind: a fault of the program.
pub fn read_as<T: WithDType>(tensor: &Tensor) -> Result<impl Deref<Target = [T]> + '_> {
    if tensor.device().is_cuda() && tensor.dtype() == T::DTYPE {
        return Ok(Read::Copied(tensor.flatten_all()?.to_vec1()?));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.contiguous_offsets().map(|(start, end)| start..end);
    match (&*storage, range) {
        (Storage::Cpu(values), Some(range)) if T::cpu_storage_as_slice(values).is_ok() => {
            Ok(Read::Borrowed { storage, range })
        }
        _ => Err(wrong_kind(tensor)),
    }
}

/// A kind of values that an update changes in place.
pub trait Element: WithDType {
    /// The values where they are of this kind.
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }
}

impl Element for half::bf16 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::BF16(values) = storage { Some(values) } else { None }
    }
}

impl Element for u8 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::U8(values) = storage { Some(values) } else { None }
    }
}

/// Lets `change` write the values of a contiguous f32 tensor in place; every clone of the tensor sees it. Those on a GPU
/// go here and back.
///
/// # Errors
/// The tensor is of another kind: a fault of the program.
pub fn edit<R>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    edit_as(tensor, change)
}

/// The same for values of any kind.
///
/// # Errors
/// The tensor is of another kind: a fault of the program.
pub fn edit_as<T: Element, R>(tensor: &Tensor, change: impl FnOnce(&mut [T]) -> R) -> Result<R> {
    struct Edit<F, R, T>(Cell<Option<F>>, Cell<Option<R>>, PhantomData<T>);

    impl<T: Element, F: FnOnce(&mut [T]) -> R, R> InplaceOp1 for Edit<F, R, T> {
        fn name(&self) -> &'static str {
            "edit"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            if let (Some(values), Some((start, end)), Some(change)) =
                (T::values_mut(storage), layout.contiguous_offsets(), self.0.take())
            {
                self.1.set(Some(change(&mut values[start..end])));
            }
            Ok(())
        }
    }

    if tensor.device().is_cuda() {
        let mut values = tensor.flatten_all()?.to_vec1::<T>()?;
        let changed = change(&mut values);
        tensor.slice_set(&Tensor::from_vec(values, tensor.shape(), tensor.device())?, 0, 0)?;
        return Ok(changed);
    }
    let edit = Edit(Cell::new(Some(change)), Cell::new(None), PhantomData);
    tensor.inplace_op1(&edit)?;
    edit.1.take().ok_or_else(|| wrong_kind(tensor))
}

/// Whether a contiguous f32 or bf16 CPU tensor holds neither NaN nor an infinity.
///
/// # Errors
/// The tensor is of another kind: a fault of the program.
pub fn is_finite(tensor: &Tensor) -> Result<bool> {
    if tensor.dtype() == candle_core::DType::BF16 {
        return Ok(read_as::<half::bf16>(tensor)?.iter().all(|x| x.is_finite()));
    }
    Ok(read(tensor)?.iter().all(|x| x.is_finite()))
}

/// A CPU tensor that takes over `values`.
///
/// # Errors
/// The shape does not hold as many values: a fault of the program.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    tensor_as(values, shape)
}

/// A CPU tensor of any kind that takes over `values`.
///
/// # Errors
/// As [`tensor`].
pub fn tensor_as<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if shape.elem_count() != values.len() {
        return Err(Error::new(
            Kind::Bug,
            format!("{} values for a tensor of shape {shape:?}", values.len()),
        ));
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// A CPU tensor of zeros.
pub fn zeros(shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    tensor(vec![0.0; shape.elem_count()], shape)
}

fn wrong_kind(tensor: &Tensor) -> Error {
    Error::new(
        Kind::Bug,
        format!(
            "expected a contiguous tensor of another kind on the CPU, got {:?} {:?} on {:?}",
            tensor.dtype(),
            tensor.layout(),
            tensor.device().location()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_is_seen_by_every_clone() {
        let a = tensor(vec![1.0, 2.0], 2).unwrap();
        let b = a.clone();
        edit(&a, |x| x[1] = 5.0).unwrap();
        assert_eq!(read(&b).unwrap()[..], [1.0, 5.0]);
    }

    #[test]
    fn another_dtype_is_a_fault_and_not_an_empty_slice() {
        let a = Tensor::zeros(2, candle_core::DType::F64, &Device::Cpu).unwrap();
        assert!(read(&a).is_err());
        assert!(edit(&a, |_| ()).is_err());
    }
}
