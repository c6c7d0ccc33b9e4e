//! The seam between the drivers and the domain that they run in.
//!
//! Two traits, static dispatch, `&self` everywhere: two domains live in one process under the mock, so nothing here is a
//! static method.

use core::fmt;
use core::ptr::NonNull;

use xen_sys::{Gfn, Nr, Port};

/// Entry into the hypervisor.
///
/// # Safety
/// `hypercall` implements the Xen ABI: it hands the number and the arguments to a hypervisor, which reads and writes the
/// memory that they point to as its public headers say, and nothing else.
pub unsafe trait Hypervisor {
    /// Calls the hypervisor and returns its plain answer: ≥ 0, or a negated error number of Xen's.
    ///
    /// # Safety
    /// The arguments are right for `nr`: each pointer among them points to what that hypercall reads or writes, and stays
    /// valid for as long as the hypervisor uses it.
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize;
}

/// What a run of pages is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Own memory: zeroed, readable and writable, each page with a frame number.
    Memory,
    /// Address space without memory: what grant mappings and, in a PV domain, the grant table's frames are put into. Reading
    /// it before something was mapped there faults. In an auto-translated domain this is guest-physical room without memory,
    /// which the kernel has mapped in its own page tables.
    Unbacked,
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something was lost: a device is broken, a page is quarantined.
    Error,
    /// Something odd that was survived.
    Warn,
    /// Something that an operator wants to see once: a device came, or left.
    Info,
    /// Something for whoever looks for a fault.
    Debug,
}

/// Memory, time and frame numbers of the domain that the drivers run in. A handle: cheap to clone.
///
/// # Safety
/// - `alloc` returns page aligned, virtually contiguous pages that nobody else owns, zeroed if they are
///   [`Region::Memory`], and they stay so until `free`.
/// - `gfn_of` returns the frame by which the hypervisor knows that very page, for as long as the page is allocated; whatever the
///   hypervisor puts behind that frame number meanwhile is seen at the page's address.
/// - `mapped` returns an address at which the memory that the hypervisor mapped at `va` is read and written.
pub unsafe trait Platform: Hypervisor + Clone {
    /// Allocates `pages` pages, or `None` if there are none. Called when a device attaches or a table grows, never on the
    /// data path.
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>>;

    /// Gives back what `alloc` returned.
    ///
    /// # Safety
    /// `va` and `pages` are those of one `alloc` of the same region; nothing uses the pages any more, neither this domain
    /// nor, through a grant, another; nothing is mapped into an unbacked region any more.
    unsafe fn free(&self, region: Region, va: NonNull<u8>, pages: usize);

    /// Returns the frame number of the page of own memory at `va`, as grants and hypercalls take it: the machine frame in
    /// a PV domain, the guest frame in an auto-translated one. There, pages of unbacked address space have frame numbers, too:
    /// those that the kernel's page tables have at `va`, behind which no memory is. Foreign pages are mapped by them.
    fn gfn_of(&self, va: NonNull<u8>) -> Gfn;

    /// Returns where the memory that the hypervisor mapped at `va` is seen: at `va`, on every machine with an MMU. Only a
    /// mock without one (under Miri) answers otherwise. `va` need not be where a page begins.
    fn mapped(&self, va: NonNull<u8>) -> NonNull<u8> {
        va
    }

    /// Returns the time since some fixed moment, in nanoseconds; it never goes back.
    fn now_ns(&self) -> u64;

    /// Waits until an event is pending on one of `ports`, or the clock has reached `deadline_ns`, or earlier for any
    /// reason: whoever waits for a condition asks it again after each return. Clears nothing.
    fn wait(&self, ports: &[Port], deadline_ns: u64);

    /// Runs `work` while no interrupt handler that uses the drivers runs on this CPU, nor is this thread moved off it, and
    /// returns its result. The drivers hold their few spin locks only in here: a handler that wants one on the CPU whose
    /// thread holds it would wait for ever.
    ///
    /// A kernel raises its interrupt level for the time, and lowers it to what it was before, for calls may be nested. The
    /// default is right where handlers don't interrupt: on the mock, and in a guest whose events stay masked. `work` is short;
    /// it doesn't sleep, frees no pages and logs nothing.
    fn uninterrupted<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// Writes a line into the kernel's log. The caller limits the rate of what a peer can trigger.
    fn log(&self, level: Level, line: fmt::Arguments<'_>);
}
