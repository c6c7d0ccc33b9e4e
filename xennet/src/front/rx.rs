//! What the front end receives: own pages are posted, filled by the back end, taken back, looked at and posted again.

use alloc::vec::Vec;

use hypercall::grant::{Access, Grants, Loan, SharedPages};
use hypercall::mem::{PAGE_SIZE, PageBuf, Shared};
use hypercall::{DomId, GrantRef};
use xen_sys::io::netif::{NetifRxRequest, NetifRxResponse};
use xenbus::Domain;
use xenbus::ring::{FrontRing, Notify, RingPages};

use super::FrontError;
use super::queue::{Counters, QueueError};
use crate::MAX_SLOTS;
use crate::protocol::{self, Chain, Fragment};

/// A page to receive into. Its number on the wire is its index, and it is always posted in the ring's slot of that index.
struct Page<G: Grants> {
    loan: Loan<G, PageBuf<G::Platform>, 1>,
    /// The page, while it is not posted.
    own: Option<PageBuf<G::Platform>>,
}

/// A packet that has come. Its bytes are in pages of our own, which nobody else reaches while this is looked at.
pub struct Received<'a, G: Grants> {
    pages: &'a [Page<G>],
    /// Page and place of each part.
    parts: &'a [(u16, Fragment)],
}

impl<G: Grants> Clone for Received<'_, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<G: Grants> Copy for Received<'_, G> {}

impl<'a, G: Grants> Received<'a, G> {
    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.len()).sum()
    }

    /// Tells whether it has no bytes, which it always has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = Shared<'a>> + use<'a, G> {
        let pages = self.pages;
        self.parts.iter().filter_map(move |(page, part)| {
            let page = pages[usize::from(*page)].own.as_ref()?;
            Some(page.shared().slice(part.offset(), part.len()))
        })
    }

    /// Copies as much of it as there is, and as fits, to `to`; returns how many bytes that was.
    pub fn read(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.parts() {
            let len = part.len().min(to.len() - done);
            part.slice(0, len).read(0, &mut to[done..done + len]);
            done += len;
        }
        done
    }
}

/// The ring that the front end receives on.
pub(super) struct Rx<D: Domain> {
    peer: DomId,
    ring: FrontRing<RingPages<SharedPages<D::Grants>, NetifRxRequest, NetifRxResponse>>,
    pages: Vec<Page<D::Grants>>,
    /// Pages posted, taken, and let go of, since the beginning, wrapping. What lies between the last two is the packet that is
    /// not whole yet.
    posted: u32,
    taken: u32,
    released: u32,
    chain: Chain,
    parts: [(u16, Fragment); MAX_SLOTS],
    count: usize,
    /// Something is wrong with the packet: the rest of it is thrown away.
    spoiled: bool,
}

impl<D: Domain> Rx<D> {
    pub(super) fn new(grants: &D::Grants, peer: DomId) -> Result<Self, FrontError> {
        let ring = FrontRing::new(RingPages::new(SharedPages::new(grants, peer, 1)?));
        let size = ring.size() as usize;
        let mut rx = Self {
            peer,
            ring,
            pages: Vec::with_capacity(size),
            posted: 0,
            taken: 0,
            released: 0,
            chain: Chain::default(),
            parts: [(0, Fragment::default()); MAX_SLOTS],
            count: 0,
            spoiled: false,
        };
        // Pages that are there already go with `rx` if one can't be had.
        for _ in 0..size {
            let own = Some(PageBuf::new(grants.platform(), PAGE_SIZE)?);
            rx.pages.push(Page { loan: Loan::new(grants)?, own });
        }
        Ok(rx)
    }

    pub(super) fn ring_ref(&self) -> GrantRef {
        self.ring.memory().backing().refs()[0]
    }

    /// Posts all pages that are ours. One that the back end still maps stops those behind it, until it lets go.
    pub(super) fn post(&mut self) {
        let size = self.ring.size();
        while self.posted.wrapping_sub(self.released) < size {
            let index = self.posted & (size - 1);
            let page = &mut self.pages[index as usize];
            if page.own.is_none() {
                page.own = page.loan.recall().ok().flatten();
            }
            let Some(own) = page.own.take() else { return };
            let gref = match page.loan.lend(self.peer, Access::ReadWrite, own) {
                Ok(refs) => refs[0],
                Err((_, own)) => {
                    page.own = Some(own);
                    return;
                }
            };
            // There is room: as many slots as pages, and this one's last response was taken.
            let _ = self.ring.push(&NetifRxRequest { id: index as u16, pad: 0, gref });
            self.posted = self.posted.wrapping_add(1);
        }
    }

    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish()
    }

    pub(super) fn arm(&mut self) -> Result<bool, QueueError> {
        Ok(self.ring.arm()?)
    }

    /// Takes a ring's worth of responses at most, as none is posted in here; tells whether there may be more.
    pub(super) fn take_all(
        &mut self,
        counters: &mut Counters,
        mut received: impl FnMut(Received<'_, D::Grants>),
    ) -> Result<bool, QueueError> {
        for _ in 0..self.ring.size() {
            let Some(response) = self.ring.pop()? else { return Ok(false) };
            self.take(&response, counters)?;
            if self.chain.is_first() {
                self.finish(counters, &mut received);
            }
        }
        Ok(true)
    }

    fn take(&mut self, response: &NetifRxResponse, counters: &mut Counters) -> Result<(), QueueError> {
        let index = (self.taken & (self.ring.size() - 1)) as u16;
        self.taken = self.taken.wrapping_add(1);
        counters.rx_slots += 1;
        let extra = self.chain.is_extra();
        // Extra information has no number: it is known by its place alone.
        if !extra && response.id != index {
            return Err(QueueError::WrongSlot { expected: index, claimed: response.id });
        }
        let page = &mut self.pages[usize::from(index)];
        match page.loan.recall() {
            Ok(own) => page.own = own,
            Err(_) => {
                counters.still_mapped += 1;
                self.spoiled = true;
            }
        }
        let part = if extra {
            let [_, flags] = response.id.to_le_bytes();
            self.chain.extra(flags);
            None
        } else {
            self.chain.part(response.flags);
            protocol::parse_received(response).ok()
        };
        match (part, self.parts.get_mut(self.count)) {
            (Some(part), Some(place)) if !self.spoiled => {
                *place = (index, part);
                self.count += 1;
            }
            _ => {
                self.spoiled = true;
                // What is thrown away needs no page: a packet without end can't hold them all.
                self.released = self.taken;
            }
        }
        Ok(())
    }

    /// The packet is whole: gives it to `received`, unless something is wrong with it.
    fn finish(&mut self, counters: &mut Counters, received: &mut impl FnMut(Received<'_, D::Grants>)) {
        let packet = Received { pages: &self.pages, parts: &self.parts[..self.count] };
        let len = packet.len();
        if self.spoiled || !protocol::is_packet(len) {
            counters.rx_errors += 1;
        } else {
            counters.rx_packets += 1;
            counters.rx_bytes += len as u64;
            received(packet);
        }
        (self.count, self.spoiled) = (0, false);
        self.released = self.taken;
    }
}

impl<D: Domain> Drop for Rx<D> {
    fn drop(&mut self) {
        for page in self.pages.drain(..) {
            // A page that the back end still maps waits in the quarantine.
            page.loan.retire();
        }
    }
}
