//! Builds the emulated device with all kernels, once, and runs launches on it.

use fttrain_kernels::cuda::{Address, FILES, Launch};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

/// Names the C++ compiler.
const COMPILER: &str = "FTTRAIN_CXX";

type Call = unsafe extern "C" fn(
    *const c_char,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    *mut *mut c_void,
    c_int,
) -> *const c_char;

/// The device runs one launch at a time.
static DEVICE: LazyLock<Mutex<libloading::Library>> = LazyLock::new(|| Mutex::new(build()));

/// An array that kernels read and write: it begins at a multiple of 16 bytes, or 8 bytes beside one.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    words: Vec<u128>,
    begin: usize,
    length: usize,
}

impl Array {
    /// Of plain numbers.
    pub(crate) fn new<T: Copy>(values: &[T]) -> Self {
        Self::at(0, size_of_val(values), values.as_ptr().cast())
    }

    /// Of NaN, so that what is not written shows.
    pub(crate) fn unwritten(count: usize) -> Self {
        Self::new(&vec![f32::NAN; count])
    }

    /// The same values where no vector can be loaded from.
    pub(crate) fn beside(&self) -> Self {
        let bytes = self.bytes();
        Self::at(8, bytes.len(), bytes.as_ptr())
    }

    fn at(begin: usize, length: usize, bytes: *const u8) -> Self {
        let mut words = vec![0u128; (begin + length).div_ceil(16)];
        // SAFETY: the words hold so many bytes, and numbers have no padding that is read back as such.
        unsafe { std::ptr::copy_nonoverlapping(bytes, words.as_mut_ptr().cast::<u8>().add(begin), length) };
        Self { words, begin, length }
    }

    pub(crate) fn address(&self) -> Address {
        Address((self.words.as_ptr() as usize + self.begin) as u64)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes[self.begin..self.begin + self.length].to_vec()
    }

    pub(crate) fn f32(&self) -> Vec<f32> {
        self.bytes().chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
    }

    pub(crate) fn f64(&self) -> Vec<f64> {
        self.bytes().chunks_exact(8).map(|b| f64::from_ne_bytes(b.try_into().unwrap())).collect()
    }

    pub(crate) fn u16(&self) -> Vec<u16> {
        self.bytes().chunks_exact(2).map(|b| u16::from_ne_bytes(b.try_into().unwrap())).collect()
    }
}

/// Runs a launch, its threads in this order or the other.
pub(crate) fn run(of: &Launch, backwards: bool) {
    launch(of, backwards).unwrap_or_else(|wrong| panic!("{}: {wrong}", of.symbol()));
}

pub(crate) fn launch(launch: &Launch, backwards: bool) -> Result<(), String> {
    let device = DEVICE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let name = CString::new(launch.symbol().as_bytes()).unwrap();
    let mut values: Vec<u64> = launch.arguments.iter().map(|argument| argument.bits()).collect();
    let mut arguments: Vec<*mut c_void> =
        values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
    let count = c_uint::try_from(arguments.len()).unwrap();
    let [x, y] = launch.grid;
    // SAFETY: `device.cpp` defines it so, and compares the number of arguments; the arrays outlive the call.
    let wrong = unsafe {
        let call = device.get::<Call>(b"launch").unwrap();
        call(name.as_ptr(), x, y, launch.threads, count, arguments.as_mut_ptr(), c_int::from(backwards))
    };
    if wrong.is_null() {
        return Ok(());
    }
    // SAFETY: a string literal of the library, which is never closed.
    Err(unsafe { CStr::from_ptr(wrong) }.to_string_lossy().into_owned())
}

fn build() -> libloading::Library {
    let compiler =
        std::env::var(COMPILER).unwrap_or_else(|_| panic!("{COMPILER} is not set: give a C++17 compiler"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = root.join("tests/emulated");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("emulated");
    std::fs::create_dir_all(&folder).unwrap();
    let mut sources = vec![here.join("device.cpp")];
    for file in FILES {
        let kernels = root.join("cuda").join(format!("{file}.cu"));
        let registered: Vec<_> =
            names(&compiler, &kernels).into_iter().map(|kernel| format!("REGISTER({kernel})\n")).collect();
        let source = folder.join(format!("{file}.cpp"));
        std::fs::write(&source, format!("#include \"{}\"\n{}", kernels.display(), registered.concat()))
            .unwrap();
        sources.push(source);
    }
    let library = folder.join("libemulated.so");
    // An address that a vector does not lie at ends the test.
    let sanitised = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"];
    done(
        Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w"])
            .args(sanitised)
            .arg("-include")
            .arg(here.join("device.h"))
            .arg("-I")
            .arg(&here)
            .args(&sources)
            .arg("-o")
            .arg(&library),
    );
    // SAFETY: built above from our own sources; its initialisers fill a table.
    unsafe { libloading::Library::new(&library) }.unwrap()
}

fn done(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|e| panic!("{}: {e}", command.get_program().display()));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Names of the kernels of a file, as its macros make them.
fn names(compiler: &str, file: &Path) -> Vec<String> {
    let text = done(Command::new(compiler).args(["-E", "-P", "-x", "c++"]).arg(file));
    let of = |rest: &str| -> String {
        let rest = rest.trim_start().strip_prefix("__launch_bounds__(128)").unwrap_or(rest).trim_start();
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    text.split("__global__ void").skip(1).map(of).collect()
}
