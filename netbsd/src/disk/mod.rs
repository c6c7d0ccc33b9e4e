//! The block front end for C: one [`Disk`] for each device of class "vbd".
//!
//! ```text
//!   the device's thread     create ─► step … step ─► close ─► step … step ─► destroy       waits for xenstore
//!   anybody                 start ─► queue ─► ring          under the glue's mutex, for moments
//!   the interrupt           intr  ─► done(token, error)     outside of the mutex
//!   a dump                  dump                            polled, without the mutex; nobody else is let in any more
//! ```

mod io;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use hypercall::grant::GrantTable;
use hypercall::{Level, Platform};
use xbd::front::{Change, Config, Front};
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
use crate::upcalls::xenpv_event_mask;
use io::{DiskQueue, Finished, Lost, Part, State};

/// How long a back end that is gone may keep pages of requests that are lost: 10 seconds.
const PATIENCE_NS: u64 = 10_000_000_000;

/// One ring of a page: transfers are cut into direct requests here.
const CONFIG: Config = Config { max_indirect_segments: 0, ..Config::DEFAULT };

/// How long a dump waits for whoever is inside the mutex: a second.
const SEIZE_US: u32 = 1_000_000;

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
    /// A `kmutex_t` of IPL_BIO that is used for nothing else.
    pub mutex: *mut c_void,
    /// What `done` is given.
    pub arg: *mut c_void,
    /// Is called when what `xenpv_xbd_start` took is over, once for each, with 0 or an error of NetBSD's. Called without any lock, in
    /// an interrupt or a thread.
    pub done: extern "C" fn(arg: *mut c_void, token: *mut c_void, error: c_int),
    /// The largest transfer in bytes, MAXPHYS: larger ones are refused. The buffer for unaligned ones has this size.
    pub max_transfer: u32,
}

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
    /// Zero.
    pub reserved: u32,
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
    /// Data segments in them.
    pub segments: u64,
    /// Events sent to the back end.
    pub notifications: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Answers to requests whose pages the back end still had mapped.
    pub still_mapped: u64,
    /// Transfers from or to memory that isn't aligned to sectors, by way of a buffer.
    pub bounced: u64,
    /// How often a transfer was put off because that buffer was in use.
    pub bounce_busy: u64,
    /// How often a transfer was put off because the ring was full.
    pub queue_full: u64,
    /// Transfers that will never be over, because a back end that is gone keeps their pages.
    pub kept: u64,
}
static_assertions::const_assert_eq!(size_of::<DiskCounters>(), 72);

/// Nothing has happened.
pub const XENPV_XBD_IDLE: c_int = 0;
/// The disk is there: `xenpv_xbd_start` takes transfers.
pub const XENPV_XBD_CONNECTED: c_int = 1;
/// The disk has another size now.
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

type Own = Services<Kernel, GrantTable<Kernel>, KernelEvents, KernelStore>;

/// The queue's place: behind the glue's mutex.
struct Standing(Arc<Locked<State>>);

impl Place<DiskQueue> for Standing {
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<DiskQueue>) -> R) -> R {
        work(&mut self.0.lock_or_stop().queue)
    }
}

/// A disk.
pub struct Disk {
    kernel: Kernel,
    /// The device's thread alone looks at this, whatever interrupts do with the rest.
    front: UnsafeCell<Front<Own, Part, Standing>>,
    state: Arc<Locked<State>>,
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
        let Some(table) = grants::table() else {
            kernel.log(Level::Error, format_args!("no grant table"));
            return Err(errno::XENPV_ENXIO);
        };
        // SAFETY: the device stays as long as the disk.
        let (events, store) = unsafe { (KernelEvents::new(kernel, setup.device), KernelStore::new(setup.device)) };
        let id = own_id(&store).map_err(|error| fail(error.into()))?;
        let own = Services { platform: kernel, grants: table.clone(), events, store, id };
        let state = State::new(&own.platform, setup.max_transfer as usize).map_err(|error| fail(error.into()))?;
        // SAFETY: the mutex stays as long as the disk.
        let state = Arc::new(unsafe { Locked::new(setup.mutex, state) });
        let standing = Standing(Arc::clone(&state));
        let mut front = Front::with_places(&own, &path.to_string_lossy(), CONFIG, vec![standing]).map_err(fail)?;
        front.set_patience_ns(PATIENCE_NS);
        Ok(Self {
            kernel,
            front: UnsafeCell::new(front),
            state,
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
    fn settle(&self, lost: &Lost) {
        if lost.is_empty() {
            return;
        }
        let mut finished = Finished::default();
        let mut state = self.state.lock_or_stop();
        let kept = state.counters.kept;
        for end in lost.iter() {
            state.end(end, &mut finished);
        }
        let kept = state.counters.kept - kept;
        drop(state);
        self.tell(&finished);
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
    unsafe fn front(&self) -> &mut Front<Own, Part, Standing> {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.front.get() }
    }

    fn step(&self, front: &mut Front<Own, Part, Standing>) -> (c_int, Option<DiskInfo>) {
        let mut finished = Finished::default();
        let (broken, port) = {
            let mut state = self.state.lock_or_stop();
            state.retry(&mut finished);
            state.count();
            (state.broken.take(), state.queue.as_ref().map(DiskQueue::port))
        };
        self.tell(&finished);
        if let Some(error) = broken {
            // The kernel unmasks a port after its handlers, and a peer that broke the protocol could go on signalling.
            if let Some(port) = port {
                // SAFETY: the queue's port, which it has until a step ends it.
                unsafe { xenpv_event_mask(port.0) };
            }
            front.fail(&error);
        }
        // Asked even if the other end has not moved: closing goes on by itself.
        front.device().changed();
        let mut lost = Lost::default();
        let stepped = if self.abandoned.load(Relaxed) {
            Ok(front.abandon(|completion| lost.push(&completion)))
        } else {
            front.step(|completion| lost.push(&completion))
        };
        self.settle(&lost);
        match stepped {
            Ok(Change::Connected(disk)) => (XENPV_XBD_CONNECTED, Some(info(&disk))),
            Ok(Change::Resized(disk)) => (XENPV_XBD_RESIZED, Some(info(&disk))),
            Ok(Change::CloseWanted) => (XENPV_XBD_CLOSE_WANTED, None),
            Ok(Change::Closed) => (XENPV_XBD_CLOSED, None),
            // There is no reconnection without being wanted.
            Ok(Change::None | Change::Reconnecting) if front.is_waiting() || self.state.lock_or_stop().is_held() => {
                (XENPV_XBD_AGAIN, None)
            }
            Ok(Change::None | Change::Reconnecting) => (XENPV_XBD_IDLE, None),
            Err(_) => (XENPV_XBD_FAILED, None),
        }
    }

    /// Answers an event; returns whether the thread has something to do.
    fn intr(&self) -> bool {
        let mut finished = Finished::default();
        let Some(mut state) = self.state.lock() else { return false };
        let step = state.poll(&mut finished);
        drop(state);
        self.tell(&finished);
        step
    }

    fn counters(&self) -> DiskCounters {
        let mut state = self.state.lock_or_stop();
        state.count();
        state.counters
    }
}

fn info(disk: &xbd::features::Disk) -> DiskInfo {
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
        reserved: 0,
    }
}

/// Makes a disk of a device, in `*disk`. `xenpv_xbd_step` does the rest.
///
/// Context: thread; sleeps. Locks: none held. Ownership: the disk is the caller's, until `xenpv_xbd_destroy`; what the setup points to
/// stays until then, the setup itself need not. Errors, also logged: ENXIO without a grant table, ENOMEM, EBADMSG for a node with
/// garbage, ENOENT for one that isn't there, and what xenstore says.
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
/// Context: the device's thread, one at a time; sleeps. Locks: none held; enters the mutex.
///
/// # Safety
/// `disk` is a disk, `info` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_step(disk: *const Disk, info: *mut DiskInfo) -> c_int {
    // SAFETY: the caller's promise: a disk, and its thread.
    let (happened, known) = unsafe { (*disk).step((*disk).front()) };
    if let Some(known) = known {
        // SAFETY: the caller's promise.
        unsafe { info.write(known) };
    }
    happened
}

