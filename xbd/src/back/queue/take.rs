//! The first part of the fast path: requests are taken from the ring, looked at, and given a slot and their pages.

use hypercall::grant::Access;
use hypercall::mem::PAGE_SIZE;
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;
use xenbus::ring::RingError;

use super::{Queue, TAKEN};
use crate::back::pages::NONE;
use crate::back::slot::{Kind, Slot, step};
use crate::back::store::Store;
use crate::features::Disk;
use crate::protocol::{Answer, Data, Direct, Operation, Request, Segment, Status};
use crate::{SECTOR, SEGMENTS_PER_PAGE};

/// First and last sector of a page.
const WHOLE: (u8, u8) = (0, (PAGE_SIZE / SECTOR - 1) as u8);

/// Segments of an indirect page that are read at once; as many of them make up a page.
const RUN: usize = 16;
const _: () = assert!(SEGMENTS_PER_PAGE.is_multiple_of(RUN));

/// How the taking of requests has ended.
pub(super) enum Taken {
    /// There are none any more, or enough were taken for one call.
    All,
    /// There may be more, and enough were taken to begin with them.
    Some,
    /// The next has to wait.
    Blocked,
}

/// What came off the ring.
enum Next {
    /// Nothing.
    None,
    /// A request that was let in.
    Taken,
    /// One that is to be looked at more closely.
    Other,
}

impl<D: Domain, S: Store> Queue<D, S> {
    /// Takes as many requests as there are, as `budget` has room for, and as are begun with at once.
    pub(super) fn take(&mut self, budget: &mut u32) -> Result<Taken, RingError> {
        if self.held.is_some() && !self.take_held() {
            return Ok(Taken::Blocked);
        }
        if self.barrier {
            return Ok(Taken::Blocked);
        }
        let ready = self.ring.ready()?.min(*budget);
        let left = ready.saturating_sub((TAKEN - self.taken_count) as u32);
        let until = *budget - (ready - left);
        while *budget > until {
            *budget -= 1;
            match self.take_next()? {
                Next::None => return Ok(Taken::All),
                Next::Taken => {}
                Next::Other => {
                    if !self.take_other() || self.barrier {
                        return Ok(Taken::Blocked);
                    }
                }
            }
        }
        Ok(if left > 0 { Taken::Some } else { Taken::All })
    }

    /// Takes the request that had to wait; `false` if it still has to.
    #[cold]
    fn take_held(&mut self) -> bool {
        let Some(request) = self.held.take() else { return true };
        // All over again: the disk may have become smaller meanwhile.
        self.let_in(request)
    }

    /// Takes the next request off the ring, and lets it in if it is as most are: a read or write, by segments that are in it, and against
    /// which nothing can be said.
    #[inline(always)]
    fn take_next(&mut self) -> Result<Next, RingError> {
        let Some(direct) = self.ring.pop()? else { return Ok(Next::None) };
        self.counters.requests += 1;
        let Some(Direct { id, write, sector, segments }) = direct else { return Ok(Next::Other) };
        let mut sectors = 0;
        for segment in segments {
            let Some(segment) = Segment::new(segment.gref, segment.first_sect, segment.last_sect) else {
                return Ok(Next::Other);
            };
            sectors += segment.sectors();
        }
        if !has(&self.disk, sector, sectors) || (write && self.disk.read_only) {
            return Ok(Next::Other);
        }
        let (operation, count) = (if write { Operation::Write } else { Operation::Read }, segments.len());
        let slot = Slot { id, operation, sector, sectors, steps: step::WORK, kind: Kind::Mapped, ..Slot::FREE };
        if self.copies.take(sectors, count) {
            let data = self.copies.add(segments, write);
            self.enter(Slot { data, kind: Kind::Copied, ..slot }, count);
            return Ok(Next::Taken);
        }
        if self.pages.room() < count {
            return Ok(Next::Other);
        }
        let mut pages = NONE;
        for segment in segments.iter().rev() {
            let part = (segment.first_sect, segment.last_sect);
            pages = self.pages.add(pages, segment.gref, part, access(operation));
        }
        self.enter(Slot { pages, data: pages, ..slot }, count);
        Ok(Next::Taken)
    }

