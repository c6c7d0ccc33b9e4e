//! The console for C: the one that the domain was started with, and no other.
//!
//! It works before there is memory, locks or interrupts. Whoever calls has the console to itself: the glue holds its mutex, or the
//! kernel runs polled, in the debugger or after a panic.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::NonNull;

use hypercall::call::event_channel as call;
use hypercall::event::{Channel, EventError, Events};
use hypercall::mem::{PAGE_SIZE, Shared};
use hypercall::{DomId, Port};
use xenbus::ring::bytes::ByteRings;
use xencons::front::{Console, HypervisorConsole};

use crate::kernel::Kernel;

const KERNEL: Kernel = Kernel::named(c"xencons");

/// The event channel of the console. The toolstack made it; the glue establishes its handler, as soon as the kernel can.
#[derive(Clone, Copy, Debug)]
struct Given;

impl Events for Given {
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, EventError> {
        let about = u32::from(remote.0);
        call::alloc_unbound(&KERNEL, remote).map_err(|error| EventError { op: "alloc_unbound", about, error })
    }

    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, EventError> {
        let about = u32::from(remote.0);
        let bound = call::bind_interdomain(&KERNEL, remote, port);
        bound.map_err(|error| EventError { op: "bind_interdomain", about, error })
    }

    fn notify(&self, port: Port) {
        // It fails only for a port that is not ours, and there is nobody to tell then.
        let _ = call::send(&KERNEL, port);
    }

    /// The kernel's dispatcher does it.
    fn unmask(&self, _: Port) {}

    fn close(&self, port: Port) {
        let _ = call::close(&KERNEL, port);
    }
}

/// What stands behind the console.
enum Behind {
    /// A daemon, by the rings of a page.
    Daemon { console: Console<Given, Shared<'static>>, page: Shared<'static>, port: Port },
    /// The hypervisor: in dom0.
    Hypervisor { console: HypervisorConsole<Kernel>, counters: ConsoleCounters },
}

struct Place(UnsafeCell<Option<Behind>>);

// SAFETY: whoever calls has the console to itself.
unsafe impl Sync for Place {}

static CONSOLE: Place = Place(UnsafeCell::new(None));

/// Returns the console.
///
/// # Safety
/// The caller has the console to itself.
unsafe fn console() -> Option<&'static mut Behind> {
    // SAFETY: the caller's promise.
    unsafe { (*CONSOLE.0.get()).as_mut() }
}

/// What a console has done so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ConsoleCounters {
    /// Bytes written.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
    /// Events sent to the other end.
    pub notifications: u64,
}
static_assertions::const_assert_eq!(size_of::<ConsoleCounters>(), 24);

/// Takes the console whose ring page is mapped at `page`, and whose event channel is `port`; the hypervisor's console, which only dom0
/// has, if `page` is NULL. What a boot loader has left in the rings goes out first.
///
/// Context: any, once, or again after the rings have moved; works as soon as the page is mapped. Locks: the caller has the console to
/// itself. Ownership: the page is the console's for ever.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_init(page: *mut c_void, port: u32) {
    let port = Port(port);
    let behind = match NonNull::new(page.cast::<u8>()) {
        Some(page) => {
            // SAFETY: the caller's promise.
            let page = unsafe { Shared::new(page, PAGE_SIZE) };
            Behind::Daemon { console: Console::new(page, Channel::adopt(&Given, port)), page, port }
        }
        None => Behind::Hypervisor { console: HypervisorConsole::new(KERNEL), counters: ConsoleCounters::default() },
    };
    // The old one is not dropped: that would close its port, which need not be ours any more.
    // SAFETY: the caller has the console to itself.
    core::mem::forget(unsafe { (*CONSOLE.0.get()).replace(behind) });
}

