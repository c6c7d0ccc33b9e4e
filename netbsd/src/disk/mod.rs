//! The block front end for C: one [`Disk`] for each device of class "vbd".
//!
//! ```text
//!   the device's thread     create ─► step … step ─► close ─► step … step ─► destroy       waits for xenstore
//!   anybody                 start ─► a queue ─► its ring    under the queue's mutex, for moments
//!   an interrupt            intr  ─► done(token, error)     outside of the mutex
//!   a dump                  dump                            polled, without a mutex; nobody else is let in any more
//! ```

mod io;
mod transfer;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32};

use hypercall::grant::GrantTable;
use hypercall::mem::PAGE_SIZE;
use hypercall::{Level, Platform};
use xbd::front::{Change, Completion, Config, Front};
use xbd::protocol::Operation;
use xenbus::Place;
use xenbus::domain::Services;
use xenbus::error::FrontError;

use crate::errno;
use crate::events::KernelEvents;
use crate::grants;
use crate::kernel::{Kernel, borrowed};
use crate::lock::Locked;
use crate::store::{KernelStore, own_id};
use crate::upcalls::{xenpv_delay_us, xenpv_event_mask};
use io::{DiskQueue, Finished, Job, State, Taken};
use transfer::Transfer;

/// How long a back end that is gone may keep pages of requests that are lost: 10 seconds.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Requests that a ring of one page holds, and so transfers that can be under way in a queue.
const DEPTH: usize = 32;

/// How long a dump waits for whoever is inside of all mutexes: a second, in steps of so many microseconds.
const SEIZE_US: u32 = 1_000_000;
const SEIZE_STEP_US: u32 = 10;

/// How long a request of a dump may take: 10 seconds.
const DUMP_US: u32 = 10_000_000;

/// What a disk is made of. All of it is the caller's, and stays until the disk is destroyed.
#[repr(C)]
#[derive(Debug)]
pub struct DiskSetup {
    /// Name for messages, as in "xbd0".
    pub name: *const c_char,
    /// Directory in xenstore, as in "device/vbd/51712".
    pub path: *const c_char,
    /// What the up-calls about events and watches are given.
    pub device: *mut c_void,
    /// For each queue that there may be, a `kmutex_t` of IPL_BIO that is used for nothing else. The array need not stay.
    pub mutexes: *const *mut c_void,
    /// What `done` is given.
    pub arg: *mut c_void,
    /// Is called when what `xenpv_xbd_start` took is over, once for each, with 0 or an error of NetBSD's. Called without any lock, in
    /// an interrupt or a thread.
    pub done: extern "C" fn(arg: *mut c_void, token: *mut c_void, error: c_int),
    /// The largest transfer in bytes, MAXPHYS: larger ones are refused. The buffer for unaligned ones has this size. At most
    /// XENPV_XBD_MAX_TRANSFER.
    pub max_transfer: u32,
    /// How many queues there may be, one for each CPU that is to have its own: 1 to XENPV_XBD_MAX_QUEUES. There are fewer if the back
    /// end has fewer.
    pub queues: u32,
}

/// The most queues that a disk can be given.
pub const XENPV_XBD_MAX_QUEUES: u32 = 16;
/// The most bytes that a transfer can be allowed.
pub const XENPV_XBD_MAX_TRANSFER: u32 = 1_048_576;

/// What a disk is, as its back end says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskInfo {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Smallest unit of I/O in bytes: a power of two from 512 to 4096.
    pub sector_size: u32,
    /// Best unit of I/O in bytes.
    pub physical_sector_size: u32,
    /// XENPV_XBD_READONLY and others.
    pub flags: u32,
    /// How many queues there are.
    pub queues: u32,
}
static_assertions::const_assert_eq!(size_of::<DiskInfo>(), 24);

/// The disk can't be written.
pub const XENPV_XBD_READONLY: u32 = 1;
/// It is a CD-ROM.
pub const XENPV_XBD_CDROM: u32 = 2;
/// Its medium can be removed.
pub const XENPV_XBD_REMOVABLE: u32 = 4;
/// A flush is worth trying.
pub const XENPV_XBD_FLUSH: u32 = 8;