    /// Puts a request with so many segments into a slot, and among those that were taken. There is room for it: the ring lets no more
    /// requests in than there are slots, and `take` no more than are begun with at once.
    #[inline(always)]
    fn enter(&mut self, request: Slot, segments: usize) {
        let index = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        self.counters.add_sectors(request.operation, request.sectors);
        self.free = core::mem::replace(slot, request).link;
        self.taken[self.taken_count % TAKEN] = index;
        self.taken_count += 1;
        self.counters.segments += segments as u64;
        self.busy += 1;
    }

    /// Takes any other request; `false` if it has to wait for what is before it.
    #[cold]
    fn take_other(&mut self) -> bool {
        let request = match self.ring.parse() {
            Ok(request) => request,
            Err(malformed) => {
                self.refuse(malformed.id, malformed.operation, malformed.status());
                return true;
            }
        };
        let let_in = self.let_in(request);
        self.counters.waits += u64::from(!let_in);
        let_in
    }

    /// Refuses a request, or lets it in; `false` if it has to wait.
    fn let_in(&mut self, request: Request) -> bool {
        if let Err(status) = self.check(&request) {
            self.refuse(request.id, request.operation.wire(), status);
            return true;
        }
        let admitted = self.admit(&request);
        if !admitted {
            self.held = Some(request);
        }
        admitted
    }

    /// Answers a request that goes no further.
    #[cold]
    fn refuse(&mut self, id: u64, operation: BlkifOp, status: Status) {
        self.counters.refused += 1;
        self.ring.respond(&Answer { id, operation, status });
    }

    /// Looks whether a request is one that we serve.
    fn check(&self, request: &Request) -> Result<(), Status> {
        if request.operation.mutates() && self.disk.read_only {
            return Err(Status::Error);
        }
        let sectors = match &request.data {
            Data::None => 0,
            Data::Direct(segments) => segments.sectors(),
            // How many, is not known before they are read.
            Data::Indirect(_) if self.max_indirect_segments == 0 => return Err(Status::NotSupported),
            Data::Indirect(pages) if pages.segments() > self.max_indirect_segments => return Err(Status::Error),
            Data::Indirect(_) => 0,
            Data::Sectors(_) if self.disk.discard.is_none() => return Err(Status::NotSupported),
            Data::Sectors(sectors) => *sectors,
        };
        if has(&self.disk, request.sector, sectors) { Ok(()) } else { Err(Status::Error) }
    }

    /// Lets a request in, whose form is right; `false` if it has to wait for what is before it.
    fn admit(&mut self, request: &Request) -> bool {
        if request.operation == Operation::Barrier && self.busy > 0 {
            return false;
        }
        let pages = match &request.data {
            Data::None | Data::Sectors(_) => 0,
            Data::Direct(segments) => segments.as_slice().len(),
            Data::Indirect(pages) => pages.grefs().len() + usize::from(pages.segments()),
        };
        if self.pages.room() < pages && !self.make_room(pages) {
            if self.busy > 0 {
                return false;
            }
            // It would never fit: too many pages are lost.
            self.counters.unmappable += 1;
            self.ring.respond(&Answer { id: request.id, operation: request.operation.wire(), status: Status::Error });
            return true;
        }
        self.place(request);
        true
    }

    #[cold]
    fn make_room(&mut self, pages: usize) -> bool {
        // What is over is answered, and its pages are free.
        self.settle();
        if self.pages.room() < pages && self.busy == 0 {
            self.pages.expire(u64::MAX);
            self.pages.unmap();
        }
        self.pages.room() >= pages
    }

