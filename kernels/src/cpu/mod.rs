//! CPU kernels: each is written once as plain loops that the compiler vectorises, compiled for several instruction
//! sets, and chosen at run time. Every sum is split by the shape alone, never by the number of threads, so a result
//! does not depend on who computed it.

use std::sync::OnceLock;

mod adamw;
pub mod attention;
mod cross_entropy;
mod gate;
mod math;
mod matmul;
mod norm;
mod quantised;
mod rope;
mod share;
mod tile;
mod widen;

pub mod peak;

pub use adamw::{AdamW, adamw, sum_of_squares};
pub use cross_entropy::cross_entropy_rows;
pub use gate::{gate_backward, gate_forward};
pub use matmul::{MatRef, matmul, matmul_new};
pub use norm::{norm_backward, norm_forward};
pub use quantised::{DynamicCode, Ggml, GgmlKind, Nf4, Quantised, dynamic_map};
pub use rope::rope;
pub use widen::{narrow_bf16, widen_bf16};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Whatever the target's baseline has.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl Path {
    /// All, the best last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name that `FTTRAIN_KERNEL` takes and that reports show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Best of what this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has512 = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl");
            if has512 {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

static CHOSEN: OnceLock<Path> = OnceLock::new();

/// The path in use: the best that the CPU has, unless [`force`] was called before the first kernel ran.
pub fn path() -> Path {
    *CHOSEN.get_or_init(Path::detect)
}

/// Chooses the path by its name, once and before any kernel runs.
///
/// # Errors
/// The name is unknown, the CPU lacks the path, or another path is already in use.
pub fn force(name: &str) -> Result<Path, String> {
    let wanted = Path::ALL
        .into_iter()
        .find(|p| p.name() == name)
        .ok_or_else(|| format!("`{name}` is not a kernel path; there are avx512, avx2, portable"))?;
    if wanted > Path::detect() {
        return Err(format!(
            "this CPU cannot run the `{name}` kernels; its best are `{}`",
            Path::detect().name()
        ));
    }
    let chosen = *CHOSEN.get_or_init(|| wanted);
    if chosen == wanted {
        Ok(wanted)
    } else {
        Err(format!("the `{}` kernels are already in use", chosen.name()))
    }
}

/// Compiles one body for every [`Path`] and calls the one in use. Inside, `FMA` says whether fused multiply-add is one
/// instruction, `LANES` how many f32 a vector register holds.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool, const LANES: usize>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body::<true, 16>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<true, 8>($($arg),*)
            }

            match $crate::cpu::path() {
                // SAFETY: `path()` names a set only after the CPU was asked for each of its features.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Path::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Path::Avx2 => unsafe { avx2($($arg),*) },
                _ => body::<false, 8>($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;
