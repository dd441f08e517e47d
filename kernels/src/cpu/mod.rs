//! CPU kernels: each is written once as plain loops that the compiler vectorises, compiled for several instruction
//! sets, and chosen at run time. Every sum is split by the shape alone, never by the number of threads, so a result
//! does not depend on who computed it.

use std::sync::OnceLock;

mod add;
pub mod attention;
pub mod codebook;
mod cross_entropy;
pub mod eigen;
mod gate;
mod math;
mod norm;
pub mod optimizer;
mod product;
mod quantised;
mod rope;
mod share;
mod splitmix;
mod tile;
mod widen;

pub mod peak;

pub use add::add;
pub use codebook::dynamic_map;
pub use cross_entropy::cross_entropy_rows;
pub use gate::{gate_backward, gate_backward_bf16, gate_forward, gate_forward_bf16};
pub use norm::{norm_backward, norm_forward};
pub use optimizer::sum_of_squares;
pub use product::{
    NoMemory, Operand, Out, Packed, Precision, Product, Source, Start, Term, product_new, products,
};
pub use quantised::{DynamicCode, Ggml, GgmlKind, NF4_VALUES, Nf4, Nf4Parts, Nf4Scales, Quantised};
pub use rope::rope;
pub use splitmix::mix;
pub use widen::{narrowed, widened};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Whatever the target's baseline has.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// The same, with products of bf16 by `vdpbf16ps`.
    Avx512Bf16,
    /// The same, with products of bf16 by AMX, Intel's matrix unit.
    Amx,
}

impl Path {
    /// All, the best last.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The name that `FTTRAIN_KERNEL` takes and that reports show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether it multiplies in bf16 where it may.
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Whether this CPU can run it.
    pub fn is_here(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Self::Portable => true,
                Self::Avx2 => has!("avx2") && has!("fma"),
                Self::Avx512 => avx512,
                Self::Avx512Bf16 => avx512 && has!("avx512bf16"),
                Self::Amx => Self::Avx512Bf16.is_here() && product::amx_is_sound(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// Best of what this CPU has.
    pub fn detect() -> Self {
        let best = Self::ALL.into_iter().rev().find(|path| path.is_here()).unwrap_or(Self::Portable);
        // Measured: twice the rate of f32 FMA on AMD's Zen 5, half of it on Intel's Sapphire Rapids.
        if best == Self::Avx512Bf16 && !crate::sys::is_amd() { Self::Avx512 } else { best }
    }
}

/// Whether this CPU offers AMX but multiplied wrongly when it was tried, so that it is not used.
pub fn amx_is_refused() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        Path::Avx512Bf16.is_here() && crate::sys::may_use_amx() && !product::amx_is_sound()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
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
    let wanted = Path::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
        format!("`{name}` is not a kernel path; there are amx, avx512bf16, avx512, avx2, portable")
    })?;
    if !wanted.is_here() {
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

/// Compiles one body, of one type at most, for every [`Path`] and calls the one in use. Inside, `FMA` says whether fused multiply-add is one
/// instruction, `LANES` how many f32 a vector register holds.
macro_rules! dispatch {
    (
        $(#[$doc:meta])* $vis:vis fn $name:ident $(<$t:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    ) => {
        $(#[$doc])*
        $vis fn $name $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool, const LANES: usize $(, $t: $bound)?>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                body::<true, 16 $(, $t)?>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                body::<true, 8 $(, $t)?>($($arg),*)
            }

            match $crate::cpu::path() {
                // SAFETY: `path()` names a set only after the CPU was asked for each of its features.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Path::Avx512 | $crate::cpu::Path::Avx512Bf16 | $crate::cpu::Path::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Path::Avx2 => unsafe { avx2($($arg),*) },
                _ => body::<false, 8 $(, $t)?>($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;
