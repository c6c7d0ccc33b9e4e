//! The pages of requests: where they are mapped, which are kept mapped, which are to be unmapped.
//!
//! ```text
//!              add           map                 release             unmap
//!    free ───────────► new ───────► in a request ───────────► over ─────────► free
//!                                     ▲       │ release, if it is kept
//!                                     │ add   ▼
//!                                     └───── idle ── evicted, expired ─► over
//! ```
//!
//! A page is a place in the window, known by its number. What belongs together is threaded through the pages: the pages of a request, and
//! each of the lists above. Nothing is allocated after [`Pages::new`].

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

/// A list of numbers, threaded through what they stand for.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub(super) first: u16,
    pub(super) last: u16,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(super) const fn is_empty(self) -> bool {
        self.first == NONE
    }

    /// The list of one number.
    pub(super) const fn of(number: u16) -> Self {
        Self { first: number, last: number }
    }

    /// Appends a list, which has something on it. `link` returns the link behind a number, or `None` for that of nothing.
    #[inline(always)]
    pub(super) fn append<'a>(&'a mut self, other: Self, link: impl FnOnce(usize) -> Option<&'a mut u16>) {
        let before = core::mem::replace(&mut self.last, other.last);
        match link(before.into()) {
            Some(link) => *link = other.first,
            None => self.first = other.first,
        }
    }
}

#[derive(Clone, Copy)]
struct Page {
    /// Whose page it is, and which sectors of it belong to the request, both included.
    gref: GrantRef,
    first: u8,
    last: u8,
    /// Next page of the same request, or of those that are free, or over.
    next: u16,
    /// Next page of those that are to be mapped. Of those that are idle, the one that was used after it.
    link: u16,
    /// The page that was idle before it.
    before: u16,
    /// Next page in the same bucket, of those that are kept.
    bucket: u16,
    hold: Hold,
    /// It belongs to a request.
    busy: bool,
    /// When its last request was over, of those that are kept.
    used_ns: u64,
}

/// How a page is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// For the time of a request, which reads from it.
    ReadOnly,
    /// For the time of a request.
    ReadWrite,
    /// It stays mapped when its request is over; for both directions, as io/blkif.h wants it.
    Kept,
}

/// There are thousands of them.
const _: () = assert!(size_of::<Page>() == 24);

