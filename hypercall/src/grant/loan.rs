//! A buffer lent to a peer for the time of one request.

use core::mem::ManuallyDrop;

use xen_sys::{DomId, GrantRef};

use super::{Access, GrantError, Grants, StillMapped};
use crate::mem::{Buffer, PageBuf};

/// Up to `N` grant references, reserved once, and the buffer that they share at the moment. A request slot of a queue has
/// one: [`lend`](Self::lend) writes one grant entry a segment and nothing else, [`recall`](Self::recall) gives the buffer back
/// once the peer can't reach it any more.
///
/// [`dissolve`](Self::dissolve) gives the references back. Dropped without it, references and buffer are leaked, never reused.
#[derive(Debug)]
pub struct Loan<G: Grants, B: Buffer, const N: usize> {
    /// The table that the references are of: no other can end them.
    grants: G,
    refs: [GrantRef; N],
    /// How many of `refs` are shared, from the first.
    shared: usize,
    buffer: Option<ManuallyDrop<B>>,
}

/// Why a buffer could not be lent. It comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LendError {
    /// A buffer is lent already.
    Busy,
    /// The buffer has more segments than there are references.
    TooManySegments {
        /// References there are.
        max: usize,
    },
}

impl<G: Grants, B: Buffer, const N: usize> Loan<G, B, N> {
    /// Reserves the references.
    ///
    /// # Errors
    /// [`GrantError`] if there aren't enough.
    pub fn new(grants: &G) -> Result<Self, GrantError> {
        let mut refs = [GrantRef(0); N];
        grants.reserve(&mut refs)?;
        Ok(Self { grants: grants.clone(), refs, shared: 0, buffer: None })
    }

    /// Lends the buffer to `peer` and returns its references, one a segment.
    ///
    /// # Errors
    /// [`LendError`] and the buffer; nothing is shared then.
    pub fn lend(&mut self, peer: DomId, access: Access, buffer: B) -> Result<&[GrantRef], (LendError, B)> {
        if self.buffer.is_some() {
            return Err((LendError::Busy, buffer));
        }
        if buffer.segments().count() > N {
            return Err((LendError::TooManySegments { max: N }, buffer));
        }
        self.shared = 0;
        // In here before anything is shared: should `segments` panic, the pages aren't freed.
        let buffer = self.buffer.insert(ManuallyDrop::new(buffer));
        // `zip` bounds the loop by the references even if the buffer should answer differently the second time.
        for (gref, segment) in self.refs.iter().zip(buffer.segments()) {
            // SAFETY: `new` reserved the reference, and nothing was lent; `Buffer` promises that the page stays, and the
            // buffer stays in here until `recall` has ended every reference.
            unsafe { self.grants.share(*gref, peer, segment.gfn, access) };
            self.shared += 1;
        }
        Ok(&self.refs[..self.shared])
    }

    /// Returns the buffer that is lent now.
    pub fn buffer(&self) -> Option<&B> {
        self.buffer.as_deref()
    }

    /// Ends the peer's access and returns the buffer, or `None` if nothing was lent.
    ///
    /// # Errors
    /// [`StillMapped`] if the peer has not unmapped a page: the buffer stays lent, and this may be tried again.
    pub fn recall(&mut self) -> Result<Option<B>, StillMapped> {
        while self.shared > 0 {
            self.grants.end(self.refs[self.shared - 1])?;
            self.shared -= 1;
        }
        Ok(self.buffer.take().map(ManuallyDrop::into_inner))
    }

    /// Gives the references back, and the buffer if one was lent.
    ///
    /// # Errors
    /// [`Held`] if the peer has not unmapped a page: the references go to the quarantine, and the buffer must stay where it
    /// is for ever.
    pub fn dissolve(mut self) -> Result<Option<B>, Held<B>> {
        let recalled = self.recall();
        // SAFETY: reserved by `new`, not shared, and given up with this object.
        unsafe { self.grants.release(&self.refs[self.shared..]) };
        match (recalled, self.buffer.take()) {
            (Err(StillMapped { .. }), Some(buffer)) => {
                // SAFETY: reserved by `new`, and given up with this object.
                unsafe { self.grants.quarantine(&self.refs[..self.shared], None) };
                Err(Held(buffer))
            }
            (Ok(buffer), _) => Ok(buffer),
            (Err(_), None) => Ok(None),
        }
    }
}

impl<G: Grants, const N: usize> Loan<G, PageBuf<G::Platform>, N> {
    /// Gives the references back and frees the pages that were lent. What the peer has not unmapped goes to the quarantine, the
    /// pages with their references.
    pub fn retire(mut self) {
        let recalled = self.recall();
        // SAFETY: reserved by `new`, not shared, and given up with this object.
        unsafe { self.grants.release(&self.refs[self.shared..]) };
        if let (Err(StillMapped { .. }), Some(buffer)) = (recalled, self.buffer.take()) {
            let pages = ManuallyDrop::into_inner(buffer).into_pages();
            // SAFETY: reserved by `new`, and given up with this object, as are the pages.
            unsafe { self.grants.quarantine(&self.refs[..self.shared], Some(pages)) };
        }
    }
}

/// A buffer that the peer never gave back. It can be looked at, to report its request as failed; dropping this leaks it.
#[derive(Debug)]
#[must_use = "its owner waits for the completion"]
pub struct Held<B: Buffer>(pub(super) ManuallyDrop<B>);

impl<B: Buffer> Held<B> {
    /// Returns the buffer, to be looked at only.
    pub fn buffer(&self) -> &B {
        &self.0
    }
}
