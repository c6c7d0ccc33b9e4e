//! The domain that a driver of a ring's target runs in. It is made once; a run leaves it as it was.

use hypercall::DomId;
use hypercall::grant::GrantTable;
use xenbus::domain::Services;

use crate::thin::Thin;
use crate::tree::Tree;

/// What a driver is given.
pub type Domain = Services<Thin, GrantTable<Thin>, Thin, Tree>;

/// The end that is ours.
pub const OWN: DomId = DomId(2);

thread_local! {
    static BED: Domain = {
        let platform = Thin::new();
        // SAFETY: the only table of this domain.
        let grants = unsafe { GrantTable::new(platform.clone()) }.expect("a grant table");
        Services { events: platform.clone(), store: Tree::default(), id: OWN, platform, grants }
    };
}

/// Returns the domain, in which nothing has happened yet.
pub fn fresh() -> Domain {
    let bed = BED.with(Clone::clone);
    bed.platform.reset();
    bed.store.clear();
    bed
}

/// Looks whether the last run has left anything of the other end, or of what it has taken.
pub fn check_quiet(bed: &Domain, free_before: u32) {
    assert_eq!(bed.platform.mapped(), 0, "pages are mapped");
    // The grant table's own.
    assert_eq!(bed.platform.space_in_use(), 1, "address space is lost");
    assert_eq!(bed.platform.in_use(), (0, 0), "pages and ports are lost");
    assert_eq!(bed.grants.stats().free, free_before, "grants are lost");
    assert_eq!(bed.store.watches(), 0, "watches are left");
}
