//! A heap that has no memory for blocks of one size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which refuses what the thread has asked it to refuse.
pub(crate) struct Refusing;

thread_local! {
    static REFUSED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `work` while this thread gets no block of `bytes` bytes.
pub(crate) fn without<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    REFUSED.set(Some(bytes));
    let value = work();
    REFUSED.set(None);
    value
}

fn is_refused(bytes: usize) -> bool {
    REFUSED.try_with(Cell::get).is_ok_and(|refused| refused == Some(bytes))
}

// SAFETY: all work is the system allocator's; a null pointer says that there is no memory.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        if is_refused(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(block, layout) };
    }
}
