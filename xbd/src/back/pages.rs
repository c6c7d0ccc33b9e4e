//! The pages of requests: where they are mapped, which are kept mapped, which are to be unmapped.
//!
//! ```text
//!              add          map                  release                unmap
//!    free ───────────► new ──────► in a request ───────────► over ─────────────► free
//!                                    ▲       │ release, if it is kept
//!                                    │ add   ▼
//!                                    └───── idle ── evicted, expired ─► over
//! ```
//!
//! A page is a place in the window, known by its number. What is new and what is over are the window's batches, which are mapped and
//! unmapped when they are full, and when it is time. The pages of a request, and those that are free or idle, are lists that are threaded
//! through the pages. Nothing is allocated after [`Pages::new`].

use alloc::boxed::Box;
use alloc::vec;

use hypercall::grant::{Access, MapRequest, Window};
use hypercall::mem::{OutOfMemory, Shared};
use hypercall::{DomId, GrantRef, Platform};

use super::config::{Counters, MAX_KEPT};
use super::store::Chain;
use crate::SECTOR;

/// No page.
pub(super) const NONE: u16 = u16::MAX;

/// What is noted of a page, whatever becomes of it.
#[derive(Clone, Copy)]
struct Page {
    /// Next page of the same request, or of those that are free. Of those that are idle, the one that was used after it.
    next: u16,
    /// Which bytes of it belong to the request.
    offset: u16,
    len: u16,
    /// It stays mapped when its request is over; for both directions, as io/blkif.h wants it.
    kept: bool,
    /// It is kept, and belongs to a request.
    busy: bool,
}

impl Page {
    /// A page of a request, before another, of which those sectors belong to it, both included.
    #[inline(always)]
    const fn new(next: u16, (first, last): (u8, u8)) -> Self {
        let offset = first as u16 * SECTOR as u16;
        Self { next, offset, len: (last as u16 + 1) * SECTOR as u16 - offset, kept: false, busy: false }
    }
}

/// What is known besides of a page that is kept.
#[derive(Clone, Copy)]
struct Kept {
    /// Whose page it is.
    gref: GrantRef,
    /// The page that was idle before it.
    before: u16,
    /// Next page in the same bucket.
    bucket: u16,
    /// When its last request was over.
    used_ns: u64,
}

/// There are thousands of them.
const _: () = assert!(size_of::<Page>() == 8 && size_of::<Kept>() == 16);

/// A window of a front end's pages.
pub(super) struct Pages<P: Platform> {
    window: Window<P, Page>,
    peer: DomId,
    /// As many, if any are kept.
    keeps: Box<[Kept]>,
    /// First free page, and how many there are that are not promised to anybody.
    free: u16,
    room: usize,
    /// Kept mapped and not in use: the one that was not used for longest, and the one that was used last.
    oldest: u16,
    newest: u16,
    /// First kept page of each bucket. Its number is made of the low bits of a grant, and a domain's grants count from 0: so a front end
    /// can't put more of them into a bucket than its table is larger than ours.
    buckets: Box<[u16]>,
    kept: usize,
    max_kept: usize,
    /// Something that was added since the last [`map`](Self::map) could not be mapped.
    failed: bool,
    lost: u64,
    mapped: u64,
    reused: u64,
    evicted: u64,
    expired: u64,
}

impl<P: Platform> Pages<P> {
    /// Sets a window aside for `working` pages of `peer`, and for `max_kept` that are kept mapped.
    pub(super) fn new(platform: &P, peer: DomId, working: usize, max_kept: usize) -> Result<Self, OutOfMemory> {
        let max_kept = max_kept.min(MAX_KEPT);
        let count = working + max_kept;
        let page = Page { next: NONE, offset: 0, len: 0, kept: false, busy: false };
        let mut window = Window::with_notes(platform, count, page)?;
        for index in 0..count - 1 {
            if let Some(page) = window.note_mut(index) {
                page.next = index as u16 + 1;
            }
        }
        let (keeps, buckets) = if max_kept == 0 { (0, 0) } else { (count, max_kept.next_power_of_two()) };
        let keep = Kept { gref: GrantRef(0), before: NONE, bucket: NONE, used_ns: 0 };
        Ok(Self {
            window,
            peer,
            keeps: vec![keep; keeps].into(),
            free: 0,
            room: count,
            oldest: NONE,
            newest: NONE,
            buckets: vec![NONE; buckets].into(),
            kept: 0,
            max_kept,
            failed: false,
            lost: 0,
            mapped: 0,
            reused: 0,
            evicted: 0,
            expired: 0,
        })
    }

