//! Memory for a process that lives for a millisecond: taken from one piece, and given back when the process ends.
//!
//! A plugin asks for a few hundred kilobytes in many pieces and then it is over. musl's own allocator asks the kernel
//! for most of them one by one, and hands them back; that took a tenth of an ADD. Never for a server: what is freed
//! here is gone, unless it was the last piece taken.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size of the piece in bytes; only the pages that are used count.
const SIZE: usize = 1 << 20;

/// Alignment of the piece in bytes; who needs more is served by the system.
const ALIGNMENT: usize = 64;

/// Least alignment in bytes of what is not smaller itself, as C has it: the unwinder needs it for its exception, and
/// Rust's layout of that does not say so.
const LEAST_ALIGNMENT: usize = 16;

/// For `#[global_allocator]`. When the piece is used up, the system serves.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
    used: AtomicUsize,
    /// How far the piece has ever been used: from there on it is zero.
    touched: AtomicUsize,
}

#[derive(Debug)]
#[repr(align(64))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: no byte is handed out twice: `used` moves in one atomic step over what it hands out.
#[allow(unsafe_code, reason = "an allocator hands out parts of shared memory")]
unsafe impl Sync for Memory {}

impl Arena {
    /// An arena with nothing taken.
    #[allow(clippy::new_without_default, reason = "it is made once, in a constant")]
    pub const fn new() -> Self {
        Self {
            memory: Memory(UnsafeCell::new([0; SIZE])),
            used: AtomicUsize::new(0),
            touched: AtomicUsize::new(0),
        }
    }

    fn start(&self) -> *mut u8 {
        self.memory.0.get().cast()
    }

    /// Where in the piece `pointer` points, if it does.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = pointer.addr().checked_sub(self.start().addr())?;
        (offset < SIZE).then_some(offset)
    }

    /// Takes memory for `layout`; `None` if there is not enough.
    fn take(&self, layout: Layout) -> Option<Taken> {
        let align = match layout.size() {
            0..LEAST_ALIGNMENT => layout.align(),
            _ => layout.align().max(LEAST_ALIGNMENT),
        };
        if align > ALIGNMENT {
            return None;
        }
        let place = |used: usize| {
            let start = used.next_multiple_of(align);
            let end = start.checked_add(layout.size())?;
            (end <= SIZE).then_some((start, end))
        };
        let before = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| Some(place(used)?.1));
        let (start, end) = before.ok().and_then(place)?;
        Some(Taken { start, touched: self.touched.fetch_max(end, Ordering::Relaxed) })
    }

    /// Resizes the memory at `offset` where it is: possible if it was the last taken.
    fn resize_last(&self, offset: usize, old: usize, new: usize) -> bool {
        let Some(end) = offset.checked_add(new).filter(|end| *end <= SIZE) else { return false };
        self.touched.fetch_max(end, Ordering::Relaxed);
        self.used.compare_exchange(offset + old, end, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// A part of the piece, by offsets in bytes.
struct Taken {
    start: usize,
    /// How far the piece had been used before.
    touched: usize,
}

// SAFETY: memory is either the system's, or a part of the piece that is big enough, aligned, and nobody else's.
#[allow(unsafe_code, reason = "that is how an allocator is written")]
unsafe impl GlobalAlloc for Arena {
    // None is inlined: that would be in thousands of places, and the image is read from its file page by page.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: the offset is within the piece.
            Some(taken) => unsafe { self.start().add(taken.start) },
            // SAFETY: the caller's promise about `layout` is the one that the system asks for.
            None => unsafe { System.alloc(layout) },
        }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: the offset is within the piece, and so are the bytes up to the end of what was taken.
            Some(Taken { start, touched }) => unsafe {
                let pointer = self.start().add(start);
                pointer.write_bytes(0, touched.saturating_sub(start).min(layout.size()));
                pointer
            },
            // SAFETY: the caller's promise about `layout` is the one that the system asks for.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(offset) => {
                self.resize_last(offset, layout.size(), 0);
            }
            // SAFETY: what is not in the piece is the system's, with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(pointer) else {
            // SAFETY: what is not in the piece is the system's, with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        if size <= layout.size() || self.resize_last(offset, layout.size(), size) {
            return pointer;
        }
        // SAFETY: the caller promises that `size` makes a layout with this alignment; the new memory is another than
        // the old, and both hold what is copied.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(pointer, moved, layout.size());
            }
            moved
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "an allocator is called through unsafe functions")]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn pieces_are_aligned_and_do_not_overlap() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        let mut end = 0;
        for (size, align) in [(1, 1), (8, 8), (3, 1), (64, 64), (16, 2), (0, 1)] {
            // SAFETY: the layouts are sound.
            let piece = unsafe { arena.alloc(layout(size, align)) };
            let offset = arena.offset(piece).unwrap();
            assert!(offset >= end && piece.addr().is_multiple_of(align), "{size} {align}");
            end = offset + size;
        }
    }

    #[test]
    fn what_c_would_align_is_aligned_whatever_is_asked_for() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        for size in [16, 17, 48] {
            // SAFETY: the layouts are sound.
            let (_, piece) = unsafe { (arena.alloc(layout(1, 1)), arena.alloc(layout(size, 8))) };
            assert!(piece.addr().is_multiple_of(16), "{size}");
        }
    }

    #[test]
    fn the_last_piece_grows_in_place_and_an_earlier_one_moves_with_its_content() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        // SAFETY: the layouts are sound, each pointer is used with its own, and not after it was given back.
        unsafe {
            let first = arena.alloc(layout(4, 4));
            first.copy_from(b"abcd".as_ptr(), 4);
            assert_eq!(arena.realloc(first, layout(4, 4), 400), first);
            let second = arena.alloc(layout(16, 4));
            let moved = arena.realloc(first, layout(400, 4), 800);
            assert_ne!(moved, first);
            assert_eq!(std::slice::from_raw_parts(moved, 4), b"abcd");
            arena.dealloc(moved, layout(800, 4));
            arena.dealloc(second, layout(16, 4));
            assert_eq!(arena.alloc(layout(16, 4)), second, "the last pieces can be taken again");
        }
    }

    #[test]
    fn the_system_serves_what_does_not_fit() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        for big in [layout(SIZE + 1, 1), layout(4096, 4096)] {
            // SAFETY: the layouts are sound, and the pointer is given back with its own.
            unsafe {
                let piece = arena.alloc(big);
                assert!(!piece.is_null() && arena.offset(piece).is_none());
                let grown = arena.realloc(piece, big, big.size() * 2);
                arena.dealloc(grown, layout(big.size() * 2, big.align()));
            }
        }
    }
}
