//! The kernel that tests hold: made once, given back clean after each.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hypercall::DomId;
use hypercall::event::{EventChannels, Events};
use hypercall::mem::{PAGE_SIZE, Shared};
use mock::{Domain, DomainConfig, Machine};
use suite::toolstack::NewDevice;
use xen_sys::xen::SharedInfo;
use xenbus::store::{Store, Tx, XenStore};
use xenpv::grants::{GrantCounters, xenpv_grant_counters};

use crate::interrupts::{ESTABLISHED_LEFT, established};
use crate::memory::Wired;
use crate::peer::{DiskKind, Peer};
use crate::{interrupts, store};

/// How long a test waits for what has to happen: only a fault takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Own {
    pub(crate) machine: Machine,
    pub(crate) domain: Domain,
    pub(crate) events: EventChannels<Domain>,
    pub(crate) store: XenStore<Domain, EventChannels<Domain>>,
}

static OWN: OnceLock<Own> = OnceLock::new();
static BOOTED: Mutex<bool> = Mutex::new(false);
static LOG: Mutex<String> = Mutex::new(String::new());

/// Returns what the kernel runs on.
pub(crate) fn own() -> &'static Own {
    OWN.get_or_init(|| {
        let machine = Machine::threaded();
        let domain = machine.create(DomainConfig::default());
        // SAFETY: the page lives as long as the machine, which is for ever.
        let events = unsafe { EventChannels::new(domain.clone(), domain.shared_info()) };
        let start = domain.start();
        // SAFETY: the domain's page of the store, used here alone.
        let page = unsafe { Shared::new(start.store, PAGE_SIZE) };
        let store = XenStore::new(domain.clone(), events.clone(), page, start.store_port);
        Own { machine, domain, events, store }
    })
}

unsafe extern "C" {
    static mut panicstr: *const c_char;
    static port_threads_left: c_int;
    static port_skipped: c_int;
    static port_blocks: c_long;
    fn host_boot();
    fn host_pending() -> c_int;
    fn host_open(block: bool, minor: c_int, flags: c_int) -> c_int;
    fn host_close(block: bool, minor: c_int) -> c_int;
    fn host_ioctl(minor: c_int, command: c_ulong, data: *mut c_void) -> c_int;
    fn host_size(minor: c_int) -> c_int;
    fn host_dump(minor: c_int, block: i64, data: *mut c_void, len: usize) -> c_int;
    fn host_rawio(minor: c_int, write: bool, data: *mut c_void, len: usize, offset: i64) -> c_int;
    fn host_discard(minor: c_int, position: i64, len: i64) -> c_int;
    fn host_openmask(unit: c_int) -> c_uint;
    fn host_openlock(unit: c_int, hold: bool);
    fn host_searched(unit: c_int) -> i64;
    fn port_set_cpu(index: c_uint);
    fn host_sysctl(name: *const c_char, value: *mut u64) -> bool;
    fn host_buf(minor: c_int, read: bool, block: i64, data: *mut c_void, len: usize) -> *mut c_void;
    fn host_strategy(buf: *mut c_void);
    fn host_biowait(buf: *mut c_void) -> c_int;
    fn host_is_over(buf: *mut c_void) -> bool;
    fn host_buf_free(buf: *mut c_void);
    fn xengnt_init();
}

/// Adds to the kernel's log.
pub(crate) fn say(text: &str) {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    if std::env::var_os("XENPV_HOST_LOG").is_some() {
        eprint!("{text}");
    }
}

#[unsafe(no_mangle)]
extern "C" fn host_say(text: *const c_char, len: usize) {
    // SAFETY: so many bytes of text.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    say(&String::from_utf8_lossy(text));
}

/// What is to be as it was when a test is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Balance {
    blocks: c_long,
    handlers: usize,
    watches: usize,
    free_grants: u32,
    quarantined: u32,
    leaked: u32,
    pending: c_int,
}

pub(crate) fn balance() -> Balance {
    let mut grants = GrantCounters::default();
    // SAFETY: counters to be written; the rest only looks.
    unsafe {
        xenpv_grant_counters(&mut grants);
        Balance {
            blocks: (*(&raw const port_blocks).cast::<std::sync::atomic::AtomicI64>()).load(SeqCst),
            handlers: established(),
            watches: store::registered(),
            free_grants: grants.free,
            quarantined: grants.quarantined,
            leaked: grants.leaked,
            pending: host_pending(),
        }
    }
}