    /// Returns how many pages can be added to requests, or promised.
    pub(super) const fn room(&self) -> usize {
        self.room
    }

    /// Promises so many pages, for which there is room, to a request whose segments are not read yet.
    pub(super) const fn promise(&mut self, pages: usize) {
        self.room -= pages;
    }

    /// Takes a promise back, because the pages are added now.
    pub(super) const fn redeem(&mut self, pages: usize) {
        self.room += pages;
    }

    /// Tells whether pages are kept mapped.
    pub(super) const fn keeps(&self) -> bool {
        self.max_kept > 0
    }

    /// Adds what is counted here.
    pub(super) fn count(&self, counters: &mut Counters) {
        counters.mapped += self.mapped;
        counters.persistent += self.kept as u64;
        counters.reused += self.reused;
        counters.evicted += self.evicted;
        counters.expired += self.expired;
        counters.lost += self.lost;
    }

    /// Adds the page of a segment to a request, before those from `next` on; returns its number. It may have to be
    /// [mapped](Self::map). Without a free page nothing is added, and [`NONE`] returned.
    #[inline(never)]
    pub(super) fn add(&mut self, next: u16, gref: GrantRef, sectors: (u8, u8), access: Access) -> u16 {
        if self.keeps() {
            self.find_or_keep(next, gref, sectors, access)
        } else {
            self.claim(Page::new(next, sectors), gref, access)
        }
    }

    /// The same behind the last page of a request.
    pub(super) fn add_behind(&mut self, before: u16, gref: GrantRef, sectors: (u8, u8), access: Access) -> u16 {
        let index = self.add(NONE, gref, sectors, access);
        if let Some(page) = self.page(before) {
            page.next = index;
        }
        index
    }

    #[inline(always)]
    fn page(&mut self, index: u16) -> Option<&mut Page> {
        self.window.note_mut(index.into())
    }

    #[inline(never)]
    fn find_or_keep(&mut self, next: u16, gref: GrantRef, sectors: (u8, u8), access: Access) -> u16 {
        let page = Page::new(next, sectors);
        let found = self.find(gref);
        let Some(idle @ Page { busy: false, .. }) = self.page(found) else {
            return self.claim_or_keep(found, page, gref, access);
        };
        let after = core::mem::replace(idle, Page { kept: true, busy: true, ..page }).next;
        self.unlink_idle(found, after);
        self.reused += 1;
        found
    }

    #[cold]
    fn claim_or_keep(&mut self, found: u16, page: Page, gref: GrantRef, access: Access) -> u16 {
        // If another request uses it, it is mapped once more, for this time.
        if found != NONE || (self.kept == self.max_kept && !self.evict()) {
            return self.claim(page, gref, access);
        }
        let index = self.claim(Page { kept: true, busy: true, ..page }, gref, Access::ReadWrite);
        let bucket = self.bucket(gref);
        if let Some(keep) = self.keeps.get_mut(usize::from(index)) {
            self.kept += 1;
            (keep.gref, keep.bucket) = (gref, core::mem::replace(&mut self.buckets[bucket], index));
        }
        index
    }

