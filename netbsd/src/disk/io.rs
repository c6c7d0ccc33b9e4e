//! What stands behind the mutex of a queue: transfers of the kernel's become I/Os of the queue, by way of a buffer where memory is not
//! aligned. The queue cuts them into requests.

use core::ffi::{c_int, c_void};

use hypercall::mem::{OutOfMemory, PAGE_SIZE, Pages};
use xbd::SECTOR;
use xbd::features::{Discard, Disk};
use xbd::front::{Completion, QueueError, Returned, SubmitError};
use xbd::protocol::Operation;

use super::transfer::{Bounce, DUMP, Transfer};
use super::{DEPTH, DiskCounters, Own};
use crate::errno;
use crate::kernel::Kernel;
use crate::upcalls::xenpv_delay_us;

pub(super) type DiskQueue = xbd::front::Queue<Own, Transfer>;

/// How long a dump waits between two looks, in microseconds.
const LOOK_US: u32 = 50;

/// A transfer that is over: its token, and an error or 0.
pub(super) type End = (*mut c_void, c_int);

/// Transfers that are over, to be told of when the mutex is left.
#[derive(Debug)]
pub(super) struct Finished {
    list: [End; DEPTH],
    count: usize,
}

impl Default for Finished {
    fn default() -> Self {
        Self { list: [(core::ptr::null_mut(), 0); DEPTH], count: 0 }
    }
}

impl Finished {
    fn push(&mut self, end: End) {
        if let Some(place) = self.list.get_mut(self.count) {
            *place = end;
            self.count += 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = End> {
        self.list.iter().take(self.count).copied()
    }
}

/// What is to be transferred.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) operation: Operation,
    /// Where, in units of 512 bytes.
    pub(super) sector: u64,
    pub(super) data: *mut u8,
    pub(super) len: usize,
    pub(super) token: *mut c_void,
}

/// What has become of a job that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Its end will be told.
    UnderWay,
    /// There was nothing to do: it is over.
    Over,
}

/// What stands behind the mutex.
pub(super) struct State {
    pub(super) queue: Option<DiskQueue>,
    /// What the queue has died of, until the thread has told of it.
    pub(super) broken: Option<QueueError>,
    pub(super) counters: DiskCounters,
    number: u8,
    max_transfer: usize,
    /// The first queue's alone. Taken only while it is dropped.
    bounce: Option<Pages<Kernel>>,
    bounce_used: bool,
}

// SAFETY: tokens and addresses of the kernel's memory mean the same in every thread.
unsafe impl Send for State {}

impl State {
    /// Makes the place of queue `number`; the first has the buffer for memory that is not aligned.
    pub(super) fn new(kernel: &Kernel, number: u8, max_transfer: usize) -> Result<Self, OutOfMemory> {
        let bounce = (number == 0).then(|| Pages::new(kernel, max_transfer.div_ceil(PAGE_SIZE))).transpose()?;
        Ok(Self {
            queue: None,
            broken: None,
            counters: DiskCounters::default(),
            number,
            max_transfer,
            bounce,
            bounce_used: false,
        })
    }

    /// Starts a transfer.
    ///
    /// # Safety
    /// `data` is wired memory of `len` bytes that is the disk's until `token` is told of.
    pub(super) unsafe fn start(&mut self, job: &Job) -> Result<Taken, c_int> {
        let Some(queue) = &mut self.queue else { return Err(errno::XENPV_EIO) };
        let Some(disk) = queue.disk() else { return Err(errno::XENPV_EIO) };
        let (mut sector, mut sectors) = (job.sector, (job.len / SECTOR) as u64);
        let (mut from, mut len) = (job.data, job.len);
        let mut bounce = Bounce::No;
        match job.operation {
            Operation::Read | Operation::Write => {
                check(disk, job, self.max_transfer)?;
                if !from.addr().is_multiple_of(disk.sector_size as usize) {
                    if self.bounce_used {
                        self.counters.bounce_busy += 1;
                        return Err(errno::XENPV_EAGAIN);
                    }
                    let Some(pages) = &self.bounce else { return Err(errno::XENPV_EAGAIN) };
                    from = pages.shared().as_ptr().as_ptr();
                    bounce = if job.operation == Operation::Read { Bounce::Read(job.data, len) } else { Bounce::Write };
                }
            }
            Operation::Discard => {
                check(disk, job, usize::MAX)?;
                let discard = disk.discard.ok_or(errno::XENPV_EOPNOTSUPP)?;
                (sector, sectors) = whole_units(discard, sector, sectors);
                if sectors == 0 {
                    return Ok(Taken::Over);
                }
                len = 0;
            }
            _ if len == 0 => {}
            _ => return Err(errno::XENPV_EINVAL),
        }
        if let (Bounce::Write, Some(pages)) = (bounce, &self.bounce) {
            // SAFETY: the caller's promise.
            pages.shared().write(0, unsafe { core::slice::from_raw_parts(job.data, len) });
        }
        let transfer = Transfer::new(job.token, self.number, bounce, from, len).ok_or(errno::XENPV_EINVAL)?;
        let sent = match job.operation {
            Operation::Discard => queue.submit_discard(sector, sectors, false, transfer),
            operation => queue.submit(operation, sector, transfer),
        };
        match sent {
            Ok(()) => {}
            Err((SubmitError::Full, _)) => {
                self.counters.queue_full += 1;
                return Err(errno::XENPV_EAGAIN);
            }
            Err((error, _)) => return Err(errno::of_submit(error)),
        }
        queue.push();
        if !matches!(bounce, Bounce::No) {
            self.bounce_used = true;
            self.counters.bounced += 1;
        }
        Ok(Taken::UnderWay)
    }

