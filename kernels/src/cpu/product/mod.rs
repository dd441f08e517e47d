//! One driver for every large product of a training step: `c = Σ left·rightᵀ`, sums of several terms in one pass over c.
//!
//! Both sides of a term are matrices of lines that are contracted along their depth. A left side is packed whole, once,
//! and may serve several products. A right side — a weight in f32, bf16 or fewer bits — stays as it lies in memory:
//! each task packs a panel of a few dozen lines into its thread's buffer, where it serves all rows of c. A panel is
//! small beside what is multiplied with it, so no second, packed copy of a weight has to be kept.
//!
//! Each value of c is its start plus sums over stretches of the depth that follow from the shapes alone: it does not
//! depend on the threads, nor on how many rows are multiplied with it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_pack;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_pack;
mod kernel;
mod operand;
mod pack;
mod portable;
mod run;

#[cfg(target_arch = "x86_64")]
pub(super) use amx::is_sound as amx_is_sound;
pub use operand::{Operand, Source};
pub use pack::Packed;
pub use run::{NoMemory, Out, Product, Start, Term, product_new, products};

/// What the numbers of a product are rounded to before they are multiplied; sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Nothing is rounded; a bf16 or quantised weight is widened.
    F32,
    /// To bf16, nearest even, where the path in use multiplies in bf16; as `F32` elsewhere.
    Bf16,
}
