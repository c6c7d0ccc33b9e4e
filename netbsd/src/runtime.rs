//! What Rust wants of whoever runs it: memory, and an end for panics.

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write;
use core::panic::PanicInfo;

use crate::kernel::Line;
use crate::upcalls;

/// What kmem(9) aligns everything to.
const ALIGN: usize = 8;

struct Kmem;

#[global_allocator]
static KMEM: Kmem = Kmem;

// SAFETY: kmem(9) hands out memory that nobody else has. What is to be aligned further is found within a larger piece, whose
// beginning stands in the word before.
unsafe impl GlobalAlloc for Kmem {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        if align <= ALIGN {
            // SAFETY: a size.
            return unsafe { upcalls::xenpv_alloc(size) }.cast();
        }
        // SAFETY: a size.
        let whole: *mut u8 = unsafe { upcalls::xenpv_alloc(size + align) }.cast();
        if whole.is_null() {
            return whole;
        }
        // The piece is aligned to 8, so this is 8 bytes behind its beginning at least.
        let at = align - whole.addr() % align;
        // SAFETY: `at` is from 8 to `align`, so both lie within the piece.
        unsafe {
            let aligned = whole.add(at);
            aligned.cast::<*mut u8>().sub(1).write(whole);
            aligned
        }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: `alloc` returned it for this layout.
        unsafe {
            if align <= ALIGN {
                upcalls::xenpv_free(p.cast(), size);
            } else {
                upcalls::xenpv_free(p.cast::<*mut u8>().sub(1).read().cast(), size + align);
            }
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut line = Line::default();
    let _ = write!(line, "xenpv: {info}");
    // SAFETY: the line is there for as long as the kernel is.
    unsafe { upcalls::xenpv_panic(line.as_ptr(), line.len()) }
}
