//! All processes of a run, as the rest of this room knows them, whatever is between them.

/// What goes between all processes of a run. Every call but [`World::abort`] is made by all of them, in the same order;
/// where one of them is lost, all end.
pub(super) trait World {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// What each process of this machine says, and which of them this one is.
    fn gather_here(&self, value: u64) -> (Vec<u64>, usize);

    /// The bytes of process 0, for all.
    fn broadcast(&self, bytes: &mut Vec<u8>);

    /// Sums over all processes, in place.
    fn sum(&self, values: &mut [f64]);

    /// The largest of all processes, in place.
    fn largest(&self, values: &mut [f64]);

    /// Whether gradients can be summed where the CPU is.
    fn sums_on_host(&self) -> bool;

    /// Begins to sum values over all processes, as many in each; to be called only where [`World::sums_on_host`].
    fn begin_sum(&self, values: Vec<f32>) -> Box<dyn HostSum + '_>;

    /// Ends all processes at once.
    fn abort(&self, code: u8) -> !;
}

/// Values that become their sums.
pub(super) trait HostSum {
    /// Lets it go on.
    fn progress(&mut self);

    /// The sums, once all processes have begun theirs.
    fn wait(self: Box<Self>) -> Vec<f32>;
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::{HostSum, World};
    use fttrain_kernels::sys::mpi;

    impl World for mpi::World {
        fn rank(&self) -> usize {
            self.rank()
        }

        fn size(&self) -> usize {
            self.size()
        }

        fn gather_here(&self, value: u64) -> (Vec<u64>, usize) {
            self.gather_here(value)
        }

        fn broadcast(&self, bytes: &mut Vec<u8>) {
            self.broadcast(bytes);
        }

        fn sum(&self, values: &mut [f64]) {
            self.sum(values);
        }

        fn largest(&self, values: &mut [f64]) {
            self.largest(values);
        }

        fn sums_on_host(&self) -> bool {
            true
        }

        fn begin_sum(&self, values: Vec<f32>) -> Box<dyn HostSum + '_> {
            Box::new(self.begin_sum(values))
        }

        fn abort(&self, code: u8) -> ! {
            self.abort(code)
        }
    }

    impl HostSum for mpi::Sum<'_> {
        fn progress(&mut self) {
            self.progress();
        }

        fn wait(self: Box<Self>) -> Vec<f32> {
            (*self).wait()
        }
    }
}
