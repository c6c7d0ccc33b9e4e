//! The calls by which a PV kernel says where exceptions, events and system calls enter it.
//!
//! The way back, hypercall `iret`, does not return to its caller: it belongs in the assembly of the entry code.

use xen_sys::Nr;
use xen_sys::arch_x86::xen::TrapInfo;

use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Sets the virtual trap table.
///
/// # Errors
/// `EFAULT`, `EPERM` for a selector that isn't the guest's.
///
/// # Safety
/// Each handler is code that copes with its exception.
///
/// # Panics
/// If the last entry is not the end mark, whose address is 0: Xen would read on behind the list.
pub unsafe fn set_trap_table<H: Hypervisor>(hypervisor: &H, traps: &[TrapInfo]) -> Result<(), XenError> {
    assert!(traps.last().is_some_and(|last| last.address == 0), "the trap table has no end mark");
    // SAFETY: Xen reads the list up to its end mark; the caller vouches for the handlers.
    from_ret(unsafe { hypervisor.hypercall(Nr::SET_TRAP_TABLE, [traps.as_ptr().expose_provenance(), 0, 0, 0, 0]) })
        .map(drop)
}

/// Sets the addresses at which events, failed returns and system calls of user mode enter the kernel.
///
/// # Errors
/// `EINVAL` for an address that isn't canonical.
///
/// # Safety
/// Each address is code that copes with being entered so, or 0 if it never is.
#[cfg(target_pointer_width = "64")]
pub unsafe fn set_callbacks<H: Hypervisor>(
    hypervisor: &H,
    event: usize,
    failsafe: usize,
    syscall: usize,
) -> Result<(), XenError> {
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::SET_CALLBACKS, [event, failsafe, syscall, 0, 0]) }).map(drop)
}

/// Sets selector and address of the code by which events and failed returns enter the kernel.
///
/// # Errors
/// `EINVAL` for a selector that isn't the guest's.
///
/// # Safety
/// Each address is code that copes with being entered so.
#[cfg(target_pointer_width = "32")]
pub unsafe fn set_callbacks<H: Hypervisor>(
    hypervisor: &H,
    event: (usize, usize),
    failsafe: (usize, usize),
) -> Result<(), XenError> {
    let args = [event.0, event.1, failsafe.0, failsafe.1, 0];
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::SET_CALLBACKS, args) }).map(drop)
}

/// Sets the stack of kernel mode, which the next entry from user mode uses.
///
/// # Errors
/// As the hypervisor says.
///
/// # Safety
/// `top` is the end of a stack that nothing else uses.
pub unsafe fn stack_switch<H: Hypervisor>(hypervisor: &H, selector: u16, top: usize) -> Result<(), XenError> {
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::STACK_SWITCH, [selector as usize, top, 0, 0, 0]) }).map(drop)
}

/// Sets the frames of the global descriptor table, 512 descriptors a frame.
///
/// # Errors
/// `EINVAL` if a frame is writable somewhere.
///
/// # Safety
/// The frames hold descriptors under which the running code goes on to work.
pub unsafe fn set_gdt<H: Hypervisor>(hypervisor: &H, frames: &[usize], entries: usize) -> Result<(), XenError> {
    let args = [frames.as_ptr().expose_provenance(), entries.min(512 * frames.len()), 0, 0, 0];
    // SAFETY: Xen reads as many frames as the entries need; the caller vouches for what is in them.
    from_ret(unsafe { hypervisor.hypercall(Nr::SET_GDT, args) }).map(drop)
}

/// Sets the base of a segment. `which`: `SEGBASE_`.
///
/// # Errors
/// `EINVAL` for an address that isn't canonical.
///
/// # Safety
/// Nothing relies on the base from before.
#[cfg(target_pointer_width = "64")]
pub unsafe fn set_segment_base<H: Hypervisor>(hypervisor: &H, which: u32, base: usize) -> Result<(), XenError> {
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::SET_SEGMENT_BASE, [which as usize, base, 0, 0, 0]) }).map(drop)
}

/// Switches an assist (`VMASST_TYPE_`) on or off (`VMASST_CMD_`).
///
/// # Errors
/// `EINVAL` for an assist that this Xen doesn't have.
pub fn vm_assist<H: Hypervisor>(hypervisor: &H, cmd: u32, assist: u32) -> Result<(), XenError> {
    // SAFETY: an assist adds to what Xen emulates; it takes no memory away.
    from_ret(unsafe { hypervisor.hypercall(Nr::VM_ASSIST, [cmd as usize, assist as usize, 0, 0, 0]) }).map(drop)
}
