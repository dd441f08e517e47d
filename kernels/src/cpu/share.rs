//! One buffer written by several threads, each in parts of its own.

use std::collections::TryReserveError;
use std::marker::PhantomData;

/// A mutable slice whose disjoint parts are handed to several threads.
pub(crate) struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer comes from an exclusive borrow that lives as long as `Shared`; `part` obliges its callers to
// keep concurrent parts disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Room for `len` values in an empty vector, none of which is initialised: it is only for [`Self::place`].
    ///
    /// # Errors
    /// There is no such room.
    pub(crate) fn fresh(vector: &'a mut Vec<T>, len: usize) -> Result<Self, TryReserveError> {
        vector.try_reserve_exact(len)?;
        Ok(Self { start: vector.as_mut_ptr(), len, owner: PhantomData })
    }

    /// All the room of an empty vector, in the same way.
    pub(crate) fn room(vector: &'a mut Vec<T>) -> Self {
        Self { start: vector.as_mut_ptr(), len: vector.capacity(), owner: PhantomData }
    }

    /// Where the part `at .. at + len` stands; its values may be uninitialised.
    ///
    /// # Safety
    /// No other thread may read or write values of the part while they are used.
    pub(crate) unsafe fn place(&self, at: usize, len: usize) -> *mut T {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of {}", self.len);
        // SAFETY: inside the buffer.
        unsafe { self.start.add(at) }
    }

    /// The part `at .. at + len`.
    ///
    /// # Safety
    /// No other part that overlaps it may be alive, on any thread.
    #[allow(clippy::mut_from_ref)] // Disjointness is the caller's promise.
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of {}", self.len);
        // SAFETY: inside the borrowed slice, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn parts_written_by_several_threads_are_the_slice() {
        let mut values = vec![0f32; 1000];
        let shared = Shared::new(&mut values);
        (0..100usize).into_par_iter().for_each(|i| {
            // SAFETY: every task has ten values of its own.
            unsafe { shared.part(i * 10, 10) }.fill(i as f32);
        });
        assert!(values.iter().enumerate().all(|(i, x)| x.to_bits() == ((i / 10) as f32).to_bits()));
    }

    #[test]
    #[should_panic(expected = "part 3+2 of 4")]
    fn a_part_beyond_the_end_is_refused() {
        let mut values = [0.0; 4];
        let shared = Shared::new(&mut values);
        // SAFETY: the only part.
        let _ = unsafe { shared.part(3, 2) };
    }

    #[test]
    #[should_panic(expected = "of 4")]
    fn a_part_whose_end_overflows_is_refused() {
        let mut values = [0.0; 4];
        let shared = Shared::new(&mut values);
        // SAFETY: the only part.
        let _ = unsafe { shared.part(2, usize::MAX) };
    }
}
