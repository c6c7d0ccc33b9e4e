//! `event_channel.h`: event channels, by which domains, Xen and devices interrupt a vcpu.
//!
//! An event sets the port's pending bit; where and how a port's bits stand is the two-level scheme of
//! [`SharedInfo`](crate::xen::SharedInfo) or the FIFO scheme of [`EvtchnFifoControlBlock`].

use core::sync::atomic::AtomicU32;

use static_assertions::const_assert_eq;

use crate::{DomId, Port};

/// Command: binds a new port to another domain's unbound one; [`EvtchnBindInterdomain`].
pub const EVTCHNOP_bind_interdomain: u32 = 0;
/// Command: binds a new port to a virtual interrupt; [`EvtchnBindVirq`].
pub const EVTCHNOP_bind_virq: u32 = 1;
/// Command: binds a new port to a physical interrupt; [`EvtchnBindPirq`].
pub const EVTCHNOP_bind_pirq: u32 = 2;
/// Command: closes a port; [`EvtchnClose`].
pub const EVTCHNOP_close: u32 = 3;
/// Command: notifies the other end; [`EvtchnSend`].
pub const EVTCHNOP_send: u32 = 4;
/// Command: tells the state of a port; [`EvtchnStatus`].
pub const EVTCHNOP_status: u32 = 5;
/// Command: allocates a port that a given domain may bind to; [`EvtchnAllocUnbound`].
pub const EVTCHNOP_alloc_unbound: u32 = 6;
/// Command: allocates a port by which vcpus interrupt one another; [`EvtchnBindIpi`].
pub const EVTCHNOP_bind_ipi: u32 = 7;
/// Command: has a port's events delivered to another vcpu; [`EvtchnBindVcpu`].
pub const EVTCHNOP_bind_vcpu: u32 = 8;
/// Command: unmasks a port, and raises an upcall if it is pending; [`EvtchnUnmask`].
pub const EVTCHNOP_unmask: u32 = 9;
/// Command: closes all ports; [`EvtchnReset`].
pub const EVTCHNOP_reset: u32 = 10;
/// Command: registers a vcpu's FIFO control block; [`EvtchnInitControl`].
pub const EVTCHNOP_init_control: u32 = 11;
/// Command: adds a page of FIFO event words; [`EvtchnExpandArray`].
pub const EVTCHNOP_expand_array: u32 = 12;
/// Command: sets a port's FIFO priority; [`EvtchnSetPriority`].
pub const EVTCHNOP_set_priority: u32 = 13;

/// `event_channel.h`, `struct evtchn_alloc_unbound`. Argument of [`EVTCHNOP_alloc_unbound`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnAllocUnbound {
    /// Domain that gets the port; [`DOMID_SELF`](crate::xen::DOMID_SELF) but for the privileged.
    pub dom: DomId,
    /// Domain that may bind to it.
    pub remote_dom: DomId,
    /// Out: the new port.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_bind_interdomain`. Argument of [`EVTCHNOP_bind_interdomain`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindInterdomain {
    /// Domain of the other end.
    pub remote_dom: DomId,
    /// Its unbound port.
    pub remote_port: Port,
    /// Out: the new port. It is pending at once.
    pub local_port: Port,
}

/// `event_channel.h`, `struct evtchn_bind_virq`. Argument of [`EVTCHNOP_bind_virq`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindVirq {
    /// One of the `VIRQ_` constants.
    pub virq: u32,
    /// Vcpu whose interrupt it is; 0 for a global one.
    pub vcpu: u32,
    /// Out: the new port.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_bind_pirq`. Argument of [`EVTCHNOP_bind_pirq`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindPirq {
    /// Number of the physical interrupt in this domain.
    pub pirq: u32,
    /// [`BIND_PIRQ__WILL_SHARE`] or 0.
    pub flags: u32,
    /// Out: the new port.
    pub port: Port,
}

/// Flag of [`EvtchnBindPirq`]: other domains may have the interrupt too.
pub const BIND_PIRQ__WILL_SHARE: u32 = 1;