/// Writes what there is room for, and returns how many bytes that was; 0 if the other end's indices lie.
///
/// Context: any. Locks: the caller has the console to itself.
///
/// # Safety
/// As above; `bytes` may be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_write(bytes: *const c_void, len: usize) -> usize {
    // SAFETY: the caller's promise.
    let (bytes, console) = unsafe { (core::slice::from_raw_parts(bytes.cast::<u8>(), len), console()) };
    match console {
        Some(Behind::Daemon { console, .. }) => console.write(bytes).unwrap_or(0),
        Some(Behind::Hypervisor { console, counters }) => match console.write(bytes) {
            Ok(()) => {
                counters.written += len as u64;
                len
            }
            Err(_) => 0,
        },
        None => 0,
    }
}

/// Reads what there is, `len` bytes at most, and returns how many there were; 0 if the other end's indices lie.
///
/// Context: any. Locks: the caller has the console to itself.
///
/// # Safety
/// As above; `bytes` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_read(bytes: *mut c_void, len: usize) -> usize {
    // SAFETY: the caller's promise.
    let (bytes, console) = unsafe { (core::slice::from_raw_parts_mut(bytes.cast::<u8>(), len), console()) };
    match console {
        Some(Behind::Daemon { console, .. }) => console.read(bytes).unwrap_or(0),
        Some(Behind::Hypervisor { console, counters }) => {
            let count = console.read(bytes).unwrap_or(0);
            counters.read += count as u64;
            count
        }
        None => 0,
    }
}

/// Writes as `xenpv_cons_write`, but whatever state the console was interrupted in: it goes on from what the page says. To be followed
/// by `xenpv_cons_resync` before the others are used again.
///
/// Context: polled: in the debugger, or after a panic. Locks: none; nobody else runs.
///
/// # Safety
/// As above; `bytes` may be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_poll_write(bytes: *const c_void, len: usize) -> usize {
    // SAFETY: the caller's promise.
    let (text, behind) = unsafe { (core::slice::from_raw_parts(bytes.cast::<u8>(), len), console()) };
    match behind {
        Some(Behind::Daemon { page, port, .. }) => {
            let count = ByteRings::console_front(*page).tx.write(text).unwrap_or(0);
            tell(*port, count)
        }
        // SAFETY: the caller's promise; it has no state to be interrupted in.
        _ => unsafe { xenpv_cons_write(bytes, len) },
    }
}

/// Reads as `xenpv_cons_read`, but whatever state the console was interrupted in. To be followed by `xenpv_cons_resync` before the others
/// are used again.
///
/// Context: polled: in the debugger, or after a panic. Locks: none; nobody else runs.
///
/// # Safety
/// As above; `bytes` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_poll_read(bytes: *mut c_void, len: usize) -> usize {
    // SAFETY: the caller's promise.
    let (to, behind) = unsafe { (core::slice::from_raw_parts_mut(bytes.cast::<u8>(), len), console()) };
    match behind {
        Some(Behind::Daemon { page, port, .. }) => {
            let count = ByteRings::console_front(*page).rx.read(to).unwrap_or(0);
            tell(*port, count)
        }
        // SAFETY: the caller's promise; it has no state to be interrupted in.
        _ => unsafe { xenpv_cons_read(bytes, len) },
    }
}

fn tell(port: Port, count: usize) -> usize {
    if count > 0 {
        Given.notify(port);
    }
    count
}

/// Goes on where the polled functions have stopped.
///
/// Context: any. Locks: the caller has the console to itself.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_resync() {
    // SAFETY: the caller's promise.
    if let Some(Behind::Daemon { console, .. }) = unsafe { console() } {
        console.resync();
    }
}

/// Writes what the console has done so far to `*counters`.
///
/// Context: any. Locks: the caller has the console to itself.
///
/// # Safety
/// As above; `counters` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xenpv_cons_counters(counters: *mut ConsoleCounters) {
    // SAFETY: the caller's promise.
    let now = match unsafe { console() } {
        Some(Behind::Daemon { console, .. }) => {
            let told = console.counters();
            ConsoleCounters { written: told.written, read: told.read, notifications: told.notifications }
        }
        Some(Behind::Hypervisor { counters, .. }) => *counters,
        None => ConsoleCounters::default(),
    };
    // SAFETY: the caller's promise.
    unsafe { counters.write(now) };
}
