//! Small requests, whose pages are not mapped: their data lies in pages of our own, and Xen copies it.
//!
//! ```text
//!             add                fetch, of a write                      answer, of a read that went well
//!    free ───────────► taken ─────────────────────► with the store ────────────────────────────────────► free
//! ```
//!
//! Each segment has a page, in which its bytes lie at the same place as in the front end's. Only those are copied, and a page only after
//! the store has filled them, so that nothing of an earlier request is seen. Nothing is allocated after [`Copies::new`].

use alloc::boxed::Box;
use alloc::vec;

use hypercall::grant::{CopyBatch, Foreign, Local};
use hypercall::mem::{OutOfMemory, Pages, Shared};
use hypercall::{DomId, GrantRef, Platform};
use xen_sys::io::blkif::BlkifRequestSegment;

use super::config::Counters;
use super::pages::NONE;
use super::slot::{Kind, Slot};
use super::store::Chain;
use crate::protocol::{Operation, Status};
use crate::{MAX_SEGMENTS, SECTOR};

/// Copies of one hypercall.
const MAX: usize = CopyBatch::<'static>::MAX;

#[derive(Clone, Copy)]
struct Page {
    /// Where its bytes come from or go to, and which sectors of it belong to the request, both included.
    gref: GrantRef,
    first: u8,
    last: u8,
    /// Next page of the same request, or of those that are free.
    next: u16,
}

impl Page {
    const fn offset(self) -> usize {
        self.first as usize * SECTOR
    }

    const fn len(self) -> usize {
        (self.last as usize + 1) * SECTOR - self.offset()
    }
}

/// Pages of our own for the data of small requests of one front end.
pub(super) struct Copies<P: Platform> {
    platform: P,
    peer: DomId,
    /// The memory, if anything is to be copied.
    memory: Option<Pages<P>>,
    pages: Box<[Page]>,
    /// First free page, and how many there are.
    free: u16,
    free_count: usize,
    max_sectors: u64,
    /// There are writes whose data was not fetched.
    coming: bool,
    copied: u64,
    failed: u64,
}

impl<P: Platform> Copies<P> {
    /// Sets pages aside for the requests of `peer` of up to `limit` bytes, no more than are needed for as many requests as there are slots.
    pub(super) fn new(platform: &P, peer: DomId, limit: u32, pages: u16, slots: u32) -> Result<Self, OutOfMemory> {
        let max_sectors = u64::from(limit) / SECTOR as u64;
        let most = if max_sectors > 0 { slots as usize * MAX_SEGMENTS } else { 0 };
        let count = usize::from(pages).min(most);
        let memory = if count > 0 { Some(Pages::new(platform, count)?) } else { None };
        let mut pages = vec![Page { gref: GrantRef(0), first: 0, last: 0, next: NONE }; count];
        for (index, page) in pages.iter_mut().enumerate().take(count.saturating_sub(1)) {
            page.next = index as u16 + 1;
        }
        Ok(Self {
            platform: platform.clone(),
            peer,
            memory,
            pages: pages.into(),
            free: 0,
            free_count: count,
            max_sectors,
            coming: false,
            copied: 0,
            failed: 0,
        })
    }

    /// Adds what is counted here.
    pub(super) const fn count(&self, counters: &mut Counters) {
        counters.copied += self.copied;
        counters.copy_failed += self.failed;
    }

    /// Tells whether a request is small, and there are pages for it.
    #[inline]
    pub(super) const fn take(&self, sectors: u64, segments: usize) -> bool {
        sectors <= self.max_sectors && segments <= self.free_count
    }

    /// Gives the segments of a request their pages, of which there are enough; returns the first.
    #[inline(never)]
    pub(super) fn add(&mut self, segments: &[BlkifRequestSegment], write: bool) -> u16 {
        let (first, mut last) = (self.free, NONE);
        for segment in segments {
            let Some(page) = self.pages.get_mut(usize::from(self.free)) else { break };
            (page.gref, page.first, page.last) = (segment.gref, segment.first_sect, segment.last_sect);
            last = self.free;
            self.free = page.next;
            self.free_count -= 1;
        }
        match self.pages.get_mut(usize::from(last)) {
            Some(page) => page.next = NONE,
            None => return NONE,
        }
        self.coming |= write;
        first
    }

    /// Tells whether there are writes whose data is to be [fetched](Self::fetch).
    #[inline]
    pub(super) const fn coming(&self) -> bool {
        self.coming
    }

