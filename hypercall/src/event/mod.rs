//! Event channels: one-bit signals between domains, and from the hypervisor.
//!
//! ```text
//!   alloc_unbound ──► port (offered) ◄── bind_interdomain          peer: notify ──► pending bit ──► upcall
//!                        │                                                                           │
//!                      close ◄── handled ◄── unmask ◄── handler ◄── dispatch (masks what it takes) ◄─┘
//! ```
//!
//! A port that was dispatched stays masked until its handler has done its work and calls [`Events::unmask`]: a peer that
//! storms costs one handler run, not a loop. A handler that has found nothing to do calls [`Events::put_off`] instead: a peer that signals
//! in vain again and again is listened to once in a while, at last once a second.

mod table;

pub use crate::call::event_channel::Status;
pub use table::{Event, EventChannels, PORTS};

use core::fmt;

use xen_sys::{DomId, Port};

use crate::error::XenError;

/// An event channel operation that the hypervisor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventError {
    /// Which operation, as the header calls it: `"alloc_unbound"`.
    pub op: &'static str,
    /// Whom or what it was about: the remote domain, the virq, the vcpu.
    pub about: u32,
    /// What the hypervisor said.
    pub error: XenError,
}

impl fmt::Display for EventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event channel {} ({}): {}", self.op, self.about, self.error)
    }
}

/// Event channels as drivers use them. [`EventChannels`] is ours; a kernel that dispatches events itself lends its own. A
/// handle: cheap to clone.
pub trait Events: Clone {
    /// Offers a new port to `remote`, which may bind to it.
    ///
    /// # Errors
    /// [`EventError`] as the hypervisor says, for instance when there is no port left.
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, EventError>;

    /// Binds a new local port to `port` of `remote`. The first event may already be pending.
    ///
    /// # Errors
    /// [`EventError`] as the hypervisor says, for instance when that port is not offered to this domain.
    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, EventError>;

    /// Signals the other end.
    fn notify(&self, port: Port);

    /// Says that the event was handled: the next one is dispatched again. An event that came meanwhile is not lost.
    fn unmask(&self, port: Port);

    /// Says that the event was handled, and that there was nothing to do. If that goes on, the next one is dispatched only after a delay,
    /// which doubles up to a second and ends with the next [`unmask`](Self::unmask). Of a port that isn't masked nothing was handled, and
    /// nothing changes.
    ///
    /// Where a kernel dispatches, the delay is its own matter: this is `unmask` then.
    fn put_off(&self, port: Port) {
        self.unmask(port);
    }

    /// Closes the port; it may be another's from now on.
    fn close(&self, port: Port);

    /// Returns how often the domain has come back from a suspend. Each time, all ports of before are gone, and their numbers may be
    /// those of new ones. 0 where the domain is never suspended.
    fn suspends(&self) -> u32 {
        0
    }
}

/// Events that can also be waited for without being dispatched. Our store client needs that; a kernel that lends its own client
/// need not lend this.
pub trait Polled: Events {
    /// Takes the event that is pending on a port, and tells whether there was one: for whoever waits on a port without being
    /// dispatched.
    fn take(&self, port: Port) -> bool;

    /// Makes an event pending on an own port, as if the other end had signalled: what was taken by waiting is passed on to the
    /// dispatcher.
    fn raise(&self, port: Port);
}

/// A port of this domain, bound or offered; closed when dropped, unless it went with a suspend of the domain: its number may be that of
/// another then.
#[derive(Debug)]
pub struct Channel<E: Events> {
    events: E,
    port: Port,
    /// How often the domain had been suspended when the port was made.
    suspends: u32,
}

impl<E: Events> Channel<E> {
    /// Offers a port to `remote`.
    ///
    /// # Errors
    /// As [`Events::alloc_unbound`].
    pub fn offer(events: &E, remote: DomId) -> Result<Self, EventError> {
        Ok(Self::new(events, events.alloc_unbound(remote)?))
    }

    /// Binds to the port that `remote` offers.
    ///
    /// # Errors
    /// As [`Events::bind_interdomain`].
    pub fn bind(events: &E, remote: DomId, port: Port) -> Result<Self, EventError> {
        Ok(Self::new(events, events.bind_interdomain(remote, port)?))
    }

    /// Takes over a port that is there already, such as the console's and xenstore's, which the toolstack made.
    pub fn adopt(events: &E, port: Port) -> Self {
        events.unmask(port);
        Self::new(events, port)
    }

    fn new(events: &E, port: Port) -> Self {
        Self { events: events.clone(), port, suspends: events.suspends() }
    }

    /// Returns the local port.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Signals the other end.
    pub fn notify(&self) {
        self.events.notify(self.port);
    }

    /// Says that the event was handled; see [`Events::unmask`].
    pub fn unmask(&self) {
        self.events.unmask(self.port);
    }

    /// Says that the event was handled, and whether there was something to do; see [`Events::put_off`].
    #[inline]
    pub fn handled(&self, work: bool) {
        if work {
            self.events.unmask(self.port);
        } else {
            self.events.put_off(self.port);
        }
    }
}

impl<E: Events> Drop for Channel<E> {
    fn drop(&mut self) {
        if self.suspends == self.events.suspends() {
            self.events.close(self.port);
        }
    }
}
