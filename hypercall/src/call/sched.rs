//! `sched_op` and `set_timer_op`: giving the processor away, waiting, ending.

use xen_sys::sched::*;
use xen_sys::{GuestHandle, Nr, Port};

use super::{command, command_alone};
use crate::error::{XenError, from_ret};
use crate::platform::Hypervisor;

/// Lets another vcpu run.
///
/// # Errors
/// None known.
pub fn yield_now<H: Hypervisor>(hypervisor: &H) -> Result<(), XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { command_alone(hypervisor, Nr::SCHED_OP, SCHEDOP_yield) }.map(drop)
}

/// Unmasks events of this vcpu and sleeps until one is pending. The callback must be set, or the domain crashes at the
/// first event.
///
/// # Errors
/// None known.
pub fn block<H: Hypervisor>(hypervisor: &H) -> Result<(), XenError> {
    // SAFETY: no argument, no effect on memory.
    unsafe { command_alone(hypervisor, Nr::SCHED_OP, SCHEDOP_block) }.map(drop)
}

/// Sleeps until one of `ports` is pending or system time reaches `deadline_ns` (0: no deadline). Returns at once if one is
/// pending already. Masked ports count; nothing is cleared.
///
/// # Errors
/// `EINVAL` for a number that is no port's, or more than 128 ports.
pub fn poll<H: Hypervisor>(hypervisor: &H, ports: &[Port], deadline_ns: u64) -> Result<(), XenError> {
    let mut arg =
        SchedPoll { ports: GuestHandle(ports.as_ptr().cast_mut()), nr_ports: ports.len() as u32, timeout: deadline_ns };
    // SAFETY: Xen only reads the ports.
    unsafe { command(hypervisor, Nr::SCHED_OP, SCHEDOP_poll, &mut arg) }.map(drop)
}

/// Ends the domain for a `SHUTDOWN_` reason, all vcpus at once. Returns only if Xen refuses.
///
/// To suspend, use [`suspend`]: it returns.
///
/// # Errors
/// `EINVAL` for an unknown reason.
pub fn shutdown<H: Hypervisor>(hypervisor: &H, reason: u32) -> Result<(), XenError> {
    // SAFETY: Xen only reads the argument; the domain ends.
    unsafe { command(hypervisor, Nr::SCHED_OP, SCHEDOP_shutdown, &mut SchedShutdown { reason }) }.map(drop)
}

/// Suspends the domain. Returns `false` in the resumed domain, in which every frame number, port and grant is another, and
/// `true` if the suspend was cancelled and nothing has changed.
///
/// # Errors
/// As the hypervisor says.
///
/// # Safety
/// The domain is ready to be saved: one vcpu runs, no foreign memory is mapped, and nothing relies afterwards on a frame
/// number, port, grant or mapping from before.
pub unsafe fn suspend<H: Hypervisor>(hypervisor: &H, start_info_mfn: xen_sys::Mfn) -> Result<bool, XenError> {
    let mut arg = SchedShutdown { reason: SHUTDOWN_suspend };
    let arg = core::ptr::from_mut(&mut arg).expose_provenance();
    let args = [SCHEDOP_shutdown as usize, arg, start_info_mfn.0 as usize, 0, 0];
    // SAFETY: Xen reads the argument; the caller vouches for the domain.
    from_ret(unsafe { hypervisor.hypercall(Nr::SCHED_OP, args) }).map(|cancelled| cancelled != 0)
}

/// Sets the one-shot timer of this vcpu to an absolute system time; 0 stops it. It fires as `VIRQ_TIMER`.
///
/// # Errors
/// None known.
pub fn set_timer<H: Hypervisor>(hypervisor: &H, deadline_ns: u64) -> Result<(), XenError> {
    #[cfg(target_pointer_width = "64")]
    let args = [deadline_ns as usize, 0, 0, 0, 0];
    #[cfg(target_pointer_width = "32")]
    let args = [deadline_ns as usize, (deadline_ns >> 32) as usize, 0, 0, 0];
    // SAFETY: no memory is touched.
    from_ret(unsafe { hypervisor.hypercall(Nr::SET_TIMER_OP, args) }).map(drop)
}
