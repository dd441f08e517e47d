//! The program's allocator. Small blocks are mimalloc's; a large one is pages of its own, kept when it is freed for the
//! next of its size class, as long as kept and used ones together are no more than were once used at a time and a little
//! more. So what is resident at the highest is what was used at the highest, which can be counted beforehand, and a
//! training step finds the pages of the one before.

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};
use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// From this size on, bytes, a block has pages of its own. The blocks of every class are whole pages from here on.
pub const LARGE: usize = 64 << 10;
/// Bytes that may be kept beside what was once used at a time: all that a small model's step frees and asks for again.
pub const SLACK: usize = 32 << 20;
/// Size classes between two powers of two: at most a sixteenth of a block is not asked for, and what is not written
/// there is not resident either.
const STEPS: usize = 16;
/// Powers of two below the largest block, which no machine holds.
const OCTAVES: usize = 31;
/// No page of any Linux is smaller.
const PAGE: usize = 4096;

/// Give it to `#[global_allocator]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

/// Bytes of large blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Large {
    /// In use.
    pub used: usize,
    /// Freed, and kept.
    pub kept: usize,
    /// In use at their highest since pages were given back.
    pub peak: usize,
    /// In use and kept together at their highest since then.
    pub resident: usize,
}

/// Bytes of large blocks now.
pub fn large() -> Large {
    pages().large
}

/// Tells mimalloc to keep freed pages, too. Call it before the first allocation of many small blocks.
pub fn keep_pages() {
    /// `mi_option_purge_delay` of mimalloc 2 and 3.
    const PURGE_DELAY: mi_option_t = 15;
    /// Milliseconds: longer than a step by far. Without a bound mimalloc would not note which pages are free, and
    /// [`give_back_pages`] could not give them back.
    const KEPT_MS: std::ffi::c_long = 3_600_000;
    // SAFETY: sets an integer option of the allocator, which any thread may do at any time.
    unsafe { mi_option_set(PURGE_DELAY, KEPT_MS) }
}

/// Gives pages that are free now back to the system, those that the workers keep too, and forgets how much was used:
/// what was done before is not what will be done next.
pub fn give_back_pages() {
    // SAFETY: a thread collects what it freed itself, which it may do at any time.
    let collect = || unsafe { mi_collect(true) };
    rayon::broadcast(|_| collect());
    collect();
    let mut pages = pages();
    pages.keep_at_most(0);
    pages.large.peak = pages.large.used;
    pages.large.resident = pages.large.used;
}

/// Sizes that one list of freed blocks serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    index: usize,
    /// Of each block.
    bytes: usize,
}

impl Class {
    /// Of a block that has pages of its own; `None` for one that is mimalloc's.
    fn of(layout: Layout) -> Option<Self> {
        let bytes = layout.size();
        if !cfg!(target_os = "linux") || bytes < LARGE || layout.align() > PAGE {
            return None;
        }
        let exponent = (bytes - 1).ilog2();
        let (octave, step) = (1 << exponent, (1 << exponent) / STEPS);
        let steps = (bytes - octave).div_ceil(step);
        let index = STEPS * (exponent - (LARGE - 1).ilog2()) as usize + steps - 1;
        (index < STEPS * OCTAVES).then_some(Self { index, bytes: octave + steps * step })
    }
}

/// Freed blocks of a class; each holds the address of the next.
#[derive(Clone, Copy)]
struct Kept {
    first: *mut u8,
    bytes: usize,
}

struct Pages {
    kept: [Kept; STEPS * OCTAVES],
    large: Large,
}

// SAFETY: the addresses are those of blocks that are nobody's; whoever takes one out of its list owns it.
unsafe impl Send for Pages {}

static PAGES: Mutex<Pages> = Mutex::new(Pages {
    kept: [Kept { first: std::ptr::null_mut(), bytes: 0 }; STEPS * OCTAVES],
    large: Large { used: 0, kept: 0, peak: 0, resident: 0 },
});

