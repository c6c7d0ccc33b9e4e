//! Transfers of the kernel as requests of the ring: split where a request takes no more, bounced where memory is not aligned.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

use hypercall::mem::{Buffer, OutOfMemory, PAGE_SIZE, Pages, Segment, Shared};
use hypercall::{Gfn, Platform};
use xbd::features::Disk;
use xbd::front::{Completion, QueueError, Returned};
use xbd::protocol::Operation;
use xbd::{MAX_SEGMENTS, SECTOR};

use super::{DiskCounters, Own};
use crate::errno;
use crate::kernel::Kernel;
use crate::upcalls::xenpv_delay_us;

pub(super) type DiskQueue = xbd::front::Queue<Own, Part>;

/// Requests that a ring of one page holds, and so transfers that can be under way.
const DEPTH: usize = 32;

/// The number of no transfer: that of a dump.
const DUMP: u8 = u8::MAX;

/// How long a dump waits between two looks, in microseconds.
const LOOK_US: u32 = 50;

/// The pages of one request: contiguous in the kernel's memory, not in the machine's.
#[derive(Debug)]
pub(super) struct Part {
    /// Of which transfer.
    io: u8,
    /// First byte in the first page.
    offset: u16,
    len: u32,
    /// Where the kernel sees it.
    data: NonNull<u8>,
    /// As grants have them: 32 bits.
    frames: [u32; MAX_SEGMENTS],
}

// SAFETY: an address of the kernel's memory means the same in every thread.
unsafe impl Send for Part {}

// SAFETY: the memory is the disk's until it says that the transfer is over, which it does when the part has come back; it is nobody
// else's, or the disk's own buffer.
unsafe impl Buffer for Part {
    fn segments(&self) -> impl Iterator<Item = Segment> {
        let end = usize::from(self.offset) + self.len as usize;
        let pages = if self.len == 0 { 0 } else { end.div_ceil(PAGE_SIZE) };
        self.frames.iter().take(pages).enumerate().map(move |(index, frame)| {
            let offset = if index == 0 { self.offset } else { 0 };
            let len = (end - index * PAGE_SIZE).min(PAGE_SIZE) - usize::from(offset);
            Segment { gfn: Gfn(u64::from(*frame)), offset, len: len as u16 }
        })
    }

    fn parts(&self) -> impl Iterator<Item = Shared<'_>> {
        // SAFETY: as above, for as long as the part is there.
        let whole = unsafe { Shared::new(self.data, self.len as usize) };
        self.segments().scan(0, move |at, segment| {
            let len = usize::from(segment.len);
            let part = whole.slice(*at, len);
            *at += len;
            Some(part)
        })
    }
}

impl Part {
    /// Looks up the frames of memory. `len` bytes from the page offset of `data` on lie in [`MAX_SEGMENTS`] pages.
    fn new(kernel: &Kernel, io: u8, data: *mut u8, len: usize) -> Option<Self> {
        let offset = data.addr() % PAGE_SIZE;
        let mut frames = [0; MAX_SEGMENTS];
        let pages = (offset + len).div_ceil(PAGE_SIZE);
        for (index, frame) in frames.get_mut(..pages)?.iter_mut().enumerate() {
            let page = NonNull::new(data.wrapping_sub(offset).wrapping_add(index * PAGE_SIZE))?;
            *frame = u32::try_from(kernel.gfn_of(page).0).ok()?;
        }
        // A flush has no memory: then this is nowhere, and nobody looks.
        let data = if len == 0 { NonNull::dangling() } else { NonNull::new(data)? };
        Some(Self { io, offset: offset as u16, len: len as u32, data, frames })
    }

    /// Returns how many bytes at `data` one part can take: up to the end of its last page.
    fn room(data: *mut u8) -> usize {
        MAX_SEGMENTS * PAGE_SIZE - data.addr() % PAGE_SIZE
    }
}

/// A transfer that is under way.
#[derive(Clone, Copy, Debug)]
struct Io {
    token: *mut c_void,
    /// Requests of it that are not over.
    parts: u8,
    error: c_int,
    /// A page of it will never come back.
    kept: bool,
    bounce: Bounce,
}

/// What the buffer for unaligned memory is used for by a transfer.
#[derive(Clone, Copy, Debug)]
enum Bounce {
    No,
    Write,
    /// Is copied there at the end.
    Read(*mut u8, usize),
}

const UNUSED: Io = Io { token: core::ptr::null_mut(), parts: 0, error: 0, kept: false, bounce: Bounce::No };

/// Requests that are over, as a step of the life cycle tells of them.
#[derive(Debug)]
pub(super) struct Lost {
    list: [End; DEPTH],
    count: usize,
}

/// The end of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    io: u8,
    kept: bool,
    error: c_int,
}

impl End {
    fn of(completion: &Completion<Part>) -> Self {
        let kept = matches!(completion.buffer, Returned::Held(_));
        let error = completion.result.map_or_else(errno::of_io, |()| 0);
        Self { io: completion.buffer.get().io, kept, error }
    }
}