/// What a disk has done so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskCounters {
    /// Requests sent to the back end.
    pub requests: u64,
    /// Those of them that were indirect.
    pub indirect: u64,
    /// Data segments in them.
    pub segments: u64,
    /// Flushes among the requests.
    pub flushes: u64,
    /// Barriers among the requests.
    pub barriers: u64,
    /// Discards among the requests.
    pub discards: u64,
    /// Events sent to the back end.
    pub notifications: u64,
    /// Transfers that failed.
    pub errors: u64,
    /// Answers to requests whose pages the back end still had mapped.
    pub still_mapped: u64,
    /// Transfers from or to memory that isn't aligned to sectors, by way of a buffer.
    pub bounced: u64,
    /// How often a transfer was put off because that buffer was in use.
    pub bounce_busy: u64,
    /// How often a transfer found a ring full.
    pub queue_full: u64,
    /// Transfers that will never be over, because a back end that is gone keeps their pages.
    pub kept: u64,
}
static_assertions::const_assert_eq!(size_of::<DiskCounters>(), 104);

impl core::ops::AddAssign for DiskCounters {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.indirect += other.indirect;
        self.segments += other.segments;
        self.flushes += other.flushes;
        self.barriers += other.barriers;
        self.discards += other.discards;
        self.notifications += other.notifications;
        self.errors += other.errors;
        self.still_mapped += other.still_mapped;
        self.bounced += other.bounced;
        self.bounce_busy += other.bounce_busy;
        self.queue_full += other.queue_full;
        self.kept += other.kept;
    }
}

/// Nothing has happened.
pub const XENPV_XBD_IDLE: c_int = 0;
/// The disk is there: `xenpv_xbd_start` takes transfers.
pub const XENPV_XBD_CONNECTED: c_int = 1;
/// The disk has another size now, or something else of it is different.
pub const XENPV_XBD_RESIZED: c_int = 2;
/// The back end wants to go: `xenpv_xbd_close` when the disk can be spared.
pub const XENPV_XBD_CLOSE_WANTED: c_int = 3;
/// The disk is gone, and nothing of it is held any more: `xenpv_xbd_destroy`.
pub const XENPV_XBD_CLOSED: c_int = 4;
/// The device has failed, which was logged, and is being closed: `xenpv_xbd_step` again in a tenth of a second.
pub const XENPV_XBD_FAILED: c_int = 5;
/// The back end still maps pages of what is over: `xenpv_xbd_step` again in a tenth of a second.
pub const XENPV_XBD_AGAIN: c_int = 6;

/// Read sectors.
pub const XENPV_XBD_READ: c_int = 0;
/// Write sectors.
pub const XENPV_XBD_WRITE: c_int = 1;
/// Make everything that is over durable. It has no data.
pub const XENPV_XBD_SYNC: c_int = 2;
/// Nobody needs what is in sectors any more. It has a length, and no data.
pub const XENPV_XBD_DISCARD: c_int = 3;

type Own = Services<Kernel, GrantTable<Kernel>, KernelEvents, KernelStore>;

/// A place for a queue, behind one of the glue's mutexes.
struct Slot {
    state: Locked<State>,
    /// The port of the queue that stands here, or 0.
    port: AtomicU32,
}

/// The same, as the life cycle has it.
struct Standing(Arc<Slot>);

impl Place<DiskQueue> for Standing {
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<DiskQueue>) -> R) -> R {
        let mut state = self.0.state.lock_or_stop();
        let done = work(&mut state.queue);
        self.0.port.store(state.queue.as_ref().map_or(0, |queue| queue.port().0), Relaxed);
        done
    }
}

/// What the device's thread alone looks at, whatever others do with the queues.
struct Life {
    front: Front<Own, Transfer, Standing>,
    /// What a step has lost, until its mutexes are left. There is room for all that can be in flight.
    lost: Vec<Completion<Transfer>>,
}

