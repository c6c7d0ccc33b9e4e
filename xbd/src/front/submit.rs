//! The fast path's first half: from an I/O to requests in the ring.

use hypercall::GrantRef;
use hypercall::grant::Access;
use hypercall::mem::Buffer;
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;

use super::bounce::{Bounce, NONE};
use super::over::{Counters, SubmitError};
use super::queue::{Queue, Ring, Tables, straight};
use super::slots::{Slot, Slots, State};
use crate::features::Disk;
use crate::protocol::{Data, IndirectPages, Layout, Native, Operation, Request, Segment, Segments};
use crate::{MAX_SEGMENTS, SECTOR};

/// Sectors of 512 bytes in a page.
const SECTORS_PER_PAGE: u64 = (hypercall::mem::PAGE_SIZE / SECTOR) as u64;

/// What an I/O comes to.
#[derive(Clone, Copy)]
struct Size {
    segments: usize,
    sectors: u64,
}

impl<D: Domain, B: Buffer> Queue<D, B> {
    /// Starts an I/O; the back end sees it after [`push`](Self::push). `sector` counts 512 bytes; it means nothing for a flush, whose
    /// buffer has no segments, and for a barrier whose buffer has none.
    ///
    /// An I/O of more segments than a request takes becomes several requests, which the back end may do in any order. It is completed
    /// once, when all are answered, and with the first error.
    ///
    /// # Errors
    /// [`SubmitError`] and the buffer.
    pub fn submit(&mut self, operation: Operation, sector: u64, buffer: B) -> Result<(), (SubmitError, B)> {
        if self.straight & straight(operation) == 0 {
            return self.accept(operation, sector, 0, buffer);
        }
        let Some((first, last)) = self.only_segment(sector, &buffer) else {
            return self.submit_list(operation, sector, buffer);
        };
        if self.bounce.is_some() {
            return self.submit_page(operation, sector, last - first + 1, buffer);
        }
        let mut gref = GrantRef(0);
        let Some(number) = self.note_single(operation, sector, Slot::SINGLE) else { return self.is_full(buffer) };
        if let Err(buffer) = self.buffers.lend(number, access(operation), 1, buffer, |only, _| gref = only) {
            self.slots.put(number);
            return self.is_full(buffer);
        }
        self.count_single(1);
        // There is room: a ring has as many slots as there are numbers, and this one was free.
        let _ = self.ring.push(&Native::emit_one(number.into(), operation, sector, (gref, first, last)));
        Ok(())
    }

    /// Returns the sectors of the only segment of a buffer, if there is one and nothing can be said against such an I/O.
    #[inline(always)]
    fn only_segment(&self, sector: u64, buffer: &B) -> Option<(u8, u8)> {
        let mut parts = buffer.segments();
        let part = parts.next()?;
        if parts.next().is_some() {
            return None;
        }
        let (first, last) = sectors_of(&part)?;
        self.fits(sector, u64::from(last - first) + 1).then_some((first, last))
    }

    /// Tells whether the disk has those sectors, and whether they are whole ones of its own.
    #[inline(always)]
    fn fits(&self, sector: u64, sectors: u64) -> bool {
        let ends = sector.checked_add(sectors).is_some_and(|end| end <= self.capacity);
        ends && (sector | sectors) & self.unit_mask == 0
    }

    /// Lists the segments of a buffer in the draft, without their grants, as many as it has room for, if nothing can be said against such
    /// an I/O. Returns how many there are.
    #[inline(always)]
    fn list(&mut self, sector: u64, buffer: &B) -> Option<usize> {
        let (mut count, mut sectors) = (0, 0);
        for part in buffer.segments() {
            let (first, last) = sectors_of(&part)?;
            if let Some(segment) = self.draft.seg.get_mut(count) {
                (segment.first_sect, segment.last_sect) = (first, last);
            }
            sectors += u64::from(last - first) + 1;
            count += 1;
        }
        (count > 0 && self.fits(sector, sectors)).then_some(count)
    }