/// The kernel, for one test.
pub struct Kernel {
    pub(crate) balance: Balance,
    /// This is the first test.
    pub(crate) fresh: bool,
    _one: MutexGuard<'static, bool>,
}

impl Kernel {
    /// Takes the kernel; the first boots it. `conf` is what config(1) has made of its drivers, `grants` whether it has the grant table.
    ///
    /// # Panics
    /// If an earlier test has failed: nobody knows what it has left.
    pub fn take(conf: unsafe extern "C" fn(), grants: bool) -> Self {
        let mut booted = BOOTED.lock().expect("an earlier test of this process has failed, which has one kernel");
        let fresh = !std::mem::replace(&mut *booted, true);
        if fresh {
            boot(conf, grants);
        }
        LOG.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Self { balance: balance(), fresh, _one: booted }
    }

    /// Takes a kernel with disks.
    ///
    /// # Panics
    /// As [`take`](Self::take).
    pub fn with_disks() -> Self {
        unsafe extern "C" {
            fn host_conf_xbd();
        }
        let mut kernel = Self::take(host_conf_xbd, true);
        if std::mem::take(&mut kernel.fresh) {
            // The glue keeps its watches for ever, once they were needed: two disks at a time are as many as tests have.
            let peers = [1, 2].map(|handle| Peer::serve(&kernel, handle, 64, DiskKind::PLAIN));
            kernel.wait("the first disks are there", || Disk(0).size() == 64 && Disk(1).size() == 64);
            peers.into_iter().for_each(|peer| peer.detach(&kernel));
            kernel.wait("the first disks are gone", || store::attached() == 0);
            kernel.balance = balance();
            LOG.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        kernel
    }

    /// Gives the kernel back.
    ///
    /// # Panics
    /// If anything was left behind.
    pub fn give_back(self) {
        self.wait("all devices are detached", || store::attached() == 0);
        own().machine.cancel_faults();
        [Failing::Handlers, Failing::Requests, Failing::Threads].iter().for_each(|what| self.fail_after(*what, -1));
        assert_eq!(balance(), self.balance, "{}", self.log());
        own().machine.check_quiet();
    }

    /// Returns the machine.
    pub fn machine(&self) -> &'static Machine {
        &own().machine
    }

    /// Returns the domain that is the kernel.
    pub fn id(&self) -> DomId {
        own().domain.id()
    }

    /// Returns the toolstack's domain.
    pub fn toolstack(&self) -> mock::Node {
        self.machine().services(DomId(0))
    }

    /// Returns all that the kernel has said in this test.
    pub fn log(&self) -> String {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// If it isn't after a long time.
    pub fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "never: {what}; the kernel says:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the kernel has said something.
    pub fn wait_said(&self, text: &str) {
        self.wait(&format!("said: {text}"), || self.log().contains(text));
    }

    /// Returns how many devices keep the kernel from looking for its root.
    pub fn pending(&self) -> i32 {
        // SAFETY: only looks.
        unsafe { host_pending() }
    }

    /// Reads a node as the toolstack.
    pub fn node(&self, path: &str) -> Option<String> {
        self.toolstack().store.read_if_there(Tx::NONE, path).ok().flatten()
    }

    /// Writes a node as the toolstack.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn write(&self, path: &str, value: &str) {
        self.toolstack().store.write_text(Tx::NONE, path, value).expect("dom0 may write everywhere");
    }

    /// Does what `xl destroy` does: the back end's directory goes, whatever is going on.
    ///
    /// # Panics
    /// If the store refuses.
    pub fn remove_back(&self, device: &NewDevice<'_>) {
        let path = format!("/local/domain/{}/{}", device.back.0, device.back_path());
        self.toolstack().store.rm(Tx::NONE, &path).expect("dom0 may remove everything");
    }

    /// Runs something as after a panic: no interrupt comes, and whatever is printed is printed polled.
    pub fn panicked<T>(&self, work: impl FnOnce() -> T) -> T {
        interrupts::without(|| as_panicked(work))
    }

