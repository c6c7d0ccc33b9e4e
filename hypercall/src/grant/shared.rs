//! Own pages that a peer may use, such as those of a ring.

use alloc::boxed::Box;
use alloc::vec;

use xen_sys::{DomId, GrantRef};

use super::{Access, GrantError, Grants, StillMapped};
use crate::mem::{PAGE_SIZE, Pages, Shared};

/// Owned pages, each granted to one peer, by a reference of its own that stays the same. Dropping them ends the grants; a page that the
/// peer still maps is quarantined, not freed.
pub struct SharedPages<G: Grants> {
    grants: G,
    peer: DomId,
    refs: Box<[GrantRef]>,
    /// Which of them the peer may use now.
    shared: Box<[bool]>,
    /// Empty only while it is dropped: the pages go to the quarantine if one of them is still mapped.
    pages: Option<Pages<G::Platform>>,
}

impl<G: Grants> SharedPages<G> {
    /// Allocates `count` zeroed, contiguous pages and grants them to `peer`, for reading and writing.
    ///
    /// # Errors
    /// [`GrantError`] if pages or references are lacking; nothing stays allocated then.
    pub fn new(grants: &G, peer: DomId, count: usize) -> Result<Self, GrantError> {
        Self::with_access(grants, peer, count, Access::ReadWrite)
    }

    /// The same; `peer` may do with them what `access` says.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_access(grants: &G, peer: DomId, count: usize, access: Access) -> Result<Self, GrantError> {
        let mut pages = Self::unshared(grants, peer, count)?;
        for index in 0..count {
            pages.share(index, access);
        }
        Ok(pages)
    }

    /// The same, but `peer` can't use any of them before it is [shared](Self::share).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn unshared(grants: &G, peer: DomId, count: usize) -> Result<Self, GrantError> {
        let pages = Pages::new(grants.platform(), count)?;
        let mut refs = vec![GrantRef(0); count].into_boxed_slice();
        grants.reserve(&mut refs)?;
        Ok(Self { grants: grants.clone(), peer, refs, shared: vec![false; count].into(), pages: Some(pages) })
    }

    /// Lets the peer use a page. One that it may use already stays as it is.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn share(&mut self, index: usize, access: Access) {
        if core::mem::replace(&mut self.shared[index], true) {
            return;
        }
        if let Some(pages) = &self.pages {
            // SAFETY: reserved by `unshared`, and not shared; the page is ours, seen through `Shared` only, and stays until `drop` has
            // ended its grant or quarantined it with it.
            unsafe { self.grants.share(self.refs[index], self.peer, pages.gfn(index), access) };
        }
    }

    /// Ends the peer's use of a page.
    ///
    /// # Errors
    /// [`StillMapped`] if the peer has not unmapped it: nothing has changed then, and it may be tried again.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn end(&mut self, index: usize) -> Result<(), StillMapped> {
        self.grants.end(self.refs[index])?;
        self.shared[index] = false;
        Ok(())
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

    /// Returns the view of a page.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page(&self, index: usize) -> Shared<'_> {
        self.shared().slice(index * PAGE_SIZE, PAGE_SIZE)
    }
}

impl<G: Grants> Drop for SharedPages<G> {
    fn drop(&mut self) {
        let mut refs = core::mem::take(&mut self.refs).into_vec();
        refs.retain(|gref| match self.grants.end(*gref) {
            Ok(()) => {
                // SAFETY: reserved by `unshared`, and its access is over.
                unsafe { self.grants.release(&[*gref]) };
                false
            }
            Err(StillMapped { .. }) => true,
        });
        if !refs.is_empty() {
            // SAFETY: reserved by `unshared`; references and pages go with this object.
            unsafe { self.grants.quarantine(&refs, self.pages.take()) };
        }
    }
}
