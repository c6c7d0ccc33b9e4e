//! `vcpu_op`: virtual CPUs.

use xen_sys::arch_x86::xen::VcpuGuestContext;
use xen_sys::vcpu::*;
use xen_sys::{Gfn, Nr};

use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Makes the hypercall with the address of an argument, or 0.
///
/// # Safety
/// The argument is that of the command, and the caller answers for what it does.
unsafe fn op<H: Hypervisor>(hypervisor: &H, cmd: u32, vcpu: u32, arg: usize) -> Result<usize, XenError> {
    // SAFETY: the caller's.
    from_ret(unsafe { hypervisor.hypercall(Nr::VCPU_OP, [cmd as usize, vcpu as usize, arg, 0, 0]) })
}

/// Returns the address of an argument that Xen reads or writes during the call.
fn address<T>(arg: &mut T) -> usize {
    core::ptr::from_mut(arg).expose_provenance()
}

/// Sets the registers with which a vcpu will start.
///
/// # Errors
/// `EEXIST` if it was initialised before, `ENOENT` if there is no such vcpu.
///
/// # Safety
/// What the context describes (code, stack, page tables) is right and stays, and nothing else uses that stack.
pub unsafe fn initialise<H: Hypervisor>(
    hypervisor: &H,
    vcpu: u32,
    context: &mut VcpuGuestContext,
) -> Result<(), XenError> {
    // SAFETY: Xen reads the context; the rest is the caller's.
    unsafe { op(hypervisor, VCPUOP_initialise, vcpu, address(context)) }.map(drop)
}

/// Lets an initialised vcpu run.
///
/// # Errors
/// `EINVAL` if it isn't initialised, `ENOENT` if there is no such vcpu.
///
/// # Safety
/// Whatever it runs next is ready for it.
pub unsafe fn up<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<(), XenError> {
    // SAFETY: no argument; the rest is the caller's.
    unsafe { op(hypervisor, VCPUOP_up, vcpu, 0) }.map(drop)
}

/// Stops a vcpu, soon.
///
/// # Errors
/// `ENOENT` if there is no such vcpu.
pub fn down<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<(), XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { op(hypervisor, VCPUOP_down, vcpu, 0) }.map(drop)
}

/// Tells whether a vcpu runs.
///
/// # Errors
/// `ENOENT` if there is no such vcpu.
pub fn is_up<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<bool, XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { op(hypervisor, VCPUOP_is_up, vcpu, 0) }.map(|up| up != 0)
}

/// Returns how long a vcpu ran, waited and slept.
///
/// # Errors
/// `ENOENT` if there is no such vcpu.
pub fn get_runstate_info<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<VcpuRunstateInfo, XenError> {
    // SAFETY: integers only, so all zero is a value.
    let mut info: VcpuRunstateInfo = unsafe { core::mem::zeroed() };
    // SAFETY: Xen writes the structure.
    unsafe { op(hypervisor, VCPUOP_get_runstate_info, vcpu, address(&mut info)) }?;
    Ok(info)
}

/// Moves a vcpu's `VcpuInfo` out of the shared page to `offset` in a page of the domain's. Once, and for good.
///
/// # Errors
/// `EINVAL` if it was moved before or would cross a page, `ENOENT` if there is no such vcpu.
///
/// # Safety
/// The page is the caller's, stays allocated for ever, and is accessed there only through `VcpuInfo`'s atomics.
pub unsafe fn register_vcpu_info<H: Hypervisor>(
    hypervisor: &H,
    vcpu: u32,
    page: Gfn,
    offset: u32,
) -> Result<(), XenError> {
    let mut arg = VcpuRegisterVcpuInfo { mfn: page.0, offset, rsvd: 0 };
    // SAFETY: Xen reads the argument; the rest is the caller's.
    unsafe { op(hypervisor, VCPUOP_register_vcpu_info, vcpu, address(&mut arg)) }.map(drop)
}

/// Sets the one-shot timer of the calling vcpu to an absolute system time. `flags`: `VCPU_SSHOTTMR_future` or 0; Xen 4.17
/// takes no notice of it, and fires at once if the time is past.
///
/// # Errors
/// `ETIME` from an older Xen, if the time is past and the flag asks for it; `EINVAL` for a vcpu that isn't the caller.
pub fn set_singleshot_timer<H: Hypervisor>(
    hypervisor: &H,
    vcpu: u32,
    deadline_ns: u64,
    flags: u32,
) -> Result<(), XenError> {
    let mut arg = VcpuSetSingleshotTimer { timeout_abs_ns: deadline_ns, flags };
    // SAFETY: Xen reads the argument.
    unsafe { op(hypervisor, VCPUOP_set_singleshot_timer, vcpu, address(&mut arg)) }.map(drop)
}

/// Stops the one-shot timer of the calling vcpu.
///
/// # Errors
/// `EINVAL` for a vcpu that isn't the caller.
pub fn stop_singleshot_timer<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<(), XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { op(hypervisor, VCPUOP_stop_singleshot_timer, vcpu, 0) }.map(drop)
}

/// Stops the periodic timer of a vcpu: Xen starts a PV vcpu with one of 10 ms.
///
/// # Errors
/// `ENOENT` if there is no such vcpu.
pub fn stop_periodic_timer<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<(), XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { op(hypervisor, VCPUOP_stop_periodic_timer, vcpu, 0) }.map(drop)
}
