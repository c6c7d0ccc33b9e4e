//! What the library asks of the kernel: C functions that the glue has, and the kernel's hypercall page.
//!
//! `netbsd/glue/xenpv_subr.c` has all of them.

use core::ffi::{c_char, c_int, c_void};

use hypercall::stub::PAGE_ENTRY;

/// Bytes of the hypercall page.
const PAGE: usize = 4096;

/// The page that Xen has filled with one entry a hypercall. Its content is code, and nothing that Rust looks at.
#[repr(C)]
pub struct HypercallPage([u8; PAGE]);

static_assertions::const_assert!(PAGE / PAGE_ENTRY >= 64);

unsafe extern "C" {
    /// The kernel's own hypercall page, of PV and PVH kernels alike.
    static hypercall_page: HypercallPage;

    /// Allocates `size` bytes, aligned as kmem(9) does it, to 8 bytes at least. It may sleep if its caller may: at IPL_NONE, outside
    /// interrupts. NULL if there are none.
    ///
    /// Context: any up to IPL_VM. Locks: any. Ownership: the library's until `xenpv_free`.
    pub fn xenpv_alloc(size: usize) -> *mut c_void;

    /// Frees what `xenpv_alloc` returned for the same size.
    ///
    /// Context: any up to IPL_VM. Locks: any.
    pub fn xenpv_free(p: *mut c_void, size: usize);

    /// Allocates `count` contiguous pages of address space: `backed` by wired, zeroed memory, or by nothing, for what the library maps
    /// there by itself. NULL if there are none.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_pages_alloc(count: usize, backed: bool) -> *mut c_void;

    /// Frees what `xenpv_pages_alloc` returned for the same count and kind. Where sleeping is not possible, later.
    ///
    /// Context: any up to IPL_VM if it is backed, else thread. Locks: any.
    pub fn xenpv_pages_free(va: *mut c_void, count: usize, backed: bool);

    /// Returns the frame number, as Xen knows it, of the page of wired kernel memory in which `va` lies: the machine frame in a PV
    /// kernel, the guest frame in a PVH kernel.
    ///
    /// Context: any up to IPL_VM. Locks: any.
    pub fn xenpv_frame(va: *const c_void) -> u64;

    /// Keeps interrupts up to IPL_VM from this CPU and returns what the level was, for `xenpv_splx`.
    ///
    /// Context: any. Locks: any.
    pub fn xenpv_splvm() -> c_int;

    /// Puts the interrupt level back.
    ///
    /// Context: any. Locks: any.
    pub fn xenpv_splx(s: c_int);

    /// Enters a mutex: a `kmutex_t` that the glue gave to the library.
    ///
    /// Context: as the mutex demands.
    pub fn xenpv_mutex_enter(mtx: *mut c_void);

    /// Leaves it.
    pub fn xenpv_mutex_exit(mtx: *mut c_void);

    /// Returns the time since boot in nanoseconds.
    ///
    /// Context: any. Locks: any.
    pub fn xenpv_uptime_ns() -> u64;

    /// Spins for some microseconds.
    ///
    /// Context: any. Locks: any.
    pub fn xenpv_delay_us(us: u32);

    /// Writes a line of `len` bytes, without a newline, into the kernel's log, behind "NAME: ". `level` is one of XENPV_LOG_*.
    ///
    /// Context: any up to IPL_VM. Locks: any.
    pub fn xenpv_log(level: c_int, name: *const c_char, line: *const c_char, len: usize);

    /// Ends the kernel with a message of `len` bytes.
    ///
    /// Context: any. Locks: any.
    pub fn xenpv_panic(message: *const c_char, len: usize) -> !;

    /// Lets the events of `port` be handled by the device: `xenpv_event_establish` unmasks it, and its handler is called until
    /// `xenpv_event_disestablish`. Returns 0, or an error of NetBSD's.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_event_establish(device: *mut c_void, port: u32) -> c_int;

    /// Ends that. When it returns, no handler runs for the port, and none will.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_event_disestablish(device: *mut c_void, port: u32);

    /// Masks a port whose other end misbehaves.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_event_mask(port: u32);

    /// Sends a message to xenstored by the kernel's own connection and waits for the answer. `msg` is a struct xsd_sockmsg with its
    /// payload behind it; on return `type` and `len` are those of the answer, and `*reply` is its payload, to be freed by
    /// `xenpv_store_reply_free`. Returns 0, or an error of NetBSD's if the connection fails.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_store_request(msg: *mut c_void, reply: *mut *mut c_void) -> c_int;

    /// Frees a reply.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_store_reply_free(msg: *mut c_void, reply: *mut c_void);

    /// Sets a watch on a path of xenstore. When it fires, it is noted, and the device's thread is woken. Returns the watch in `*watch`,
    /// and 0 or an error of NetBSD's.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_watch_set(device: *mut c_void, path: *const c_char, watch: *mut u32) -> c_int;

    /// Unsets a watch; it may be set anew under the same number.
    ///
    /// Context: thread. Locks: none.
    pub fn xenpv_watch_unset(watch: u32);

    /// Tells whether a watch has fired since this was last asked.
    ///
    /// Context: thread. Locks: any.
    pub fn xenpv_watch_fired(watch: u32) -> bool;
}

/// A line about a fault.
pub const XENPV_LOG_ERROR: c_int = 0;
/// A line about something odd.
pub const XENPV_LOG_WARN: c_int = 1;
/// A line that an operator wants to see once.
pub const XENPV_LOG_INFO: c_int = 2;
/// A line for whoever looks for a fault.
pub const XENPV_LOG_DEBUG: c_int = 3;

/// Returns the address of the hypercall page.
pub(crate) fn hypercalls() -> core::ptr::NonNull<u8> {
    // SAFETY: only the address is taken.
    core::ptr::NonNull::from(unsafe { &hypercall_page }).cast()
}
