//! What the front end sends: packets in, completions out.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;

use hypercall::grant::{Access, Held, LoanTable, SharedPages};
use hypercall::mem::{Buffer, Segment};
use hypercall::{DomId, GrantRef};
use xen_sys::io::netif::{NetifTxRequest, NetifTxResponse};
use xenbus::Domain;
use xenbus::ring::{FrontRing, Notify, RingPages};

use super::FrontError;
use super::queue::{Counters, QueueError};
use crate::features::Link;
use crate::protocol::{Packet, Part, Status, Why};

/// Why a packet was not taken. Nothing has happened; the packet comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The ring is full: try again after a completion.
    Full,
    /// The interface is not connected, or is closing.
    NotConnected,
    /// It is no packet that could be sent.
    Malformed(Why),
    /// It has several segments, which the back end doesn't take.
    Segments(usize),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::NotConnected => f.write_str("the interface is not connected"),
            Self::Malformed(why) => why.fmt(f),
            Self::Segments(count) => write!(f, "{count} segments where the back end takes one"),
        }
    }
}

/// How a packet failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The back end could not send it.
    Failed,
    /// The back end had no room for it.
    Dropped,
    /// The back end answered with a status that the protocol doesn't have.
    BadStatus(i16),
    /// The back end is gone; whether it was sent is unknown.
    Lost,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("the packet could not be sent"),
            Self::Dropped => f.write_str("the packet was dropped"),
            Self::BadStatus(status) => write!(f, "impossible status {status}"),
            Self::Lost => f.write_str("the back end is gone"),
        }
    }
}

/// A packet whose way is over.
#[derive(Debug)]
#[must_use = "its owner waits for it"]
pub struct Completion<B: Buffer> {
    /// What was submitted.
    pub packet: Returned<B>,
    /// How it ended.
    pub result: Result<(), SendError>,
}

/// The memory of a packet whose way is over.
#[derive(Debug)]
pub enum Returned<B: Buffer> {
    /// Ours again.
    Whole(B),
    /// The other end never gave a page of it back: it can only be looked at.
    Held(Held<B>),
}

/// A slot of the ring, by the number that it has on the wire: that of its reference in the table of loans.
#[derive(Clone, Copy)]
struct Slot {
    in_flight: bool,
    /// The first slot of its packet.
    head: u16,
    /// In the first slot: how many slots of the packet are not answered.
    waiting: u8,
    /// In the first slot: how the packet has ended, as far as that is known.
    result: Result<(), SendError>,
}

/// The ring that the front end sends on.
pub(super) struct Tx<D: Domain, B: Buffer> {
    ring: FrontRing<RingPages<SharedPages<D::Grants>, NetifTxRequest, NetifTxResponse>>,
    sent: Sent<D, B>,
    link: Option<Link>,
}

/// What is in flight.
struct Sent<D: Domain, B: Buffer> {
    loans: LoanTable<D::Grants, B>,
    slots: Box<[Slot]>,
    /// Packets that are not completed.
    in_flight: u32,
    /// Packets that are answered, and whose pages the back end still maps.
    answered: u32,
}

impl<D: Domain, B: Buffer> Tx<D, B> {
    pub(super) fn new(grants: &D::Grants, peer: DomId) -> Result<Self, FrontError> {
        let ring = FrontRing::new(RingPages::new(SharedPages::new(grants, peer, 1)?));
        let loans = LoanTable::new(grants, peer, ring.size() as u16)?;
        let slot = Slot { in_flight: false, head: 0, waiting: 0, result: Ok(()) };
        let slots = vec![slot; ring.size() as usize].into();
        Ok(Self { ring, sent: Sent { loans, slots, in_flight: 0, answered: 0 }, link: None })
    }

    pub(super) fn ring_ref(&self) -> GrantRef {
        self.ring.memory().backing().refs()[0]
    }

    pub(super) fn start(&mut self, link: Link) {
        self.link = Some(link);
    }

    pub(super) fn stop(&mut self) {
        self.link = None;
    }