/// A disk.
pub struct Disk {
    kernel: Kernel,
    life: UnsafeCell<Life>,
    queues: Vec<Arc<Slot>>,
    /// How many of the queues there are, from the first.
    used: AtomicU32,
    /// The back end is not waited for any longer.
    abandoned: AtomicBool,
    arg: *mut c_void,
    done: extern "C" fn(*mut c_void, *mut c_void, c_int),
}

impl Disk {
    fn new(setup: &DiskSetup) -> Result<Self, c_int> {
        // SAFETY: the setup's strings are C strings that stay as long as the disk.
        let (name, path) = unsafe { (borrowed(setup.name), CStr::from_ptr(setup.path)) };
        let kernel = Kernel::named(name);
        let fail = |error: FrontError| {
            kernel.log(Level::Error, format_args!("can't attach {}: {error}", path.to_string_lossy()));
            errno::of_front(&error)
        };
        if !(1..=XENPV_XBD_MAX_QUEUES).contains(&setup.queues)
            || !(PAGE_SIZE as u32..=XENPV_XBD_MAX_TRANSFER).contains(&setup.max_transfer)
        {
            kernel.log(Level::Error, format_args!("{} queue(s), {} bytes", setup.queues, setup.max_transfer));
            return Err(errno::XENPV_EINVAL);
        }
        let Some(table) = grants::table() else {
            kernel.log(Level::Error, format_args!("no grant table"));
            return Err(errno::XENPV_ENXIO);
        };
        // SAFETY: the device stays as long as the disk.
        let (events, store) = unsafe { (KernelEvents::new(kernel, setup.device), KernelStore::new(setup.device)) };
        let id = own_id(&store).map_err(|error| fail(error.into()))?;
        let own = Services { platform: kernel, grants: table.clone(), events, store, id };
        let max_transfer = setup.max_transfer as usize;
        let mut queues = Vec::new();
        for number in 0..setup.queues as u8 {
            let state = State::new(&own.platform, number, max_transfer).map_err(|error| fail(error.into()))?;
            // SAFETY: as many mutexes, which stay as long as the disk.
            let state = unsafe { Locked::new(*setup.mutexes.add(number.into()), state) };
            queues.push(Arc::new(Slot { state, port: AtomicU32::new(0) }));
        }
        // A ring of one page, in which the largest transfer is one request, if the back end takes indirect ones.
        let config = Config { max_indirect_segments: (max_transfer / PAGE_SIZE + 1) as u16, ..Config::DEFAULT };
        let places = queues.iter().map(|queue| Standing(Arc::clone(queue))).collect();
        let mut front = Front::with_places(&own, &path.to_string_lossy(), config, places).map_err(fail)?;
        front.set_patience_ns(PATIENCE_NS);
        let lost = Vec::with_capacity(queues.len() * DEPTH);
        Ok(Self {
            kernel,
            life: UnsafeCell::new(Life { front, lost }),
            queues,
            used: AtomicU32::new(0),
            abandoned: AtomicBool::new(false),
            arg: setup.arg,
            done: setup.done,
        })
    }

    fn tell(&self, finished: &Finished) {
        for (token, error) in finished.iter() {
            (self.done)(self.arg, token, error);
        }
    }

    /// Ends what a step has lost.
    fn settle(&self, lost: &mut Vec<Completion<Transfer>>) {
        let mut kept = 0;
        for completion in lost.drain(..) {
            let Some(queue) = self.queues.get(usize::from(completion.buffer.get().queue)) else { continue };
            let end = queue.state.lock_or_stop().end(&completion);
            match end {
                Some((token, error)) => (self.done)(self.arg, token, error),
                None => kept += 1,
            }
        }
        if kept > 0 {
            let line = format_args!("{kept} transfer(s) will never end: the back end is gone and keeps their pages");
            self.kernel.log(Level::Error, line);
        }
    }

