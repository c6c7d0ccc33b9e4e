//! The machine instructions that enter Xen.
//!
//! | | 64-bit guest | 32-bit guest |
//! |---|---|---|
//! | number | `rax` | `eax` |
//! | arguments | `rdi` `rsi` `rdx` `r10` `r8` | `ebx` `ecx` `edx` `esi` `edi` |
//! | result | `rax` | `eax` |
//! | lost | `rcx` `r11`, the arguments' registers | the arguments' registers |
//! | instruction | `syscall` | `int 0x82` |
//!
//! Both kinds of guest may instead call into the hypercall page, which Xen fills with one entry of 32 bytes a hypercall. It
//! exists because only Xen knows which instruction is right (hardware-virtualised guests use `vmcall` or `vmmcall`).

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
use core::{arch::asm, ptr::NonNull};

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
use xen_sys::Nr;

/// Bytes of one entry of the hypercall page.
pub const PAGE_ENTRY: usize = 32;

/// Enters Xen by `syscall`, which needs no hypercall page. Only a PV guest may.
///
/// # Safety
/// The code runs in kernel mode of a 64-bit PV guest, and the arguments are right for `nr`: see
/// [`Hypervisor::hypercall`](crate::Hypervisor::hypercall).
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn syscall(nr: Nr, args: [usize; 5]) -> isize {
    let ret;
    // SAFETY: the caller vouches for the arguments; the operands name every register that the call changes, and memory
    // is assumed to change.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr.0 => ret,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// Enters Xen by a call into the hypercall page.
///
/// # Safety
/// `page` is the hypercall page, filled by Xen and executable, and the arguments are right for `nr`: see
/// [`Hypervisor::hypercall`](crate::Hypervisor::hypercall).
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn hypercall_page(page: NonNull<u8>, nr: Nr, args: [usize; 5]) -> isize {
    let entry = page.as_ptr().wrapping_add(nr.0 * PAGE_ENTRY);
    let ret;
    // SAFETY: as in `syscall`; the call pushes its return address, so `nostack` is not claimed.
    unsafe {
        asm!(
            "call {entry}",
            entry = in(reg) entry,
            lateout("rax") ret,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            out("rcx") _,
            out("r11") _,
        );
    }
    ret
}

/// Enters Xen by `int 0x82`, which needs no hypercall page. Only a 32-bit PV guest may.
///
/// # Safety
/// The code runs in kernel mode of a 32-bit PV guest, and the arguments are right for `nr`: see
/// [`Hypervisor::hypercall`](crate::Hypervisor::hypercall).
#[cfg(target_arch = "x86")]
#[inline]
pub unsafe fn int82(nr: Nr, args: [usize; 5]) -> isize {
    let ret;
    // SAFETY: the caller vouches for the arguments. `esi` can't be an operand, so it is saved on the stack, and `edi` is
    // loaded last because it points to the arguments.
    unsafe {
        asm!(
            "push esi",
            "mov ebx, [edi]",
            "mov ecx, [edi + 4]",
            "mov edx, [edi + 8]",
            "mov esi, [edi + 12]",
            "mov edi, [edi + 16]",
            "int 0x82",
            "pop esi",
            inlateout("eax") nr.0 => ret,
            inlateout("edi") args.as_ptr() => _,
            out("ebx") _,
            out("ecx") _,
            out("edx") _,
        );
    }
    ret
}

/// Enters Xen by a call into the hypercall page.
///
/// # Safety
/// `page` is the hypercall page, filled by Xen and executable, and the arguments are right for `nr`: see
/// [`Hypervisor::hypercall`](crate::Hypervisor::hypercall).
#[cfg(target_arch = "x86")]
#[inline]
pub unsafe fn hypercall_page(page: NonNull<u8>, nr: Nr, args: [usize; 5]) -> isize {
    let entry = page.as_ptr().wrapping_add(nr.0 * PAGE_ENTRY);
    let ret;
    // SAFETY: as in `int82`; the entry loads `eax` itself.
    unsafe {
        asm!(
            "push esi",
            "mov ebx, [edi]",
            "mov ecx, [edi + 4]",
            "mov edx, [edi + 8]",
            "mov esi, [edi + 12]",
            "mov edi, [edi + 16]",
            "call eax",
            "pop esi",
            inlateout("eax") entry => ret,
            inlateout("edi") args.as_ptr() => _,
            out("ebx") _,
            out("ecx") _,
            out("edx") _,
        );
    }
    ret
}