    /// Answers an event. Returns whether the life cycle has something to do.
    pub(super) fn poll(&mut self, finished: &mut Finished) -> bool {
        // It is taken out for the time: what it tells of changes the rest.
        let Some(mut queue) = self.queue.take() else { return false };
        let polled = queue.poll(|completion| {
            if let Some(end) = self.end(&completion) {
                finished.push(end);
            }
        });
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
        (counters.requests, counters.indirect, counters.segments) = (now.requests, now.indirect, now.segments);
        (counters.flushes, counters.barriers, counters.discards) = (now.flushes, now.barriers, now.discards);
        (counters.notifications, counters.errors) = (now.notifications, now.errors);
        counters.still_mapped = now.still_mapped;
    }

    /// A transfer is over, and to be told of, unless the back end keeps a page of it.
    pub(super) fn end(&mut self, completion: &Completion<Transfer>) -> Option<End> {
        let Returned::Whole(transfer) = &completion.buffer else {
            // Whoever waits for it waits for ever: its memory is not its own.
            self.counters.kept += 1;
            return None;
        };
        let error = completion.result.map_or_else(errno::of_io, |()| 0);
        if let (Bounce::Read(data, len), 0, Some(pages)) = (transfer.bounce, error, &self.bounce) {
            // SAFETY: the memory is the disk's until it tells of the end.
            pages.shared().read(0, unsafe { core::slice::from_raw_parts_mut(data, len) });
        }
        if !matches!(transfer.bounce, Bounce::No) {
            self.bounce_used = false;
        }
        Some((transfer.token, error))
    }

    /// Writes without anything that needs a living kernel.
    pub(super) fn dump(&mut self, sector: u64, data: *mut u8, len: usize, patience_us: u32) -> c_int {
        let mut at = 0;
        while at < len {
            let bytes = (len - at).min(self.max_transfer);
            match self.dump_part(sector + (at / SECTOR) as u64, data.wrapping_add(at), bytes, patience_us) {
                0 => at += bytes,
                error => return error,
            }
        }
        0
    }

    fn dump_part(&mut self, sector: u64, data: *mut u8, len: usize, patience_us: u32) -> c_int {
        let Some(queue) = &mut self.queue else { return errno::XENPV_ENXIO };
        let mut sent = false;
        let mut over = None;
        for _ in 0..=patience_us / LOOK_US {
            if !sent {
                let transfer = Transfer::new(core::ptr::null_mut(), DUMP, Bounce::No, data, len);
                let Some(transfer) = transfer else { return errno::XENPV_EINVAL };
                match queue.submit(Operation::Write, sector, transfer) {
                    Ok(()) => {
                        sent = true;
                        queue.push();
                    }
                    Err((SubmitError::Full, _)) => {}
                    Err((error, _)) => return errno::of_submit(error),
                }
            }
            // What was in flight before belongs to a kernel that is no more.
            let polled = queue.poll(|completion| {
                if completion.buffer.get().queue == DUMP {
                    over = Some(completion.result.map_or_else(errno::of_io, |()| 0));
                }
            });
            match (over, polled) {
                (Some(error), _) => return error,
                (None, Err(_)) => return errno::XENPV_EIO,
                // SAFETY: needs nothing.
                (None, Ok(())) => unsafe { xenpv_delay_us(LOOK_US) },
            }
        }
        errno::XENPV_ETIMEDOUT
    }
}

/// Tells by an error what is wrong with a transfer, as a whole.
fn check(disk: &Disk, job: &Job, max: usize) -> Result<(), c_int> {
    if job.operation.mutates() && disk.read_only {
        return Err(errno::XENPV_EROFS);
    }
    let whole = job.len > 0 && job.len <= max && job.len.is_multiple_of(disk.sector_size as usize);
    match job.sector.checked_add((job.len / SECTOR) as u64) {
        Some(end) if whole && end <= disk.sectors => Ok(()),
        _ => Err(errno::XENPV_EINVAL),
    }
}

/// Returns first sector and number of sectors of what a range has of whole units, of which no part is forgotten for sure.
fn whole_units(discard: Discard, sector: u64, sectors: u64) -> (u64, u64) {
    let unit = (discard.granularity as usize / SECTOR) as u64;
    let first = (discard.alignment as usize / SECTOR) as u64;
    let begin = first + sector.saturating_sub(first).next_multiple_of(unit);
    // What is before the first unit has none.
    let end = (sector + sectors).checked_sub(first).map_or(0, |end| first + end / unit * unit);
    (begin, end.saturating_sub(begin))
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