/// Wants a disk to end: from now on `xenpv_xbd_start` fails. What is in flight ends first; XENPV_XBD_CLOSED tells when nothing of the
/// disk is held any more.
///
/// Context: the device's thread; sleeps. Locks: none held; enters the mutex.
///
/// # Safety
/// `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_close(disk: *const Disk) {
    // There are no new requests even if the store refuses to be told.
    // SAFETY: the caller's promise: a disk, and its thread.
    let _ = unsafe { (*disk).front().close() };
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
/// XENPV_XBD_READ, WRITE, SYNC. The setup's `done` tells of its end, with `token`, perhaps before this returns.
///
/// Context: any up to IPL_BIO. Locks: enters the mutex. Ownership: `data` is the disk's until `done`. Errors; there is no `done` then:
/// EAGAIN if the ring is full, or the buffer for unaligned memory is in use, to be tried again after a `done`, which is sure to come;
/// EROFS; EINVAL beyond the end of the disk, for more than the setup's `max_transfer`, or for what is no whole sectors; EIO if the disk
/// is not connected, or closing.
///
/// # Safety
/// `disk` is a disk; `data` is as above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_start(
    disk: *const Disk,
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
        _ => return errno::XENPV_EINVAL,
    };
    // SAFETY: the caller's promise, for the disk and for the memory.
    unsafe {
        match (*disk).state.lock() {
            Some(mut state) => state.start(operation, sector, data.cast(), len, token),
            None => errno::XENPV_EIO,
        }
    }
}

/// Answers an event of a disk: calls the setup's `done` for each transfer that is over. Returns whether the device's thread is to call
/// `xenpv_xbd_step`.
///
/// Context: interrupt of IPL_BIO, or thread. Locks: enters the mutex; not inside when it calls `done`.
///
/// # Safety
/// `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_intr(disk: *const Disk) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*disk).intr() }
}

/// Writes `len` bytes of wired kernel memory at `data`, aligned to sectors, to `sector`, and waits for the end by polling. From then on
/// the disk does nothing else: `xenpv_xbd_start` fails, and what was in flight never ends.
///
/// Context: the one that dumps; other CPUs may still run, interrupts of this one don't come. Locks: none entered. Errors: EBUSY if
/// somebody is inside the mutex and doesn't leave, perhaps because the panic has interrupted it; ENXIO, EROFS, EINVAL, EIO, ETIMEDOUT
/// after 10 seconds.
///
/// # Safety
/// As above, and `disk` is a disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_dump(disk: *const Disk, sector: u64, data: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise: a disk, and one dump.
    let Some(state) = (unsafe { (*disk).state.seize(SEIZE_US) }) else { return errno::XENPV_EBUSY };
    state.dump(sector, data.cast(), len, DUMP_US)
}

/// Writes what a disk has done so far to `*counters`.
///
/// Context: any up to IPL_BIO. Locks: enters the mutex.
///
/// # Safety
/// `disk` is a disk, `counters` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_xbd_counters(disk: *const Disk, counters: *mut DiskCounters) {
    // SAFETY: the caller's promise.
    unsafe { counters.write((*disk).counters()) };
}