    /// Lets the kernel's clock jump.
    pub fn skip_seconds(&self, seconds: i32) {
        // SAFETY: C uses it by atomic operations alone, too.
        unsafe { (*(&raw const port_skipped).cast::<AtomicI32>()).fetch_add(seconds, SeqCst) };
    }

    /// Lets so many more of something succeed, and then one fail; all succeed if it is below 0.
    pub fn fail_after(&self, what: Failing, left: i32) {
        what.left().store(left, SeqCst);
    }

    /// Tells whether the failure that was ordered has not happened.
    pub fn is_to_fail(&self, what: Failing) -> bool {
        what.left().load(SeqCst) >= 0
    }
}

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// The establishment of an interrupt handler.
    Handlers,
    /// A request to xenstored.
    Requests,
    /// The making of a thread.
    Threads,
}

impl Failing {
    fn left(self) -> &'static AtomicI32 {
        match self {
            Self::Handlers => &ESTABLISHED_LEFT,
            Self::Requests => &store::REQUESTS_LEFT,
            // SAFETY: C uses it by atomic operations alone, too.
            Self::Threads => unsafe { &*(&raw const port_threads_left).cast() },
        }
    }
}

/// Takes the calling thread to another CPU.
pub fn go_to_cpu(index: u32) {
    // SAFETY: any index will do.
    unsafe { port_set_cpu(index) };
}

/// Runs something with the kernel's mark of a panic set.
pub fn as_panicked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: others only look whether it is set, and none of them runs.
    unsafe { panicstr = c"test".as_ptr() };
    let done = work();
    // SAFETY: as above.
    unsafe { panicstr = std::ptr::null() };
    done
}

fn boot(conf: unsafe extern "C" fn(), grants: bool) {
    assert!(!interrupts::page().is_null());
    let own = own();
    let shared: &SharedInfo = {
        let page = own.domain.shared_info();
        // SAFETY: the page lives as long as the machine, and is made of atomics.
        unsafe { page.as_ref() }
    };
    shared.vcpu_info[0].evtchn_upcall_mask.store(0, SeqCst);
    // SAFETY: once, before anything else runs.
    unsafe {
        host_boot();
        conf();
        if grants {
            xengnt_init();
        }
    }
    std::thread::Builder::new().name("interrupts".into()).spawn(interrupts::cpu).expect("a thread");
    std::thread::Builder::new().name("xenwatch".into()).spawn(store::xenwatch).expect("a thread");
    own.machine.services(DomId(0));
    own.events.unmask(own.store.port());
    own.machine.mark_usage();
}

/// A disk of the kernel, by its number.
#[derive(Clone, Copy, Debug)]
pub struct Disk(pub i32);

/// Partitions a disk.
const PARTITIONS: i32 = 16;
/// The whole disk. Partition 0, which is what the others mean, is that too, but its label is protected; 1 is the second half.
pub const RAW: i32 = 3;

impl Disk {
    fn minor(self) -> c_int {
        self.0 * PARTITIONS
    }

    /// Opens it; returns an error of NetBSD's, or 0.
    pub fn open(self, block: bool, write: bool) -> i32 {
        // SAFETY: any minor of a unit.
        unsafe { host_open(block, self.minor(), 1 | c_int::from(write) << 1) }
    }

    /// Closes it.
    pub fn close(self, block: bool) -> i32 {
        // SAFETY: as above.
        unsafe { host_close(block, self.minor()) }
    }

    /// Returns the partitions that are open, as bits. There is such a disk.
    pub fn open_mask(self) -> u32 {
        // SAFETY: the caller's.
        unsafe { host_openmask(self.0) }
    }

    /// Returns its size in sectors, or -1.
    pub fn size(self) -> i32 {
        // SAFETY: any minor of a unit.
        unsafe { host_size(self.minor()) }
    }

    /// DIOCCACHESYNC.
    pub fn sync(self) -> i32 {
        let mut force: c_int = 0;
        // SAFETY: as wide as the command says.
        unsafe { host_ioctl(self.minor(), 0x8004_6476, (&raw mut force).cast()) }
    }

