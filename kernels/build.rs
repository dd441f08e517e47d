//! With the feature `cuda`, compiles `cuda/*.cu` to PTX, which the library holds: for compute capability 8.0, from which
//! drivers translate for every newer card.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let nvcc = nvcc();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut table = Vec::new();
    for entry in fs::read_dir("cuda").expect("cuda/ lies beside build.rs") {
        let path = entry.expect("cuda/ can be read").path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ptx = out.join(format!("{name}.ptx"));
        compile(&nvcc, &path, &ptx);
        table.push(format!("({name:?}, include_str!({:?}))", ptx.display().to_string()));
    }
    fs::write(out.join("ptx.rs"), format!("[{}]", table.join(",\n"))).expect("OUT_DIR can be written");
}

/// By `NVCC`, in the toolkit's folder, or on the `PATH`.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let found = homes.map(|home| Path::new(&home).join("bin/nvcc")).find(|nvcc| nvcc.is_file());
    found.unwrap_or_else(|| "nvcc".into())
}

fn compile(nvcc: &Path, from: &Path, to: &Path) {
    let done = Command::new(nvcc).args(["-ptx", "-arch=compute_80", "-O3", "-o"]).arg(to).arg(from).status();
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("nvcc could not compile {}: {status}", from.display()),
        Err(error) => panic!(
            "{}: {error}; the feature `cuda` needs nvcc of the CUDA 13 toolkit, on the PATH or named by NVCC",
            nvcc.display()
        ),
    }
}
