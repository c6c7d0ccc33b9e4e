//! Grant tables: how one domain lets another read or write a page of its memory.
//!
//! ```text
//!   this domain grants                          the other domain uses
//!
//!   reserve ──► GrantRef ──► share ──────────►  map ──► Mapping ──► unmap
//!                  ▲           │                copy
//!                  └── end ◄───┘
//!                       └─ refused: somebody still maps it ──► quarantine
//! ```
//!
//! Drivers don't meet [`Entries::share`], which is unsafe: they hand pages to [`SharedPages`] (rings) or a [`Buffer`]
//! to a [`Loan`] (data), and get them back only when the hypervisor says that nobody maps them any more.
//!
//! [`Buffer`]: crate::mem::Buffer

mod book;
mod copy;
mod entries;
mod loan;
mod loans;
mod locked;
mod map;
mod place;
mod shared;
mod status;
mod table;

pub use book::LoanBook;
pub use copy::{CopyBatch, CopyError, Foreign, Local};
pub use entries::TableEntries;
pub use loan::{Held, LendError, Loan};
pub use loans::LoanTable;
pub use map::{MapError, MapRequest, UnmapError, Window};
pub use shared::SharedPages;
pub use status::GrantStatus;
pub use table::{GrantStats, GrantTable};

use core::fmt;

use xen_sys::{DomId, Gfn, GrantRef};

use crate::call::grant_table::GrantOpError;
use crate::mem::{OutOfMemory, Pages};
use crate::platform::Platform;

/// A status that Xen never gives: written before a call, so that an entry which it didn't come to can be told.
const UNTRIED: i16 = 1;

/// What the peer may do with a granted page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read only: what a disk write or a transmitted packet needs.
    ReadOnly,
}

/// No grant reference could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The table has reached its largest size, in entries.
    TableFull {
        /// Entries that the table has.
        entries: u32,
    },
    /// The hypervisor refused to enlarge the table.
    Xen(GrantOpError),
    /// There was no memory for the table's frames or for the pages to grant.
    OutOfMemory(OutOfMemory),
}

impl From<OutOfMemory> for GrantError {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(error)
    }
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TableFull { entries } => write!(f, "grant table full: {entries} entries"),
            Self::Xen(error) => write!(f, "grant table can't grow: {error}"),
            Self::OutOfMemory(error) => write!(f, "grant table: {error}"),
        }
    }
}

/// The peer still maps the page, so access can't be ended and the page can't be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the page still belongs to the peer: keep it, or quarantine it"]
pub struct StillMapped {
    /// The grant in use.
    pub gref: GrantRef,
}

impl fmt::Display for StillMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {} is still mapped by the peer", self.gref.0)
    }
}

/// The granting half of the grant table, as drivers use it. [`GrantTable`] is ours; a kernel that has a grant allocator
/// of its own, with other drivers on it, lends that one. A handle: cheap to clone.
///
/// # Safety
/// `reserve` never returns a reference that somebody else holds; the entries are those that Xen looks at.
pub unsafe trait Grants: Clone {
    /// The platform whose pages are granted.
    type Platform: Platform;

    /// The entries of the table.
    type Entries<'a>: Entries
    where
        Self: 'a;

    /// Returns the platform.
    fn platform(&self) -> &Self::Platform;

    /// Fills `refs` with references that nobody else uses; all or none. May enlarge the table, so it belongs to attach.
    ///
    /// # Errors
    /// [`GrantError`] if there aren't so many; then none is taken.
    fn reserve(&self, refs: &mut [GrantRef]) -> Result<(), GrantError>;

    /// Gives back references that are not shared any more.
    ///
    /// # Safety
    /// The caller has reserved them, and nobody uses them for anything any more.
    unsafe fn release(&self, refs: &[GrantRef]);

    /// Returns the entries, for many references one after the other: where they are is looked up once. Not for keeping: entries that
    /// come later aren't in there.
    fn entries(&self) -> Self::Entries<'_>;

    /// [`Entries::share`] for one reference.
    ///
    /// # Safety
    /// As there.
    #[inline]
    unsafe fn share(&self, gref: GrantRef, peer: DomId, gfn: Gfn, access: Access) {
        // SAFETY: the caller's.
        unsafe { self.entries().share(gref, peer, gfn, access) };
    }

    /// [`Entries::end`] for one reference.
    ///
    /// # Errors
    /// As there.
    #[inline]
    fn end(&self, gref: GrantRef) -> Result<(), StillMapped> {
        self.entries().end(gref)
    }

    /// Takes shared references that could not be ended, with the pages behind them if they are known, and keeps all of it
    /// out of use until nobody maps any of them; tries again whenever references are reserved or quarantined. Beyond a
    /// cap, or if there is no memory for a copy of `refs`, references and pages are leaked. Both are counted. Never fails, and may
    /// be called where nothing can be allocated.
    ///
    /// # Safety
    /// The caller has reserved the references, and nobody uses them for anything any more; the pages are not used either.
    unsafe fn quarantine(&self, refs: &[GrantRef], pages: Option<Pages<Self::Platform>>);
}

/// The entries of a grant table, by which a reserved reference lets a peer in, and out again.
///
/// # Safety
/// `end` returns `Ok` only if the peer can't reach the page through that grant any more.
pub unsafe trait Entries {
    /// Lets `peer` access a page through a reserved reference. One entry written, no hypercall, no lock.
    ///
    /// # Safety
    /// The caller has reserved `gref` and it isn't shared now. The page of `gfn` stays allocated, and is used by this
    /// domain only through atomics, until `end` has returned `Ok` for `gref`.
    unsafe fn share(&self, gref: GrantRef, peer: DomId, gfn: Gfn, access: Access);

    /// Ends the peer's access; the reference stays reserved. No hypercall, no lock.
    ///
    /// # Errors
    /// [`StillMapped`] if the peer has the page mapped: nothing has changed then, and it may be tried again.
    fn end(&self, gref: GrantRef) -> Result<(), StillMapped>;
}