    /// Starts an I/O of several segments, as many as a request takes.
    #[inline(never)]
    fn submit_list(&mut self, operation: Operation, sector: u64, buffer: B) -> Result<(), (SubmitError, B)> {
        let listed = if self.bounce.is_none() { self.list(sector, &buffer) } else { None };
        let Some(count) = listed else { return self.accept(operation, sector, 0, buffer) };
        if count > MAX_SEGMENTS {
            return self.submit_table(operation, sector, count, buffer);
        }
        let Some(number) = self.note_single(operation, sector, Slot::SINGLE) else { return self.is_full(buffer) };
        let Self { buffers, draft, .. } = self;
        let mut segments = draft.seg.iter_mut();
        let lent = buffers.lend(number, access(operation), count, buffer, move |gref, _| {
            if let Some(segment) = segments.next() {
                segment.gref = gref;
            }
        });
        if let Err(buffer) = lent {
            self.slots.put(number);
            return self.is_full(buffer);
        }
        self.count_single(count);
        self.draft.operation = operation.wire();
        self.draft.nr_segments = count as u8;
        self.draft.id = number.into();
        self.draft.sector_number = sector;
        // As for `submit`.
        let _ = self.ring.push(&self.draft);
        Ok(())
    }

    /// The same, of more: they stand on pages of their own, if one request takes them all.
    #[inline(never)]
    fn submit_table(
        &mut self,
        operation: Operation,
        sector: u64,
        count: usize,
        buffer: B,
    ) -> Result<(), (SubmitError, B)> {
        if count > self.per_request {
            return self.accept(operation, sector, 0, buffer);
        }
        let like = Slot { state: State::InFlight, ..Slot::SINGLE };
        // What is lacking, that way says.
        let Some(number) = self.note_single(operation, sector, like) else {
            return self.accept(operation, sector, 0, buffer);
        };
        let pages = match self.lend_table(number, operation, count, buffer) {
            Ok(pages) => pages,
            Err(buffer) => {
                self.slots.put(number);
                return self.accept(operation, sector, 0, buffer);
            }
        };
        self.count_single(count);
        self.counters.indirect += 1;
        // As for `submit`.
        let _ = self.ring.push(&Native::emit(&Request {
            id: number.into(),
            operation,
            sector,
            data: Data::Indirect(pages),
        }));
        Ok(())
    }

    /// Lends the segments of a buffer, and lists them on pages of their own.
    #[inline(always)]
    fn lend_table(&mut self, number: u16, operation: Operation, count: usize, buffer: B) -> Result<IndirectPages, B> {
        let Self { buffers, tables: Some(tables), slots, .. } = self else { return Err(buffer) };
        let Some(table) = tables.take() else { return Err(buffer) };
        let Some(pages) = IndirectPages::new(count as u16, tables.grefs(table)) else {
            tables.put(table);
            return Err(buffer);
        };
        let mut index = 0;
        let lent = buffers.lend(number, access(operation), count, buffer, |gref, part| {
            if let Some(segment) = wire_segment(gref, &part) {
                tables.write(table, index, segment);
            }
            index += 1;
        });
        if let Err(buffer) = lent {
            tables.put(table);
            return Err(buffer);
        }
        let slot = &mut slots[number];
        (slot.io, slot.table) = (number, table);
        Ok(pages)
    }

    /// The same, by way of an own page.
    #[inline]
    fn submit_page(
        &mut self,
        operation: Operation,
        sector: u64,
        sectors: u8,
        buffer: B,
    ) -> Result<(), (SubmitError, B)> {
        let Some((page, gref)) = self.bounce.as_mut().and_then(Bounce::take_page) else {
            return self.accept(operation, sector, 0, buffer);
        };
        let like = Slot { state: State::Page, pages: page, ..Slot::SINGLE };
        let kept = match self.note_single(operation, sector, like) {
            Some(number) => self.buffers.lend(number, Access::ReadOnly, 0, buffer, |_, _| {}).map(|()| number),
            None => Err(buffer),
        };
        let number = match kept {
            Ok(number) => number,
            Err(buffer) => {
                if let Some(bounce) = &mut self.bounce {
                    bounce.put_page(page);
                }
                return self.is_full(buffer);
            }
        };
        let written = if operation == Operation::Write { self.buffers.buffer(number) } else { None };
        let bytes = usize::from(sectors) * SECTOR;
        if written.is_some() {
            self.counters.bounced_bytes += bytes as u64;
        }
        if let Some(bounce) = &mut self.bounce {
            bounce.share_page(page, bytes, written);
        }
        self.count_single(1);
        // As for `submit`.
        let _ = self.ring.push(&Native::emit_one(number.into(), operation, sector, (gref, 0, sectors - 1)));
        Ok(())
    }

    #[cold]
    fn is_full(&mut self, buffer: B) -> Result<(), (SubmitError, B)> {
        self.counters.full += 1;
        Err((SubmitError::Full, buffer))
    }

