//! The processes of one run under MPI. Every call but [`World::abort`] is made by all of them, in the same order; MPI ends
//! them all where one of its calls fails.

use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{AsRaw, Communicator, CommunicatorCollectives, Root};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

/// All processes, from the first of them to the last.
pub struct World {
    all: SimpleCommunicator,
    here: SimpleCommunicator,
    /// Ends MPI when it is dropped, after the other two.
    _universe: Universe,
}

/// Gradients on their way: MPI reads `sent` and writes `received` until the request is done.
pub struct Sum<'w> {
    world: PhantomData<&'w World>,
    request: ffi::MPI_Request,
    is_done: bool,
    sent: ManuallyDrop<Vec<f32>>,
    received: ManuallyDrop<Vec<f32>>,
}

impl World {
    /// Starts MPI; `None` where it was started before in this process. To be called on the main thread, which makes
    /// all calls from then on.
    pub fn join() -> Option<Self> {
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)?;
        let all = universe.world();
        let here = all.split_shared(all.rank());
        Some(Self { all, here, _universe: universe })
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        usize::try_from(self.all.rank()).unwrap_or_default()
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        usize::try_from(self.all.size()).unwrap_or(1)
    }

    /// What each process of this machine says, and which of them this one is.
    pub fn gather_here(&self, value: u64) -> (Vec<u64>, usize) {
        let mut all = vec![0; usize::try_from(self.here.size()).unwrap_or(1)];
        self.here.all_gather_into(&value, &mut all);
        (all, usize::try_from(self.here.rank()).unwrap_or_default())
    }

    /// The bytes of process 0, for all.
    pub fn broadcast(&self, bytes: &mut Vec<u8>) {
        let root = self.all.process_at_rank(0);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
        for part in bytes.chunks_mut(PART) {
            root.broadcast_into(part);
        }
    }

    /// Sums over all processes, in place.
    pub fn sum(&self, values: &mut [f64]) {
        self.reduce(values, SystemOperation::sum());
    }

    /// The largest of all processes, in place.
    pub fn largest(&self, values: &mut [f64]) {
        self.reduce(values, SystemOperation::max());
    }

    fn reduce(&self, values: &mut [f64], how: SystemOperation) {
        let own = values.to_vec();
        self.all.all_reduce_into(&own[..], values, how);
    }

    /// Begins to sum values over all processes, as many in each.
    ///
    /// # Panics
    /// There are more than 2³¹ − 1 values.
    pub fn begin_sum(&self, values: Vec<f32>) -> Sum<'_> {
        let count =
            c_int::try_from(values.len()).expect("a tensor's block has fewer values than MPI can count");
        let mut sum = Sum {
            world: PhantomData,
            received: ManuallyDrop::new(vec![0.0; values.len()]),
            sent: ManuallyDrop::new(values),
            // SAFETY: a constant of the library.
            request: unsafe { ffi::RSMPI_REQUEST_NULL },
            is_done: false,
        };
        let to = sum.received.as_mut_ptr().cast::<c_void>();
        // SAFETY: both buffers hold `count` floats, lie on the heap, where they stay when `sum` moves, are not touched
        // before the request is done, and are freed only then.
        unsafe {
            ffi::MPI_Iallreduce(
                sum.sent.as_ptr().cast(),
                to,
                count,
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                self.all.as_raw(),
                &raw mut sum.request,
            );
        }
        sum
    }

    /// Ends all processes at once.
    pub fn abort(&self, code: u8) -> ! {
        self.all.abort(c_int::from(code))
    }
}

/// Values of one broadcast: MPI counts in 32 bits.
const PART: usize = 1 << 28;

impl Sum<'_> {
    /// Lets MPI go on with it; most libraries do nothing while nobody asks.
    pub fn progress(&mut self) {
        if !self.is_done {
            let mut flag: c_int = 0;
            // SAFETY: the request is under way.
            unsafe { ffi::MPI_Test(&raw mut self.request, &raw mut flag, ffi::RSMPI_STATUS_IGNORE) };
            self.is_done = flag != 0;
        }
    }

    /// The sums, once all processes have begun theirs.
    pub fn wait(mut self) -> Vec<f32> {
        if !self.is_done {
            // SAFETY: the request is under way.
            unsafe { ffi::MPI_Wait(&raw mut self.request, ffi::RSMPI_STATUS_IGNORE) };
        }
        // SAFETY: MPI is done with both, and neither is taken again: `self` ends here, and has no `Drop`. One that is
        // dropped without this call leaves them to MPI for good.
        unsafe {
            ManuallyDrop::drop(&mut self.sent);
            ManuallyDrop::take(&mut self.received)
        }
    }
}
