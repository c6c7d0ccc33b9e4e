//! Buffers lent to a peer, each in a place of its own, from one stock of references.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use core::mem::ManuallyDrop;

use xen_sys::{DomId, GrantRef};

use super::{Access, GrantError, Grants, Held, StillMapped};
use crate::mem::{Buffer, Segment};

/// The end of a list.
const NONE: u16 = u16::MAX;

/// References that are given back or up at once.
const BATCH: usize = 32;

/// Places for buffers, and a stock of grant references, reserved once, that they share while they are lent: as many as a buffer has
/// segments. It is for requests that are known by a number of their own and differ much in size, such as those of a disk.
///
/// A buffer may be kept here without being lent, too: nothing of it is shared then. Lending and recalling allocate nothing.
pub struct LoanBook<G: Grants, B: Buffer> {
    grants: G,
    peer: DomId,
    places: Box<[Place<B>]>,
    stock: Box<[Entry]>,
    /// First free entry of the stock.
    free: u16,
    free_count: u16,
}

struct Place<B: Buffer> {
    /// First entry that it shares, in the order of its segments.
    first: u16,
    buffer: Option<ManuallyDrop<B>>,
}

/// A reference: shared if it is in a place's list, ours if it is in the free one, in the quarantine if it is in none.
struct Entry {
    gref: GrantRef,
    next: u16,
}

impl<G: Grants, B: Buffer> fmt::Debug for LoanBook<G, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoanBook({} place(s), {} of {} free)", self.places.len(), self.free_count, self.stock.len())
    }
}

impl<G: Grants, B: Buffer> LoanBook<G, B> {
    /// Makes places, and reserves `refs` references for buffers that are lent to `peer`; `u16::MAX` of them at most.
    ///
    /// # Errors
    /// [`GrantError`] if there aren't so many.
    pub fn new(grants: &G, peer: DomId, places: u16, refs: u16) -> Result<Self, GrantError> {
        let mut reserved = vec![GrantRef(0); usize::from(refs)];
        grants.reserve(&mut reserved)?;
        let next = |index: u16| if index + 1 < refs { index + 1 } else { NONE };
        let stock = (0..refs).zip(reserved).map(|(index, gref)| Entry { gref, next: next(index) }).collect();
        let places = (0..places).map(|_| Place { first: NONE, buffer: None }).collect();
        let free = if refs > 0 { 0 } else { NONE };
        Ok(Self { grants: grants.clone(), peer, places, stock, free, free_count: refs })
    }

    /// Returns how many references there are.
    pub const fn refs(&self) -> usize {
        self.stock.len()
    }

    /// Returns how many references share nothing.
    #[inline]
    pub const fn free(&self) -> usize {
        self.free_count as usize
    }

    /// Lends the first `count` segments of a buffer, and gives `each` every one with its reference, in their order. With a count of 0
    /// the buffer is kept, and not lent.
    ///
    /// # Errors
    /// The buffer, if there is no such place, or it is taken, or there aren't so many references. Nothing is shared then.
    #[inline]
    pub fn lend(
        &mut self,
        place: u16,
        access: Access,
        count: usize,
        buffer: B,
        mut each: impl FnMut(GrantRef, Segment),
    ) -> Result<(), B> {
        let Some(place) = self.places.get_mut(usize::from(place)).filter(|place| place.buffer.is_none()) else {
            return Err(buffer);
        };
        if count > usize::from(self.free_count) {
            return Err(buffer);
        }
        // In here before anything is shared: should `segments` panic, the pages aren't freed.
        let buffer = place.buffer.insert(ManuallyDrop::new(buffer));
        let mut last = NONE;
        // The count bounds the loop even if the buffer should answer differently the second time.
        for segment in buffer.segments().take(count) {
            let index = self.free;
            let Some(entry) = self.stock.get_mut(usize::from(index)) else { break };
            self.free = core::mem::replace(&mut entry.next, NONE);
            self.free_count -= 1;
            let gref = entry.gref;
            match self.stock.get_mut(usize::from(last)) {
                Some(last) => last.next = index,
                None => place.first = index,
            }
            last = index;
            // SAFETY: `new` reserved the reference, and it was free; `Buffer` promises that the page stays, and the buffer stays
            // in here until `recall` has ended every reference.
            unsafe { self.grants.share(gref, self.peer, segment.gfn, access) };
            each(gref, segment);
        }
        Ok(())
    }

    /// Returns the buffer in a place, if there is one.
    pub fn buffer(&self, place: u16) -> Option<&B> {
        self.places.get(usize::from(place))?.buffer.as_deref()
    }

    /// Ends the peer's access and returns the buffer, or `None` if the place is empty.
    ///
    /// # Errors
    /// [`StillMapped`] if the peer has not unmapped a page: the buffer stays, and this may be tried again.
    #[inline]
    pub fn recall(&mut self, place: u16) -> Result<Option<B>, StillMapped> {
        let Some(place) = self.places.get_mut(usize::from(place)) else { return Ok(None) };
        while let Some(entry) = self.stock.get_mut(usize::from(place.first)) {
            self.grants.end(entry.gref)?;
            // One by one: what is ended is free, whatever becomes of the rest.
            let index = core::mem::replace(&mut place.first, entry.next);
            entry.next = core::mem::replace(&mut self.free, index);
            self.free_count += 1;
        }
        Ok(place.buffer.take().map(ManuallyDrop::into_inner))
    }

    /// Empties all places: `ended` gets each buffer, or [`Held`] if the peer has not unmapped a page. References that the peer still
    /// uses go to the quarantine, and those buffers must stay where they are for ever.
    pub fn end_all(&mut self, mut ended: impl FnMut(u16, Result<B, Held<B>>)) {
        for index in 0..self.places.len() as u16 {
            match self.recall(index) {
                Ok(None) => {}
                Ok(Some(buffer)) => ended(index, Ok(buffer)),
                Err(StillMapped { .. }) => {
                    let place = &mut self.places[usize::from(index)];
                    let first = core::mem::replace(&mut place.first, NONE);
                    let buffer = place.buffer.take();
                    // SAFETY: reserved by `new`, and in no list of this object any more.
                    self.each_batch(first, |grants, refs| unsafe { grants.quarantine(refs, None) });
                    if let Some(buffer) = buffer {
                        ended(index, Err(Held(buffer)));
                    }
                }
            }
        }
    }

    /// Hands out the references of a list, some at a time on the stack: there may be no memory.
    #[cold]
    fn each_batch(&self, mut at: u16, mut work: impl FnMut(&G, &[GrantRef])) {
        let mut refs = [GrantRef(0); BATCH];
        let mut len = 0;
        while let Some(entry) = self.stock.get(usize::from(at)) {
            refs[len] = entry.gref;
            len += 1;
            at = entry.next;
            if len == BATCH {
                work(&self.grants, &refs);
                len = 0;
            }
        }
        if len > 0 {
            work(&self.grants, &refs[..len]);
        }
    }
}

impl<G: Grants, B: Buffer> Drop for LoanBook<G, B> {
    /// Gives the references back. A buffer that is still lent is dropped if the peer can't reach it, else leaked.
    fn drop(&mut self) {
        self.end_all(|_, _| {});
        // SAFETY: reserved by `new`, not shared, and given up with this object.
        self.each_batch(self.free, |grants, refs| unsafe { grants.release(refs) });
    }
}
