//! What the front end receives: packets are queued, and copied into the pages that it has posted.

use alloc::collections::VecDeque;
use core::fmt;

use hypercall::grant::{Foreign, Local};
use hypercall::mem::{Buffer, PAGE_SIZE};
use hypercall::{DomId, GrantRef};
use xen_sys::io::netif::{NetifRxRequest, NetifRxResponse};
use xenbus::Domain;
use xenbus::ring::{BackRing, MappedPages, Notify, RingError, RingPages};

use super::copier::{Copier, PACKETS};
use super::{BackError, Counters, Interface};
use crate::protocol::{self, Fragment};

/// Slots that waiting packets take at most, and so how many of them wait at most: a ring's worth.
const QUEUE: usize = 256;

/// Slots that are filled together.
const SLOTS: usize = 64;

/// Why a packet was not taken. It comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The other end is not connected.
    NotConnected,
    /// A ring's worth of packets waits already: the other end takes them too slowly. The packet counts as dropped.
    Full,
    /// It has so many bytes, which is no packet, or more than the other end takes.
    Length(usize),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected => f.write_str("the other end is not connected"),
            Self::Full => f.write_str("a ring's worth of packets waits for the other end"),
            Self::Length(len) => write!(f, "the other end takes no packet of {len} bytes"),
        }
    }
}

struct Waiting<B> {
    packet: B,
    len: usize,
}

impl<B> Waiting<B> {
    const fn slots(&self) -> usize {
        self.len.div_ceil(PAGE_SIZE)
    }
}

/// The ring that the front end receives on, and the packets that wait for it.
pub(super) struct Rx<D: Domain, I: Interface> {
    platform: D::Platform,
    peer: DomId,
    ring: BackRing<RingPages<MappedPages<D::Platform>, NetifRxRequest, NetifRxResponse>>,
    scatter_gather: bool,
    waiting: VecDeque<Waiting<I::Packet>>,
    /// Slots that `waiting` takes.
    waiting_slots: usize,
    /// Pages that were taken off the ring and are not answered yet, in the ring's order.
    posted: VecDeque<NetifRxRequest>,
}

impl<D: Domain, I: Interface> Rx<D, I> {
    pub(super) fn new(domain: &D, peer: DomId, gref: GrantRef, scatter_gather: bool) -> Result<Self, BackError> {
        let ring = BackRing::attach(RingPages::new(MappedPages::new(domain.platform(), peer, &[gref])?));
        Ok(Self {
            platform: domain.platform().clone(),
            peer,
            ring,
            scatter_gather,
            waiting: VecDeque::with_capacity(QUEUE),
            waiting_slots: 0,
            posted: VecDeque::with_capacity(SLOTS),
        })
    }

    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish()
    }

    /// See [`Back::send`](super::Back::send).
    pub(super) fn queue(&mut self, packet: I::Packet, counters: &mut Counters) -> Result<(), (SendError, I::Packet)> {
        let len = packet.segments().map(|part| usize::from(part.len)).sum();
        if !protocol::is_packet(len) || (len > PAGE_SIZE && !self.scatter_gather) {
            return Err((SendError::Length(len), packet));
        }
        let packet = Waiting { packet, len };
        if self.waiting_slots + packet.slots() > QUEUE {
            counters.rx_dropped += 1;
            return Err((SendError::Full, packet.packet));
        }
        self.waiting_slots += packet.slots();
        self.waiting.push_back(packet);
        Ok(())
    }

    /// Gives all that waits back to the interface.
    pub(super) fn give_up(&mut self, interface: &mut I, counters: &mut Counters) {
        counters.rx_dropped += self.waiting.len() as u64;
        self.waiting_slots = 0;
        self.waiting.drain(..).for_each(|waiting| interface.release(waiting.packet));
    }

    /// Sends what waits, as far as there are pages for it. Bounded by what waits.
    pub(super) fn send_all(&mut self, interface: &mut I, counters: &mut Counters) -> Result<(), RingError> {
        loop {
            let packets = self.packets()?;
            if packets == 0 {
                return Ok(());
            }
            self.send(packets, interface, counters);
        }
    }

    /// Returns how many packets can be sent together, and takes the pages for them off the ring. Pages for a packet that is not
    /// sent yet are kept.
    fn packets(&mut self) -> Result<usize, RingError> {
        let (mut packets, mut slots) = (0, 0);
        for waiting in self.waiting.iter().take(PACKETS) {
            slots += waiting.slots();
            if slots > SLOTS {
                break;
            }
            while self.posted.len() < slots {
                let missing = slots - self.posted.len();
                self.posted.extend(self.ring.requests()?.take(missing));
                // An event tells of the next page, unless one has come meanwhile.
                if self.posted.len() < slots && !self.ring.arm()? {
                    return Ok(packets);
                }
            }
            packets += 1;
        }
        Ok(packets)
    }

    fn send(&mut self, packets: usize, interface: &mut I, counters: &mut Counters) {
        let mut copier = Copier::new(&self.platform);
        let mut first = 0;
        for (index, waiting) in self.waiting.iter().take(packets).enumerate() {
            let mut at = 0;
            for mut from in Local::segments(&waiting.packet) {
                while !from.is_empty() {
                    // The packet's length, and with it the number of its pages, was taken from the same segments.
                    let Some(page) = self.posted.get(first + at / PAGE_SIZE).filter(|_| at < waiting.len) else {
                        copier.fail(index);
                        break;
                    };
                    let offset = at % PAGE_SIZE;
                    let len = from.len().min((PAGE_SIZE - offset) as u16);
                    let to = Foreign { peer: self.peer, gref: page.gref, offset: offset as u16 };
                    copier.put(index, from, to, len);
                    from = from.skip(len);
                    at += usize::from(len);
                }
            }
            first += waiting.slots();
        }
        let failed = copier.finish();
        for failed in &failed[..packets] {
            let Some(waiting) = self.waiting.pop_front() else { return };
            self.waiting_slots -= waiting.slots();
            self.answer(waiting.len, *failed);
            if *failed {
                counters.rx_failed += 1;
            } else {
                counters.rx_packets += 1;
                counters.rx_bytes += waiting.len as u64;
                counters.rx_slots += waiting.slots() as u64;
            }
            interface.release(waiting.packet);
        }
    }

    /// Answers the pages of a packet, each in its own slot, which is that of the order in which they were taken.
    fn answer(&mut self, len: usize, failed: bool) {
        let mut left = len;
        while left > 0 {
            let Some(page) = self.posted.pop_front() else { return };
            let here = left.min(PAGE_SIZE);
            left -= here;
            let response = match Fragment::new(0, here as u16) {
                Some(part) if !failed => part.emit(page.id, left > 0),
                _ => protocol::lost(page.id),
            };
            // A page that was taken is answered, so there is room.
            let _ = self.ring.respond(&response);
        }
    }
}
