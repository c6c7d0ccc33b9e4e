//! The way into the hypervisor, and back: the hypercall page, and the CPU that interrupts come to.

use std::arch::global_asm;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hypercall::event::Events;
use hypercall::{Hypervisor, Nr, Platform, Port};

use crate::kernel::own;

// Xen's page has an entry of 32 bytes for each hypercall, which changes only what `hypercall::stub` says is lost. A function of
// Rust changes more: r9, and the registers of floating point, which are kept here.
global_asm!(
    ".text",
    ".balign 4096",
    ".globl hypercall_page",
    "hypercall_page:",
    ".set nr, 0",
    ".rept 128",
    ".balign 32",
    "mov eax, nr",
    "jmp 2f",
    ".set nr, nr + 1",
    ".endr",
    ".balign 32",
    "2:",
    "push rbp",
    "mov rbp, rsp",
    "push r9",
    "and rsp, -16",
    "sub rsp, 560",
    "fxsave64 [rsp + 48]",
    "mov [rsp], rdi",
    "mov [rsp + 8], rsi",
    "mov [rsp + 16], rdx",
    "mov [rsp + 24], r10",
    "mov [rsp + 32], r8",
    "mov edi, eax",
    "mov rsi, rsp",
    "call {enter}",
    "fxrstor64 [rsp + 48]",
    "mov r9, [rbp - 8]",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    enter = sym enter,
);

/// Passes a hypercall to the mock, as the domain that is the kernel.
extern "C" fn enter(nr: usize, args: &[usize; 5]) -> isize {
    // SAFETY: the library's caller answers for the arguments.
    unsafe { own().domain.hypercall(Nr(nr), *args) }
}

unsafe extern "C" {
    static hypercall_page: u8;
    fn port_interrupt(ipl: c_int, func: extern "C" fn(*mut c_void) -> c_int, arg: *mut c_void) -> c_int;
    fn port_may_sleep(what: *const c_char);
}

/// Returns where the page is. It is asked for so that it is linked.
pub(crate) fn page() -> *const u8 {
    &raw const hypercall_page
}

/// Panics unless the caller may sleep.
pub(crate) fn may_sleep(what: &'static std::ffi::CStr) {
    // SAFETY: a C string.
    unsafe { port_may_sleep(what.as_ptr()) };
}

struct Handler {
    ipl: c_int,
    func: extern "C" fn(*mut c_void) -> c_int,
    arg: usize,
}

/// The handlers by port. Whoever holds the lock keeps all interrupts away.
static HANDLERS: Mutex<BTreeMap<u32, Handler>> = Mutex::new(BTreeMap::new());

/// How many more handlers can be established; then one can't. Below 0: no end.
pub static ESTABLISHED_LEFT: AtomicI32 = AtomicI32::new(-1);

fn handlers() -> MutexGuard<'static, BTreeMap<u32, Handler>> {
    HANDLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs something while no interrupt comes.
pub fn without<T>(work: impl FnOnce() -> T) -> T {
    let _held = handlers();
    work()
}

/// Returns how many handlers there are.
pub(crate) fn established() -> usize {
    handlers().len()
}

/// The CPU that interrupts come to. A port is masked while its handler runs, as in the kernel.
pub(crate) fn cpu() {
    let own = own();
    loop {
        let deadline = own.domain.now_ns() + 100_000_000;
        own.domain.wait(&[], deadline);
        own.events.dispatch(0, |event| {
            if event.port == own.store.port() {
                own.store.process();
                crate::store::wake();
                return;
            }
            let handlers = handlers();
            if let Some(handler) = handlers.get(&event.port.0) {
                // SAFETY: a handler may be called until it is disestablished, which waits for the lock.
                unsafe { port_interrupt(handler.ipl, handler.func, handler.arg as *mut c_void) };
                own.events.unmask(event.port);
            }
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn hypervisor_mask_event(port: c_uint) {
    own().events.mask(Port(port));
}

#[unsafe(no_mangle)]
extern "C" fn hypervisor_unmask_event(port: c_uint) {
    own().events.unmask(Port(port));
}

#[unsafe(no_mangle)]
static xen_pic: c_int = 0;

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the kernel's function has so many")]
extern "C" fn xen_intr_establish_xname(
    _: c_int,
    _: *const c_void,
    port: c_int,
    _: c_int,
    ipl: c_int,
    func: extern "C" fn(*mut c_void) -> c_int,
    arg: *mut c_void,
    _: bool,
    _: *const c_char,
) -> *mut c_void {
    may_sleep(c"xen_intr_establish");
    if due(&ESTABLISHED_LEFT) {
        return std::ptr::null_mut();
    }
    let before = handlers().insert(port as u32, Handler { ipl, func, arg: arg as usize });
    assert!(before.is_none(), "port {port} has two handlers");
    // A handle that is no address, and never 0: there is no port 0.
    port as usize as *mut c_void
}

#[unsafe(no_mangle)]
extern "C" fn xen_intr_disestablish(handle: *mut c_void) {
    may_sleep(c"xen_intr_disestablish");
    let removed = handlers().remove(&(handle as usize as u32));
    assert!(removed.is_some(), "{handle:p} is no handler");
}

#[unsafe(no_mangle)]
extern "C" fn bind_virq_to_evtch(virq: c_int) -> c_int {
    own().events.bind_virq(virq as u32, 0).map_or(-1, |port| port.0 as c_int)
}

#[unsafe(no_mangle)]
extern "C" fn xendomain_is_dom0() -> bool {
    false
}

/// Tells whether a fault is due: `left` goes down to it.
pub(crate) fn due(left: &AtomicI32) -> bool {
    left.load(SeqCst) >= 0 && left.fetch_sub(1, SeqCst) == 0
}
