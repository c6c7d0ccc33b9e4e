//! A transfer as the queue has it: the pages of the kernel's memory, and what is to be done at its end.

use core::ffi::c_void;
use core::ptr::NonNull;

use hypercall::Gfn;
use hypercall::mem::{Buffer, PAGE_SIZE, Segment, Shared};

use crate::upcalls::xenpv_frame;

/// The queue of a transfer that nobody is to be told of: a dump's.
pub(super) const DUMP: u8 = u8::MAX;

/// A transfer that is under way. Its memory is contiguous in the kernel, not in the machine.
#[derive(Debug)]
pub(super) struct Transfer {
    /// What the owner knows it by.
    pub(super) token: *mut c_void,
    /// Of which queue.
    pub(super) queue: u8,
    pub(super) bounce: Bounce,
    len: u32,
    /// Where the kernel sees it.
    data: NonNull<u8>,
}

/// What the buffer for unaligned memory is used for by a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bounce {
    No,
    Write,
    /// Is copied there at the end.
    Read(*mut u8, usize),
}

// SAFETY: addresses of the kernel's memory mean the same in every thread.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Makes a transfer of `len` bytes of wired memory; without any length it has no memory, and `data` may be anything. `None` for more
    /// than 4 GiB, or for memory that is none.
    pub(super) fn new(token: *mut c_void, queue: u8, bounce: Bounce, data: *mut u8, len: usize) -> Option<Self> {
        let data = if len == 0 { NonNull::dangling() } else { NonNull::new(data)? };
        Some(Self { token, queue, bounce, len: u32::try_from(len).ok()?, data })
    }
}

// SAFETY: the memory is the disk's until it says that the transfer is over, which it does when this has come back; it is nobody else's,
// or the disk's own buffer.
unsafe impl Buffer for Transfer {
    /// The frames are looked up whenever they are asked for: they need not be the same after the domain was elsewhere.
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let first = self.data.addr().get() % PAGE_SIZE;
        let end = first + self.len as usize;
        let pages = if self.len == 0 { 0 } else { end.div_ceil(PAGE_SIZE) };
        let page = self.data.as_ptr().wrapping_sub(first);
        (0..pages).map(move |index| {
            let offset = if index == 0 { first } else { 0 };
            let len = (end - index * PAGE_SIZE).min(PAGE_SIZE) - offset;
            // SAFETY: a page of wired memory, as whoever started the transfer has promised.
            let frame = unsafe { xenpv_frame(page.wrapping_add(index * PAGE_SIZE).cast()) };
            Segment { gfn: Gfn(frame), offset: offset as u16, len: len as u16 }
        })
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        // SAFETY: as above, for as long as this is there.
        let whole = unsafe { Shared::new(self.data, self.len as usize) };
        self.segments().scan(0, move |at, segment| {
            let len = usize::from(segment.len);
            let part = whole.slice(*at, len);
            *at += len;
            Some(part)
        })
    }
}
