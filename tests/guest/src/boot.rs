//! From Xen's loader to the program.
//!
//! Xen finds out from the ELF notes where the image goes, builds the first page tables, and enters at `_start` with the
//! address of `start_info` in `rsi`, a stack of one page and events masked. Mapped are the image, the list of the
//! domain's frames, `start_info`, the page tables themselves and some room behind them: the boot region.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use xen_sys::Mfn;
use xen_sys::elfnote::{
    XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_LOADER, XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
};
use xen_sys::xen::{SIF_INITDOMAIN, StartInfo};

use crate::{bare, exit, memory, programs, shared, suspend, traps};

/// Where Xen maps the domain's memory at boot: frame `pfn` stands at `VIRT_BASE + (pfn << 12)`. As in link.ld.
pub const VIRT_BASE: usize = 0xffff_ffff_8000_0000;

/// Bytes of the stack, without the guard page below.
const STACK_SIZE: usize = 256 * 1024;

/// The stack, and below it a page that is unmapped once the domain runs: a stack that grows too far ends in a crash that
/// names the place instead of in silently changed data.
#[repr(C, align(4096))]
struct Stack {
    guard: [u8; 4096],
    room: [u8; STACK_SIZE],
}

/// Memory that is only ever touched by address.
#[repr(transparent)]
struct Raw<T>(UnsafeCell<T>);

// SAFETY: no reference to the inside is ever made.
unsafe impl<T> Sync for Raw<T> {}

static STACK: Raw<Stack> = Raw(UnsafeCell::new(Stack { guard: [0; 4096], room: [0; STACK_SIZE] }));

static START_INFO: AtomicPtr<StartInfo> = AtomicPtr::new(core::ptr::null_mut());

// The notes. Each is: bytes of the name, bytes of the value, type, name, value, padded to four.
global_asm!(
    r#"
    .pushsection .note.Xen, "a", @note
    .macro note type, bytes
    .balign 4
    .long 4, \bytes, \type
    .asciz "Xen"
    .endm
    note {XEN_VERSION}, 8
    .asciz "xen-3.0"
    note {LOADER}, 8
    .asciz "generic"
    note {GUEST_OS}, 5
    .asciz "bare"
    note {VIRT_BASE_NOTE}, 8
    .quad {VIRT_BASE}
    note {ENTRY}, 8
    .quad _start
    note {HYPERCALL_PAGE}, 8
    .quad {hypercall_page}
    .balign 4
    .purgem note
    .popsection
    "#,
    XEN_VERSION = const XEN_ELFNOTE_XEN_VERSION,
    LOADER = const XEN_ELFNOTE_LOADER,
    GUEST_OS = const XEN_ELFNOTE_GUEST_OS,
    VIRT_BASE_NOTE = const XEN_ELFNOTE_VIRT_BASE,
    VIRT_BASE = const VIRT_BASE,
    ENTRY = const XEN_ELFNOTE_ENTRY,
    HYPERCALL_PAGE = const XEN_ELFNOTE_HYPERCALL_PAGE,
    hypercall_page = sym bare::HYPERCALL_PAGE,
);

// First instructions. The loader's stack is left at once: a page is nothing for Rust.
global_asm!(
    r#"
    .pushsection .text._start, "ax", @progbits
    .globl _start
_start:
    cld
    lea rsp, [rip + {stack} + {stack_bytes}]
    xor ebp, ebp
    mov rdi, rsi
    call {start}
    ud2
    .popsection
    "#,
    stack = sym STACK,
    stack_bytes = const size_of::<Stack>(),
    start = sym start,
);

/// First Rust code. Each step needs those before it: faults can be printed from the first line on, memory comes before
/// whatever allocates.
extern "C" fn start(info: *mut StartInfo) -> ! {
    START_INFO.store(info, Relaxed);
    traps::install();
    memory::install();
    memory::unmap_boot_page(STACK.0.get() as usize);
    shared::install();
    suspend::publish();
    exit::finish(programs::run(command_line()))
}

/// Returns what the domain builder told the domain.
///
/// # Panics
/// Before `start`.
pub fn start_info() -> &'static StartInfo {
    let info = START_INFO.load(Relaxed);
    assert!(!info.is_null(), "no start_info yet");
    // SAFETY: Xen put it into the boot region, which stays mapped. While the domain runs nobody changes it; what a suspend changes, the
    // numbers of frames and ports, is read by value, and no reference to it is held.
    unsafe { &*info }
}

/// Returns the frame that `start_info` stands in.
pub fn start_info_mfn() -> Mfn {
    memory::frames::mfn_at(START_INFO.load(Relaxed) as usize)
}

/// Gives the frames of the store's ring and of the console's other numbers: for a toolstack that saves the domain, and back.
///
/// # Safety
/// Not the first domain, and a suspend is on its way.
pub unsafe fn renumber_rings(number: impl Fn(usize) -> usize) {
    let info = START_INFO.load(Relaxed);
    // SAFETY: the page is mapped and writable, and no reference to these fields is held; not the first domain, so this is the variant
    // that its builder filled in.
    unsafe {
        let (store, console) = (&raw mut (*info).store_mfn.0, &raw mut (*info).console.domU.mfn.0);
        store.write(number(store.read()));
        console.write(number(console.read()));
    }
}

/// Tells whether this is the first domain, which drives the machine: it has the console hypercall and I/O ports, and
/// neither console ring nor xenstore.
pub fn is_dom0() -> bool {
    start_info().flags & SIF_INITDOMAIN != 0
}

/// Returns the command line: the part of it that is text.
pub fn command_line() -> &'static str {
    let bytes = &start_info().cmd_line;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let text = &bytes[..end];
    match core::str::from_utf8(text) {
        Ok(line) => line,
        Err(error) => core::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or(""),
    }
}
