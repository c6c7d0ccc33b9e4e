//! Faults of the processor: all but those of [`probe_read`] and [`probe_write`] print the registers and end the domain.
//!
//! Xen enters a handler on the domain's own stack with rcx, r11, the error code where there is one, rip, cs, rflags, rsp
//! and ss; the way back is the hypercall iret.

use core::arch::global_asm;
use core::fmt;

use hypercall::call::trap;
use xen_sys::Nr;
use xen_sys::arch_x86::xen::TrapInfo;
use xen_sys::arch_x86::xen_x86_64::FLAT_KERNEL_CS64;

use crate::exit::{End, exit, last_words};
use crate::{Bare, shared};

/// Vectors with a handler: 0 to 19, divide error to SIMD floating point.
const VECTORS: usize = 20;
/// Names of the vectors.
const NAMES: [&str; VECTORS] = [
    "divide error",
    "debug",
    "nmi",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no coprocessor",
    "double fault",
    "coprocessor overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection",
    "page fault",
    "spurious",
    "floating point",
    "alignment",
    "machine check",
    "SIMD floating point",
];
/// The vector with an address beside it.
const PAGE_FAULT: u64 = 14;

/// Registers at a fault, in the order in which the stub below and Xen push them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "named after the registers")]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

// One stub a vector; those without an error code push 0 in its place. Xen's stack frame for iret: flags, rcx, r11, rax
// below rip.
global_asm!(
    r#"
    .pushsection .text.traps, "ax", @progbits
    .macro trap_stub vector, has_code
trap_stub_\vector:
    pop rcx
    pop r11
    .if \has_code == 0
    push 0
    .endif
    push \vector
    jmp trap_common
    .endm

    .irp vector, 0,1,2,3,4,5,6,7,9,15,16,18,19
    trap_stub \vector, 0
    .endr
    .irp vector, 8,10,11,12,13,14,17
    trap_stub \vector, 1
    .endr

trap_common:
    push rdi
    push rsi
    push rdx
    push rcx
    push rax
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    call {trapped}
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 16
    push 0
    push rcx
    push r11
    push rax
    mov eax, {iret}
    syscall
    ud2
    .popsection

    .pushsection .rodata.traps, "a", @progbits
    .balign 8
trap_stubs:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19
    .quad trap_stub_\vector
    .endr
    .popsection

    .pushsection .text.probes, "ax", @progbits
probe_read_u64:
    xor eax, eax
probe_read_at:
    mov rcx, [rdi]
    mov [rsi], rcx
    mov eax, 1
probe_read_end:
    ret
probe_write_u64:
    xor eax, eax
probe_write_at:
    mov [rdi], rsi
    mov eax, 1
probe_write_end:
    ret
    .popsection
    .purgem trap_stub
    "#,
    trapped = sym trapped,
    iret = const Nr::IRET.0,
);

unsafe extern "C" {
    static trap_stubs: [usize; VECTORS];
    fn probe_read_u64(at: *const u64, into: *mut u64) -> u32;
    fn probe_write_u64(at: *mut u64, value: u64) -> u32;
    safe static probe_read_at: u8;
    safe static probe_read_end: u8;
    safe static probe_write_at: u8;
    safe static probe_write_end: u8;
}

/// Tells Xen where the handlers are.
///
/// # Panics
/// If Xen refuses.
pub fn install() {
    let mut table = [TrapInfo::default(); VECTORS + 1];
    for (vector, entry) in table[..VECTORS].iter_mut().enumerate() {
        // SAFETY: the table stands in the image, one entry a vector.
        let address = unsafe { trap_stubs[vector] };
        *entry = TrapInfo { vector: vector as u8, flags: 0, cs: FLAT_KERNEL_CS64, address };
    }
    // SAFETY: the stubs above.
    let done = unsafe { trap::set_trap_table(&Bare, &table) };
    assert!(done.is_ok(), "set_trap_table: {done:?}");
}

/// Reads the word at `address`; `None` if that faults.
pub fn probe_read(address: usize) -> Option<u64> {
    let mut value = 0;
    // SAFETY: if the read faults, the handler ends the function with 0. What is there is only read.
    let done = unsafe { probe_read_u64(address as *const u64, &raw mut value) };
    (done != 0).then_some(value)
}

/// Writes the word at `address`; tells whether that was possible.
///
/// # Safety
/// Nobody is harmed by the write if it is possible.
pub unsafe fn probe_write(address: usize, value: u64) -> bool {
    // SAFETY: if the write faults, the handler ends the function with 0; else the caller answers for it.
    unsafe { probe_write_u64(address as *mut u64, value) != 0 }
}

/// Handles a fault: continues a probe, ends the domain for everything else.
extern "C" fn trapped(registers: &mut Registers) {
    let probes = [
        (&raw const probe_read_at, &raw const probe_read_end),
        (&raw const probe_write_at, &raw const probe_write_end),
    ];
    for (at, end) in probes {
        if registers.vector == PAGE_FAULT && registers.rip == at as u64 {
            registers.rip = end as u64;
            return;
        }
    }
    last_words(format_args!("{registers}\nguest: fault at {:#x}", registers.rip));
    exit(End::Faulted)
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.get(self.vector as usize).copied().unwrap_or("unknown");
        write!(f, "fault {} ({name}), error code {:#x}", self.vector, self.error_code)?;
        if self.vector == PAGE_FAULT {
            write!(f, ", address {:#x}", shared::fault_address())?;
        }
        // Above the selector stands whether events were masked.
        let rows = [
            [("rip", self.rip), ("rsp", self.rsp), ("rflags", self.rflags), ("cs", self.cs & 0xffff)],
            [("rax", self.rax), ("rbx", self.rbx), ("rcx", self.rcx), ("rdx", self.rdx)],
            [("rsi", self.rsi), ("rdi", self.rdi), ("rbp", self.rbp), ("r8", self.r8)],
            [("r9", self.r9), ("r10", self.r10), ("r11", self.r11), ("r12", self.r12)],
            [("r13", self.r13), ("r14", self.r14), ("r15", self.r15), ("ss", self.ss)],
        ];
        for row in rows {
            f.write_str("\n")?;
            for (name, value) in row {
                write!(f, " {name:>6} {value:016x}")?;
            }
        }
        Ok(())
    }
}