    /// Writes an I/O of one request down, whose segments are in it. Returns its number, or `None` if no slot is free.
    #[inline(always)]
    fn note_single(&mut self, operation: Operation, sector: u64, like: Slot) -> Option<u16> {
        let mut slot = Slot { operation, sector, sequence: self.counters.requests, ..like };
        slot.ask(operation.wire());
        self.slots.take(slot)
    }

    /// Counts an I/O that was written down so, when it is sure that it goes into the ring.
    #[inline(always)]
    fn count_single(&mut self, segments: usize) {
        self.ios += 1;
        self.counters.requests += 1;
        self.counters.segments += segments as u64;
    }

    /// Starts a discard: of `sectors` sectors from `sector` on, in units of 512 bytes, nobody needs what is in them any more. With
    /// `secure`, nobody is able to read it any more either. `buffer` has no segments; it is what the I/O is known by.
    ///
    /// # Errors
    /// [`SubmitError`] and the buffer.
    pub fn submit_discard(
        &mut self,
        sector: u64,
        sectors: u64,
        secure: bool,
        buffer: B,
    ) -> Result<(), (SubmitError, B)> {
        let operation = if secure { Operation::SecureDiscard } else { Operation::Discard };
        self.accept(operation, sector, sectors, buffer)
    }

    #[inline(never)]
    fn accept(&mut self, operation: Operation, sector: u64, sectors: u64, buffer: B) -> Result<(), (SubmitError, B)> {
        if !self.open {
            return Err((SubmitError::NotConnected, buffer));
        }
        // What an earlier back end has not done comes first.
        let begun = if self.backlog.is_empty() {
            self.begin(operation, sector, sectors, buffer)
        } else {
            Err((SubmitError::Full, buffer))
        };
        if let Err((SubmitError::Full, _)) = &begun {
            self.counters.full += 1;
        }
        begun
    }

    /// Starts an I/O of any kind, if there is room for it.
    pub(super) fn begin(
        &mut self,
        operation: Operation,
        sector: u64,
        sectors: u64,
        buffer: B,
    ) -> Result<(), (SubmitError, B)> {
        let size = match self.measure(operation, sector, sectors, &buffer) {
            Ok(size) => size,
            Err(error) => return Err((error, buffer)),
        };
        let data = size.segments > 0;
        let segments = match &mut self.bounce {
            Some(bounce) if data => {
                let pages = size.sectors.div_ceil(SECTORS_PER_PAGE) as usize;
                if pages > bounce.free() {
                    bounce.retry();
                }
                pages
            }
            _ => size.segments,
        };
        let per_request = self.per_request_of(operation);
        let requests = segments.div_ceil(per_request).max(1);
        if let Err(error) = self.find_room(operation, segments, requests) {
            return Err((error, buffer));
        }
        if requests > 1 && self.bounce.is_none() && !self.may_be_split(&buffer) {
            return Err((SubmitError::BadBuffer, buffer));
        }
        let (sequence, sectors) = (self.counters.requests, size.sectors);
        let parts = requests as u16;
        let io = Slot { state: State::InFlight, parts, operation, sequence, sector, sectors, ..Slot::SINGLE };
        let Some(number) = self.slots.take(io) else { return Err((SubmitError::Full, buffer)) };
        self.slots[number].io = number;
        self.ios += 1;
        let lent = if data && self.bounce.is_none() { segments } else { 0 };
        let Self { buffers, slots, parts, tables, bounce, ring, counters, .. } = self;
        let sender = Sender::<D> { number, first: true, ring, slots, parts, tables, counters };
        let mut split = Split { sender, operation, sector, left: segments, per_request, part: Part::EMPTY };
        let lent = buffers.lend(number, access(operation), lent, buffer, |gref, part| {
            if let Some(segment) = wire_segment(gref, &part) {
                split.push(segment);
            }
        });
        if let Err(buffer) = lent {
            self.slots.put(number);
            self.ios -= 1;
            return Err((SubmitError::Full, buffer));
        }
        split.sender.counters.segments += segments as u64;
        if let (true, Some(bounce)) = (data, bounce) {
            let written = buffers.buffer(number).filter(|_| operation != Operation::Read);
            let bytes = size.sectors as usize * SECTOR;
            let first = bounce.lend(bytes, written, |segment| split.push(segment));
            split.sender.slots[number].pages = first;
            if operation != Operation::Read {
                split.sender.counters.bounced_bytes += bytes as u64;
            }
        }
        if !data {
            let data = match operation {
                Operation::Discard | Operation::SecureDiscard => Data::Sectors(size.sectors),
                _ => Data::None,
            };
            split.sender.send(NONE, operation, sector, data);
        }
        Ok(())
    }

