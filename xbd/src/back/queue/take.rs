//! The first part of the fast path: requests are taken from the ring, looked at, and given a slot and their pages.

use hypercall::grant::Access;
use hypercall::mem::PAGE_SIZE;
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;
use xenbus::ring::RingError;

use super::Queue;
use crate::back::pages::List;
use crate::back::slot::{Slot, push, step};
use crate::back::store::Store;
use crate::protocol::{Answer, Data, Direct, Operation, Request, Segment, Status};
use crate::{SECTOR, SEGMENTS_PER_PAGE};

/// First and last sector of a page.
const WHOLE: (u8, u8) = (0, (PAGE_SIZE / SECTOR - 1) as u8);

/// How the taking of requests has ended.
pub(super) enum Taken {
    /// There are none any more, or enough were taken for one call.
    All,
    /// The next has to wait.
    Blocked,
}

impl<D: Domain, S: Store> Queue<D, S> {
    /// Takes as many requests as there are, and as `budget` has room for.
    pub(super) fn take(&mut self, budget: &mut u32) -> Result<Taken, RingError> {
        if self.held.is_some() && !self.take_held() {
            return Ok(Taken::Blocked);
        }
        loop {
            if self.barrier {
                return Ok(Taken::Blocked);
            }
            if *budget == 0 || !self.ring.pop()? {
                return Ok(Taken::All);
            }
            *budget -= 1;
            self.counters.requests += 1;
            if !self.take_direct() && !self.take_other() {
                return Ok(Taken::Blocked);
            }
        }
    }

    /// Takes the request that had to wait; `false` if it still has to.
    #[cold]
    fn take_held(&mut self) -> bool {
        let Some(request) = self.held.take() else { return true };
        // All over again: the disk may have become smaller meanwhile.
        self.let_in(request)
    }

    /// Takes the request if it is as most are: a read or write, by segments that are in it, and against which nothing can be said.
    #[inline]
    fn take_direct(&mut self) -> bool {
        let Some(Direct { id, write, sector, segments }) = self.ring.direct() else { return false };
        let mut sectors = 0;
        for segment in segments {
            let Some(segment) = Segment::new(segment.gref, segment.first_sect, segment.last_sect) else { return false };
            sectors += segment.sectors();
        }
        // The ring lets no more requests in than there are slots.
        let free = usize::from(self.free) < self.slots.len();
        if !(free && self.has(sector, sectors)) || (write && self.disk.read_only) {
            return false;
        }
        let (operation, count) = (if write { Operation::Write } else { Operation::Read }, segments.len());
        let slot = Slot { id, operation, sector, sectors, steps: step::WORK, ..Slot::FREE };
        if self.copies.take(sectors, count) {
            let data = self.copies.add(segments, write);
            self.enter(Slot { data, copied: true, ..slot }, count);
            return true;
        }
        if self.room() < count {
            return false;
        }
        let mut pages = List::EMPTY;
        for segment in segments {
            let part = (segment.first_sect, segment.last_sect);
            let _ = self.pages.add_here(&mut pages, segment.gref, part, access(operation));
        }
        self.enter(Slot { pages, data: pages.first, ..slot }, count);
        true
    }

    /// Puts a request with so many segments into a slot, of which one is free.
    #[inline(always)]
    fn enter(&mut self, request: Slot, segments: usize) {
        let index = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        self.free = slot.link;
        *slot = request;
        self.counters.segments += segments as u64;
        self.busy += 1;
        push(&mut self.slots, &mut self.taken, index);
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
        if self.has(request.sector, sectors) { Ok(()) } else { Err(Status::Error) }
    }

    /// Tells whether the disk has those sectors, in its own units.
    fn has(&self, sector: u64, sectors: u64) -> bool {
        let unit = u64::from(self.disk.sector_size) / SECTOR as u64;
        let inside = sector.checked_add(sectors).is_some_and(|end| end <= self.disk.sectors);
        // The unit is a power of two.
        inside && (sector | sectors) & (unit - 1) == 0
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
        if self.room() < pages && !self.make_room(pages) {
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
        self.pages.unmap();
        if self.room() < pages && self.busy == 0 {
            self.pages.expire(u64::MAX);
            self.pages.unmap();
        }
        self.room() >= pages
    }

    /// Returns how many pages can be promised.
    const fn room(&self) -> usize {
        self.pages.free().saturating_sub(self.promised)
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
                for segment in segments.as_slice() {
                    let _ = self.pages.add(&mut slot.pages, segment.gref(), segment.part(), access);
                    slot.sectors += segment.sectors();
                }
                slot.data = slot.pages.first;
                count = segments.as_slice().len();
            }
            Data::Indirect(pages) => {
                for gref in pages.grefs() {
                    let _ = self.pages.add(&mut slot.pages, *gref, WHOLE, Access::ReadOnly);
                }
                slot.indirect = pages.segments();
                self.promised += usize::from(slot.indirect);
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
        let mut next = self.taken.first;
        while let Some(slot) = self.slots.get(usize::from(next)) {
            let index = next;
            next = slot.link;
            if slot.indirect > 0 {
                self.unfold(index);
            }
        }
        self.pages.map()
    }

    /// Reads the segments of an indirect request, each once, and adds their pages. There is room for them: `admit` has seen to it.
    fn unfold(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        self.promised -= usize::from(slot.indirect);
        let mut page = slot.pages.first;
        if !self.pages.are_mapped(page) {
            return;
        }
        let (count, mark, last) = (usize::from(slot.indirect), self.pages.mark(), slot.pages.last);
        for number in 0..count {
            let place = number % SEGMENTS_PER_PAGE;
            if place == 0 && number > 0 {
                page = self.pages.next(page);
            }
            let mut bytes = [0; Segment::BYTES];
            if let Some(view) = self.pages.view(page) {
                view.read(place * Segment::BYTES, &mut bytes);
            }
            let Ok(segment) = Segment::from_bytes(bytes, number as u16) else {
                slot.status = Status::Error;
                break;
            };
            let access = access(slot.operation);
            let _ = self.pages.add(&mut slot.pages, segment.gref(), segment.part(), access);
            slot.sectors += segment.sectors();
        }
        slot.data = self.pages.next(last);
        slot.indirect = 0;
        let (sector, sectors) = (slot.sector, slot.sectors);
        if slot.status == Status::Okay && self.has(sector, sectors) {
            self.counters.segments += count as u64;
            return;
        }
        self.slots[usize::from(index)].status = Status::Error;
        self.counters.refused += 1;
        self.pages.forget(mark);
    }
}

/// Returns what is done with the pages of an operation: reading the disk writes to them.
fn access(operation: Operation) -> Access {
    if operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly }
}
