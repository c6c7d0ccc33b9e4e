//! The entries of this domain's grant table, version 1.

use core::ptr::NonNull;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use xen_sys::grant_table::{GTF_invalid, GTF_permit_access, GTF_reading, GTF_readonly, GTF_writing, GrantEntryV1};
use xen_sys::{DomId, Gfn, GrantRef};

use super::{Access, Entries, StillMapped};
use crate::mem::PAGE_SIZE;
use crate::platform::Platform;

/// Entries of one frame of the table.
pub(super) const PER_FRAME: u32 = (PAGE_SIZE / size_of::<GrantEntryV1>()) as u32;

/// How often `end` tries again because Xen changed the entry between look and swap. A peer that maps and unmaps in a loop
/// could keep it busy; the caller may come back.
const END_TRIES: usize = 8;

/// The entries of a [`GrantTable`](super::GrantTable) that were shown when this was made, side by side.
pub struct TableEntries<'a, P: Platform> {
    platform: &'a P,
    first: NonNull<GrantEntryV1>,
    count: u32,
}

impl<'a, P: Platform> TableEntries<'a, P> {
    /// # Safety
    /// At `first` there are so many entries, and for `'a` they stay.
    #[inline]
    pub(super) const unsafe fn new(platform: &'a P, first: NonNull<GrantEntryV1>, count: u32) -> Self {
        Self { platform, first, count }
    }

    /// Returns the entry of a reference, or `None` beyond the end of the table.
    #[inline]
    pub(super) fn entry(&self, gref: GrantRef) -> Option<&'a GrantEntryV1> {
        // SAFETY: an entry is made of atomics, and is there, as `new` was told.
        self.place_of(gref).map(|entry| unsafe { entry.as_ref() })
    }

    /// Returns the entries of a frame of the table, or none beyond its end.
    pub(super) fn frame(&self, frame: u32) -> &'a [GrantEntryV1] {
        let Some(first) = self.place_of(GrantRef(frame * PER_FRAME)) else { return &[] };
        // SAFETY: as above; a frame holds so many.
        unsafe { NonNull::slice_from_raw_parts(first, PER_FRAME as usize).as_ref() }
    }

    #[inline]
    fn place_of(&self, gref: GrantRef) -> Option<NonNull<GrantEntryV1>> {
        if gref.0 >= self.count {
            return None;
        }
        // SAFETY: there are so many.
        let entry = unsafe { self.first.add(gref.0 as usize) };
        Some(self.platform.mapped(entry.cast()).cast())
    }
}

// SAFETY: `end` leaves an entry in which Xen finds no access any more, by one atomic step.
unsafe impl<P: Platform> Entries for TableEntries<'_, P> {
    #[inline]
    unsafe fn share(&self, gref: GrantRef, peer: DomId, gfn: Gfn, access: Access) {
        let Some(entry) = self.entry(gref) else { return };
        let Ok(frame) = u32::try_from(gfn.0) else { return };
        let flags = match access {
            Access::ReadWrite => GTF_permit_access,
            Access::ReadOnly => GTF_permit_access | GTF_readonly,
        };
        entry.frame.store(frame, Relaxed);
        entry.domid.store(peer.0, Relaxed);
        // Release: Xen, which serves the peer on another CPU, must find frame and domain once it finds the permission. What
        // this domain wrote to the page before is before, too.
        entry.flags.store(flags, Release);
    }

    #[inline]
    fn end(&self, gref: GrantRef) -> Result<(), StillMapped> {
        // Nobody has reserved it, or it can't be reached since a suspend.
        let Some(entry) = self.entry(gref) else { return Err(StillMapped { gref }) };
        if try_end(entry, &mut entry.flags.load(Relaxed)) { Ok(()) } else { end_again(entry, gref) }
    }
}

/// Ends the access by an entry that has these flags, or tells which it has.
#[inline(always)]
fn try_end(entry: &GrantEntryV1, flags: &mut u16) -> bool {
    if *flags & (GTF_reading | GTF_writing) != 0 {
        return false;
    }
    // One step for look and change: a peer that maps between the two would else keep its mapping of a page that we
    // take for our own again. Acquire and release: what the peer's accesses did is before, and our reuse after.
    match entry.flags.compare_exchange(*flags, GTF_invalid, AcqRel, Relaxed) {
        Ok(_) => true,
        Err(now) => {
            *flags = now;
            false
        }
    }
}

/// Ends the access by an entry that Xen changes just now, if that is to be had in a few steps.
#[cold]
pub(super) fn end_again(entry: &GrantEntryV1, gref: GrantRef) -> Result<(), StillMapped> {
    let mut flags = entry.flags.load(Acquire);
    for _ in 1..END_TRIES {
        if try_end(entry, &mut flags) {
            return Ok(());
        }
        if flags & (GTF_reading | GTF_writing) != 0 {
            break;
        }
    }
    Err(StillMapped { gref })
}