/// `event_channel.h`, `struct evtchn_bind_ipi`. Argument of [`EVTCHNOP_bind_ipi`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindIpi {
    /// Vcpu to be interrupted.
    pub vcpu: u32,
    /// Out: the new port.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_close`. Argument of [`EVTCHNOP_close`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnClose {
    /// Port to close.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_send`. Argument of [`EVTCHNOP_send`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnSend {
    /// Own port whose other end is notified.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_status`. Argument of [`EVTCHNOP_status`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EvtchnStatus {
    /// Domain asked about; others than oneself need privilege.
    pub dom: DomId,
    /// Its port.
    pub port: Port,
    /// Out: one of the `EVTCHNSTAT_` constants.
    pub status: u32,
    /// Out: vcpu that gets the events.
    pub vcpu: u32,
    /// Out: what the port is bound to.
    pub u: EvtchnStatusU,
}

/// State of a port: free.
pub const EVTCHNSTAT_closed: u32 = 0;
/// State of a port: waits for a domain to bind.
pub const EVTCHNSTAT_unbound: u32 = 1;
/// State of a port: bound to another domain's.
pub const EVTCHNSTAT_interdomain: u32 = 2;
/// State of a port: bound to a physical interrupt.
pub const EVTCHNSTAT_pirq: u32 = 3;
/// State of a port: bound to a virtual interrupt.
pub const EVTCHNSTAT_virq: u32 = 4;
/// State of a port: for interrupts between vcpus.
pub const EVTCHNSTAT_ipi: u32 = 5;

/// `event_channel.h`, `struct evtchn_status.u`. What a port is bound to, by its state.
#[repr(C)]
#[derive(Clone, Copy)]
pub union EvtchnStatusU {
    /// For [`EVTCHNSTAT_unbound`].
    pub unbound: EvtchnStatusUnbound,
    /// For [`EVTCHNSTAT_interdomain`].
    pub interdomain: EvtchnStatusInterdomain,
    /// For [`EVTCHNSTAT_pirq`].
    pub pirq: u32,
    /// For [`EVTCHNSTAT_virq`].
    pub virq: u32,
}

/// `event_channel.h`, `struct evtchn_status.u.unbound`. Whom an unbound port waits for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnStatusUnbound {
    /// The domain that may bind.
    pub dom: DomId,
}

/// `event_channel.h`, `struct evtchn_status.u.interdomain`. The other end of a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnStatusInterdomain {
    /// Its domain.
    pub dom: DomId,
    /// Its port.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_bind_vcpu`. Argument of [`EVTCHNOP_bind_vcpu`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnBindVcpu {
    /// Port to move.
    pub port: Port,
    /// Vcpu that is to get its events.
    pub vcpu: u32,
}

/// `event_channel.h`, `struct evtchn_unmask`. Argument of [`EVTCHNOP_unmask`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnUnmask {
    /// Port to unmask.
    pub port: Port,
}

/// `event_channel.h`, `struct evtchn_reset`. Argument of [`EVTCHNOP_reset`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnReset {
    /// Domain whose ports are closed.
    pub dom: DomId,
}

/// `event_channel.h`, `struct evtchn_init_control`. Argument of [`EVTCHNOP_init_control`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnInitControl {
    /// Frame of the control block.
    pub control_gfn: u64,
    /// Byte of the frame at which the block begins.
    pub offset: u32,
    /// Vcpu it is for.
    pub vcpu: u32,
    /// Out: bits of a link.
    pub link_bits: u8,
    /// Padding; must be 0.
    pub _pad: [u8; 7],
}

/// `event_channel.h`, `struct evtchn_expand_array`. Argument of [`EVTCHNOP_expand_array`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnExpandArray {
    /// Frame with the next event words.
    pub array_gfn: u64,
}

/// `event_channel.h`, `struct evtchn_set_priority`. Argument of [`EVTCHNOP_set_priority`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvtchnSetPriority {
    /// The port.
    pub port: Port,
    /// From [`EVTCHN_FIFO_PRIORITY_MAX`] to [`EVTCHN_FIFO_PRIORITY_MIN`].
    pub priority: u32,
}

