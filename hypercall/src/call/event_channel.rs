//! `event_channel_op`: making, binding and signalling event channels.
//!
//! All of it is safe but the two calls that hand frames to Xen: the worst that the others can do is to lose an event.

use xen_sys::event_channel::*;
use xen_sys::{DomId, Gfn, Nr, Port};

use super::{SELF, command};
use crate::error::XenError;
use crate::platform::Hypervisor;

/// Makes the hypercall with an argument that has no pointers in it.
fn op<H: Hypervisor, T>(hypervisor: &H, cmd: u32, arg: &mut T) -> Result<usize, XenError> {
    // SAFETY: every caller pairs the command with its structure, and none of these structures has a pointer in it.
    unsafe { command(hypervisor, Nr::EVENT_CHANNEL_OP, cmd, arg) }
}

/// Makes a port to which `remote` may bind.
///
/// # Errors
/// `ENOSPC` if there is no port left, `ESRCH` if there is no such domain.
pub fn alloc_unbound<H: Hypervisor>(hypervisor: &H, remote: DomId) -> Result<Port, XenError> {
    let mut arg = EvtchnAllocUnbound { dom: SELF, remote_dom: remote, port: Port(0) };
    op(hypervisor, EVTCHNOP_alloc_unbound, &mut arg)?;
    Ok(arg.port)
}

/// Makes a local port and binds it to `port` of `remote`. Xen sets the new port pending, in case that the remote end has
/// signalled already.
///
/// # Errors
/// `EINVAL` if that port is not offered to this domain, `ENOSPC` if there is no local port left.
pub fn bind_interdomain<H: Hypervisor>(hypervisor: &H, remote: DomId, port: Port) -> Result<Port, XenError> {
    let mut arg = EvtchnBindInterdomain { remote_dom: remote, remote_port: port, local_port: Port(0) };
    op(hypervisor, EVTCHNOP_bind_interdomain, &mut arg)?;
    Ok(arg.local_port)
}

/// Makes a port for a virtual interrupt (`VIRQ_` of `xen.h`) of a vcpu. Global interrupts are bound on vcpu 0.
///
/// # Errors
/// `EEXIST` if it is bound already, `ENOENT` if there is no such vcpu, `EINVAL` if there is no such interrupt.
pub fn bind_virq<H: Hypervisor>(hypervisor: &H, virq: u32, vcpu: u32) -> Result<Port, XenError> {
    let mut arg = EvtchnBindVirq { virq, vcpu, port: Port(0) };
    op(hypervisor, EVTCHNOP_bind_virq, &mut arg)?;
    Ok(arg.port)
}

/// Makes a port for a physical interrupt, which the domain must own. `flags`: `BIND_PIRQ__WILL_SHARE` or 0.
///
/// # Errors
/// `EEXIST` if it is bound already, `EPERM` if it is not this domain's.
pub fn bind_pirq<H: Hypervisor>(hypervisor: &H, pirq: u32, flags: u32) -> Result<Port, XenError> {
    let mut arg = EvtchnBindPirq { pirq, flags, port: Port(0) };
    op(hypervisor, EVTCHNOP_bind_pirq, &mut arg)?;
    Ok(arg.port)
}

/// Makes a port by which the vcpus of this domain signal `vcpu`.
///
/// # Errors
/// `ENOENT` if there is no such vcpu, `ENOSPC` if there is no port left.
pub fn bind_ipi<H: Hypervisor>(hypervisor: &H, vcpu: u32) -> Result<Port, XenError> {
    let mut arg = EvtchnBindIpi { vcpu, port: Port(0) };
    op(hypervisor, EVTCHNOP_bind_ipi, &mut arg)?;
    Ok(arg.port)
}

/// Lets the events of a port arrive at another vcpu. A new port's arrive at vcpu 0.
///
/// # Errors
/// `ENOENT` if there is no such vcpu, `EINVAL` if the port belongs to one vcpu by its kind.
pub fn bind_vcpu<H: Hypervisor>(hypervisor: &H, port: Port, vcpu: u32) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_bind_vcpu, &mut EvtchnBindVcpu { port, vcpu }).map(drop)
}

/// Closes a port. Its pending bit is cleared; the remote end, if there is one, goes back to being unbound.
///
/// # Errors
/// `EINVAL` if there is no such port.
pub fn close<H: Hypervisor>(hypervisor: &H, port: Port) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_close, &mut EvtchnClose { port }).map(drop)
}

