//! [`Bare`]: what the drivers ask of the domain that they run in, answered without a kernel.

use alloc::string::{String, ToString};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hypercall::call::event_channel::{self, Status};
use hypercall::event::EventChannels;
use hypercall::grant::GrantTable;
use hypercall::{DomId, Gfn, Hypervisor, Level, Nr, Platform, Port, Region, XenError, stub};
use spin::Mutex;
use xen_sys::xen::DOMID_SELF;

use crate::{local_store, memory, println, shared};

/// A page of code that Xen fills at boot, 32 bytes a hypercall: the way in that needs no knowledge of the processor.
#[unsafe(link_section = ".text.hypercall_page")]
pub static HYPERCALL_PAGE: HypercallPage = HypercallPage([0xcc; 4096]);

/// The hypercall page: aligned as Xen wants it; a breakpoint in each byte until Xen has written it.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct HypercallPage([u8; 4096]);

/// The domain itself.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

// SAFETY: `syscall` enters the hypervisor that the domain runs on.
unsafe impl Hypervisor for Bare {
    unsafe fn hypercall(&self, nr: Nr, args: [usize; 5]) -> isize {
        // SAFETY: this is a 64-bit PV domain; the caller answers for the arguments.
        unsafe { stub::syscall(nr, args) }
    }
}

// SAFETY: `memory` hands out each page once, zeroed, and knows its machine frame from Xen's own list.
unsafe impl Platform for Bare {
    fn alloc(&self, region: Region, pages: usize) -> Option<NonNull<u8>> {
        match region {
            Region::Memory => memory::pages::alloc(pages),
            Region::Unbacked => memory::window::alloc(pages),
        }
    }

    unsafe fn free(&self, region: Region, va: NonNull<u8>, pages: usize) {
        match region {
            // SAFETY: the caller's promise.
            Region::Memory => unsafe { memory::pages::free(va, pages) },
            Region::Unbacked => memory::window::free(va, pages),
        }
    }

    fn gfn_of(&self, va: NonNull<u8>) -> Gfn {
        Gfn(memory::frames::mfn_at(va.as_ptr() as usize).0)
    }

    fn now_ns(&self) -> u64 {
        shared::now_ns()
    }

    fn wait(&self, ports: &[Port], deadline_ns: u64) {
        if !local_store::pump() {
            shared::wait(ports, deadline_ns);
        }
    }

    fn log(&self, level: Level, line: fmt::Arguments<'_>) {
        match level {
            Level::Error => println!("error: {line}"),
            Level::Warn => println!("warning: {line}"),
            Level::Info => println!("{line}"),
            Level::Debug if LOG_DEBUG.load(Relaxed) => println!("debug: {line}"),
            Level::Debug => {}
        }
    }
}

/// Whether lines of [`Level::Debug`] are printed: `log=debug` on the command line.
pub static LOG_DEBUG: AtomicBool = AtomicBool::new(false);

/// Calls the hypervisor through its page.
///
/// # Safety
/// As for [`Hypervisor::hypercall`].
pub unsafe fn by_page(nr: Nr, args: [usize; 5]) -> isize {
    // SAFETY: Xen filled the page at boot; the caller answers for the arguments.
    unsafe { stub::hypercall_page(NonNull::from(&HYPERCALL_PAGE).cast(), nr, args) }
}

/// What drivers need beside the platform.
#[derive(Clone, Debug)]
pub struct Services {
    /// The domain's event channels.
    pub events: EventChannels<Bare>,
    /// The domain's grant table.
    pub grants: GrantTable<Bare>,
}

/// Returns the services of the domain, which begin with the first call.
///
/// # Errors
/// What was lacking, or Xen refused.
pub fn services() -> Result<Services, String> {
    /// A domain has one of each.
    static SERVICES: Mutex<Option<Services>> = Mutex::new(None);
    let mut services = SERVICES.lock();
    if let Some(services) = &*services {
        return Ok(services.clone());
    }
    let shared = shared::shared_info().ok_or("the shared page is not mapped")?;
    // SAFETY: the page stays mapped for ever.
    let events = unsafe { EventChannels::new(Bare, NonNull::from(shared)) };
    // SAFETY: made once, as it is kept for ever.
    let grants = unsafe { GrantTable::new(Bare) }.map_err(|error| error.to_string())?;
    Ok(services.insert(Services { events, grants }).clone())
}

/// Returns the number of this domain: what a grant to itself must name. Xen tells it in passing only: as the domain to which
/// a port was offered that this domain offered to itself.
///
/// # Errors
/// Xen's.
pub fn domain_id() -> Result<DomId, XenError> {
    let port = event_channel::alloc_unbound(&Bare, DOMID_SELF)?;
    let status = event_channel::status(&Bare, port);
    event_channel::close(&Bare, port)?;
    match status? {
        (Status::Unbound(id), _) => Ok(id),
        _ => Err(XenError::EINVAL),
    }
}
