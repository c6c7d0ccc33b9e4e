//! Counting allocations, by thread.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: mock::alloc::Counting = mock::alloc::Counting;
//!
//! # fn main() {
//! let before = mock::alloc::count();
//! let boxed = std::hint::black_box(Box::new(1));
//! assert_eq!(mock::alloc::count() - before, 1);
//! # drop(boxed);
//! # }
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts. A program installs it as its global allocator, else [`count`] stays 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static PAUSED: Cell<u32> = const { Cell::new(0) };
}

/// Returns how many allocations this thread has made so far. What the mock itself allocates in a hypercall doesn't count.
pub fn count() -> u64 {
    ALLOCATIONS.get()
}

/// Stops the counting in this thread until it is dropped.
pub(crate) struct Pause(());

impl Pause {
    pub(crate) fn new() -> Self {
        PAUSED.set(PAUSED.get() + 1);
        Self(())
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        PAUSED.set(PAUSED.get() - 1);
    }
}

fn tick() {
    // A thread that ends allocates too, when its counters are gone already; nobody asks for those.
    let paused = PAUSED.try_with(Cell::get).unwrap_or(1);
    if paused == 0 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    }
}

// SAFETY: all work is the system allocator's; counting doesn't allocate, for the counters are plain cells.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        tick();
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        tick();
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        tick();
        // SAFETY: the caller's.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(block, layout) };
    }
}
