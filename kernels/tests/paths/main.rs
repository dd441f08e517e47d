//! Every kernel against plain loops in f64, on every instruction set that this CPU has. The set is chosen once a
//! process, so the tests run themselves again, a process for each.

mod attention;
mod product;
mod rows;
mod values;

use fttrain_kernels::cpu::{self, Path};
use std::process::Command;

/// Names the path in a process of its own.
const VARIABLE: &str = "FTTRAIN_KERNEL";

/// Takes the path that this process is to test; called first by every test.
fn on_the_path() {
    if let Ok(name) = std::env::var(VARIABLE) {
        cpu::force(&name).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// What the CPU has, asked without the code under test.
fn paths_of_this_cpu() -> Vec<&'static str> {
    let mut paths = vec!["portable"];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            paths.push("avx2");
        }
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if wide {
            paths.push("avx512");
            if is_x86_feature_detected!("avx512bf16") {
                paths.push("avx512bf16");
                let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                if about.contains(" amx_tile") && about.contains(" amx_bf16") {
                    paths.push("amx");
                }
            }
        }
    }
    paths
}

/// Runs this file's tests but those of `main.rs` with the path forced; returns what they printed.
fn run_again(path: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture", "--skip", "every_path", "--skip", "a_path"])
        .env(VARIABLE, path)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "on {path}:\n{printed}\n{said}");
    printed
}

#[test]
fn every_path_of_this_cpu_passes_every_test_of_the_kernels() {
    let paths = paths_of_this_cpu();
    let mut executed = Vec::new();
    for path in Path::ALL.map(Path::name) {
        if paths.contains(&path) {
            let printed = run_again(path);
            assert!(printed.contains(&format!("the path is {path}")), "{printed}");
            assert!(passed(&printed) > 15, "{printed}");
            executed.push(path);
        }
    }
    assert_eq!(executed, paths, "a path of this CPU was not executed");
    // On Intel's CPUs `vdpbf16ps` is slower than f32 products, so it is not chosen there unasked.
    let detected = Path::detect().name();
    assert!(
        paths.contains(&detected) && paths[paths.len().saturating_sub(2)..].contains(&detected),
        "{detected}"
    );
}

/// The number of passed tests that a test binary reports.
fn passed(printed: &str) -> usize {
    let (_, rest) = printed.split_once("test result: ok. ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_forced_path_is_the_one_in_use() {
    on_the_path();
    println!("the path is {}", cpu::path().name());
    if let Ok(name) = std::env::var(VARIABLE) {
        assert_eq!(cpu::path().name(), name);
    }
}

#[test]
fn a_path_that_is_unknown_or_comes_too_late_is_refused_by_name() {
    let used = cpu::path();
    let unknown = cpu::force("sse2").unwrap_err();
    assert!(unknown.contains("`sse2`") && unknown.contains("portable"), "{unknown}");
    assert_eq!(cpu::force(used.name()), Ok(used));
    if let Some(other) = Path::ALL.into_iter().find(|path| *path < used) {
        let late = cpu::force(other.name()).unwrap_err();
        assert!(late.contains("already in use") && late.contains(used.name()), "{late}");
    }
}

/// Uniform in ±`largest`, from the finaliser of `SplitMix64`.
fn random(seed: u64, count: usize, largest: f32) -> Vec<f32> {
    let value = |i: u64| {
        let mut x = (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x >> 40) as f32 / 8_388_608.0 - 1.0) * largest
    };
    (1..=count as u64).map(value).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Fails where a value is off by more than 1e-5 of the largest one: sums of a few hundred terms in f32.
fn close(what: &str, ours: &[f32], exact: &[f64]) {
    within(what, ours, exact, 1e-5, 1e-6);
}

/// Fails where a value is off by more than `share` of the largest one and `least`.
fn within(what: &str, ours: &[f32], exact: &[f64], share: f64, least: f64) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    let largest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        let off = (f64::from(*a) - b).abs();
        assert!(off <= share * largest + least, "{what}: [{i}] is {a}, exactly {b}, largest {largest}");
    }
}
