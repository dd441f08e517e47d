//! Every CUDA kernel goes through the real compiler: to the PTX that is embedded, and on to the code of the oldest and the
//! newest cards that it is to serve.

use fttrain_kernels::cuda::FILES;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
#[ignore = "needs FTTRAIN_NVCC, the CUDA 13 toolkit's nvcc"]
fn every_kernel_compiles_without_a_warning_for_every_card() {
    let nvcc =
        std::env::var("FTTRAIN_NVCC").expect("FTTRAIN_NVCC is not set: give the CUDA 13 toolkit's nvcc");
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    for file in FILES {
        let cards = ["80", "90", "100"].map(|card| format!("-gencode=arch=compute_{card},code=sm_{card}"));
        let built = Command::new(&nvcc)
            .args(["-fatbin", "-gencode=arch=compute_80,code=compute_80", "-Werror", "all-warnings"])
            .args(cards)
            .arg("-o")
            .arg(out.join(format!("{file}.fatbin")))
            .arg(cuda.join(format!("{file}.cu")))
            .output()
            .unwrap_or_else(|e| panic!("{nvcc}: {e}"));
        assert!(built.status.success(), "{file}.cu: {}", String::from_utf8_lossy(&built.stderr));
    }
}

#[test]
fn every_file_of_kernels_is_named() {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut found: Vec<String> = std::fs::read_dir(cuda)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".cu").map(str::to_owned))
        .collect();
    found.sort();
    assert_eq!(found, FILES);
}
