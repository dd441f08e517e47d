//! Whether an NVIDIA GPU can be used: asked of the driver by its own library, which is opened for it, because candle
//! panics where it is missing.

use libloading::Library;
use std::ffi::{CStr, c_char, c_int};

/// The driver's library.
const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
/// What else candle opens: names by which cuBLAS and cuRAND of CUDA 12 and 13 are found.
const LIBRARIES: [(&str, [&str; 3]); 2] = [
    ("cuBLAS", ["libcublas.so.13", "libcublas.so", "libcublas.so.12"]),
    ("cuRAND", ["libcurand.so.10", "libcurand.so", "libcurand.so.1"]),
];
/// The driver's interface that PTX of nvcc 13.0 needs: 1000·major + 10·minor.
const NEEDED: c_int = 13_000;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

/// Why there is no GPU to compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The program was built without the feature `cuda`.
    NotBuilt,
    /// No driver is installed.
    Driver,
    /// The driver's CUDA version, 1000·major + 10·minor.
    OldDriver(i32),
    /// A driver, and no GPU.
    Device,
    /// One of CUDA's libraries, by its name.
    Library(&'static str),
    /// The driver answered with this error.
    Failed(i32),
}

/// Number of GPUs that can be used.
///
/// # Errors
/// There is none, and why.
pub fn gpus() -> Result<usize, Missing> {
    if !cfg!(feature = "cuda") {
        return Err(Missing::NotBuilt);
    }
    let (_, count) = ask(DRIVER)?;
    for (name, files) in LIBRARIES {
        if !files.iter().any(|file| open(file).is_some()) {
            return Err(Missing::Library(name));
        }
    }
    Ok(count)
}

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its memory.
    pub bytes: u64,
    /// The same in all processes that compute on this card, and of no other card; `None` where the driver does not say.
    pub uuid: Option<[u8; 16]>,
}

/// What the GPU `nth`, from 0, is; `None` where the driver does not say.
pub fn card(nth: usize) -> Option<Card> {
    describe(&ask(DRIVER).ok()?.0, nth)
}

fn describe(library: &Library, nth: usize) -> Option<Card> {
    let (mut device, mut bytes): (c_int, usize) = (0, 0);
    let mut name: [c_char; 256] = [0; 256];
    let mut uuid = [0; 16];
    // SAFETY: the functions have these types since CUDA 9.2; each writes what it is given room for, and the name ends
    // with a zero.
    let (name, uuid) = unsafe {
        let device_of =
            library.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet").ok()?;
        let name_of = library
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName")
            .ok()?;
        let bytes_of =
            library.get::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(b"cuDeviceTotalMem_v2").ok()?;
        let answers = [
            device_of(&raw mut device, c_int::try_from(nth).ok()?),
            name_of(name.as_mut_ptr(), 255, device),
            bytes_of(&raw mut bytes, device),
        ];
        if answers != [0; 3] {
            return None;
        }
        let uuid_of = library.get::<unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int>(b"cuDeviceGetUuid");
        let is_known = uuid_of.is_ok_and(|uuid_of| uuid_of(&raw mut uuid, device) == 0);
        (CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(), is_known.then_some(uuid))
    };
    Some(Card { name, bytes: bytes as u64, uuid })
}

fn open(name: &str) -> Option<Library> {
    // SAFETY: the driver and CUDA's libraries may be loaded at any time; what they do on loading is theirs.
    unsafe { Library::new(name) }.ok()
}

/// The driver in this library, and how many devices it has.
fn ask(driver: &str) -> Result<(Library, usize), Missing> {
    let library = open(driver).ok_or(Missing::Driver)?;
    let (mut version, mut count): (c_int, c_int) = (0, 0);
    // SAFETY: the three functions have these types since CUDA 2.2 and write one int each; `cuInit` takes 0.
    let answers = unsafe {
        let init = library.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit");
        let version_of = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion");
        let count_of = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount");
        let (Ok(init), Ok(version_of), Ok(count_of)) = (init, version_of, count_of) else {
            return Err(Missing::Driver);
        };
        // The version can be asked for before anything else.
        match version_of(&raw mut version) {
            0 if version < NEEDED => return Err(Missing::OldDriver(version)),
            0 => [init(0), count_of(&raw mut count)],
            wrong => [wrong, 0],
        }
    };
    match answers.into_iter().find(|&answer| answer != 0) {
        Some(NO_DEVICE) => Err(Missing::Device),
        Some(wrong) => Err(Missing::Failed(wrong)),
        None if count < 1 => Err(Missing::Device),
        None => Ok((library, usize::try_from(count).map_err(|_| Missing::Device)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        assert_eq!(ask("libcuda-that-is-not-there.so.1").err(), Some(Missing::Driver));
    }

    #[test]
    #[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
    fn every_answer_of_a_driver_is_understood() {
        let compiler = std::env::var("FTTRAIN_CXX").expect("FTTRAIN_CXX is not set: give a C++17 compiler");
        let folder = std::env::temp_dir().join(format!("fttrain-driver-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // What `cuDriverGetVersion`, `cuInit` and `cuDeviceGetCount` say.
        let cases = [
            ((13_010, 0, 2), Ok(2)),
            ((13_000, 0, 0), Err(Missing::Device)),
            ((13_000, NO_DEVICE, 0), Err(Missing::Device)),
            ((12_080, 0, 1), Err(Missing::OldDriver(12_080))),
            ((13_000, 803, 1), Err(Missing::Failed(803))),
        ];
        for (i, ((version, init, count), expected)) in cases.into_iter().enumerate() {
            let (source, library) = (folder.join(format!("{i}.cpp")), folder.join(format!("{i}.so")));
            let text = format!(
                "extern \"C\" int cuDriverGetVersion(int* v) {{ *v = {version}; return 0; }}\n\
                 extern \"C\" int cuInit(unsigned) {{ return {init}; }}\n\
                 extern \"C\" int cuDeviceGetCount(int* n) {{ *n = {count}; return 0; }}\n\
                 extern \"C\" int cuDeviceGet(int* d, int n) {{ *d = n + 7; return n < {count} ? 0 : 101; }}\n\
                 extern \"C\" int cuDeviceGetName(char* to, int, int d) {{ to[0] = '0' + d; to[1] = 0; return 0; }}\n\
                 extern \"C\" int cuDeviceTotalMem_v2(unsigned long* b, int) {{ *b = 5; return 0; }}\n\
                 extern \"C\" int cuDeviceGetUuid(char* to, int d) {{ for (int i = 0; i < 16; i++) to[i] = d; return 0; }}\n"
            );
            std::fs::write(&source, text).unwrap();
            let mut build = Command::new(&compiler);
            build.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
            assert!(build.status().unwrap().success());
            let answer = ask(library.to_str().unwrap());
            assert_eq!(answer.as_ref().map(|(_, count)| *count).map_err(Clone::clone), expected);
            if let Ok((library, count)) = &answer {
                assert_eq!(
                    describe(library, 1),
                    Some(Card { name: "8".into(), bytes: 5, uuid: Some([8; 16]) })
                );
                assert_eq!(describe(library, *count), None);
            }
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