    /// Tells what is wrong with an I/O, or how large it is.
    fn measure(&self, operation: Operation, sector: u64, sectors: u64, buffer: &B) -> Result<Size, SubmitError> {
        let Some(disk) = &self.disk else { return Err(SubmitError::NotConnected) };
        if operation.mutates() && disk.read_only {
            return Err(SubmitError::ReadOnly);
        }
        let mut size = Size { segments: 0, sectors: 0 };
        for part in buffer.segments() {
            let Some((first, last)) = sectors_of(&part) else { return Err(SubmitError::BadBuffer) };
            size.sectors += u64::from(last - first) + 1;
            size.segments += 1;
        }
        match operation {
            Operation::Read | Operation::Write if size.segments == 0 => return Err(SubmitError::BadBuffer),
            Operation::Read | Operation::Write => {}
            _ => match rare_size(disk, operation, sectors, size)? {
                Some(sectors) => size.sectors = sectors,
                None => return Ok(size),
            },
        }
        let unit = u64::from(disk.sector_size) / SECTOR as u64;
        // A power of two.
        if (sector | size.sectors) & (unit - 1) != 0 {
            return Err(SubmitError::BadBuffer);
        }
        match sector.checked_add(size.sectors) {
            Some(end) if end <= disk.sectors => Ok(size),
            _ => Err(SubmitError::BeyondEnd { sector, sectors: size.sectors, capacity: disk.sectors }),
        }
    }

    /// Returns how many segments a request of this operation may have.
    const fn per_request_of(&self, operation: Operation) -> usize {
        match operation {
            Operation::Read | Operation::Write => self.per_request,
            // No other can be indirect.
            _ => MAX_SEGMENTS,
        }
    }

    /// Returns how many segments an I/O of this operation may have.
    pub(super) fn max_of(&self, operation: Operation) -> usize {
        let stock = self.bounce.as_ref().map_or(self.buffers.refs(), Bounce::count);
        stock.min(self.slots.count() * self.per_request_of(operation))
    }

    /// Tells whether there is room for an I/O now, or ever.
    fn find_room(&self, operation: Operation, segments: usize, requests: usize) -> Result<(), SubmitError> {
        let max = self.max_of(operation);
        if segments > max {
            return Err(SubmitError::TooLarge { segments, max });
        }
        // Whether there are as many grants is seen where they are taken.
        let lacking = self.bounce.as_ref().is_some_and(|bounce| segments > bounce.free());
        if lacking || requests + (self.ios + self.parts) as usize > self.slots.count() {
            return Err(SubmitError::Full);
        }
        Ok(())
    }

    /// Tells whether a buffer can be cut between any two segments: a request is made of whole sectors of the disk.
    fn may_be_split(&self, buffer: &B) -> bool {
        let unit = self.disk.as_ref().map_or(SECTOR, |disk| disk.sector_size as usize);
        buffer.segments().all(|part| usize::from(part.len).is_multiple_of(unit))
    }
}

/// Tells what is wrong with an I/O that is neither read nor write, or how many sectors it is about: `None` for one without a place.
#[cold]
fn rare_size(disk: &Disk, operation: Operation, sectors: u64, size: Size) -> Result<Option<u64>, SubmitError> {
    let offered = match operation {
        Operation::Flush => disk.flush,
        Operation::Barrier => disk.barrier,
        Operation::Discard => disk.discard.is_some(),
        Operation::SecureDiscard => disk.discard.is_some_and(|discard| discard.secure),
        Operation::Read | Operation::Write => true,
    };
    if !offered {
        return Err(SubmitError::NotSupported(operation));
    }
    match operation {
        Operation::Barrier if size.segments == 0 => Ok(None),
        Operation::Barrier => Ok(Some(size.sectors)),
        Operation::Flush if size.segments == 0 => Ok(None),
        Operation::Discard | Operation::SecureDiscard if size.segments == 0 && sectors > 0 => Ok(Some(sectors)),
        _ => Err(SubmitError::BadBuffer),
    }
}

/// Returns what the back end may do with the pages of an operation.
#[inline]
fn access(operation: Operation) -> Access {
    if operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly }
}

