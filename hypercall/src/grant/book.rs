//! Buffers lent to a peer, each in a place of its own, from one stock of references.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use core::mem::ManuallyDrop;

use xen_sys::{DomId, GrantRef};

use super::{Access, Entries, GrantError, Grants, Held, StillMapped};
use crate::mem::{Buffer, Segment};

/// The end of a list.
const NONE: u16 = u16::MAX;

/// References that are given back or up at once.
const BATCH: usize = 32;

/// Places for buffers, and a stock of grant references, reserved once, that they share while they are lent: as many as a buffer has
/// segments. It is for requests that are known by a number of their own and differ much in size, such as those of a disk.
///
/// A buffer may be kept here without being lent, too: nothing of it is shared then. Lending and recalling allocate nothing.
///
/// A place keeps the reference of its first segment when its buffer is recalled, so that a buffer of one segment, the commonest, needs no
/// list. Where the others are lacking, those that are kept so are taken.
pub struct LoanBook<G: Grants, B: Buffer> {
    grants: G,
    peer: DomId,
    places: Box<[Place<B>]>,
    stock: Box<[Entry]>,
    /// First entry that no place has, and how many there are.
    free: u16,
    listed: u16,
}

struct Place<B: Buffer> {
    buffer: Option<ManuallyDrop<B>>,
    /// The reference of its first segment, if `own` is an entry.
    gref: GrantRef,
    own: u16,
    /// First entry of its other segments, in their order, and how many there are.
    rest: u16,
    rest_count: u16,
    /// Whether that of the first segment is shared; the others are all.
    shared: bool,
}

impl<B: Buffer> Place<B> {
    /// Tells whether it keeps a reference that shares nothing. It may have a buffer: one without segments, or with others that are held.
    fn is_idle(&self) -> bool {
        self.own != NONE && !self.shared
    }

    /// Ends the peer's access to all segments but the first. What is ended is free, whatever becomes of the rest.
    #[inline(never)]
    fn end_rest(
        &mut self,
        entries: &impl Entries,
        stock: &mut [Entry],
        free: &mut u16,
        listed: &mut u16,
    ) -> Result<(), StillMapped> {
        let (mut next, mut left, mut last) = (self.rest, self.rest_count, NONE);
        while left > 0
            && let Some(entry) = stock.get(usize::from(next))
            && entries.end(entry.gref).is_ok()
        {
            last = core::mem::replace(&mut next, entry.next);
            left -= 1;
        }
        // All of them at once, in the order in which they are.
        if let Some(last) = stock.get_mut(usize::from(last)) {
            last.next = core::mem::replace(free, self.rest);
        }
        *listed += self.rest_count - left;
        (self.rest, self.rest_count) = (next, left);
        match stock.get(usize::from(next)) {
            Some(Entry { gref, .. }) if left > 0 => Err(StillMapped { gref: *gref }),
            _ => Ok(()),
        }
    }
}

/// A reference: a place's own, in a place's list, in the free one, or in the quarantine if it is in none.
struct Entry {
    gref: GrantRef,
    next: u16,
}

