//! A transfer as the queue has it: the pages of the kernel's memory, and what is to be done at its end.

use core::ffi::c_void;
use core::ptr::NonNull;

use hypercall::mem::{Buffer, PAGE_SIZE, Segment, Shared};
use hypercall::{Gfn, Platform};

use super::DEPTH;
use crate::kernel::Kernel;

/// A transfer that is under way. Its memory is contiguous in the kernel, not in the machine.
#[derive(Debug)]
pub(super) struct Transfer {
    /// What the owner knows it by.
    pub(super) token: *mut c_void,
    /// Of which queue.
    pub(super) queue: u8,
    /// Which row of the queue's frames it has.
    pub(super) row: u8,
    pub(super) bounce: Bounce,
    len: u32,
    /// Where the kernel sees it.
    data: NonNull<u8>,
    /// Its row: a frame for each page.
    frames: NonNull<u32>,
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
    /// First byte in the first page.
    fn offset(&self) -> usize {
        self.data.addr().get() % PAGE_SIZE
    }
}

// SAFETY: the memory is the disk's until it says that the transfer is over, which it does when this has come back; it is nobody else's,
// or the disk's own buffer.
unsafe impl Buffer for Transfer {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let end = self.offset() + self.len as usize;
        let pages = if self.len == 0 { 0 } else { end.div_ceil(PAGE_SIZE) };
        // SAFETY: `Rows::fill` has filled so many, and the row is this one's as long as it is there.
        let frames = unsafe { core::slice::from_raw_parts(self.frames.as_ptr(), pages) };
        frames.iter().enumerate().map(move |(index, frame)| {
            let offset = if index == 0 { self.offset() } else { 0 };
            let len = (end - index * PAGE_SIZE).min(PAGE_SIZE) - offset;
            Segment { gfn: Gfn(u64::from(*frame)), offset: offset as u16, len: len as u16 }
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

/// The frames of a queue's transfers: a row for each that may be under way, and one for a dump. Grants name frames by 32 bits.
pub(super) struct Rows {
    /// Written through the address: transfers that are under way look at theirs.
    frames: NonNull<[u32]>,
    /// Frames of a row.
    width: usize,
    /// The rows that are not used, by bits; that of a dump isn't among them.
    free: u32,
}

/// The row of a dump.
pub(super) const DUMP_ROW: u8 = DEPTH as u8;

// SAFETY: the memory is its own, and addresses mean the same in every thread.
unsafe impl Send for Rows {}

impl Rows {
    /// Makes rows for transfers of so many bytes at most.
    pub(super) fn new(max_transfer: usize) -> Self {
        let width = max_transfer.div_ceil(PAGE_SIZE) + 1;
        let frames = alloc::vec![0; width * (DEPTH + 1)].into_boxed_slice();
        Self { frames: NonNull::from(alloc::boxed::Box::leak(frames)), width, free: u32::MAX }
    }

    /// Returns a row that is free, without taking it.
    pub(super) const fn next(&self) -> Option<u8> {
        let row = self.free.trailing_zeros();
        if row < DEPTH as u32 { Some(row as u8) } else { None }
    }

    pub(super) fn take(&mut self, row: u8) {
        self.free &= !(1u32.checked_shl(row.into()).unwrap_or(0));
    }

    pub(super) fn put(&mut self, row: u8) {
        self.free |= 1u32.checked_shl(row.into()).unwrap_or(0);
    }

    /// Makes a transfer of wired memory, whose frames are written into a row that nobody uses; `None` if it has more pages than a row
    /// takes, or a frame that no grant can name. Without any length it has no memory, and `data` may be anything.
    pub(super) fn fill(&mut self, kernel: &Kernel, row: u8, data: *mut u8, len: usize) -> Option<Transfer> {
        let first = usize::from(row) * self.width;
        let offset = data.addr() % PAGE_SIZE;
        let pages = if len == 0 { 0 } else { (offset + len).div_ceil(PAGE_SIZE) };
        if pages > self.width || row > DUMP_ROW {
            return None;
        }
        // SAFETY: inside of the rows.
        let frames = unsafe { self.frames.cast::<u32>().add(first) };
        for index in 0..pages {
            let page = NonNull::new(data.wrapping_sub(offset).wrapping_add(index * PAGE_SIZE))?;
            let frame = u32::try_from(kernel.gfn_of(page).0).ok()?;
            // SAFETY: inside of the row, which nobody else looks at now.
            unsafe { frames.add(index).write(frame) };
        }
        let data = if len == 0 { NonNull::dangling() } else { NonNull::new(data)? };
        let token = core::ptr::null_mut();
        Some(Transfer { token, queue: 0, row, bounce: Bounce::No, len: len as u32, data, frames })
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: it came out of a box. The queue and its transfers are gone, or will never be looked at again.
        drop(unsafe { alloc::boxed::Box::from_raw(self.frames.as_ptr()) });
    }
}