    /// Takes a free page, to be mapped.
    #[inline(always)]
    fn claim(&mut self, page: Page, gref: GrantRef, access: Access) -> u16 {
        let index = self.free;
        let Some(free) = self.page(index) else { return NONE };
        self.free = core::mem::replace(free, page).next;
        self.room -= 1;
        let request = MapRequest { gref, peer: self.peer, access };
        if self.window.add(index.into(), request) { index } else { self.add_to_next(index, request) }
    }

    /// The batch is full.
    #[cold]
    fn add_to_next(&mut self, index: u16, request: MapRequest) -> u16 {
        self.map_added();
        self.window.add(index.into(), request);
        index
    }

    /// Maps all that was added and is not mapped yet; tells whether all could be that was added since the last time.
    /// [`are_mapped`](Self::are_mapped) finds what couldn't.
    #[inline]
    pub(super) fn map(&mut self) -> bool {
        if self.window.added() > 0 {
            self.map_added();
        }
        !core::mem::take(&mut self.failed)
    }

    #[inline(never)]
    fn map_added(&mut self) {
        let (mut mapped, mut failed) = (0, false);
        self.window.map_added(|_, outcome| {
            mapped += u64::from(outcome.is_ok());
            failed |= outcome.is_err();
        });
        self.mapped += mapped;
        self.failed |= failed;
    }

    /// Returns the mark at which [`forget`](Self::forget) goes back.
    pub(super) fn mark(&self) -> usize {
        self.window.added()
    }

    /// Doesn't map what was added since `mark`, but for what has filled a batch meanwhile. It still belongs to its request.
    pub(super) fn forget(&mut self, mark: usize) {
        self.window.forget(mark);
    }

    /// Tells whether all pages of a request are mapped, from `first` on.
    pub(super) fn are_mapped(&self, first: u16) -> bool {
        let mut next = first;
        while let Some(page) = self.window.note(next.into()) {
            if !self.window.is_mapped(usize::from(next)) {
                return false;
            }
            next = page.next;
        }
        true
    }

    /// Takes the pages of a request that is over, from `first` on.
    #[inline(always)]
    pub(super) fn release(&mut self, first: u16, now_ns: u64) {
        if self.keeps() {
            return self.release_or_keep(first, now_ns);
        }
        let mut next = first;
        while let Some(page) = self.window.note(next.into()) {
            let index = core::mem::replace(&mut next, page.next);
            if !self.window.remove(index.into()) {
                self.end(index);
            }
        }
    }

    #[inline(never)]
    fn release_or_keep(&mut self, first: u16, now_ns: u64) {
        let mut next = first;
        while let Some(page) = self.window.note(next.into()) {
            let (index, kept) = (core::mem::replace(&mut next, page.next), page.kept);
            if kept && self.window.is_mapped(index.into()) {
                self.link_idle(index, now_ns);
            } else if !self.window.remove(index.into()) {
                self.end(index);
            }
        }
    }

    /// Takes a page that is over, kept or not, mapped or not.
    #[cold]
    fn end(&mut self, index: u16) {
        self.give_up(index);
        if !self.window.is_mapped(index.into()) {
            let free = core::mem::replace(&mut self.free, index);
            self.room += 1;
            if let Some(page) = self.page(index) {
                page.next = free;
            }
        } else if !self.window.remove(index.into()) {
            // The batch is full.
            self.unmap();
            // It stays so if Xen refuses all calls. The window will try it once more when it is dropped.
            self.lost += u64::from(!self.window.remove(index.into()));
        }
    }

    /// Unmaps all that is over.
    #[inline(always)]
    pub(super) fn unmap(&mut self) {
        if self.window.removed() > 0 {
            self.unmap_removed();
        }
    }

    #[inline(never)]
    fn unmap_removed(&mut self) {
        let (mut free, mut freed) = (self.free, 0);
        let stuck = self.window.unmap_removed(|index, page| {
            page.next = core::mem::replace(&mut free, index as u16);
            freed += 1;
        });
        self.free = free;
        self.room += freed;
        self.lost += stuck as u64;
    }

