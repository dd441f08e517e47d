//! Every CUDA kernel, compiled for the host and run on an emulated device (`device.h`), against the CPU's kernels on the
//! same inputs: the launches are those that a GPU gets. It shows that a kernel's algorithm, grid and arguments are right;
//! how fast it is, and what a real memory system does to it, only a GPU shows.

mod attention;
mod device;
mod rows;
mod values;

use device::{Array, run};
use fttrain_kernels::cuda::Launch;

/// Uniform in ±`largest`, from a counter.
fn random(seed: u64, count: usize, largest: f32) -> Vec<f32> {
    let value = |i: u64| {
        let mut x = (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x >> 40) as f32 / 8_388_608.0 - 1.0) * largest
    };
    (1..=count as u64).map(value).collect()
}

/// Both round sums of a few hundred terms in f32, in another order.
fn close(what: &str, ours: &[f32], cpu: &[f32]) {
    assert_eq!(ours.len(), cpu.len(), "{what}");
    let largest = cpu.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(cpu).enumerate() {
        assert!(
            (a - b).abs() <= 2e-5 * largest + 1e-6,
            "{what}: [{i}] is {a}, on the CPU {b}, largest {largest}"
        );
    }
}

/// What launches leave in `arrays`: first where they can be taken by vectors, then where they cannot. An array beside the
/// others' places is enough for that.
fn every_way<const N: usize>(
    arrays: [Array; N],
    launches: impl Fn(&[Array; N]) -> Vec<Launch>,
) -> [[Array; N]; 2] {
    let beside = arrays.each_ref().map(Array::beside);
    for i in 0..N {
        let mut one = arrays.clone();
        one[i] = beside[i].clone();
        for launch in launches(&one) {
            run(&launch, false);
        }
    }
    [arrays, beside].map(|arrays| both_orders(arrays, &launches))
}

/// Runs launches with the threads in either order, on fresh copies of `arrays`, and gives what they left: the same bits
/// both times, or a barrier is missing.
fn both_orders<const N: usize>(
    arrays: [Array; N],
    launches: impl Fn(&[Array; N]) -> Vec<Launch>,
) -> [Array; N] {
    let [forwards, backwards] = [(arrays.clone(), false), (arrays, true)].map(|(arrays, backwards)| {
        for launch in launches(&arrays) {
            run(&launch, backwards);
        }
        arrays
    });
    for (i, (a, b)) in forwards.iter().zip(&backwards).enumerate() {
        assert!(a.bytes() == b.bytes(), "array {i} depends on the order of the threads");
    }
    forwards
}

#[test]
#[ignore = "needs FTTRAIN_CXX, a C++17 compiler"]
fn a_launch_with_wrong_arguments_or_a_missed_barrier_is_refused() {
    let launch = Launch {
        file: "norm",
        kernel: "norm_forward",
        by_vectors: false,
        grid: [1, 1],
        threads: 33,
        arguments: vec![],
    };
    assert_eq!(device::launch(&launch, false), Err("another number of arguments".into()));
    let arguments = vec![fttrain_kernels::cuda::Argument::U32(0); 6];
    let launch = Launch { arguments, ..launch };
    assert_eq!(device::launch(&launch, false), Err("a block is made of 1 to 32 whole warps".into()));
}