impl<G: Grants, B: Buffer> fmt::Debug for LoanBook<G, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoanBook({} place(s), {} of {} free)", self.places.len(), self.free(), self.stock.len())
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
        let place = || Place { buffer: None, gref: GrantRef(0), own: NONE, rest: NONE, rest_count: 0, shared: false };
        let places = (0..places).map(|_| place()).collect();
        let free = if refs > 0 { 0 } else { NONE };
        Ok(Self { grants: grants.clone(), peer, places, stock, free, listed: refs })
    }

    /// Returns how many references there are.
    pub const fn refs(&self) -> usize {
        self.stock.len()
    }

    /// Returns how many references share nothing: those that no place has, and what places keep.
    pub fn free(&self) -> usize {
        usize::from(self.listed) + self.places.iter().filter(|place| place.is_idle()).count()
    }

    /// Lends the first `count` segments of a buffer, and gives `each` every one with its reference, in their order. With a count of 0
    /// the buffer is kept, and not lent.
    ///
    /// # Errors
    /// The buffer, if there is no such place, or it is taken, or there aren't so many references. Nothing is shared then.
    #[inline(always)]
    pub fn lend(
        &mut self,
        place: u16,
        access: Access,
        count: usize,
        buffer: B,
        mut each: impl FnMut(GrantRef, Segment),
    ) -> Result<(), B> {
        let Some(mut at) = self.places.get_mut(usize::from(place)).filter(|place| place.buffer.is_none()) else {
            return Err(buffer);
        };
        if count > 0 && (at.own == NONE || count - 1 > usize::from(self.listed)) {
            if !self.provide(place, count - 1) {
                return Err(buffer);
            }
            at = &mut self.places[usize::from(place)];
        }
        // In here before anything is shared: should `segments` panic, the pages aren't freed.
        let buffer = at.buffer.insert(ManuallyDrop::new(buffer));
        if count == 0 {
            return Ok(());
        }
        let Some(first) = buffer.segments().next() else { return Ok(()) };
        at.shared = true;
        // SAFETY: `new` reserved the reference, which is this place's own and was not shared; `Buffer` promises that the page stays, and
        // the buffer stays in here until `recall` has ended every reference.
        unsafe { self.grants.share(at.gref, self.peer, first.gfn, access) };
        each(at.gref, first);
        if count > 1 {
            self.lend_rest(place, access, count as u16 - 1, each);
        }
        Ok(())
    }

    /// Lends so many segments more of the buffer in a place, behind the first. There are as many references on the free list.
    #[inline]
    fn lend_rest(&mut self, place: u16, access: Access, count: u16, mut each: impl FnMut(GrantRef, Segment)) {
        let Self { grants, peer, places, stock, free, listed } = self;
        let (peer, stock, entries) = (*peer, &**stock, grants.entries());
        let Some(at) = places.get_mut(usize::from(place)) else { return };
        let Some(buffer) = &at.buffer else { return };
        // Should `each` or the buffer panic, the place has them all, and others none.
        let (mut next, all) = (core::mem::replace(free, NONE), core::mem::take(listed));
        (at.rest, at.rest_count) = (next, count);
        let mut segments = buffer.segments();
        let _ = segments.next();
        // The count bounds the loop even if the buffer should answer differently the second time.
        let mut left = count;
        while left > 0
            && let Some(segment) = segments.next()
            && let Some(entry) = stock.get(usize::from(next))
        {
            next = entry.next;
            left -= 1;
            // SAFETY: as for the first, but that it was on the free list.
            unsafe { entries.share(entry.gref, peer, segment.gfn, access) };
            each(entry.gref, segment);
        }
        at.rest_count = count - left;
        (*free, *listed) = (next, all - (count - left));
    }

    /// Gives a place a reference of its own, and sees to it that there are as many `more` on the free list; `false` if there aren't so
    /// many that share nothing.
    #[cold]
    fn provide(&mut self, place: u16, more: usize) -> bool {
        let lacking = usize::from(self.places[usize::from(place)].own == NONE);
        if more + lacking > usize::from(self.listed) {
            for other in self.places.iter_mut().filter(|other| other.is_idle()) {
                let own = core::mem::replace(&mut other.own, NONE);
                self.stock[usize::from(own)].next = core::mem::replace(&mut self.free, own);
                self.listed += 1;
            }
        }
        let place = &mut self.places[usize::from(place)];
        if place.own == NONE
            && let Some(entry) = self.stock.get(usize::from(self.free))
        {
            (place.own, place.gref) = (self.free, entry.gref);
            self.free = entry.next;
            self.listed -= 1;
        }
        place.own != NONE && more <= usize::from(self.listed)
    }

    /// Returns the buffer in a place, if there is one.
    pub fn buffer(&self, place: u16) -> Option<&B> {
        self.places.get(usize::from(place))?.buffer.as_deref()
    }

    /// Ends the peer's access and returns the buffer, or `None` if the place is empty.
    ///
    /// # Errors
    /// [`StillMapped`] if the peer has not unmapped a page: the buffer stays, and this may be tried again.
    #[inline(always)]
    pub fn recall(&mut self, place: u16) -> Result<Option<B>, StillMapped> {
        let Self { grants, places, stock, free, listed, .. } = self;
        let Some(at) = places.get_mut(usize::from(place)) else { return Ok(None) };
        if at.shared {
            grants.end(at.gref)?;
            at.shared = false;
        }
        if at.rest_count > 0 {
            at.end_rest(&grants.entries(), stock, free, listed)?;
        }
        Ok(at.buffer.take().map(ManuallyDrop::into_inner))
    }

    /// Empties all places: `ended` gets each buffer, or [`Held`] if the peer has not unmapped a page. References that the peer still
    /// uses go to the quarantine, and those buffers must stay where they are for ever.
    pub fn end_all(&mut self, mut ended: impl FnMut(u16, Result<B, Held<B>>)) {
        for index in 0..self.places.len() as u16 {
            match self.recall(index) {
                Ok(None) => {}
                Ok(Some(buffer)) => ended(index, Ok(buffer)),
                Err(StillMapped { .. }) => {
                    let at = &mut self.places[usize::from(index)];
                    let own = core::mem::take(&mut at.shared).then_some(at.gref);
                    if own.is_some() {
                        at.own = NONE;
                    }
                    let rest = (core::mem::replace(&mut at.rest, NONE), core::mem::take(&mut at.rest_count));
                    let buffer = at.buffer.take();
                    let held = own.into_iter().chain(self.list(rest.0, rest.1));
                    // SAFETY: reserved by `new`, and in no list of this object any more.
                    self.each_batch(held, |grants, refs| unsafe { grants.quarantine(refs, None) });
                    if let Some(buffer) = buffer {
                        ended(index, Err(Held(buffer)));
                    }
                }
            }
        }
    }

    /// Returns the references of a list.
    fn list(&self, mut at: u16, count: u16) -> impl Iterator<Item = GrantRef> {
        (0..count).map_while(move |_| {
            let entry = self.stock.get(usize::from(at))?;
            at = entry.next;
            Some(entry.gref)
        })
    }

    /// Hands out references, some at a time on the stack: there may be no memory.
    #[cold]
    fn each_batch(&self, list: impl Iterator<Item = GrantRef>, mut work: impl FnMut(&G, &[GrantRef])) {
        let mut refs = [GrantRef(0); BATCH];
        let mut len = 0;
        for gref in list {
            refs[len] = gref;
            len += 1;
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
        let own = self.places.iter().filter(|place| place.own != NONE).map(|place| place.gref);
        let all = own.chain(self.list(self.free, self.listed));
        // SAFETY: reserved by `new`, not shared, and given up with this object.
        self.each_batch(all, |grants, refs| unsafe { grants.release(refs) });
    }
}
