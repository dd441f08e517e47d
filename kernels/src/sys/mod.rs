//! Calls into C and questions to the CPU that the program itself may not make.

pub mod cuda;
pub mod memory;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;

/// Whether AMD made this CPU.
#[cfg(target_arch = "x86_64")]
pub fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Whether the CPU has AMX with bf16, the kernel keeps its registers, and this process may use them: it is asked here,
/// once for all threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn may_use_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    #[target_feature(enable = "xsave")]
    fn enabled_states() -> u64 {
        // SAFETY: the caller made sure that XGETBV is there.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }

    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// The tiles' configuration and their data.
    const STATES: u64 = 0b11 << 17;
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;

    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let has = __cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE;
    // SAFETY: OSXSAVE says that XGETBV may be used.
    if !has || unsafe { enabled_states() } & STATES != STATES {
        return false;
    }
    let answer: i64;
    // SAFETY: a system call that takes two numbers; it changes nothing but what this process may use.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer == 0
}

/// Whether AMX may be used: not where nobody asks for it.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub fn may_use_amx() -> bool {
    false
}

/// Whether AMD made this CPU: no other architecture's.
#[cfg(not(target_arch = "x86_64"))]
pub fn is_amd() -> bool {
    false
}

/// Ends the process at once: no destructor of a library waits for what another process does not bring any more.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: a system call that does not return.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}

/// Lets the system notice within a minute that the other side of a connection is gone for good, its machine with it.
///
/// # Errors
/// The system refuses.
#[cfg(target_os = "linux")]
pub fn keep_alive(stream: &std::net::TcpStream) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;

    // Begin after so many seconds of silence, ask so often, and so many times.
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 30),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 10),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
    ];
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    for (level, name, value) in options {
        let value: libc::c_int = value;
        // SAFETY: an open socket, and an option that is an int.
        let answer =
            unsafe { libc::setsockopt(stream.as_raw_fd(), level, name, (&raw const value).cast(), size) };
        if answer != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Left to the system where nobody wrote how it is told.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn keep_alive(_: &std::net::TcpStream) -> std::io::Result<()> {
    Ok(())
}
