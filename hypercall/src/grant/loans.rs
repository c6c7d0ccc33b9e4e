//! Buffers lent to a peer, many at once, from one stock of references.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use core::mem::ManuallyDrop;

use xen_sys::{DomId, GrantRef};

use super::{Access, GrantError, Grants, Held, StillMapped};
use crate::mem::Buffer;

/// References that are given to the quarantine at once.
const GIVE_UP: usize = 32;

/// A stock of grant references, reserved once, and the buffers that they share at the moment, each taking one reference a
/// segment. It is for requests that differ much in how many segments they have, such as packets; where all take about as many,
/// a [`Loan`](super::Loan) a request is simpler.
///
/// A loan is known by the index of its first reference. Lending and recalling allocate nothing.
pub struct LoanTable<G: Grants, B: Buffer> {
    grants: G,
    peer: DomId,
    entries: Box<[Entry<B>]>,
    free: Option<u16>,
    free_count: usize,
}

struct Entry<B: Buffer> {
    gref: GrantRef,
    state: State,
    /// The next one of the same loan, or the next free one.
    next: Option<u16>,
    /// What is lent, in the first entry of the loan.
    buffer: Option<ManuallyDrop<B>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Reserved; the peer reaches nothing by it.
    Ours,
    Shared,
    /// In the quarantine; not ours any more.
    Gone,
}

impl<G: Grants, B: Buffer> fmt::Debug for LoanTable<G, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoanTable({} of {} free)", self.free_count, self.entries.len())
    }
}

impl<G: Grants, B: Buffer> LoanTable<G, B> {
    /// Reserves `count` references, for buffers that are lent to `peer`.
    ///
    /// # Errors
    /// [`GrantError`] if there aren't so many.
    pub fn new(grants: &G, peer: DomId, count: u16) -> Result<Self, GrantError> {
        let mut refs = vec![GrantRef(0); usize::from(count)];
        grants.reserve(&mut refs)?;
        let entry = |(index, gref): (u16, GrantRef)| Entry {
            gref,
            state: State::Ours,
            next: Some(index + 1).filter(|next| *next < count),
            buffer: None,
        };
        let entries = (0..count).zip(refs).map(entry).collect();
        let free = (count > 0).then_some(0);
        Ok(Self { grants: grants.clone(), peer, entries, free, free_count: usize::from(count) })
    }

    /// Returns how many references share nothing.
    pub const fn free(&self) -> usize {
        self.free_count
    }

    /// Lends a buffer and returns its loan.
    ///
    /// # Errors
    /// The buffer, if it has no segments, or more than there are references free. Nothing is shared then.
    pub fn lend(&mut self, access: Access, buffer: B) -> Result<u16, B> {
        let count = buffer.segments().count();
        let Some(loan) = self.free.filter(|_| (1..=self.free_count).contains(&count)) else { return Err(buffer) };
        let mut last = None;
        // The count bounds the loop even if the buffer should answer differently the second time.
        for segment in buffer.segments().take(count) {
            let Some(index) = self.free else { break };
            let entry = &mut self.entries[usize::from(index)];
            self.free = entry.next.take();
            self.free_count -= 1;
            // SAFETY: `new` reserved the reference, and it was free; `Buffer` promises that the page stays, and the buffer stays
            // in here until `recall` has ended every reference.
            unsafe { self.grants.share(entry.gref, self.peer, segment.gfn, access) };
            entry.state = State::Shared;
            if let Some(last) = last.replace(index) {
                self.entries[usize::from(last)].next = Some(index);
            }
        }
        self.entries[usize::from(loan)].buffer = Some(ManuallyDrop::new(buffer));
        Ok(loan)
    }

    /// Returns what a loan lends; `None` if there is no such loan.
    pub fn buffer(&self, loan: u16) -> Option<&B> {
        self.entries.get(usize::from(loan))?.buffer.as_deref()
    }

    /// Returns the indices and references of a loan, one a segment. The indices are below the `count` of [`new`](Self::new), and
    /// no other loan has them.
    pub fn refs(&self, loan: u16) -> impl Iterator<Item = (u16, GrantRef)> {
        let first = self.buffer(loan).map(|_| loan);
        core::iter::successors(first, |index| self.entries[usize::from(*index)].next)
            .map(|index| (index, self.entries[usize::from(index)].gref))
    }

    /// Ends the peer's access and returns the buffer, or `None` if there is no such loan.
    ///
    /// # Errors
    /// [`StillMapped`] if the peer has not unmapped a page: the buffer stays lent, and this may be tried again.
    pub fn recall(&mut self, loan: u16) -> Result<Option<B>, StillMapped> {
        if self.buffer(loan).is_none() {
            return Ok(None);
        }
        let mut at = Some(loan);
        while let Some(index) = at {
            let entry = &mut self.entries[usize::from(index)];
            if entry.state == State::Shared {
                self.grants.end(entry.gref)?;
                entry.state = State::Ours;
            }
            at = entry.next;
        }
        let mut at = Some(loan);
        while let Some(index) = at {
            let entry = &mut self.entries[usize::from(index)];
            at = core::mem::replace(&mut entry.next, self.free.replace(index));
            self.free_count += 1;
        }
        Ok(self.entries[usize::from(loan)].buffer.take().map(ManuallyDrop::into_inner))
    }

    /// Ends all loans: `ended` gets each with its buffer, or with [`Held`] if the peer has not unmapped a page. References that
    /// the peer still uses go to the quarantine, and those buffers must stay where they are for ever.
    pub fn end_all(&mut self, mut ended: impl FnMut(u16, Result<B, Held<B>>)) {
        for loan in 0..self.entries.len() as u16 {
            match self.recall(loan) {
                Ok(None) => {}
                Ok(Some(buffer)) => ended(loan, Ok(buffer)),
                Err(StillMapped { .. }) => {
                    self.give_up(loan);
                    if let Some(buffer) = self.entries[usize::from(loan)].buffer.take() {
                        ended(loan, Err(Held(buffer)));
                    }
                }
            }
        }
    }

    /// Puts the references of a loan that the peer still uses into the quarantine.
    #[cold]
    fn give_up(&mut self, loan: u16) {
        // On the stack, some at a time: there may be no memory, and a loan may be of any length.
        let mut refs = [GrantRef(0); GIVE_UP];
        let mut len = 0;
        let mut at = Some(loan);
        while let Some(index) = at {
            let entry = &mut self.entries[usize::from(index)];
            at = entry.next;
            if entry.state == State::Shared {
                entry.state = State::Gone;
                refs[len] = entry.gref;
                len += 1;
            }
            if len == GIVE_UP || (len > 0 && at.is_none()) {
                // SAFETY: reserved by `new`, and never used again, as their state says.
                unsafe { self.grants.quarantine(&refs[..len], None) };
                len = 0;
            }
        }
    }
}

impl<G: Grants, B: Buffer> Drop for LoanTable<G, B> {
    /// Gives the references back. A buffer that is still lent is dropped if the peer can't reach it, else leaked.
    fn drop(&mut self) {
        self.end_all(|_, _| {});
        for entry in self.entries.iter().filter(|entry| entry.state == State::Ours) {
            // SAFETY: reserved by `new`, not shared, and given up with this object.
            unsafe { self.grants.release(&[entry.gref]) };
        }
    }
}