/// A window of a front end's pages.
pub(super) struct Pages<P: Platform> {
    window: Window<P>,
    peer: DomId,
    pages: Box<[Page]>,
    /// First free page, and how many there are.
    free: u16,
    free_count: usize,
    /// Those that are to be mapped by the next [`map`](Self::map).
    new: List,
    /// Those that are to be unmapped by the next [`unmap`](Self::unmap).
    over: List,
    /// Kept mapped and not in use, the one that was not used for longest first.
    idle: List,
    /// First kept page of each bucket. Its number is made of the low bits of a grant, and a domain's grants count from 0: so a front end
    /// can't put more of them into a bucket than its table is larger than ours.
    buckets: Box<[u16]>,
    kept: usize,
    max_kept: usize,
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
        let window = Window::new(platform, count)?;
        let page = Page {
            gref: GrantRef(0),
            first: 0,
            last: 0,
            next: NONE,
            link: NONE,
            before: NONE,
            bucket: NONE,
            hold: Hold::ReadOnly,
            busy: false,
            used_ns: 0,
        };
        let mut pages = vec![page; count];
        for (index, page) in pages.iter_mut().enumerate().take(count - 1) {
            page.next = index as u16 + 1;
        }
        let buckets = if max_kept == 0 { 0 } else { max_kept.next_power_of_two() };
        Ok(Self {
            window,
            peer,
            pages: pages.into(),
            free: 0,
            free_count: count,
            new: List::EMPTY,
            over: List::EMPTY,
            idle: List::EMPTY,
            buckets: vec![NONE; buckets].into(),
            kept: 0,
            max_kept,
            lost: 0,
            mapped: 0,
            reused: 0,
            evicted: 0,
            expired: 0,
        })
    }

    /// Returns how many pages can be added to requests.
    pub(super) const fn free(&self) -> usize {
        self.free_count
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

    /// Adds a page, of which those sectors belong to the request, to those of a request; it may have to be [mapped](Self::map). Returns
    /// `false` if there is no free one.
    #[inline(always)]
    #[must_use = "without a free page nothing was added"]
    pub(super) fn add_here(&mut self, request: &mut List, gref: GrantRef, sectors: (u8, u8), access: Access) -> bool {
        let found = if self.keeps() { self.find_or_keep(gref, access) } else { self.claim(gref, hold_of(access)) };
        let Some(index) = found else { return false };
        let page = &mut self.pages[usize::from(index)];
        (page.first, page.last) = sectors;
        (page.next, page.busy) = (NONE, true);
        request.append(List::of(index), |before| Some(&mut self.pages.get_mut(before)?.next));
        true
    }

    /// The same, where it is not worth a copy of it.
    #[inline(never)]
    #[must_use = "without a free page nothing was added"]
    pub(super) fn add(&mut self, request: &mut List, gref: GrantRef, sectors: (u8, u8), access: Access) -> bool {
        self.add_here(request, gref, sectors, access)
    }

    #[inline(never)]
    fn find_or_keep(&mut self, gref: GrantRef, access: Access) -> Option<u16> {
        match self.find(gref) {
            Some(index) if !self.pages[usize::from(index)].busy => {
                self.unlink_idle(index);
                self.reused += 1;
                Some(index)
            }
            // Another request uses it: mapped once more, for this time.
            Some(_) => self.claim(gref, hold_of(access)),
            None => {
                let keep = self.kept < self.max_kept || self.evict();
                let index = self.claim(gref, if keep { Hold::Kept } else { hold_of(access) })?;
                if keep {
                    self.kept += 1;
                    let bucket = self.bucket(gref);
                    self.pages[usize::from(index)].bucket = self.buckets[bucket];
                    self.buckets[bucket] = index;
                }
                Some(index)
            }
        }
    }

    /// Takes a free page, to be mapped.
    #[inline(always)]
    fn claim(&mut self, gref: GrantRef, hold: Hold) -> Option<u16> {
        let index = self.free;
        let page = self.pages.get_mut(usize::from(index))?;
        self.free = page.next;
        self.free_count -= 1;
        (page.gref, page.hold, page.link) = (gref, hold, NONE);
        self.new.append(List::of(index), |before| Some(&mut self.pages.get_mut(before)?.link));
        Some(index)
    }

    /// Maps all that was added and is not mapped yet; tells whether all of it could be. [`are_mapped`](Self::are_mapped) finds what
    /// couldn't.
    pub(super) fn map(&mut self) -> bool {
        let Self { window, pages, peer, .. } = self;
        let mut next = core::mem::replace(&mut self.new, List::EMPTY).first;
        if next == NONE {
            return true;
        }
        let (mut mapped, mut all) = (0, true);
        let batch = core::iter::from_fn(|| {
            let (slot, page) = (usize::from(next), pages.get(usize::from(next))?);
            next = page.link;
            Some((slot, page))
        });
        let batch = batch.map(|(slot, page)| {
            let access = if page.hold == Hold::ReadOnly { Access::ReadOnly } else { Access::ReadWrite };
            (slot, MapRequest { gref: page.gref, peer: *peer, access })
        });
        window.map_batch(batch, |_, outcome| {
            mapped += u64::from(outcome.is_ok());
            all &= outcome.is_ok();
        });
        self.mapped += mapped;
        all
    }

    /// Returns the mark at which [`forget`](Self::forget) goes back.
    pub(super) const fn mark(&self) -> List {
        self.new
    }

    /// Doesn't map what was added since `mark`. It still belongs to its request.
    pub(super) fn forget(&mut self, mark: List) {
        self.new = mark;
        if let Some(last) = self.pages.get_mut(usize::from(mark.last)) {
            last.link = NONE;
        }
    }

    /// Tells whether all pages of a request are mapped, from `first` on.
    pub(super) fn are_mapped(&self, first: u16) -> bool {
        let mut next = first;
        while let Some(page) = self.pages.get(usize::from(next)) {
            if !self.window.is_mapped(usize::from(next)) {
                return false;
            }
            next = page.next;
        }
        true
    }

    /// Takes the pages of a request that is over; `all` of them may be known to be mapped.
    #[inline]
    pub(super) fn release(&mut self, request: List, all: bool, now_ns: u64) {
        if all && !self.keeps() {
            self.end(request);
        } else {
            self.release_each(request, now_ns);
        }
    }

    #[inline(always)]
    fn release_each(&mut self, request: List, now_ns: u64) {
        let mut next = request.first;
        while let Some(page) = self.pages.get_mut(usize::from(next)) {
            let index = next;
            next = page.next;
            page.busy = false;
            let mapped = self.window.is_mapped(usize::from(index));
            if !mapped {
                self.give_up(index);
                self.give_back(index);
            } else if page.hold == Hold::Kept {
                page.used_ns = now_ns;
                self.link_idle(index);
            } else {
                self.end_one(index);
            }
        }
    }

    /// Unmaps all that is over.
    pub(super) fn unmap(&mut self) {
        let List { first, last } = core::mem::replace(&mut self.over, List::EMPTY);
        if first == NONE {
            return;
        }
        let Self { window, pages, .. } = self;
        let (mut next, mut count) = (first, 0);
        let unmapped = window.unmap_batch(core::iter::from_fn(|| {
            let (slot, page) = (usize::from(next), pages.get(usize::from(next))?);
            next = page.next;
            count += 1;
            Some(slot)
        }));
        match unmapped {
            Ok(()) => {
                self.pages[usize::from(last)].next = core::mem::replace(&mut self.free, first);
                self.free_count += count;
            }
            Err(_) => self.look_at_unmapped(first),
        }
    }

    /// Takes what could be unmapped, from `first` on.
    #[cold]
    fn look_at_unmapped(&mut self, first: u16) {
        let mut next = first;
        while let Some(page) = self.pages.get(usize::from(next)) {
            let index = next;
            next = page.next;
            if self.window.is_empty(usize::from(index)) {
                self.give_back(index);
            } else if self.window.is_mapped(usize::from(index)) {
                // The whole call was refused: next time.
                self.end_one(index);
            } else {
                self.lost += 1;
            }
        }
    }

    /// Keeps no longer mapped what was not used since `since_ns`. To be [unmapped](Self::unmap).
    pub(super) fn expire(&mut self, since_ns: u64) {
        while let Some(page) = self.pages.get(usize::from(self.idle.first))
            && page.used_ns <= since_ns
        {
            self.expired += 1;
            self.drop_oldest();
        }
    }

    /// Returns when the page was used last that was not used for longest.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.pages.get(usize::from(self.idle.first)).map(|page| page.used_ns)
    }

    /// Returns a page of a request as a whole.
    pub(super) fn view(&self, page: u16) -> Option<Shared<'_>> {
        self.window.view(usize::from(page))
    }

    /// Returns the page that follows in a request.
    pub(super) fn next(&self, page: u16) -> u16 {
        self.pages.get(usize::from(page)).map_or(NONE, |page| page.next)
    }

    /// Leaves everything mapped for ever.
    pub(super) fn abandon(&mut self) {
        self.window.abandon();
    }

    /// Makes room for another page to be kept; `false` if all of them are in use.
    fn evict(&mut self) -> bool {
        let any = !self.idle.is_empty();
        if any {
            self.evicted += 1;
            self.drop_oldest();
        }
        any
    }

    fn drop_oldest(&mut self) {
        let index = self.idle.first;
        self.unlink_idle(index);
        self.give_up(index);
        self.end_one(index);
    }

    /// Puts pages on the list of what is to be unmapped.
    #[inline]
    fn end(&mut self, list: List) {
        if list.is_empty() {
            return;
        }
        self.over.append(list, |before| Some(&mut self.pages.get_mut(before)?.next));
    }

    fn end_one(&mut self, index: u16) {
        self.pages[usize::from(index)].next = NONE;
        self.end(List::of(index));
    }

    /// Puts an unmapped page on the list of free ones.
    fn give_back(&mut self, index: u16) {
        self.pages[usize::from(index)].next = core::mem::replace(&mut self.free, index);
        self.free_count += 1;
    }

    fn link_idle(&mut self, index: u16) {
        let page = &mut self.pages[usize::from(index)];
        (page.link, page.before) = (NONE, self.idle.last);
        self.idle.append(List::of(index), |before| Some(&mut self.pages.get_mut(before)?.link));
    }

    fn unlink_idle(&mut self, index: u16) {
        let Page { before, link: after, .. } = self.pages[usize::from(index)];
        match self.pages.get_mut(usize::from(before)) {
            Some(page) => page.link = after,
            None => self.idle.first = after,
        }
        match self.pages.get_mut(usize::from(after)) {
            Some(page) => page.before = before,
            None => self.idle.last = before,
        }
    }

    const fn bucket(&self, gref: GrantRef) -> usize {
        gref.0 as usize & (self.buckets.len() - 1)
    }

    fn find(&self, gref: GrantRef) -> Option<u16> {
        let mut next = self.buckets[self.bucket(gref)];
        while let Some(page) = self.pages.get(usize::from(next)) {
            if page.gref == gref {
                return Some(next);
            }
            next = page.bucket;
        }
        None
    }

    /// A page is not kept any longer, if it was.
    fn give_up(&mut self, index: u16) {
        let Page { hold: Hold::Kept, bucket: after, gref, .. } = self.pages[usize::from(index)] else { return };
        self.pages[usize::from(index)].hold = Hold::ReadWrite;
        self.kept -= 1;
        let bucket = self.bucket(gref);
        if self.buckets[bucket] == index {
            self.buckets[bucket] = after;
            return;
        }
        let mut next = self.buckets[bucket];
        while let Some(page) = self.pages.get_mut(usize::from(next)) {
            if page.bucket == index {
                page.bucket = after;
                return;
            }
            next = page.bucket;
        }
    }
}

impl<P: Platform> Chain for Pages<P> {
    fn part(&self, page: u16) -> Option<(Shared<'_>, u16)> {
        let Page { first, last, next, .. } = *self.pages.get(usize::from(page))?;
        let view = self.window.view(usize::from(page))?;
        let (from, to) = (usize::from(first) * SECTOR, (usize::from(last) + 1) * SECTOR);
        Some((view.slice(from, to - from), next))
    }
}

#[inline]
const fn hold_of(access: Access) -> Hold {
    match access {
        Access::ReadOnly => Hold::ReadOnly,
        Access::ReadWrite => Hold::ReadWrite,
    }
}
