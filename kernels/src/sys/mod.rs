//! Calls into C and questions to the CPU that the program itself may not make.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 2 and 3.
const PURGE_DELAY: mi_option_t = 15;

/// Tells mimalloc to keep freed pages instead of giving them back: a training step asks for the same large buffers
/// again, and fresh pages would have to be cleared each time. Call it before the first large allocation.
pub fn keep_pages() {
    // SAFETY: sets an integer option of the allocator, which any thread may do at any time.
    unsafe { mi_option_set(PURGE_DELAY, -1) }
}

/// Whether AMD made this CPU.
#[cfg(target_arch = "x86_64")]
pub fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Whether AMD made this CPU: no other architecture's.
#[cfg(not(target_arch = "x86_64"))]
pub fn is_amd() -> bool {
    false
}
