//! All processes of a run: MPI's, or in a build without it a value that nobody can have.

#[cfg(feature = "mpi")]
pub use fttrain_kernels::sys::mpi::Sum;
#[cfg(feature = "mpi")]
pub(super) use fttrain_kernels::sys::mpi::World;

#[cfg(not(feature = "mpi"))]
pub use none::Sum;
#[cfg(not(feature = "mpi"))]
pub(super) use none::World;

#[cfg(not(feature = "mpi"))]
mod none {
    /// All processes: nobody can have them without MPI.
    pub(in crate::ranks) enum World {}

    /// A sum on its way: nobody can have it without MPI.
    pub struct Sum<'w>(&'w World);

    impl World {
        pub(in crate::ranks) fn join() -> Option<Self> {
            None
        }

        pub(in crate::ranks) fn rank(&self) -> usize {
            match *self {}
        }

        pub(in crate::ranks) fn size(&self) -> usize {
            match *self {}
        }

        pub(in crate::ranks) fn gather_here(&self, _: u64) -> (Vec<u64>, usize) {
            match *self {}
        }

        pub(in crate::ranks) fn broadcast(&self, _: &mut Vec<u8>) {
            match *self {}
        }

        pub(in crate::ranks) fn sum(&self, _: &mut [f64]) {
            match *self {}
        }

        pub(in crate::ranks) fn largest(&self, _: &mut [f64]) {
            match *self {}
        }

        pub(in crate::ranks) fn begin_sum(&self, _: Vec<f32>) -> Sum<'_> {
            match *self {}
        }

        pub(in crate::ranks) fn abort(&self, _: u8) -> ! {
            match *self {}
        }
    }

    impl Sum<'_> {
        /// Lets it go on.
        pub fn progress(&mut self) {
            match *self.0 {}
        }

        /// The sums.
        pub fn wait(self) -> Vec<f32> {
            match *self.0 {}
        }
    }
}