    /// Keeps no longer mapped what was not used since `since_ns`. To be [unmapped](Self::unmap).
    pub(super) fn expire(&mut self, since_ns: u64) {
        while let Some(page) = self.keeps.get(usize::from(self.oldest))
            && page.used_ns <= since_ns
        {
            self.expired += 1;
            self.drop_oldest();
        }
    }

    /// Returns when the page was used last that was not used for longest.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.keeps.get(usize::from(self.oldest)).map(|page| page.used_ns)
    }

    /// Returns a page of a request as a whole.
    pub(super) fn view(&self, page: u16) -> Option<Shared<'_>> {
        self.window.view(usize::from(page))
    }

    /// Returns the page that follows in a request.
    pub(super) fn next(&self, page: u16) -> u16 {
        self.window.note(page.into()).map_or(NONE, |page| page.next)
    }

    /// Returns the last page of a request, from `page` on.
    pub(super) fn last(&self, page: u16) -> u16 {
        core::iter::successors(Some(page), |page| Some(self.next(*page)).filter(|next| *next != NONE))
            .last()
            .unwrap_or(NONE)
    }

    /// Leaves everything mapped for ever.
    pub(super) fn abandon(&mut self) {
        self.window.abandon();
    }

    /// Makes room for another page to be kept; `false` if all of them are in use.
    fn evict(&mut self) -> bool {
        let any = self.oldest != NONE;
        if any {
            self.evicted += 1;
            self.drop_oldest();
        }
        any
    }

    fn drop_oldest(&mut self) {
        let index = self.oldest;
        self.unlink_idle(index, self.next(index));
        self.end(index);
    }

    #[inline(always)]
    fn link_idle(&mut self, index: u16, now_ns: u64) {
        let before = core::mem::replace(&mut self.newest, index);
        match self.page(before) {
            Some(page) => page.next = index,
            None => self.oldest = index,
        }
        if let Some(page) = self.page(index) {
            (page.next, page.busy) = (NONE, false);
        }
        let keep = &mut self.keeps[usize::from(index)];
        (keep.before, keep.used_ns) = (before, now_ns);
    }

    #[inline(always)]
    fn unlink_idle(&mut self, index: u16, after: u16) {
        let before = self.keeps[usize::from(index)].before;
        match self.page(before) {
            Some(page) => page.next = after,
            None => self.oldest = after,
        }
        match self.keeps.get_mut(usize::from(after)) {
            Some(keep) => keep.before = before,
            None => self.newest = before,
        }
    }

    const fn bucket(&self, gref: GrantRef) -> usize {
        gref.0 as usize & (self.buckets.len() - 1)
    }

    /// Finds the kept page of a grant, or [`NONE`].
    #[inline(always)]
    fn find(&self, gref: GrantRef) -> u16 {
        let mut next = self.buckets[self.bucket(gref)];
        while let Some(keep) = self.keeps.get(usize::from(next))
            && keep.gref != gref
        {
            next = keep.bucket;
        }
        next
    }

    /// A page is not kept any longer, if it was.
    fn give_up(&mut self, index: u16) {
        let Some(page @ Page { kept: true, .. }) = self.page(index) else { return };
        (page.kept, page.busy) = (false, false);
        self.kept -= 1;
        let Kept { gref, bucket: after, .. } = self.keeps[usize::from(index)];
        let bucket = self.bucket(gref);
        if self.buckets[bucket] == index {
            self.buckets[bucket] = after;
            return;
        }
        let mut next = self.buckets[bucket];
        while let Some(keep) = self.keeps.get_mut(usize::from(next)) {
            if keep.bucket == index {
                keep.bucket = after;
                return;
            }
            next = keep.bucket;
        }
    }
}

impl<P: Platform> Chain for Pages<P> {
    fn part(&self, page: u16) -> Option<(Shared<'_>, u16)> {
        let Page { offset, len, next, .. } = *self.window.note(page.into())?;
        let view = self.window.view(page.into())?;
        Some((view.slice(offset.into(), len.into()), next))
    }
}
