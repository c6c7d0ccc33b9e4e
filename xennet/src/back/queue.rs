//! The two rings of the back end, and their event channel.

use hypercall::event::Channel;
use hypercall::{DomId, Port};
use xenbus::Domain;
use xenbus::ring::{Notify, RingError};

use super::rx::{Rx, SendError};
use super::tx::Tx;
use super::{BackError, Interface};
use crate::features::Peer;

/// What the queue has done so far. As the rings, it is named from the front end's view: it sends by `tx`, and receives by `rx`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets taken and delivered.
    pub tx_packets: u64,
    /// Bytes in them.
    pub tx_bytes: u64,
    /// Slots taken, of whatever became of them.
    pub tx_slots: u64,
    /// Packets refused at the door.
    pub tx_refused: u64,
    /// Packets that could not be copied out of the front end's pages.
    pub tx_failed: u64,
    /// Packets that the interface had no memory for.
    pub tx_dropped: u64,
    /// Packets sent to the front end.
    pub rx_packets: u64,
    /// Bytes in them.
    pub rx_bytes: u64,
    /// Slots that they took.
    pub rx_slots: u64,
    /// Packets that could not be copied into the front end's pages.
    pub rx_failed: u64,
    /// Packets dropped because a ring's worth waited already, or the front end has gone.
    pub rx_dropped: u64,
    /// Events sent to the front end.
    pub notifications: u64,
}

/// Both rings with their event channel.
pub(super) struct Queue<D: Domain, I: Interface> {
    tx: Tx<D, I>,
    rx: Rx<D, I>,
    channel: Channel<D::Events>,
    stopped: bool,
    counters: Counters,
}

impl<D: Domain, I: Interface> Queue<D, I> {
    pub(super) fn new(domain: &D, id: DomId, peer: Peer) -> Result<Self, BackError> {
        let tx = Tx::new(domain, id, peer.rings.tx)?;
        let rx = Rx::new(domain, id, peer.rings.rx, peer.scatter_gather)?;
        // Last, because the first event may be pending from here on.
        let channel = Channel::bind(domain.events(), id, peer.rings.port)?;
        Ok(Self { tx, rx, channel, stopped: false, counters: Counters::default() })
    }

    pub(super) fn port(&self) -> Port {
        self.channel.port()
    }

    pub(super) const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes and sends no more packets.
    pub(super) fn stop(&mut self, interface: &mut I) {
        self.stopped = true;
        self.rx.give_up(interface, &mut self.counters);
    }

    /// See [`Back::poll`](super::Back::poll).
    pub(super) fn poll(&mut self, interface: &mut I) -> Result<bool, RingError> {
        let polled = match self.stopped {
            true => Ok(false),
            false => self.tx.take_all(interface, &mut self.counters),
        };
        let sent = self.push(interface);
        let done = sent.and(polled);
        // A front end that has broken a ring, or is gone, has nothing to tell any more.
        if !self.stopped && done.is_ok() {
            self.channel.unmask();
        }
        done
    }

    /// See [`Back::send`](super::Back::send).
    pub(super) fn send(&mut self, packet: I::Packet) -> Result<(), (SendError, I::Packet)> {
        if self.stopped {
            return Err((SendError::NotConnected, packet));
        }
        self.rx.queue(packet, &mut self.counters)
    }

    /// See [`Back::push`](super::Back::push).
    pub(super) fn push(&mut self, interface: &mut I) -> Result<(), RingError> {
        let sent = self.rx.send_all(interface, &mut self.counters);
        let (tx, rx) = (self.tx.publish(), self.rx.publish());
        if tx == Notify::Yes || rx == Notify::Yes {
            self.counters.notifications += 1;
            self.channel.notify();
        }
        sent
    }
}