/// Signals the other end of a port. Nothing happens if the other end is not bound.
///
/// # Errors
/// `EINVAL` if there is no such port, or it is not of a kind that can be signalled.
#[inline]
pub fn send<H: Hypervisor>(hypervisor: &H, port: Port) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_send, &mut EvtchnSend { port }).map(drop)
}

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not in use.
    Closed,
    /// Offered; the domain that may bind to it.
    Unbound(DomId),
    /// Connected to a port of another domain, or of this one.
    Interdomain(DomId, Port),
    /// A physical interrupt.
    Pirq(u32),
    /// A virtual interrupt.
    Virq(u32),
    /// A signal between this domain's vcpus.
    Ipi,
    /// Something that this crate doesn't know: the number that Xen gave.
    Other(u32),
}

/// Returns what a port of this domain is, and the vcpu at which its events arrive.
///
/// # Errors
/// `EINVAL` if the number is not a port's.
#[allow(non_upper_case_globals, reason = "the constants have their C names")]
pub fn status<H: Hypervisor>(hypervisor: &H, port: Port) -> Result<(Status, u32), XenError> {
    // SAFETY: integers only, so all zero is a value.
    let mut arg = EvtchnStatus { dom: SELF, port, ..unsafe { core::mem::zeroed() } };
    op(hypervisor, EVTCHNOP_status, &mut arg)?;
    // SAFETY: Xen fills the member that belongs to the status; all members are plain integers, and the rest is zero.
    let status = unsafe {
        match arg.status {
            EVTCHNSTAT_closed => Status::Closed,
            EVTCHNSTAT_unbound => Status::Unbound(arg.u.unbound.dom),
            EVTCHNSTAT_interdomain => Status::Interdomain(arg.u.interdomain.dom, arg.u.interdomain.port),
            EVTCHNSTAT_pirq => Status::Pirq(arg.u.pirq),
            EVTCHNSTAT_virq => Status::Virq(arg.u.virq),
            EVTCHNSTAT_ipi => Status::Ipi,
            other => Status::Other(other),
        }
    };
    Ok((status, arg.vcpu))
}

/// Clears the mask bit of a port and, if an event is pending, raises the upcall of the port's vcpu.
///
/// # Errors
/// `EINVAL` if the number is not a port's.
pub fn unmask<H: Hypervisor>(hypervisor: &H, port: Port) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_unmask, &mut EvtchnUnmask { port }).map(drop)
}

/// Closes all ports of this domain, and goes back to two-level event channels.
///
/// # Errors
/// As the hypervisor says.
pub fn reset<H: Hypervisor>(hypervisor: &H) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_reset, &mut EvtchnReset { dom: SELF }).map(drop)
}

/// Gives Xen the control block of a vcpu, at `offset` in a page, for events by queues. Returns the bits of a link.
///
/// # Errors
/// `EINVAL` if the block is not aligned or crosses a page; `ENOENT` if there is no such vcpu.
///
/// # Safety
/// The page of `control` is the caller's, stays allocated until [`reset`], and is accessed only atomically.
pub unsafe fn init_control<H: Hypervisor>(
    hypervisor: &H,
    control: Gfn,
    offset: u32,
    vcpu: u32,
) -> Result<u8, XenError> {
    let mut arg = EvtchnInitControl { control_gfn: control.0, offset, vcpu, link_bits: 0, _pad: [0; 7] };
    op(hypervisor, EVTCHNOP_init_control, &mut arg)?;
    Ok(arg.link_bits)
}

/// Gives Xen a further page of event words.
///
/// # Errors
/// `ENOSPC` if the array has its full size.
///
/// # Safety
/// The page of `array` is the caller's, stays allocated until [`reset`], and is accessed only atomically.
pub unsafe fn expand_array<H: Hypervisor>(hypervisor: &H, array: Gfn) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_expand_array, &mut EvtchnExpandArray { array_gfn: array.0 }).map(drop)
}

/// Sets the priority of a port: 0 is the highest, 15 the lowest. Only for events by queues.
///
/// # Errors
/// `ENOSYS` with two-level events, `EINVAL` for other priorities.
pub fn set_priority<H: Hypervisor>(hypervisor: &H, port: Port, priority: u32) -> Result<(), XenError> {
    op(hypervisor, EVTCHNOP_set_priority, &mut EvtchnSetPriority { port, priority }).map(drop)
}