    /// Gives a request its slot and its pages, of which there are enough.
    fn place(&mut self, request: &Request) {
        let (id, operation, sector) = (request.id, request.operation, request.sector);
        let mut slot = Slot { id, operation, sector, steps: step::WORK, ..Slot::FREE };
        let mut count = 0;
        let access = access(operation);
        match &request.data {
            Data::None => {}
            Data::Sectors(sectors) => {
                slot.sectors = *sectors;
                self.counters.discards += 1;
            }
            Data::Direct(segments) => {
                for segment in segments.as_slice().iter().rev() {
                    slot.pages = self.pages.add(slot.pages, segment.gref(), segment.part(), access);
                }
                slot.data = slot.pages;
                slot.sectors = segments.sectors();
                count = segments.as_slice().len();
            }
            Data::Indirect(pages) => {
                for gref in pages.grefs().iter().rev() {
                    slot.pages = self.pages.add(slot.pages, *gref, WHOLE, Access::ReadOnly);
                }
                slot.indirect = pages.segments();
                self.pages.promise(slot.indirect.into());
                self.folded = true;
                self.counters.indirect += 1;
            }
        }
        let flush = |on: bool, step| if on && self.disk.flush { step } else { 0 };
        match operation {
            Operation::Flush => {
                slot.steps = flush(true, step::FLUSH_BEFORE);
                self.counters.flushes += 1;
            }
            Operation::Barrier => {
                let data = slot.sectors > 0;
                slot.steps = flush(true, step::FLUSH_BEFORE) | flush(data, step::FLUSH_AFTER);
                slot.steps |= if data { step::WORK } else { 0 };
                self.counters.barriers += 1;
                self.barrier = true;
            }
            _ => {}
        }
        self.enter(slot, count);
    }

    /// Maps the pages of the indirect requests that were taken; tells whether all could be.
    #[cold]
    pub(super) fn unfold_all(&mut self) -> bool {
        for at in 0..self.taken_count {
            let index = self.taken[at];
            if self.slots[usize::from(index)].indirect > 0 {
                self.unfold(index);
            }
        }
        self.pages.map()
    }

    /// Reads the segments of an indirect request, each once, and adds their pages. There is room for them: `admit` has seen to it.
    fn unfold(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        let count = core::mem::take(&mut slot.indirect);
        self.pages.redeem(count.into());
        let mut page = slot.pages;
        if !self.pages.are_mapped(page) {
            return;
        }
        let access = access(slot.operation);
        let (mark, tail) = (self.pages.mark(), self.pages.last(page));
        let (mut last, mut sectors) = (tail, 0);
        let mut bytes = [0; RUN * Segment::BYTES];
        'request: for first in (0..count).step_by(RUN) {
            let place = usize::from(first) % SEGMENTS_PER_PAGE;
            if place == 0 && first > 0 {
                page = self.pages.next(page);
            }
            let run = usize::from(count - first).min(RUN);
            if let Some(view) = self.pages.view(page) {
                view.read(place * Segment::BYTES, &mut bytes[..run * Segment::BYTES]);
            }
            for (number, bytes) in (first..).zip(&bytes.as_chunks().0[..run]) {
                let Ok(segment) = Segment::from_bytes(*bytes, number) else {
                    slot.status = Status::Error;
                    break 'request;
                };
                last = self.pages.add_behind(last, segment.gref(), segment.part(), access);
                sectors += segment.sectors();
            }
        }
        (slot.data, slot.sectors) = (self.pages.next(tail), sectors);
        if slot.status == Status::Okay && has(&self.disk, slot.sector, sectors) {
            self.counters.segments += u64::from(count);
            self.counters.add_sectors(slot.operation, sectors);
            return;
        }
        self.slots[usize::from(index)].status = Status::Error;
        self.counters.refused += 1;
        self.pages.forget(mark);
    }
}

/// Tells whether a disk has those sectors, in its own units.
#[inline]
fn has(disk: &Disk, sector: u64, sectors: u64) -> bool {
    let unit = u64::from(disk.sector_size) / SECTOR as u64;
    let inside = sector.checked_add(sectors).is_some_and(|end| end <= disk.sectors);
    // The unit is a power of two.
    inside && (sector | sectors) & (unit - 1) == 0
}

/// Returns what is done with the pages of an operation: reading the disk writes to them.
fn access(operation: Operation) -> Access {
    if operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly }
}