    /// Returns the life cycle.
    ///
    /// # Safety
    /// The caller is the device's thread, and has it only once.
    #[allow(clippy::mut_from_ref, reason = "what makes it exclusive is that there is one such thread")]
    unsafe fn life(&self) -> &mut Life {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.life.get() }
    }

    fn step(&self, life: &mut Life) -> (c_int, Option<DiskInfo>) {
        let Life { front, lost } = life;
        for queue in &self.queues {
            let mut finished = Finished::default();
            let mut state = queue.state.lock_or_stop();
            state.retry(&mut finished);
            state.count();
            let broken = state.broken.take();
            drop(state);
            self.tell(&finished);
            if let Some(error) = broken {
                // The kernel unmasks a port after its handlers, and a peer that broke the protocol could go on signalling.
                // SAFETY: the queue's port, which it has until a step ends it.
                unsafe { xenpv_event_mask(queue.port.load(Relaxed)) };
                front.fail(&error);
            }
        }
        // Asked even if the other end has not moved: closing goes on by itself.
        front.device().changed();
        let stepped = if self.abandoned.load(Relaxed) {
            Ok(front.abandon(|completion| lost.push(completion)))
        } else {
            front.step(|completion| lost.push(completion))
        };
        self.settle(lost);
        let queues = front.queues() as u32;
        self.used.store(queues, Relaxed);
        match stepped {
            Ok(Change::Connected(disk)) => (XENPV_XBD_CONNECTED, Some(info(&disk, queues))),
            Ok(Change::Resized(disk)) => (XENPV_XBD_RESIZED, Some(info(&disk, queues))),
            Ok(Change::CloseWanted) => (XENPV_XBD_CLOSE_WANTED, None),
            Ok(Change::Closed) => (XENPV_XBD_CLOSED, None),
            // There is no reconnection without being wanted.
            Ok(Change::None | Change::Reconnecting) if front.is_waiting() || self.is_held() => (XENPV_XBD_AGAIN, None),
            Ok(Change::None | Change::Reconnecting) => (XENPV_XBD_IDLE, None),
            Err(_) => (XENPV_XBD_FAILED, None),
        }
    }

    fn is_held(&self) -> bool {
        self.queues.iter().any(|queue| queue.state.lock_or_stop().is_held())
    }

    /// Starts a job in the CPU's queue, or in the next that has room.
    ///
    /// # Safety
    /// As [`State::start`].
    unsafe fn start(&self, cpu: u32, job: &Job) -> c_int {
        let used = self.used.load(Relaxed) as usize;
        let Some(queues) = self.queues.get(..used).filter(|queues| !queues.is_empty()) else {
            return errno::XENPV_EIO;
        };
        let (before, after) = queues.split_at(cpu as usize % used);
        for queue in after.iter().chain(before) {
            let Some(mut state) = queue.state.lock() else { return errno::XENPV_EIO };
            // SAFETY: the caller's promise.
            let started = unsafe { state.start(job) };
            drop(state);
            match started {
                Ok(Taken::UnderWay) => return 0,
                Ok(Taken::Over) => {
                    (self.done)(self.arg, job.token, 0);
                    return 0;
                }
                Err(errno::XENPV_EAGAIN) => {}
                Err(error) => return error,
            }
        }
        errno::XENPV_EAGAIN
    }

    /// Answers an event; returns whether the thread has something to do.
    fn intr(&self, port: u32) -> bool {
        let mut finished = Finished::default();
        // Of a port whose queue has no place yet, or none any more, there is nothing to hear.
        let Some(queue) = self.queues.iter().find(|queue| queue.port.load(Relaxed) == port) else { return false };
        let Some(mut state) = queue.state.lock() else { return false };
        let step = state.poll(&mut finished);
        drop(state);
        self.tell(&finished);
        step
    }

    fn dump(&self, sector: u64, data: *mut u8, len: usize) -> c_int {
        self.queues.iter().for_each(|queue| queue.state.keep_out());
        let mut busy = false;
        for _ in 0..=SEIZE_US / SEIZE_STEP_US {
            busy = false;
            for queue in &self.queues {
                // SAFETY: one dump, which is not inside.
                match unsafe { queue.state.seize() } {
                    Some(state) if state.queue.is_some() => return state.dump(sector, data, len, DUMP_US),
                    Some(_) => {}
                    None => busy = true,
                }
            }
            if !busy {
                break;
            }
            // SAFETY: needs nothing.
            unsafe { xenpv_delay_us(SEIZE_STEP_US) };
        }
        if busy { errno::XENPV_EBUSY } else { errno::XENPV_ENXIO }
    }

    fn counters(&self) -> DiskCounters {
        let mut sum = DiskCounters::default();
        for queue in &self.queues {
            let mut state = queue.state.lock_or_stop();
            state.count();
            sum += state.counters;
        }
        sum
    }
}

