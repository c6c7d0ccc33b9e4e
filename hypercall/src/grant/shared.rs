//! Own pages that a peer may use, such as those of a ring.

use alloc::vec;
use alloc::vec::Vec;

use xen_sys::{DomId, GrantRef};

use super::{Access, GrantError, Grants, StillMapped};
use crate::mem::{Pages, Shared};

/// Owned pages, each granted to one peer for reading and writing. Dropping them ends the grants; a page that the peer still
/// maps is quarantined, not freed.
pub struct SharedPages<G: Grants> {
    grants: G,
    refs: Vec<GrantRef>,
    /// Empty only while it is dropped: the pages go to the quarantine if one of them is still mapped.
    pages: Option<Pages<G::Platform>>,
}

impl<G: Grants> SharedPages<G> {
    /// Allocates `count` zeroed, contiguous pages and grants them to `peer`.
    ///
    /// # Errors
    /// [`GrantError`] if pages or references are lacking; nothing stays allocated then.
    pub fn new(grants: &G, peer: DomId, count: usize) -> Result<Self, GrantError> {
        let pages = Pages::new(grants.platform(), count)?;
        let mut refs = vec![GrantRef(0); count];
        grants.reserve(&mut refs)?;
        for (index, gref) in refs.iter().enumerate() {
            // SAFETY: just reserved; the pages are ours, seen through `Shared` only, and stay until `drop` has ended
            // each grant or quarantined it with them.
            unsafe { grants.share(*gref, peer, pages.gfn(index), Access::ReadWrite) };
        }
        Ok(Self { grants: grants.clone(), refs, pages: Some(pages) })
    }

    /// Returns the references, one a page, for the peer to be told.
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    /// Returns the view of all pages.
    ///
    /// # Panics
    /// Never: the pages are there until the drop.
    pub fn shared(&self) -> Shared<'_> {
        self.pages.as_ref().expect("pages are there until the drop").shared()
    }
}

impl<G: Grants> Drop for SharedPages<G> {
    fn drop(&mut self) {
        let mut refs = core::mem::take(&mut self.refs);
        refs.retain(|gref| match self.grants.end(*gref) {
            Ok(()) => {
                // SAFETY: reserved by `new`, and its access is over.
                unsafe { self.grants.release(&[*gref]) };
                false
            }
            Err(StillMapped { .. }) => true,
        });
        if !refs.is_empty() {
            // SAFETY: reserved by `new`; references and pages go with this object.
            unsafe { self.grants.quarantine(&refs, self.pages.take()) };
        }
    }
}