/// Writes the requests of an I/O into the ring.
struct Sender<'a, D: Domain> {
    number: u16,
    /// None is sent yet.
    first: bool,
    ring: &'a mut Ring<D>,
    slots: &'a mut Slots,
    parts: &'a mut u32,
    tables: &'a mut Option<Tables<D>>,
    counters: &'a mut Counters,
}

impl<D: Domain> Sender<'_, D> {
    /// Writes a request. The caller has seen that there is room.
    fn send(&mut self, table: u16, operation: Operation, sector: u64, data: Data) {
        let index = if core::mem::take(&mut self.first) {
            self.number
        } else {
            let part = Slot { state: State::Part, io: self.number, operation, ..Slot::SINGLE };
            let Some(index) = self.slots.take(part) else { return };
            *self.parts += 1;
            index
        };
        let slot = &mut self.slots[index];
        slot.table = table;
        slot.ask(operation.wire());
        self.counters.requests += 1;
        match operation.wire() {
            BlkifOp::FLUSH_DISKCACHE => self.counters.flushes += 1,
            BlkifOp::WRITE_BARRIER => self.counters.barriers += 1,
            BlkifOp::DISCARD => self.counters.discards += 1,
            _ => {}
        }
        let sector = if let Data::None = data { 0 } else { sector };
        let request = Request { id: index.into(), operation, sector, data };
        // There is room: a ring has as many slots as there are numbers, and this one was free.
        let _ = self.ring.push(&Native::emit(&request));
    }
}

/// Cuts an I/O into requests.
struct Split<'a, D: Domain> {
    sender: Sender<'a, D>,
    operation: Operation,
    /// Where the next request begins.
    sector: u64,
    /// Segments that no request has yet.
    left: usize,
    per_request: usize,
    part: Part,
}

/// The request at hand.
struct Part {
    /// How many segments it will have, and has.
    planned: usize,
    count: usize,
    sectors: u64,
    /// Where its segments stand, if it is indirect.
    table: u16,
    list: Segments,
}

impl Part {
    const EMPTY: Self = Self { planned: 0, count: 0, sectors: 0, table: NONE, list: Segments::EMPTY };
}

impl<D: Domain> Split<'_, D> {
    /// Adds the next segment.
    #[inline]
    fn push(&mut self, segment: Segment) {
        if self.part.count == 0 {
            self.plan();
        }
        match self.sender.tables {
            Some(tables) if self.part.table != NONE => tables.write(self.part.table, self.part.count, segment),
            // There is room: else it would be indirect.
            _ => _ = self.part.list.push(segment),
        }
        self.part.count += 1;
        self.part.sectors += segment.sectors();
        self.left = self.left.saturating_sub(1);
        if self.part.count == self.part.planned {
            self.send();
        }
    }

    /// Begins the next request.
    #[inline(never)]
    fn plan(&mut self) {
        self.part.planned = self.left.min(self.per_request);
        if self.part.planned > MAX_SEGMENTS {
            // There is one: there are as many as requests that are so large.
            self.part.table = self.sender.tables.as_mut().and_then(Tables::take).unwrap_or(NONE);
        }
    }

    /// Sends the request at hand.
    #[inline(never)]
    fn send(&mut self) {
        let Part { count, sectors, table, list, .. } = core::mem::replace(&mut self.part, Part::EMPTY);
        let pages = match self.sender.tables {
            Some(tables) if table != NONE => IndirectPages::new(count as u16, tables.grefs(table)),
            _ => None,
        };
        let data = match pages {
            Some(pages) => {
                self.sender.counters.indirect += 1;
                Data::Indirect(pages)
            }
            None => Data::Direct(list),
        };
        self.sender.send(table, self.operation, self.sector, data);
        self.sector += sectors;
    }
}

/// Returns a part of a buffer as the wire has it; `None` if it is not made of whole sectors.
#[inline]
fn wire_segment(gref: GrantRef, part: &hypercall::mem::Segment) -> Option<Segment> {
    let (first, last) = sectors_of(part)?;
    Segment::new(gref, first, last)
}

/// Returns the first and the last sector of a part of a buffer, within its page; `None` if it is not made of whole sectors.
#[inline]
fn sectors_of(part: &hypercall::mem::Segment) -> Option<(u8, u8)> {
    let (offset, len) = (usize::from(part.offset), usize::from(part.len));
    if len == 0 || (offset | len) % SECTOR != 0 || offset + len > hypercall::mem::PAGE_SIZE {
        return None;
    }
    Some(((offset / SECTOR) as u8, ((offset + len) / SECTOR - 1) as u8))
}