    /// DIOCGCACHE.
    pub fn cache(self) -> (i32, i32) {
        let mut bits: c_int = 0;
        // SAFETY: as wide as the command says.
        (unsafe { host_ioctl(self.minor(), 0x4004_6474, (&raw mut bits).cast()) }, bits)
    }

    /// Does an ioctl that fills in so many numbers.
    fn ask<const N: usize>(self, partition: i32, command: c_ulong) -> (i32, [u32; N]) {
        let mut answer = [0; N];
        // SAFETY: as wide as the command says.
        (unsafe { host_ioctl(self.minor() + partition, command, answer.as_mut_ptr().cast()) }, answer)
    }

    /// DIOCGSECTORSIZE.
    pub fn sector_size(self) -> (i32, u32) {
        let (error, [size]) = self.ask(0, 0x4004_6485);
        (error, size)
    }

    /// DIOCGSECTORALIGN of a partition: the first aligned sector, and sectors of a unit.
    pub fn alignment(self, partition: i32) -> (i32, [u32; 2]) {
        self.ask(partition, 0x4008_6487)
    }

    /// Discards bytes of a partition.
    pub fn discard(self, partition: i32, position: i64, len: i64) -> i32 {
        // SAFETY: any range will do.
        unsafe { host_discard(self.minor() + partition, position, len) }
    }

    /// Does something while somebody holds the lock of opens. There is such a disk.
    pub fn while_opening<T>(self, work: impl FnOnce() -> T) -> T {
        // SAFETY: the caller's; left by the same thread.
        unsafe { host_openlock(self.0, true) };
        let done = work();
        // SAFETY: as above.
        unsafe { host_openlock(self.0, false) };
        done
    }

    /// Returns how many sectors it had when wedges were last looked for. There is such a disk.
    pub fn searched(self) -> i64 {
        // SAFETY: the caller's.
        unsafe { host_searched(self.0) }
    }

    /// Writes after a panic.
    pub fn dump(self, sector: i64, from: &Wired, offset: usize, len: usize) -> i32 {
        // SAFETY: wired memory of that length.
        unsafe { host_dump(self.minor(), sector, from.at(offset), len) }
    }

    /// Reads or writes by the character device, and waits.
    pub fn raw(self, write: bool, wired: &Wired, offset: usize, len: usize, sector: u64) -> i32 {
        // SAFETY: wired memory of that length.
        unsafe { host_rawio(self.minor(), write, wired.at(offset), len, sector as i64 * 512) }
    }

    /// Starts a transfer of `len` bytes at `offset` of wired memory.
    pub fn start(self, read: bool, sector: u64, wired: Wired, offset: usize, len: usize) -> Transfer {
        // SAFETY: wired memory of that length, which the transfer keeps.
        let buf = unsafe { host_buf(self.minor(), read, sector as i64, wired.at(offset), len) };
        // SAFETY: just made.
        unsafe { host_strategy(buf) };
        Transfer { buf, wired }
    }

    /// Does a transfer; returns its error and its memory.
    pub fn transfer(self, read: bool, sector: u64, wired: Wired, offset: usize, len: usize) -> (i32, Wired) {
        self.start(read, sector, wired, offset, len).wait()
    }
}

/// A transfer that is under way.
#[derive(Debug)]
pub struct Transfer {
    buf: *mut c_void,
    wired: Wired,
}

// SAFETY: a buf is nobody's in particular.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Tells whether it is over.
    pub fn is_over(&self) -> bool {
        // SAFETY: a buf.
        unsafe { host_is_over(self.buf) }
    }

    /// Waits for the end, and returns the error, if any, and the memory.
    pub fn wait(self) -> (i32, Wired) {
        // SAFETY: a buf, freed after its end.
        let error = unsafe {
            let error = host_biowait(self.buf);
            host_buf_free(self.buf);
            error
        };
        (error, self.wired)
    }
}

/// Reads a counter of the disk that was attached last.
///
/// # Panics
/// If there is none.
pub fn counter(name: &CStr) -> u64 {
    let mut value = 0;
    // SAFETY: a C string, and room for the value.
    assert!(unsafe { host_sysctl(name.as_ptr(), &mut value) }, "no counter {name:?}");
    value
}