    pub(super) const fn in_flight(&self) -> u32 {
        self.sent.in_flight
    }

    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish()
    }

    /// See [`Queue::submit`](super::Queue::submit).
    pub(super) fn submit(&mut self, packet: B, counters: &mut Counters) -> Result<(), (SubmitError, B)> {
        let mut wire = match self.check(&packet) {
            Ok(wire) => wire,
            Err(error) => return Err((error, packet)),
        };
        // There are as many references as slots in the ring, and none is free before its slot is.
        let head = self.sent.loans.lend(Access::ReadOnly, packet).map_err(|packet| (SubmitError::Full, packet))?;
        wire.address(self.sent.loans.refs(head));
        for (part, raw) in wire.parts().iter().zip(wire.emit()) {
            // There is room, as there was a reference.
            let _ = self.ring.push(&raw);
            self.sent.slots[usize::from(part.id())] = Slot { in_flight: true, head, waiting: 0, result: Ok(()) };
        }
        self.sent.slots[usize::from(head)].waiting = wire.parts().len() as u8;
        self.sent.in_flight += 1;
        counters.tx_packets += 1;
        counters.tx_bytes += wire.len() as u64;
        counters.tx_slots += wire.parts().len() as u64;
        Ok(())
    }

    /// Returns the packet as it goes over the wire, but for the numbers of its slots and their grants.
    fn check(&self, packet: &B) -> Result<Packet, SubmitError> {
        let link = self.link.ok_or(SubmitError::NotConnected)?;
        let part = |part: Segment| Part::new(0, GrantRef(0), part.offset, part.len).unwrap_or_default();
        let wire = Packet::new(packet.segments().map(part)).map_err(SubmitError::Malformed)?;
        match wire.parts().len() {
            count @ 2.. if !link.scatter_gather => Err(SubmitError::Segments(count)),
            _ => Ok(wire),
        }
    }

    /// Takes all responses. Bounded: each takes a slot out of flight, and nothing is sent in here.
    pub(super) fn take_all(
        &mut self,
        counters: &mut Counters,
        mut done: impl FnMut(Completion<B>),
    ) -> Result<(), QueueError> {
        if self.sent.answered > 0 {
            for head in 0..self.sent.slots.len() as u16 {
                self.sent.finish(head, counters, &mut done);
            }
        }
        loop {
            for response in self.ring.responses()? {
                self.sent.take(&response, counters, &mut done)?;
            }
            if !self.ring.arm()? {
                return Ok(());
            }
        }
    }

    /// Completes all that is in flight, with [`SendError::Lost`] unless it was answered.
    pub(super) fn give_up(&mut self, counters: &mut Counters, mut done: impl FnMut(Completion<B>)) {
        (self.sent.in_flight, self.sent.answered) = (0, 0);
        let slots = &mut self.sent.slots;
        self.sent.loans.end_all(|head, packet| {
            let first = slots[usize::from(head)];
            let result = if first.waiting == 0 { first.result } else { Err(SendError::Lost) };
            counters.tx_errors += u64::from(result.is_err());
            let packet = match packet {
                Ok(packet) => Returned::Whole(packet),
                Err(held) => Returned::Held(held),
            };
            done(Completion { packet, result });
        });
        slots.iter_mut().for_each(|slot| slot.in_flight = false);
    }
}

impl<D: Domain, B: Buffer> Sent<D, B> {
    fn take(
        &mut self,
        response: &NetifTxResponse,
        counters: &mut Counters,
        done: &mut impl FnMut(Completion<B>),
    ) -> Result<(), QueueError> {
        let unknown = QueueError::UnknownId(response.id);
        let slot = self.slots.get_mut(usize::from(response.id)).filter(|slot| slot.in_flight).ok_or(unknown)?;
        slot.in_flight = false;
        let head = slot.head;
        let result = match Status::from_wire(response.status) {
            Status::Okay => Ok(()),
            Status::Error => Err(SendError::Failed),
            Status::Dropped => Err(SendError::Dropped),
            // No slot of ours is one without an outcome: we send no extra information.
            Status::Null | Status::Unknown(_) => Err(SendError::BadStatus(response.status)),
        };
        let first = &mut self.slots[usize::from(head)];
        first.result = first.result.and(result);
        first.waiting -= 1;
        if first.waiting == 0 {
            self.answered += 1;
            if !self.finish(head, counters, done) {
                counters.still_mapped += 1;
            }
        }
        Ok(())
    }

    /// Completes the packet that begins at `head`, if there is one, it is answered, and the back end maps no page of it.
    fn finish(&mut self, head: u16, counters: &mut Counters, done: &mut impl FnMut(Completion<B>)) -> bool {
        let first = self.slots[usize::from(head)];
        if first.waiting > 0 {
            return true;
        }
        let Ok(packet) = self.loans.recall(head) else { return false };
        let Some(packet) = packet else { return true };
        self.answered -= 1;
        self.in_flight -= 1;
        counters.tx_errors += u64::from(first.result.is_err());
        done(Completion { packet: Returned::Whole(packet), result: first.result });
        true
    }
}
