//! What this machine reaches with all operands in registers: the rate that products are measured against, whichever
//! kernels are in use.

use std::hint::black_box;
use std::time::Instant;

/// Steps of a loop: some ten milliseconds on any core.
const STEPS: usize = 1 << 20;
/// Runs, of which the fastest counts: a peak is what nothing disturbed.
const RUNS: usize = 5;
/// Sums that do not wait for each other: two units of four cycles each need eight.
const CHAINS: usize = 12;

/// Does the steps and gives something of the sums, so that they are done.
type Loop = fn() -> f32;

/// FLOP/s of the pool's threads together in f32 multiply-adds.
pub fn f32_flops_per_s() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if let Some((lanes, run)) = x86::f32_loop() {
        return rate(lanes, run);
    }
    rate(4, portable)
}

/// FLOP/s of the pool's threads together in products of bf16 added up in f32; `None` where the CPU has none.
pub fn bf16_flops_per_s() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    return amx::bf16_loop().or_else(x86::bf16_loop).map(|(products, run)| rate(products, run));
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// `products` multiply-adds a chain and step.
fn rate(products: usize, run: Loop) -> f64 {
    let flops = (2 * products * CHAINS * STEPS) as f64;
    let once = || {
        let rates = rayon::broadcast(|_| {
            let begun = Instant::now();
            black_box(run());
            flops / begun.elapsed().as_secs_f64()
        });
        rates.into_iter().sum()
    };
    (0..RUNS).map(|_| once()).fold(0.0, f64::max)
}

/// Four lanes, which every 64-bit target has.
fn portable() -> f32 {
    let (x, y) = (black_box([0.999_f32; 4]), black_box([1e-3_f32; 4]));
    let mut sums = [[0f32; 4]; CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            for (lane, sum) in sum.iter_mut().enumerate() {
                *sum = *sum * x[lane] + y[lane];
            }
        }
    }
    sums.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, Loop, STEPS};
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm512_cvtss_f32, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_setzero_ps,
    };
    use std::hint::black_box;

    /// The widest multiply-add that this CPU has.
    pub(super) fn f32_loop() -> Option<(usize, Loop)> {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU was just asked for the feature.
            return Some((16, || unsafe { avx512() }));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return Some((8, || unsafe { avx2() }));
        }
        None
    }

    /// `vdpbf16ps`: two products in each of 16 lanes.
    pub(super) fn bf16_loop() -> Option<(usize, Loop)> {
        let is_there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        // SAFETY: the CPU was just asked for both features.
        is_there.then_some((32, || unsafe { bf16() }))
    }

    /// One body for three instructions: their names are not values that a function could take.
    macro_rules! chains {
        ($zero:expr, |$sum:ident| $next:expr, $out:ident) => {{
            let mut sums = [$zero; CHAINS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    let $sum = *sum;
                    *sum = $next;
                }
            }
            sums.into_iter().map(|sum| $out(sum)).sum()
        }};
    }

    #[target_feature(enable = "avx512f")]
    fn avx512() -> f32 {
        let (x, y) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        chains!(_mm512_setzero_ps(), |sum| _mm512_fmadd_ps(sum, x, y), _mm512_cvtss_f32)
    }

    #[target_feature(enable = "avx2,fma")]
    fn avx2() -> f32 {
        let (x, y) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        chains!(_mm256_setzero_ps(), |sum| _mm256_fmadd_ps(sum, x, y), _mm256_cvtss_f32)
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16() -> f32 {
        // Pairs of the bf16 number 2⁻⁶ = 0x3c80.
        let pairs = _mm512_set1_epi32(black_box(0x3c80_3c80));
        // SAFETY: 512 bits either way; every pattern is a value of both types.
        let pairs = unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) };
        chains!(_mm512_setzero_ps(), |sum| _mm512_dpbf16_ps(sum, pairs, pairs), _mm512_cvtss_f32)
    }
}

/// AMX, whose instructions have no stable names: 6 of the 8 tiles hold sums, so that none waits for the one before it.
#[cfg(target_arch = "x86_64")]
mod amx {
    use super::{CHAINS, Loop, STEPS};
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// Products of one `tdpbf16ps` on whole tiles: 16 rows, 16 columns, 32 deep.
    const PRODUCTS: usize = 16 * 16 * 32;
    /// A tile operation takes sixteen cycles: fewer steps will do, and count for as many.
    const SHORTER: usize = 64;

    pub(super) fn bf16_loop() -> Option<(usize, Loop)> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        // SAFETY: the loop needs AMX in bf16 and the system's permission, and both are asked for first.
        let run: Loop = || unsafe { tiles() };
        (is_there() && *PERMITTED.get_or_init(permit)).then_some((PRODUCTS / SHORTER, run))
    }

    /// AMX-TILE and AMX-BF16 (leaf 7, EDX bits 24 and 22).
    fn is_there() -> bool {
        let wanted = 1 << 24 | 1 << 22;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted
    }

    /// Asks Linux for the tiles' state, which it grants to a process once and for all its threads:
    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
    fn permit() -> bool {
        let mut result: i64 = 158;
        if cfg!(target_os = "linux") {
            // SAFETY: the system call takes two numbers and touches no memory; it uses rcx and r11 for itself.
            unsafe {
                asm!("syscall", inlateout("rax") result, in("rdi") 0x1023_u64, in("rsi") 18_u64,
                    lateout("rcx") _, lateout("r11") _, options(nostack));
            }
        }
        result == 0
    }

    /// # Safety
    /// The CPU has AMX in bf16, and the system has granted the tiles.
    unsafe fn tiles() -> f32 {
        // Palette 1; all eight tiles of 16 rows of 64 bytes.
        let mut config = [0u8; 64];
        config[0] = 1;
        config[16..32].copy_from_slice(&[64, 0].repeat(8));
        config[48..56].fill(16);
        // SAFETY: the tiles are the caller's promise; `config` is 64 bytes that are only read, and no tile is stored.
        unsafe {
            asm!("ldtilecfg [{config}]", "tilezero tmm6", "tilezero tmm7",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7", "tdpbf16ps tmm1, tmm6, tmm7", "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7", "tdpbf16ps tmm4, tmm6, tmm7", "tdpbf16ps tmm5, tmm6, tmm7",
                "dec {turns}", "jnz 2b", "tilerelease",
                config = in(reg) config.as_ptr(), turns = inout(reg) CHAINS * STEPS / SHORTER / 6 => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, readonly));
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_reaches_what_a_core_can() {
        let rate = f32_flops_per_s();
        assert!((1e8..1e15).contains(&rate), "{rate}");
        if let Some(rate) = bf16_flops_per_s() {
            assert!((1e8..1e16).contains(&rate), "{rate}");
        }
    }
}