    /// Copies the data of the writes among those that were taken, in one hypercall for 32 pages. Those that could not be copied whole
    /// have failed.
    #[inline(never)]
    pub(super) fn fetch(&mut self, slots: &mut [Slot], taken: &[u16]) {
        self.coming = false;
        let Self { platform, memory: Some(memory), .. } = self else { return };
        let mut batch = Batch::new(platform, self.peer, memory);
        for &index in taken {
            let slot = &slots[usize::from(index)];
            let wanted = slot.kind == Kind::Copied && slot.operation == Operation::Write;
            let mut number = if wanted { slot.data } else { NONE };
            while let Some(page) = self.pages.get(usize::from(number)) {
                batch.add(slots, index, number, *page);
                number = page.next;
            }
        }
        let (copied, failed) = batch.finish(slots);
        self.copied += copied;
        self.failed += failed;
    }

    /// Copies the data of the reads from `first` on that went well, in one hypercall for 32 pages, and takes the pages of all. Those that
    /// could not be copied whole have failed.
    #[inline(never)]
    pub(super) fn answer(&mut self, slots: &mut [Slot], first: u16) {
        let Self { platform, memory: Some(memory), .. } = self else { return };
        let mut batch = Batch::new(platform, self.peer, memory);
        let mut next = first;
        while let Some(slot) = slots.get(usize::from(next)) {
            let (index, wanted) = (next, slot.operation == Operation::Read && slot.status == Status::Okay);
            let mut number = slot.data;
            next = slot.link;
            while let Some(page) = self.pages.get_mut(usize::from(number)) {
                if wanted {
                    batch.add(slots, index, number, *page);
                }
                // Nobody takes it before the batch is done.
                let after = core::mem::replace(&mut page.next, self.free);
                self.free = core::mem::replace(&mut number, after);
                self.free_count += 1;
            }
        }
        let (copied, failed) = batch.finish(slots);
        self.copied += copied;
        self.failed += failed;
    }

    /// Leaves the memory to the store for ever.
    pub(super) fn abandon(&mut self) {
        if let Some(memory) = self.memory.take() {
            memory.leak();
        }
    }
}

impl<P: Platform> Chain for Copies<P> {
    fn part(&self, number: u16) -> Option<(Shared<'_>, u16)> {
        let page = *self.pages.get(usize::from(number))?;
        Some((self.memory.as_ref()?.shared().slice(place(number, page), page.len()), page.next))
    }
}

/// Returns where the bytes of a page lie.
fn place(number: u16, page: Page) -> usize {
    usize::from(number) * hypercall::mem::PAGE_SIZE + page.offset()
}

/// Copies of many requests, in as few hypercalls as possible.
struct Batch<'a, P: Platform> {
    platform: &'a P,
    peer: DomId,
    memory: &'a Pages<P>,
    batch: CopyBatch<'a>,
    /// The request of each copy in the batch.
    of: [u16; MAX],
    copied: u64,
    failed: u64,
}

impl<'a, P: Platform> Batch<'a, P> {
    #[inline(always)]
    const fn new(platform: &'a P, peer: DomId, memory: &'a Pages<P>) -> Self {
        Self { platform, peer, memory, batch: CopyBatch::new(), of: [NONE; MAX], copied: 0, failed: 0 }
    }

    /// Adds a page of a request: from it if that is a read, to it if it is a write.
    fn add(&mut self, slots: &mut [Slot], request: u16, number: u16, page: Page) {
        if self.batch.is_full() {
            self.run(slots);
        }
        let here = Local::new(self.memory, place(number, page));
        let there = Foreign { peer: self.peer, gref: page.gref, offset: page.offset() as u16 };
        let len = page.len() as u16;
        let slot = &mut slots[usize::from(request)];
        let added = if slot.operation == Operation::Read {
            self.batch.to_peer(here, there, len)
        } else {
            self.batch.from_peer(there, here, len)
        };
        match added {
            Ok(index) => self.of[index] = request,
            Err(_) => self.failed += fail(slot),
        }
    }

    fn run(&mut self, slots: &mut [Slot]) {
        let Self { platform, batch, of, copied, failed, .. } = self;
        // What exactly is wrong with its grant is the front end's affair; it learns that the request failed.
        let done = batch.run(*platform, |index, _| *failed += fail(&mut slots[usize::from(of[index])]));
        *copied += done as u64;
    }

    /// Does what is left. Returns how many pages were copied, and how many requests have failed.
    fn finish(&mut self, slots: &mut [Slot]) -> (u64, u64) {
        if !self.batch.is_empty() {
            self.run(slots);
        }
        (self.copied, self.failed)
    }
}

/// A request has failed; returns how many more have.
fn fail(slot: &mut Slot) -> u64 {
    let first = slot.status == Status::Okay;
    slot.status = Status::Error;
    first.into()
}
