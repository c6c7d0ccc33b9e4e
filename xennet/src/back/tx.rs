//! What the front end sends: slots in, packets copied out of its pages, responses out.

use alloc::vec::Vec;

use hypercall::grant::{Foreign, Local};
use hypercall::{DomId, GrantRef};
use xen_sys::io::netif::{NetifTxRequest, NetifTxResponse};
use xenbus::Domain;
use xenbus::ring::{BackRing, MappedPages, Notify, RingError, RingPages};

use super::copier::{Copier, PACKETS};
use super::{BackError, Counters, Interface};
use crate::protocol::{self, Fed, Packet, Parser, Status};

/// The ring that the front end sends on.
pub(super) struct Tx<D: Domain, I: Interface> {
    platform: D::Platform,
    peer: DomId,
    ring: BackRing<RingPages<MappedPages<D::Platform>, NetifTxRequest, NetifTxResponse>>,
    parser: Parser,
    /// Packets that are whole, each with the memory that it is to be copied to.
    whole: Vec<(Packet, I::Packet)>,
}

impl<D: Domain, I: Interface> Tx<D, I> {
    pub(super) fn new(domain: &D, peer: DomId, gref: GrantRef) -> Result<Self, BackError> {
        let ring = BackRing::attach(RingPages::new(MappedPages::new(domain.platform(), peer, &[gref])?));
        let whole = Vec::with_capacity(PACKETS);
        Ok(Self { platform: domain.platform().clone(), peer, ring, parser: Parser::new(), whole })
    }

    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish()
    }

    /// Takes a ring's worth of slots at most; tells whether there are more.
    pub(super) fn take_all(&mut self, interface: &mut I, counters: &mut Counters) -> Result<bool, RingError> {
        let taken = self.take_some(interface, counters);
        self.copy(interface, counters);
        taken
    }

    fn take_some(&mut self, interface: &mut I, counters: &mut Counters) -> Result<bool, RingError> {
        for _ in 0..self.ring.size() {
            let Some(raw) = self.ring.pop()? else {
                if self.ring.arm()? {
                    continue;
                }
                return Ok(false);
            };
            counters.tx_slots += 1;
            self.take(&raw, interface, counters);
        }
        self.ring.arm()
    }

    fn take(&mut self, raw: &NetifTxRequest, interface: &mut I, counters: &mut Counters) {
        match self.parser.feed(raw) {
            Fed::Part => {}
            Fed::Extra => self.answer(0, Status::Null),
            Fed::Refused(refused) => {
                counters.tx_refused += u64::from(refused.why.is_some());
                refused.ids().iter().for_each(|id| self.answer(*id, Status::Error));
            }
            Fed::Packet(packet) => match interface.allocate(packet.len()) {
                Some(memory) => {
                    self.whole.push((packet, memory));
                    if self.whole.len() == PACKETS {
                        self.copy(interface, counters);
                    }
                }
                None => {
                    counters.tx_dropped += 1;
                    self.answer_packet(&packet, Status::Dropped);
                }
            },
        }
    }

    /// Copies all packets that are whole, hands them on, and answers them.
    fn copy(&mut self, interface: &mut I, counters: &mut Counters) {
        let mut copier = Copier::new(&self.platform);
        for (index, (packet, memory)) in self.whole.iter().enumerate() {
            let mut places = Local::segments(memory);
            let mut place = None;
            for part in packet.parts() {
                let mut done = 0;
                while done < part.len() {
                    let Some(to) = place.filter(|place: &Local<'_>| !place.is_empty()).or_else(|| places.next()) else {
                        // The memory is shorter than it was asked for.
                        copier.fail(index);
                        break;
                    };
                    let len = to.len().min(part.len() - done);
                    let from = Foreign { peer: self.peer, gref: part.gref(), offset: part.offset() + done };
                    copier.fetch(index, from, to, len);
                    place = Some(to.skip(len));
                    done += len;
                }
            }
        }
        let failed = copier.finish();
        let mut whole = core::mem::take(&mut self.whole);
        for ((packet, memory), failed) in whole.drain(..).zip(failed) {
            if failed {
                counters.tx_failed += 1;
                interface.release(memory);
                self.answer_packet(&packet, Status::Error);
            } else {
                counters.tx_packets += 1;
                counters.tx_bytes += packet.len() as u64;
                interface.deliver(memory);
                self.answer_packet(&packet, Status::Okay);
            }
        }
        // The same memory again: nothing is allocated.
        self.whole = whole;
    }

    fn answer_packet(&mut self, packet: &Packet, status: Status) {
        packet.parts().iter().for_each(|part| self.answer(part.id(), status));
    }

    fn answer(&mut self, id: u16, status: Status) {
        // Each answer belongs to a slot that was taken, so there is room for it.
        let _ = self.ring.respond(&protocol::respond(id, status));
    }
}