fn info(disk: &xbd::features::Disk, queues: u32) -> DiskInfo {
    let flags = [
        (disk.read_only, XENPV_XBD_READONLY),
        (disk.cdrom, XENPV_XBD_CDROM),
        (disk.removable, XENPV_XBD_REMOVABLE),
        (disk.flush, XENPV_XBD_FLUSH),
    ];
    DiskInfo {
        sectors: disk.sectors,
        sector_size: disk.sector_size,
        physical_sector_size: disk.physical_sector_size,
        flags: flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum(),
        queues,
    }
}

/// Makes a disk of a device, in `*disk`. `xenpv_xbd_step` does the rest.
///
/// Context: thread; sleeps. Locks: none held. Ownership: the disk is the caller's, until `xenpv_xbd_destroy`; what the setup points to
/// stays until then, the setup itself need not. Errors, also logged: EINVAL for a setup with other numbers than it may have, ENXIO
/// without a grant table, ENOMEM, EBADMSG for a node with garbage, ENOENT for one that isn't there, and what xenstore says.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_create(setup: *const DiskSetup, disk: *mut *mut Disk) -> c_int {
    // SAFETY: the caller's promise.
    match Disk::new(unsafe { &*setup }) {
        Ok(made) => {
            // SAFETY: the caller's promise.
            unsafe { disk.write(Box::into_raw(Box::new(made))) };
            0
        }
        Err(errno) => errno,
    }
}

/// Goes on with the life of a disk: after `xenpv_xbd_create`, when a watch of it has fired, when `xenpv_xbd_intr` says so, and after
/// `xenpv_xbd_close`. Returns
/// XENPV_XBD_IDLE or what has happened; `*info` is written with CONNECTED and RESIZED. To be called again at once after
/// CONNECTED and RESIZED, and in a while after FAILED and AGAIN.
///
/// Context: the device's thread, one at a time; sleeps. Locks: none held; enters the mutexes, one at a time.
///
/// # Safety
/// `disk` is a disk, `info` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_step(disk: *const Disk, info: *mut DiskInfo) -> c_int {
    // SAFETY: the caller's promise: a disk, and its thread.
    let (happened, known) = unsafe { (*disk).step((*disk).life()) };
    if let Some(known) = known {
        // SAFETY: the caller's promise.
        unsafe { info.write(known) };
    }
    happened
}

/// Wants a disk to end: from now on `xenpv_xbd_start` fails. What is in flight ends first; XENPV_XBD_CLOSED tells when nothing of the
/// disk is held any more.
///
/// Context: the device's thread; sleeps. Locks: none held; enters the mutexes, one at a time.
///
/// # Safety
/// `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_close(disk: *const Disk) {
    // There are no new requests even if the store refuses to be told.
    // SAFETY: the caller's promise: a disk, and its thread.
    let _ = unsafe { (*disk).life().front.close() };
}

/// Waits no longer for a back end that neither answers nor goes: the next `xenpv_xbd_step` ends the disk whatever the back end says, and
/// what is in flight with EIO.
///
/// Context: the device's thread. Locks: any.
///
/// # Safety
/// `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_abandon(disk: *const Disk) {
    // SAFETY: the caller's promise.
    unsafe { (*disk).abandoned.store(true, Relaxed) };
}