/// Nothing allocates or panics while this is held.
fn pages() -> MutexGuard<'static, Pages> {
    PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::cast_ptr_alignment)] // A large block begins at a page.
impl Pages {
    fn push(&mut self, class: Class, block: *mut u8) {
        let kept = &mut self.kept[class.index];
        // SAFETY: the block was freed, is aligned to a page and larger than one.
        unsafe { block.cast::<*mut u8>().write(kept.first) };
        *kept = Kept { first: block, bytes: kept.bytes + class.bytes };
        self.large.kept += class.bytes;
    }

    fn pop(&mut self, class: Class) -> Option<*mut u8> {
        let kept = &mut self.kept[class.index];
        if kept.first.is_null() {
            return None;
        }
        let block = kept.first;
        // SAFETY: a block in the list is nobody's and begins with the address of the next, as `push` wrote it.
        let next = unsafe { block.cast::<*mut u8>().read() };
        *kept = Kept { first: next, bytes: kept.bytes - class.bytes };
        self.large.kept -= class.bytes;
        Some(block)
    }

    /// Makes room for more bytes in use, beside the `freed` ones that will not be any more.
    fn make_room(&mut self, more: usize, freed: usize) {
        let used = self.large.used - freed + more;
        self.keep_at_most((self.large.peak + SLACK).saturating_sub(used));
    }

    fn add_used(&mut self, bytes: usize) {
        self.large.used += bytes;
        self.large.peak = self.large.peak.max(self.large.used);
        self.large.resident = self.large.resident.max(self.large.used + self.large.kept);
    }

    /// A block, and whether it is fresh: cleared. Null where the system has no more memory.
    fn allocate(&mut self, class: Class) -> (*mut u8, bool) {
        let reused = self.pop(class).or_else(|| self.refit(class));
        self.make_room(class.bytes, 0);
        let block = reused.unwrap_or_else(|| system::map(class.bytes));
        if !block.is_null() {
            self.add_used(class.bytes);
        }
        (block, reused.is_none())
    }

    /// A kept block of a class near by, cut or extended, where a fresh one would cost a kept one its pages anyway: what
    /// full fine-tuning's activations lay in, its gradients lie in afterwards.
    fn refit(&mut self, class: Class) -> Option<*mut u8> {
        let would_fit = self.large.used + self.large.kept + class.bytes <= self.large.peak + SLACK;
        if would_fit {
            return None;
        }
        let near = (1..=STEPS).flat_map(|off| [Some(class.index + off), class.index.checked_sub(off)]);
        let known = |index: &usize| self.kept.get(*index).is_some_and(|kept| !kept.first.is_null());
        let index = near.flatten().find(known)?;
        let old = Class { index, bytes: bytes_of(index) };
        let block = self.pop(old)?;
        let moved = system::remap(block, old.bytes, class.bytes);
        if moved.is_null() {
            self.push(old, block);
            return None;
        }
        Some(moved)
    }

    /// A block's bytes in one of another class. Null where the system has no more memory; then the block is what it was.
    fn resize(&mut self, block: *mut u8, old: Class, new: Class) -> *mut u8 {
        self.make_room(new.bytes, old.bytes);
        let moved = system::remap(block, old.bytes, new.bytes);
        if !moved.is_null() {
            self.large.used -= old.bytes;
            self.add_used(new.bytes);
        }
        moved
    }

    fn free(&mut self, block: *mut u8, class: Class) {
        self.push(class, block);
        self.large.used -= class.bytes;
    }

    /// Gives freed blocks back, of the classes first of which most is kept: what a pass freed in such numbers is not
    /// asked for again before the next.
    fn keep_at_most(&mut self, bytes: usize) {
        while self.large.kept > bytes {
            let Some(index) = (0..self.kept.len()).max_by_key(|&index| self.kept[index].bytes) else {
                return;
            };
            let class = Class { index, bytes: bytes_of(index) };
            let Some(block) = self.pop(class) else { return };
            system::unmap(block, class.bytes);
        }
    }
}