/// `event_channel.h`, `struct evtchn_op`. Argument of the older [`EVENT_CHANNEL_OP_COMPAT`](crate::Nr::EVENT_CHANNEL_OP_COMPAT).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EvtchnOp {
    /// One of the `EVTCHNOP_` constants up to [`EVTCHNOP_unmask`].
    pub cmd: u32,
    /// Argument of the command.
    pub u: EvtchnOpU,
}

/// `event_channel.h`, `struct evtchn_op.u`. Arguments of the event-channel commands.
#[repr(C)]
#[derive(Clone, Copy)]
pub union EvtchnOpU {
    /// For [`EVTCHNOP_alloc_unbound`].
    pub alloc_unbound: EvtchnAllocUnbound,
    /// For [`EVTCHNOP_bind_interdomain`].
    pub bind_interdomain: EvtchnBindInterdomain,
    /// For [`EVTCHNOP_bind_virq`].
    pub bind_virq: EvtchnBindVirq,
    /// For [`EVTCHNOP_bind_pirq`].
    pub bind_pirq: EvtchnBindPirq,
    /// For [`EVTCHNOP_bind_ipi`].
    pub bind_ipi: EvtchnBindIpi,
    /// For [`EVTCHNOP_close`].
    pub close: EvtchnClose,
    /// For [`EVTCHNOP_send`].
    pub send: EvtchnSend,
    /// For [`EVTCHNOP_status`].
    pub status: EvtchnStatus,
    /// For [`EVTCHNOP_bind_vcpu`].
    pub bind_vcpu: EvtchnBindVcpu,
    /// For [`EVTCHNOP_unmask`].
    pub unmask: EvtchnUnmask,
}

/// Ports of the two-level scheme: 4096, or 1024 in a 32-bit guest.
pub const EVTCHN_2L_NR_CHANNELS: usize = size_of::<usize>() * size_of::<usize>() * 64;

/// Most urgent FIFO priority.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// FIFO priority of a new port.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// Least urgent FIFO priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
/// FIFO queues of a vcpu: one for each priority.
pub const EVTCHN_FIFO_MAX_QUEUES: usize = 16;

/// `event_channel.h`, `event_word_t`. FIFO state of one port: flags, and the number of the next port of its queue.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct EventWord(pub AtomicU32);

/// Bit number in an [`EventWord`]: pending.
pub const EVTCHN_FIFO_PENDING: u32 = 31;
/// Bit number in an [`EventWord`]: masked.
pub const EVTCHN_FIFO_MASKED: u32 = 30;
/// Bit number in an [`EventWord`]: on a queue.
pub const EVTCHN_FIFO_LINKED: u32 = 29;
/// Bit number in an [`EventWord`]: Xen links it just now.
pub const EVTCHN_FIFO_BUSY: u32 = 28;
/// Bits of the link in an [`EventWord`].
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
/// Mask of the link in an [`EventWord`].
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << EVTCHN_FIFO_LINK_BITS) - 1;
/// Ports of the FIFO scheme.
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << EVTCHN_FIFO_LINK_BITS;

/// `event_channel.h`, `struct evtchn_fifo_control_block`. FIFO queues of a vcpu. Both sides write it in place.
#[repr(C)]
#[derive(Debug, Default)]
pub struct EvtchnFifoControlBlock {
    /// Bit n: queue n has events.
    pub ready: AtomicU32,
    /// Unused.
    pub _rsvd: AtomicU32,
    /// First port of each queue.
    pub head: [AtomicU32; EVTCHN_FIFO_MAX_QUEUES],
}

const_assert_eq!(size_of::<EvtchnAllocUnbound>(), 8);
const_assert_eq!(size_of::<EvtchnBindInterdomain>(), 12);
const_assert_eq!(size_of::<EvtchnStatus>(), 24);
const_assert_eq!(size_of::<EvtchnFifoControlBlock>(), 72);
