//! What a queue knows of its I/Os and requests, in one table.

use alloc::boxed::Box;

use xen_sys::io::blkif::{BLKIF_RSP_OKAY, BlkifOp};

use super::bounce::NONE;
use crate::protocol::Operation;

/// No operation that a response could name: nothing is in flight.
const NOTHING: u16 = u16::MAX;

/// A request in the ring, whose number on the wire is its place in the table; and the I/O that it is the first request of, or the only
/// one, as nearly all are. The buffer of the I/O stands in the book of loans, under the same number.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) state: State,
    /// Requests that are not answered.
    pub(super) parts: u16,
    /// First of the own pages that its data goes by.
    pub(super) pages: u16,
    /// The group of pages that the request's segments stand on, if it is an indirect one.
    pub(super) table: u16,
    /// The I/O that the request belongs to.
    pub(super) io: u16,
    /// The operation that a response has to name, or [`NOTHING`].
    pub(super) expects: u16,
    pub(super) operation: Operation,
    /// The next one that is free.
    pub(super) next: u16,
    /// Requests that were written before: the order of the I/Os.
    pub(super) sequence: u64,
    pub(super) sector: u64,
    /// How many, of a discard.
    pub(super) sectors: u64,
    /// The wire value of the first one that isn't good, if any.
    pub(super) status: i16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// An I/O that was submitted and is not over: of one request, with its segments in it. A good answer ends it.
    Straight,
    /// The same, by way of a single own page.
    Page,
    /// Another I/O that was submitted and is not over.
    InFlight,
    /// One of which all is answered, but the back end still maps a page of it.
    Answered,
    /// A request that is not the first of its I/O.
    Part,
}

impl Slot {
    /// An I/O of one request.
    pub(super) const SINGLE: Self = Self {
        state: State::Straight,
        parts: 1,
        pages: NONE,
        table: NONE,
        io: NONE,
        expects: NOTHING,
        operation: Operation::Read,
        next: NONE,
        sequence: 0,
        sector: 0,
        sectors: 0,
        status: BLKIF_RSP_OKAY,
    };

    /// Tells whether it is an I/O of which not all is answered.
    pub(super) const fn is_in_flight(&self) -> bool {
        matches!(self.state, State::Straight | State::Page | State::InFlight)
    }

    /// Returns whether a response that names this operation is one to this request; there is no other then.
    #[inline]
    pub(super) fn is_answered_by(&mut self, operation: BlkifOp) -> bool {
        let right = self.expects == u16::from(operation.0);
        if right {
            self.expects = NOTHING;
        }
        right
    }

    /// Tells whether the request is in the ring.
    pub(super) const fn is_asked(&self) -> bool {
        self.expects != NOTHING
    }

    /// It goes into the ring.
    #[inline]
    pub(super) fn ask(&mut self, operation: BlkifOp) {
        self.expects = operation.0.into();
    }
}

/// All slots of a queue: as many as the ring has.
pub(super) struct Slots {
    list: Box<[Slot]>,
    vacant: Vacant,
}

/// The first one that is free.
pub(super) struct Vacant(u16);

impl Vacant {
    /// Puts one back whose request was answered.
    #[inline]
    pub(super) fn put(&mut self, index: u16, slot: &mut Slot) {
        slot.state = State::Free;
        slot.next = core::mem::replace(&mut self.0, index);
    }
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        let next = |index: u16| if index + 1 < count { index + 1 } else { NONE };
        let slot = |index| Slot { state: State::Free, next: next(index), ..Slot::SINGLE };
        Self { list: (0..count).map(slot).collect(), vacant: Vacant(if count > 0 { 0 } else { NONE }) }
    }

    pub(super) const fn count(&self) -> usize {
        self.list.len()
    }

    /// Returns the slots, and what is known of the free ones, for a batch.
    #[inline]
    pub(super) fn split(&mut self) -> (&mut [Slot], &mut Vacant) {
        (&mut self.list, &mut self.vacant)
    }

    /// Takes a free one, and fills it in.
    #[inline]
    pub(super) fn take(&mut self, with: Slot) -> Option<u16> {
        let index = self.vacant.0;
        let slot = self.list.get_mut(usize::from(index))?;
        self.vacant.0 = slot.next;
        *slot = with;
        Some(index)
    }

    /// Puts one back that was taken.
    pub(super) fn put(&mut self, index: u16) {
        if let Some(slot) = self.list.get_mut(usize::from(index)) {
            slot.expects = NOTHING;
            self.vacant.put(index, slot);
        }
    }
}

impl core::ops::Index<u16> for Slots {
    type Output = Slot;

    #[inline]
    fn index(&self, index: u16) -> &Slot {
        &self.list[usize::from(index)]
    }
}

impl core::ops::IndexMut<u16> for Slots {
    #[inline]
    fn index_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.list[usize::from(index)]
    }
}
