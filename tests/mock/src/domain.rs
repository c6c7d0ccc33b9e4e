//! The handle of a domain: what drivers see of the mock.

use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hypercall::{DomId, Gfn, Hypervisor, Level, Nr, Platform, Port, Region};
use xen_sys::xen::SharedInfo;

use crate::alloc::{self, Pause};
use crate::life::Start;
use crate::shared::Shared;
use crate::trace::What;

/// A domain of the machine: its platform, and its way into the hypervisor. A handle: cheap to clone, and free to be sent
/// to another thread.
#[derive(Clone)]
pub struct Domain {
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    log_level: Level,
}

/// What a domain's handles know it by, and what is another when it has been saved and restored.
pub(crate) struct Identity {
    id: AtomicU16,
    start: Mutex<Start>,
}

impl Identity {
    pub(crate) fn new(id: DomId, start: Start) -> Self {
        Self { id: AtomicU16::new(id.0), start: Mutex::new(start) }
    }

    pub(crate) fn id(&self) -> DomId {
        DomId(self.id.load(Ordering::Relaxed))
    }

    pub(crate) fn start(&self) -> Start {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn become_other(&self, id: DomId, start: Start) {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) = start;
        self.id.store(id.0, Ordering::Relaxed);
    }
}

thread_local! {
    /// How deep this thread is in what may not be interrupted.
    static UNINTERRUPTED: Cell<u32> = const { Cell::new(0) };
}

/// Leaves what may not be interrupted, even by a panic.
struct Inside;

impl Inside {
    fn new() -> Self {
        UNINTERRUPTED.set(UNINTERRUPTED.get() + 1);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        UNINTERRUPTED.set(UNINTERRUPTED.get() - 1);
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.id().0)
    }
}

impl Domain {
    pub(crate) fn new(shared: Arc<Shared>, identity: Arc<Identity>) -> Self {
        Self { shared, identity, log_level: Level::Error }
    }

    /// Returns the domain's number. It is another when the domain has come back from a suspend.
    pub fn id(&self) -> DomId {
        self.identity.id()
    }

    /// Returns where the rings are that the domain started with, the last time that it came back from a suspend too.
    pub fn start(&self) -> Start {
        self.identity.start()
    }

    /// Returns the same handle, which prints lines of the log up to `level` to standard error.
    #[must_use]
    pub fn verbose(self, level: Level) -> Self {
        Self { log_level: level, ..self }
    }

    /// Takes note of slow work that is done while interrupts are held off.
    fn slow(&self, what: &str) {
        if UNINTERRUPTED.get() > 0 {
            self.shared.lock().violation(format!("domain {} {what} while interrupts were held off", self.id().0));
        }
    }

    /// Returns the page that the hypervisor shares with the domain. A real kernel maps the frame that `start_info` names.
    pub fn shared_info(&self) -> NonNull<SharedInfo> {
        NonNull::from(self.shared.lock().shared_info(self.id()))
    }
}

// SAFETY: the mock reads and writes what the arguments of a hypercall point to, as the public headers say, and nothing else.
unsafe impl Hypervisor for Domain {
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        let _pause = Pause::new();
        // SAFETY: the caller's.
        unsafe { self.shared.enter(self.id(), nr, args) }
    }
}

// SAFETY: pages come from the domain's own range or the heap, each allocation apart from all others, zeroed when the frame
// is taken; a frame stays the page's until it is freed; `mapped` is looked up in what the hypervisor mapped.
unsafe impl Platform for Domain {
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>> {
        let _pause = Pause::new();
        self.slow("allocated pages");
        let mut state = self.shared.lock();
        match region {
            Region::Memory => state.alloc_pages(self.id(), pages),
            Region::Unbacked => state.alloc_unbacked(self.id(), pages),
        }
    }

    unsafe fn free(&self, region: Region, va: NonNull<u8>, pages: usize) {
        let _pause = Pause::new();
        self.slow("freed pages");
        let mut state = self.shared.lock();
        match region {
            Region::Memory => state.free_pages(self.id(), va, pages),
            Region::Unbacked => state.free_unbacked(self.id(), va, pages),
        }
    }

    fn gfn_of(&self, va: NonNull<u8>) -> Gfn {
        let state = self.shared.lock();
        let gfn = state.space(self.id()).gfn_at(va.addr().get());
        // Out of reach of the lock, which a panic here must not take along.
        drop(state);
        gfn.unwrap_or_else(|| panic!("{va:p} is no page of domain {}", self.id().0))
    }

    fn mapped(&self, va: NonNull<u8>) -> NonNull<u8> {
        self.shared.lock().space(self.id()).seen(va)
    }

    fn now_ns(&self) -> u64 {
        self.shared.lock().look_at_clock()
    }

    fn wait(&self, ports: &[Port], deadline_ns: u64) {
        let _pause = Pause::new();
        self.slow("waited");
        self.shared.wait(self.id(), ports, deadline_ns);
    }

    /// Nothing interrupts here. What a kernel could not do meanwhile is a violation: to allocate, to free pages, to wait, to log.
    fn uninterrupted<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = alloc::count();
        let inside = Inside::new();
        let value = work();
        drop(inside);
        if alloc::count() > before {
            let _pause = Pause::new();
            let what = format!("domain {} allocated while interrupts were held off", self.id().0);
            self.shared.lock().violation(what);
        }
        value
    }

    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        let _pause = Pause::new();
        self.slow("logged");
        self.shared.lock().note(Some(self.id()), || What::Log(level, line.to_string()));
        if level <= self.log_level {
            eprintln!("[domain {}] {line}", self.id().0);
        }
    }
}