/// Bytes of the blocks of a class.
fn bytes_of(index: usize) -> usize {
    let octave = (LARGE / 2) << (index / STEPS);
    octave + octave / STEPS * (index % STEPS + 1)
}

// SAFETY: a block of pages of its own is as large as its class, which its layout alone decides, at allocation and when it
// is freed; all others are mimalloc's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Class::of(layout) {
            Some(class) => pages().allocate(class).0,
            // SAFETY: the caller's promise.
            None => unsafe { MiMalloc.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Class::of(layout) {
            Some(class) => {
                let (block, is_fresh) = pages().allocate(class);
                if !is_fresh {
                    // SAFETY: the block is this caller's and no smaller than its layout.
                    unsafe { block.write_bytes(0, layout.size()) };
                }
                block
            }
            // SAFETY: the caller's promise.
            None => unsafe { MiMalloc.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match Class::of(layout) {
            Some(class) => pages().free(block, class),
            // SAFETY: the caller's promise; the layout says that it is mimalloc's.
            None => unsafe { MiMalloc.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that does not overflow with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (Class::of(layout), Class::of(wanted)) {
            // SAFETY: the caller's promise.
            (None, None) => unsafe { MiMalloc.realloc(block, layout, new_size) },
            (Some(old), Some(new)) if old == new => block,
            (Some(old), Some(new)) => pages().resize(block, old, new),
            _ => {
                // SAFETY: the caller's promise, for both layouts; blocks of two allocators do not overlap.
                unsafe {
                    let moved = self.alloc(wanted);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ptr::null_mut;

    /// Of a huge page on the machines that have them of this size; elsewhere it costs nothing but addresses.
    const HUGE: usize = 2 << 20;

    /// Fresh pages, cleared; null where there are none. Huge ones as far as whole ones fit: the block begins at a
    /// multiple of theirs, and what is behind the last of them is small pages, so that no byte more than the block's is resident.
    pub(super) fn map(bytes: usize) -> *mut u8 {
        if bytes < HUGE {
            return fresh(bytes);
        }
        let wide = fresh(bytes + HUGE);
        if wide.is_null() {
            return fresh(bytes);
        }
        let before = wide.align_offset(HUGE);
        let block = wide.wrapping_add(before);
        if before > 0 {
            unmap(wide, before);
        }
        if before < HUGE {
            unmap(block.wrapping_add(bytes), HUGE - before);
        }
        // SAFETY: the block was just mapped, and the advice changes no byte of it; where it is not taken, small pages do.
        unsafe { libc::madvise(block.cast(), bytes, libc::MADV_HUGEPAGE) };
        block
    }

    fn fresh(bytes: usize) -> *mut u8 {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: asks for new pages wherever the system likes.
        of(unsafe { libc::mmap(null_mut(), bytes, access, kind, -1, 0) })
    }

    /// The block with other bytes behind those that stay, where there is room for it; null where there is none.
    pub(super) fn remap(block: *mut u8, old: usize, new: usize) -> *mut u8 {
        // SAFETY: the block is the caller's, mapped with so many bytes, and it forgets the old address.
        of(unsafe { libc::mremap(block.cast(), old, new, libc::MREMAP_MAYMOVE) })
    }

    /// Gives a block back. Where the system cannot (it may split a mapping too often), the block is lost and no more.
    pub(super) fn unmap(block: *mut u8, bytes: usize) {
        // SAFETY: the block is the caller's, mapped with so many bytes, and it forgets the address.
        unsafe { libc::munmap(block.cast(), bytes) };
    }

    fn of(address: *mut libc::c_void) -> *mut u8 {
        if address == libc::MAP_FAILED { null_mut() } else { address.cast() }
    }
}

/// No block has pages of its own here.
#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn map(_: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub(super) fn remap(_: *mut u8, _: usize, _: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub(super) fn unmap(_: *mut u8, _: usize) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 64).unwrap()
    }

    #[test]
    fn a_class_holds_its_sizes_and_little_more() {
        assert_eq!(Class::of(layout(LARGE - 1)), None);
        assert_eq!(Class::of(layout(LARGE)).unwrap(), Class { index: STEPS - 1, bytes: LARGE });
        assert_eq!(Class::of(Layout::from_size_align(LARGE, 2 * PAGE).unwrap()), None);
        let mut last = 0;
        for bytes in (LARGE..LARGE * 40).step_by(1001).chain([1 << 30, (1 << 30) + 1, 1 << 46]) {
            let class = Class::of(layout(bytes)).unwrap();
            assert!(class.bytes >= bytes && class.bytes <= bytes + bytes / STEPS + 1, "{bytes}: {class:?}");
            assert_eq!(class.bytes % PAGE, 0);
            assert_eq!(bytes_of(class.index), class.bytes);
            assert!(class.index >= last);
            last = class.index;
        }
        assert_eq!(Class::of(layout(1 << 47)), None);
    }

    /// One test, for the pages are the whole process's.
    #[test]
    fn pages_are_kept_cleared_moved_and_given_back() {
        const BYTES: usize = SLACK;
        let base = large();
        let (a, b) = (layout(BYTES), layout(3 * BYTES));
        // SAFETY: blocks are freed once, with the layout that they have then, and not looked at afterwards.
        unsafe {
            let first = Allocator.alloc_zeroed(a);
            assert!((0..BYTES).all(|i| *first.add(i) == 0));
            first.write_bytes(7, BYTES);
            Allocator.dealloc(first, a);
            assert_eq!(
                large(),
                Large { used: base.used, kept: BYTES, peak: base.used + BYTES, resident: base.used + BYTES }
            );

            let again = Allocator.alloc_zeroed(layout(BYTES - BYTES / 64));
            assert_eq!(again, first, "the same class");
            assert!((0..BYTES - BYTES / 64).all(|i| *again.add(i) == 0), "what was freed is not seen again");
            again.write(1);
            again.add(BYTES / 2).write(2);

            let grown = Allocator.realloc(again, a, 3 * BYTES);
            assert_eq!((*grown, *grown.add(BYTES / 2), *grown.add(2 * BYTES)), (1, 2, 0));
            let shrunk = Allocator.realloc(grown, b, 100);
            assert_eq!((*shrunk, large().used), (1, base.used), "mimalloc's now");
            let large_again = Allocator.realloc(shrunk, layout(100), BYTES);
            assert_eq!(*large_again, 1);
            assert_eq!(large().kept, 3 * BYTES, "of three that were used at most one is, and one is slack");

            let another = Allocator.alloc(a);
            assert_eq!(large().kept, 0, "two are: a kept one of three is too many");
            Allocator.dealloc(another, a);

            // Three were used at most, one is slack: a block of another size takes over a kept one's pages.
            let c = layout(BYTES + BYTES / 2);
            let (second, third) = (Allocator.alloc(a), Allocator.alloc(a));
            third.add(BYTES / 2).write(9);
            Allocator.dealloc(second, a);
            Allocator.dealloc(third, a);
            let refitted = Allocator.alloc(c);
            assert_eq!(*refitted.add(BYTES / 2), 9, "extended, not fresh");
            Allocator.dealloc(refitted, c);
            let cleared = Allocator.alloc_zeroed(c);
            assert_eq!((*cleared, *cleared.add(BYTES / 2)), (0, 0));
            Allocator.dealloc(cleared, c);

            Allocator.dealloc(large_again, a);
        }
        give_back_pages();
        assert_eq!(large(), Large { used: base.used, kept: 0, peak: base.used, resident: base.used });
    }
}