/// Frees a disk, after XENPV_XBD_CLOSED. Before, what is in flight would be lost without a word.
///
/// Context: thread; sleeps. Locks: none held. Ownership: the disk is gone; nobody is inside any of its functions.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_destroy(disk: *mut Disk) {
    // SAFETY: the caller's promise: made by `xenpv_xbd_create`.
    drop(unsafe { Box::from_raw(disk) });
}

/// Starts a transfer of `len` bytes at `sector`, in units of 512 bytes, from or to wired kernel memory at `data`; `op` is one of
/// XENPV_XBD_READ, WRITE, SYNC, DISCARD. The setup's `done` tells of its end, with `token`, perhaps before this returns. `cpu`
/// is a number of any size: transfers of the same number go by the same queue as long as it has room, those of different numbers by
/// different ones as far as there are so many.
///
/// A transfer is sent as one request or several, and ends once. Of a discard, whole units are sent, as the back end has told how large
/// they are and where the first one begins; if there is none in it, it is over at once.
///
/// Context: any up to IPL_BIO. Locks: enters the mutexes, one at a time. Ownership: `data` is the disk's until `done`. Errors; there
/// is no `done` then: EAGAIN if all rings are full, or the buffer for unaligned memory is in use, to be tried again after a `done`,
/// which is sure to come; EROFS; EOPNOTSUPP for what the back end doesn't do; EINVAL beyond the end of the disk, for more than the
/// setup's `max_transfer`, which doesn't bound a discard, or for what doesn't begin and end with a sector of the disk's; EIO if the
/// disk is not connected, or closing.
///
/// # Safety
/// `disk` is a disk; `data` is as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_start(
    disk: *const Disk,
    cpu: u32,
    op: c_int,
    sector: u64,
    data: *mut c_void,
    len: usize,
    token: *mut c_void,
) -> c_int {
    let operation = match op {
        XENPV_XBD_READ => Operation::Read,
        XENPV_XBD_WRITE => Operation::Write,
        XENPV_XBD_SYNC => Operation::Flush,
        XENPV_XBD_DISCARD => Operation::Discard,
        _ => return errno::XENPV_EINVAL,
    };
    // SAFETY: the caller's promise, for the disk and for the memory.
    unsafe { (*disk).start(cpu, &Job { operation, sector, data: data.cast(), len, token }) }
}

/// Answers an event of a disk, on one of its ports: calls the setup's `done` for each transfer that is over. Returns whether the
/// device's thread is to call `xenpv_xbd_step`. Different ports may be answered by different CPUs at once.
///
/// Context: interrupt of IPL_BIO, or thread. Locks: enters a mutex; not inside when it calls `done`.
///
/// # Safety
/// `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_intr(disk: *const Disk, port: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*disk).intr(port) }
}

/// Writes `len` bytes of wired kernel memory at `data`, aligned to sectors, to `sector`, and waits for the end by polling. From then on
/// the disk does nothing else: `xenpv_xbd_start` fails, and what was in flight never ends.
///
/// Context: the one that dumps; other CPUs may still run, interrupts of this one don't come. Locks: none entered: it takes a queue
/// that nobody is inside of. Errors: EBUSY if somebody is inside the mutex of each queue and doesn't leave, as when the panic has come
/// inside of the only one; ENXIO, EROFS, EINVAL, EIO, ETIMEDOUT after 10 seconds.
///
/// # Safety
/// As above, and `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_dump(disk: *const Disk, sector: u64, data: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise: a disk, and one dump.
    unsafe { (*disk).dump(sector, data.cast(), len) }
}

/// Writes what a disk has done so far to `*counters`.
///
/// Context: any up to IPL_BIO. Locks: enters the mutexes, one at a time.
///
/// # Safety
/// `disk` is a disk, `counters` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_counters(disk: *const Disk, counters: *mut DiskCounters) {
    // SAFETY: the caller's promise.
    unsafe { counters.write((*disk).counters()) };
}