impl Default for Lost {
    fn default() -> Self {
        Self { list: [End { io: DUMP, kept: false, error: 0 }; DEPTH], count: 0 }
    }
}

impl Lost {
    pub(super) fn push(&mut self, completion: &Completion<Part>) {
        if let Some(place) = self.list.get_mut(self.count) {
            *place = End::of(completion);
            self.count += 1;
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = End> {
        self.list.iter().take(self.count).copied()
    }
}

/// Transfers that are over, to be told of when the mutex is left.
#[derive(Debug)]
pub(super) struct Finished {
    list: [(*mut c_void, c_int); DEPTH],
    count: usize,
}

impl Default for Finished {
    fn default() -> Self {
        Self { list: [(core::ptr::null_mut(), 0); DEPTH], count: 0 }
    }
}

impl Finished {
    fn push(&mut self, token: *mut c_void, error: c_int) {
        if let Some(place) = self.list.get_mut(self.count) {
            *place = (token, error);
            self.count += 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (*mut c_void, c_int)> {
        self.list.iter().take(self.count).copied()
    }
}

/// What stands behind the mutex.
pub(super) struct State {
    pub(super) queue: Option<DiskQueue>,
    /// What the queue has died of, until the thread has told of it.
    pub(super) broken: Option<QueueError>,
    pub(super) counters: DiskCounters,
    kernel: Kernel,
    ios: [Io; DEPTH],
    /// The transfers that are not used, by bits.
    free: u32,
    max_transfer: usize,
    /// Taken only while it is dropped.
    bounce: Option<Pages<Kernel>>,
    bounce_used: bool,
}

// SAFETY: tokens and addresses of the kernel's memory mean the same in every thread.
unsafe impl Send for State {}

impl State {
    pub(super) fn new(kernel: &Kernel, max_transfer: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            queue: None,
            broken: None,
            counters: DiskCounters::default(),
            kernel: *kernel,
            ios: [UNUSED; DEPTH],
            free: u32::MAX,
            max_transfer,
            bounce: Some(Pages::new(kernel, max_transfer.div_ceil(PAGE_SIZE))?),
            bounce_used: false,
        })
    }

    /// Starts a transfer.
    ///
    /// # Safety
    /// `data` is wired memory of `len` bytes that is the disk's until `token` is told of.
    pub(super) unsafe fn start(
        &mut self,
        operation: Operation,
        sector: u64,
        data: *mut u8,
        len: usize,
        token: *mut c_void,
    ) -> c_int {
        let Some(queue) = &mut self.queue else { return errno::XENPV_EIO };
        let Some(disk) = queue.disk() else { return errno::XENPV_EIO };
        let unit = disk.sector_size as usize;
        let mut from = data;
        let mut bounce = Bounce::No;
        if operation == Operation::Flush {
            if len != 0 {
                return errno::XENPV_EINVAL;
            }
        } else if let error @ 1.. = check(disk, operation, sector, len, self.max_transfer) {
            return error;
        } else if !data.addr().is_multiple_of(unit) {
            let Some(pages) = &self.bounce else { return errno::XENPV_ENOMEM };
            if self.bounce_used {
                self.counters.bounce_busy += 1;
                return errno::XENPV_EAGAIN;
            }
            from = pages.shared().as_ptr().as_ptr();
            bounce = if operation == Operation::Read { Bounce::Read(data, len) } else { Bounce::Write };
        }
        let parts = 1 + len.saturating_sub(Part::room(from)).div_ceil(MAX_SEGMENTS * PAGE_SIZE);
        let io = self.free.trailing_zeros() as usize;
        if io >= DEPTH || (queue.depth() - queue.in_flight()) < parts as u32 {
            self.counters.queue_full += 1;
            return errno::XENPV_EAGAIN;
        }
        if let (Bounce::Write, Some(pages)) = (bounce, &self.bounce) {
            // SAFETY: the caller's promise.
            pages.shared().write(0, unsafe { core::slice::from_raw_parts(data, len) });
        }
        let mut sent = 0;
        let mut failed = 0;
        let mut at = 0;
        while sent < parts {
            let here = from.wrapping_add(at);
            let bytes = (len - at).min(Part::room(here));
            failed = match Part::new(&self.kernel, io as u8, here, bytes) {
                Some(part) => match queue.submit(operation, sector + (at / SECTOR) as u64, part) {
                    Ok(()) => 0,
                    Err((error, _)) => errno::of_submit(error),
                },
                None => errno::XENPV_EINVAL,
            };
            if failed != 0 {
                break;
            }
            at += bytes;
            sent += 1;
        }
        if sent == 0 {
            return failed;
        }
        queue.push();
        self.free &= !(1 << io);
        self.bounce_used |= !matches!(bounce, Bounce::No);
        self.counters.bounced += u64::from(!matches!(bounce, Bounce::No));
        // What was sent will be answered, and tells of the rest, too.
        self.ios[io] = Io { token, parts: sent as u8, error: failed, kept: false, bounce };
        0
    }

    /// Answers an event. Returns whether the life cycle has something to do.
    pub(super) fn poll(&mut self, finished: &mut Finished) -> bool {
        // It is taken out for the time: what it tells of changes the rest.
        let Some(mut queue) = self.queue.take() else { return false };
        let polled = queue.poll(|completion| self.end(End::of(&completion), finished));
        let closing = queue.disk().is_none();
        self.queue = Some(queue);
        self.count();
        match polled {
            Ok(()) => closing || self.is_held(),
            Err(QueueError::Gone) => false,
            Err(error) => {
                let first = self.broken.is_none();
                self.broken = Some(error);
                first
            }
        }
    }

    /// Tells whether the back end has to let go of pages of what is over.
    pub(super) fn is_held(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.held() > 0)
    }

    /// Tries once more to end what the back end had not let go of.
    pub(super) fn retry(&mut self, finished: &mut Finished) {
        if self.is_held() {
            self.poll(finished);
        }
    }

    /// Takes over the queue's counters, which go with the queue.
    pub(super) fn count(&mut self) {
        let Some(queue) = &self.queue else { return };
        let now = queue.counters();
        let counters = &mut self.counters;
        (counters.requests, counters.segments) = (now.requests, now.segments);
        (counters.notifications, counters.errors) = (now.notifications, now.errors);
        counters.still_mapped = now.still_mapped;
    }

    /// A request is over; perhaps its transfer, too.
    pub(super) fn end(&mut self, end: End, finished: &mut Finished) {
        let Some(io) = self.ios.get_mut(usize::from(end.io)) else { return };
        io.parts -= 1;
        io.kept |= end.kept;
        if io.error == 0 {
            io.error = end.error;
        }
        if io.parts > 0 {
            return;
        }
        if io.kept {
            // Whoever waits for it waits for ever: its memory is not its own.
            self.counters.kept += 1;
            return;
        }
        let Io { token, error, bounce, .. } = core::mem::replace(io, UNUSED);
        if let (Bounce::Read(data, len), 0, Some(pages)) = (bounce, error, &self.bounce) {
            // SAFETY: the memory is the disk's until it tells of the end.
            pages.shared().read(0, unsafe { core::slice::from_raw_parts_mut(data, len) });
        }
        if !matches!(bounce, Bounce::No) {
            self.bounce_used = false;
        }
        self.free |= 1 << end.io;
        finished.push(token, error);
    }

    /// Writes without anything that needs a living kernel.
    pub(super) fn dump(&mut self, sector: u64, data: *mut u8, len: usize, patience_us: u32) -> c_int {
        let Some(queue) = &mut self.queue else { return errno::XENPV_ENXIO };
        let mut at = 0;
        while at < len {
            let here = data.wrapping_add(at);
            let bytes = (len - at).min(Part::room(here));
            let mut over = None;
            let mut waited_us = 0;
            let mut sent = false;
            while over.is_none() {
                if !sent {
                    let Some(part) = Part::new(&self.kernel, DUMP, here, bytes) else { return errno::XENPV_EINVAL };
                    match queue.submit(Operation::Write, sector + (at / SECTOR) as u64, part) {
                        Ok(()) => {
                            sent = true;
                            queue.push();
                        }
                        Err((xbd::front::SubmitError::Full, _)) => {}
                        Err((error, _)) => return errno::of_submit(error),
                    }
                }
                // What was in flight before belongs to a kernel that is no more.
                let polled = queue.poll(|completion| {
                    let end = End::of(&completion);
                    if end.io == DUMP {
                        over = Some(end.error);
                    }
                });
                if polled.is_err() {
                    return errno::XENPV_EIO;
                }
                if over.is_none() {
                    if waited_us >= patience_us {
                        return errno::XENPV_ETIMEDOUT;
                    }
                    // SAFETY: needs nothing.
                    unsafe { xenpv_delay_us(LOOK_US) };
                    waited_us += LOOK_US;
                }
            }
            match over {
                Some(0) | None => at += bytes,
                Some(error) => return error,
            }
        }
        0
    }
}

/// Tells by an error what is wrong with a transfer, or 0: as a whole, before a part of it is sent.
fn check(disk: &Disk, operation: Operation, sector: u64, len: usize, max_transfer: usize) -> c_int {
    if operation.mutates() && disk.read_only {
        return errno::XENPV_EROFS;
    }
    let whole = len > 0 && len <= max_transfer && len.is_multiple_of(disk.sector_size as usize);
    match sector.checked_add((len / SECTOR) as u64) {
        Some(end) if whole && end <= disk.sectors => 0,
        _ => errno::XENPV_EINVAL,
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.bounce_used
            && let Some(pages) = self.bounce.take()
        {
            // The back end never gave it back.
            pages.leak();
        }
    }
}
