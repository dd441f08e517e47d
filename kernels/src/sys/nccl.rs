//! NVIDIA's NCCL, which sums over the GPUs of several processes. Its library is opened where it is needed: a build links
//! no library that only some machines have. Types and numbers are those of `nccl.h` since 2.10.

use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};

/// Names of the library: that of its interface, which every package has, and the developers' link to it.
const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The first version that this program's calls were compared with: 10000·major + 100·minor + patch.
const NEEDED: c_int = 21_000;
/// `ncclSuccess`.
const SUCCESS: c_int = 0;
/// `ncclFloat32`.
const FLOAT32: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;

/// What process 0 gives the others to find it by: `ncclUniqueId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Id(pub [u8; Id::BYTES]);

impl Id {
    /// `NCCL_UNIQUE_ID_BYTES`
    pub const BYTES: usize = 128;
}

/// Why NCCL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// There is no such library, or it lacks a function.
    Missing,
    /// It is older than needed; its version as NCCL counts it.
    Old(i32),
    /// It refused a call.
    Refused {
        /// Which.
        call: &'static str,
        /// NCCL's word for why.
        why: String,
    },
}

type Handle = *mut c_void;

/// The library, opened.
pub struct Nccl {
    id: unsafe extern "C" fn(*mut Id) -> c_int,
    init: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> c_int,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    word: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Nccl {
    /// Opens it.
    ///
    /// # Errors
    /// It is missing or too old.
    pub fn open() -> Result<Self, Error> {
        FILES
            .into_iter()
            .map(Self::of)
            .find(|opened| !matches!(opened, Err(Error::Missing)))
            .unwrap_or(Err(Error::Missing))
    }

    fn of(file: &str) -> Result<Self, Error> {
        // SAFETY: NCCL may be loaded at any time; what it does on loading is its own.
        let library = unsafe { Library::new(file) }.map_err(|_| Error::Missing)?;
        // SAFETY: the functions have these types since NCCL 2.10, and stay where they are.
        let (opened, version) = unsafe {
            let version_of: unsafe extern "C" fn(*mut c_int) -> c_int =
                function(&library, b"ncclGetVersion")?;
            let opened = Self {
                id: function(&library, b"ncclGetUniqueId")?,
                init: function(&library, b"ncclCommInitRank")?,
                all_reduce: function(&library, b"ncclAllReduce")?,
                group_start: function(&library, b"ncclGroupStart")?,
                group_end: function(&library, b"ncclGroupEnd")?,
                destroy: function(&library, b"ncclCommDestroy")?,
                word: function(&library, b"ncclGetErrorString")?,
            };
            // Never unloaded: it has threads of its own.
            std::mem::forget(library);
            let mut version = 0;
            opened.judge("ncclGetVersion", version_of(&raw mut version))?;
            (opened, version)
        };
        if version < NEEDED { Err(Error::Old(version)) } else { Ok(opened) }
    }

    /// A new name to meet under.
    ///
    /// # Errors
    /// NCCL finds no network to be met on.
    pub fn id(&self) -> Result<Id, Error> {
        let mut id = Id([0; Id::BYTES]);
        // SAFETY: it writes one id.
        self.judge("ncclGetUniqueId", unsafe { (self.id)(&raw mut id) })?;
        Ok(id)
    }

    /// Waits for `size` processes under this name, of which this one is `rank`; the GPU is the calling thread's.
    ///
    /// # Errors
    /// They do not find each other.
    pub fn join(self, id: Id, rank: usize, size: usize) -> Result<Communicator, Error> {
        let many = || Error::Refused { call: "ncclCommInitRank", why: "too many processes".into() };
        let [rank, size] = [rank, size].map(|n| c_int::try_from(n).map_err(|_| many()));
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        let answer = unsafe { (self.init)(&raw mut handle, size?, id, rank?) };
        self.judge("ncclCommInitRank", answer)?;
        Ok(Communicator { nccl: self, handle })
    }

    fn judge(&self, call: &'static str, answer: c_int) -> Result<(), Error> {
        if answer == SUCCESS {
            return Ok(());
        }
        // SAFETY: NCCL's words are constants that end with a zero.
        let why = unsafe { CStr::from_ptr((self.word)(answer)) }.to_string_lossy().into_owned();
        Err(Error::Refused { call, why })
    }
}

/// The processes that met.
pub struct Communicator {
    nccl: Nccl,
    handle: Handle,
}

impl Communicator {
    /// Puts the sums over all processes of these floats on a stream, each in its place: where they begin on the GPU, and
    /// how many. All processes do so with as many, in the same order.
    ///
    /// # Errors
    /// NCCL refuses.
    ///
    /// # Safety
    /// The addresses hold as many floats until the stream is past the sums, and nothing else writes them meanwhile;
    /// `stream` is one of the GPU that the communicator was joined with.
    pub unsafe fn sum(&self, parts: &[(u64, usize)], stream: *mut c_void) -> Result<(), Error> {
        let Nccl { group_start, group_end, all_reduce, .. } = &self.nccl;
        // SAFETY: a call without arguments.
        self.nccl.judge("ncclGroupStart", unsafe { group_start() })?;
        let one = |&(at, count): &(u64, usize)| {
            let at = at as *mut c_void;
            // SAFETY: the caller's.
            let answer = unsafe { all_reduce(at, at, count, FLOAT32, SUM, self.handle, stream) };
            self.nccl.judge("ncclAllReduce", answer)
        };
        let begun = parts.iter().try_for_each(one);
        // Ended whatever was refused: an open group would swallow every later call.
        // SAFETY: a call without arguments.
        let ended = self.nccl.judge("ncclGroupEnd", unsafe { group_end() });
        begun.and(ended)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: the handle is its own, and ends here. What it answers helps nobody any more.
        unsafe { (self.nccl.destroy)(self.handle) };
    }
}

/// A function of the library by its name.
///
/// # Safety
/// It has this type.
unsafe fn function<F: Copy>(library: &Library, name: &[u8]) -> Result<F, Error> {
    // SAFETY: the caller's.
    unsafe { library.get::<F>(name) }.map(|symbol| *symbol).map_err(|_| Error::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::thread;

    #[test]
    fn a_machine_without_the_library_says_so() {
        assert_eq!(Nccl::of("libnccl-that-is-not-there.so.2").err(), Some(Error::Missing));
    }

    /// As `nccl.h` declares it, for processes that are threads: each waits until all of the communicator have come.
    const STAND_IN: &str = r#"
        #include <condition_variable>
        #include <cstdint>
        #include <cstring>
        #include <mutex>
        #include <vector>
        struct ncclUniqueId { char internal[128]; };
        struct World { int size, met = 0, come = 0, left = 0; std::vector<float> sums; };
        struct ncclComm { World* world; };
        static std::mutex lock;
        static std::condition_variable changed;
        static World* world = nullptr;
        static thread_local bool open = false;
        extern "C" int ncclGetVersion(int* v) { *v = VERSION; return 0; }
        extern "C" int ncclGetUniqueId(ncclUniqueId* id) { for (int i = 0; i < 128; i++) id->internal[i] = i; return 0; }
        extern "C" int ncclCommInitRank(ncclComm** to, int size, ncclUniqueId id, int rank) {
            for (int i = 0; i < 128; i++) if (id.internal[i] != (char)i) return 4;
            if (rank < 0 || rank >= size) return 4;
            std::unique_lock<std::mutex> held(lock);
            if (!world) world = new World{size};
            world->met++;
            changed.notify_all();
            changed.wait(held, [&] { return world->met == size; });
            *to = new ncclComm{world};
            return 0;
        }
        extern "C" int ncclAllReduce(const void* from, void* to, size_t n, int type, int op, ncclComm* c, void* stream) {
            if (!open || type != 7 || op != 0 || stream != (void*)77) return 4;
            World& w = *c->world;
            std::unique_lock<std::mutex> held(lock);
            changed.wait(held, [&] { return w.left == 0; });
            if (w.come++ == 0) w.sums.assign(n, 0.f);
            for (size_t i = 0; i < n; i++) w.sums[i] += ((const float*)from)[i];
            if (w.come == w.size) { w.left = w.size; w.come = 0; changed.notify_all(); }
            changed.wait(held, [&] { return w.left > 0; });
            std::memcpy(to, w.sums.data(), 4 * n);
            if (--w.left == 0) changed.notify_all();
            return 0;
        }
        extern "C" int ncclGroupStart() { if (open) return 5; open = true; return 0; }
        extern "C" int ncclGroupEnd() { if (!open) return 5; open = false; return 0; }
        extern "C" int ncclCommDestroy(ncclComm* c) { delete c; return 0; }
        extern "C" const char* ncclGetErrorString(int code) { return code == 4 ? "invalid argument" : "invalid usage"; }
    "#;

    #[test]
    #[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
    fn processes_that_meet_have_the_sum_of_all() {
        let compiler = std::env::var("FTTRAIN_CXX").expect("FTTRAIN_CXX is not set: give a C++17 compiler");
        let folder = std::env::temp_dir().join(format!("fttrain-nccl-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let built = |version: i32| {
            let (source, library) =
                (folder.join(format!("{version}.cpp")), folder.join(format!("{version}.so")));
            std::fs::write(&source, STAND_IN.replace("VERSION", &version.to_string())).unwrap();
            let mut build = Command::new(&compiler);
            build.args(["-std=c++17", "-shared", "-fPIC", "-pthread", "-o"]).arg(&library).arg(&source);
            assert!(build.status().unwrap().success());
            library.to_str().unwrap().to_owned()
        };
        assert_eq!(Nccl::of(&built(20_900)).err(), Some(Error::Old(20_900)));
        let library = built(23_203);
        let id = Nccl::of(&library).unwrap().id().unwrap();
        let one = |rank: usize| {
            let library = library.clone();
            move || {
                let all = Nccl::of(&library).unwrap().join(id, rank, 3).unwrap();
                let mut parts = [vec![rank as f32; 5], vec![1.0, 10.0 * rank as f32]];
                for expected in [[3.0, 30.0], [9.0, 90.0]] {
                    let places: Vec<_> = parts.iter_mut().map(|p| (p.as_mut_ptr() as u64, p.len())).collect();
                    // SAFETY: the stand-in computes at once, on the host.
                    unsafe { all.sum(&places, 77 as *mut c_void) }.unwrap();
                    assert_eq!(parts[0], vec![expected[0]; 5]);
                    assert_eq!(parts[1], expected, "process {rank}");
                }
                let refused = Error::Refused { call: "ncclAllReduce", why: "invalid argument".into() };
                let mut value = 0f32;
                // SAFETY: refused; the second time, too, for the group was ended.
                let mut sum =
                    |stream: usize| unsafe { all.sum(&[(&raw mut value as u64, 1)], stream as *mut c_void) };
                assert_eq!([sum(1), sum(2)], [Err(refused.clone()), Err(refused)]);
            }
        };
        let threads: Vec<_> = (0..3).map(|rank| thread::spawn(one(rank))).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let none = Nccl::of(&library).unwrap().join(id, 3, 3).err();
        assert_eq!(none, Some(Error::Refused { call: "ncclCommInitRank", why: "invalid argument".into() }));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
