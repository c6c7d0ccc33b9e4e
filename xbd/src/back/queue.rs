//! The fast path of the back end: requests in, work for the store, responses out.
//!
//! ```text
//!   ring ─► take ─────► map all pages ─► begin ─► Store::start ──────► settle: unmap all, answer all ─► publish
//!           check,         in a batch                  │ pending        ▲
//!           admit                                      └─► completed ───┘
//!
//! The data of small requests is copied instead, by Xen: of writes where pages are mapped, of reads where they are unmapped.
//! ```

use alloc::boxed::Box;
use alloc::vec;

use hypercall::event::Channel;
use hypercall::grant::Access;
use hypercall::mem::PAGE_SIZE;
use hypercall::{DomId, Platform, Port};
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;
use xenbus::ring::{Notify, RingError};

use super::BackError;
use super::config::{Config, Counters};
use super::copies::Copies;
use super::pages::{List, Pages};
use super::ring::Ring;
use super::slot::{Slot, push, step};
use super::store::{Chain, Parts, Started, Store, StoreFault, Token, Work};
use crate::features::{self, Abi, Disk};
use crate::protocol::{Answer, Data, Direct, Operation, Request, Segment, Status};
use crate::{SECTOR, SEGMENTS_PER_PAGE};

/// First and last sector of a page.
const WHOLE: (u8, u8) = (0, (PAGE_SIZE / SECTOR - 1) as u8);

/// How the taking of requests has ended.
enum Taken {
    /// There are none any more, or enough were taken for one call.
    All,
    /// The next has to wait.
    Blocked,
}

/// A ring with its event channel, a handle of the disk, and the requests that it works on. It stands in a
/// [`Place`](xenbus::Place) of the owner's.
pub struct Queue<D: Domain, S: Store> {
    platform: D::Platform,
    store: S,
    ring: Ring<D::Platform>,
    channel: Channel<D::Events>,
    pages: Pages<D::Platform>,
    copies: Copies<D::Platform>,
    slots: Box<[Slot]>,
    free: u16,
    /// Taken from the ring, to be given to the store.
    taken: List,
    /// Over, to be unmapped and answered.
    finished: List,
    /// How many are taken, or with the store.
    busy: u32,
    /// Pages that were promised to requests whose segments are not read yet.
    promised: usize,
    /// There is such a one among those that are taken.
    folded: bool,
    /// Taken from the ring, and has to wait.
    held: Option<Request>,
    /// A barrier is under way: nothing overtakes it.
    barrier: bool,
    disk: Disk,
    max_indirect_segments: u16,
    idle_ns: u64,
    now_ns: u64,
    stopped: bool,
    counters: Counters,
}

/// How a queue is to be, as the two ends have agreed.
pub(super) struct Agreed<'a> {
    pub(super) config: &'a Config,
    pub(super) abi: Abi,
    pub(super) persistent: bool,
    pub(super) disk: Disk,
}

impl<D: Domain, S: Store> Queue<D, S> {
    pub(super) fn new(
        domain: &D,
        peer: DomId,
        ring: &features::Ring,
        agreed: &Agreed<'_>,
        store: S,
    ) -> Result<Self, BackError> {
        let Agreed { config, abi, persistent, disk } = *agreed;
        let platform = domain.platform();
        let ring_end = Ring::new(platform, peer, &ring.refs, abi)?;
        let size = ring_end.size();
        let kept = if persistent { usize::from(config.max_persistent) } else { 0 };
        let pages = Pages::new(platform, peer, config.working_pages(size), kept)?;
        let copies =
            if persistent { Copies::none(platform, peer)? } else { Copies::new(platform, peer, config, size)? };
        let mut slots = vec![Slot::FREE; size as usize];
        for (index, slot) in slots.iter_mut().enumerate().take(size as usize - 1) {
            slot.link = index as u16 + 1;
        }
        // Last, because the first event may be pending from here on.
        let channel = Channel::bind(domain.events(), peer, ring.port)?;
        Ok(Self {
            platform: platform.clone(),
            store,
            ring: ring_end,
            channel,
            pages,
            copies,
            slots: slots.into(),
            free: 0,
            taken: List::EMPTY,
            finished: List::EMPTY,
            busy: 0,
            promised: 0,
            folded: false,
            held: None,
            barrier: false,
            disk,
            max_indirect_segments: config.abilities().max_indirect_segments,
            idle_ns: config.idle_ns,
            now_ns: 0,
            stopped: false,
            counters: Counters::default(),
        })
    }

    /// Returns the port whose events [`poll`](Self::poll) answers.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    /// Returns how many requests the store works on.
    pub const fn busy(&self) -> u32 {
        self.busy
    }

    /// Returns what the queue has done so far.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        self.pages.count(&mut counters);
        self.copies.count(&mut counters);
        counters
    }

    /// Returns its handle of the disk.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// Takes no more requests.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.held = None;
    }

    pub(super) const fn learn(&mut self, disk: Disk) {
        self.disk = disk;
    }

    /// Serves the requests that are there, and completes what the store has finished. Called on the event of
    /// [`port`](Self::port), and when the store has completed something. Returns `true` if there is more to do at once: one call takes no
    /// more than a ring's worth of requests.
    ///
    /// # Errors
    /// [`RingError`] if the other end breaks the protocol. The queue takes no more requests, and its port stays masked; its owner tells
    /// [`Back::fail`](super::Back::fail).
    pub fn poll(&mut self) -> Result<bool, RingError> {
        self.look_at_clock();
        let before = self.counters.requests;
        let completed = self.collect();
        let taken = if self.stopped { Ok(false) } else { self.take_all() };
        self.settle();
        self.publish();
        // A front end that has broken the ring, or is gone, has nothing to tell any more.
        match taken {
            Ok(_) if !self.stopped => {
                // What has to wait was told of by an event, too.
                let waits = self.barrier || self.held.is_some();
                self.channel.handled(completed || waits || self.counters.requests != before);
            }
            Ok(_) => {}
            Err(_) => self.stop(),
        }
        taken
    }

    /// Answers what the store has finished, and takes nothing.
    pub(super) fn complete(&mut self) {
        self.look_at_clock();
        self.collect();
        self.settle();
        self.publish();
    }

    /// Unmaps the grants that are kept mapped and were not used for too long. [`poll`](Self::poll) does it, too; this is for a queue
    /// where nothing happens. Called when [`next_tend_ns`](Self::next_tend_ns) says, or now and then.
    pub fn tend(&mut self, now_ns: u64) {
        if let Some(since) = now_ns.checked_sub(self.idle_ns) {
            self.pages.expire(since);
            self.pages.unmap();
        }
    }

    /// Returns when [`tend`](Self::tend) has something to do, as the platform's clock goes; `None` if not before the next
    /// [`poll`](Self::poll).
    pub fn next_tend_ns(&self) -> Option<u64> {
        Some(self.pages.oldest_ns()?.saturating_add(self.idle_ns))
    }

    fn look_at_clock(&mut self) {
        if self.pages.keeps() {
            self.now_ns = self.platform.now_ns();
            if let Some(since) = self.now_ns.checked_sub(self.idle_ns) {
                self.pages.expire(since);
            }
        }
    }

    fn publish(&mut self) {
        let notify = self.ring.publish();
        self.tell(notify);
    }

    fn tell(&mut self, notify: Notify) {
        if notify == Notify::Yes {
            self.counters.notifications += 1;
            self.channel.notify();
        }
    }

    /// Takes a ring's worth of requests at most, and answers what is over at once; tells whether there are more.
    fn take_all(&mut self) -> Result<bool, RingError> {
        let mut budget = self.ring.size();
        loop {
            let taken = self.take(&mut budget);
            let any = !self.taken.is_empty();
            self.begin();
            match taken? {
                Taken::All => {
                    self.settle();
                    let (notify, more) = self.ring.publish_and_arm();
                    self.tell(notify);
                    if !more? || budget == 0 {
                        return more;
                    }
                }
                // What it waits for may be over already. If not, the store's completion brings us back.
                Taken::Blocked if any => {}
                Taken::Blocked => return Ok(false),
            }
        }
    }

    fn take(&mut self, budget: &mut u32) -> Result<Taken, RingError> {
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
        // Once more: the disk may have become smaller meanwhile.
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

    /// Takes the request if it is as most are: a read or write, by segments that are in it, and against which nothing can be said.
    #[inline]
    fn take_direct(&mut self) -> bool {
        let Some(Direct { id, write, sector, segments }) = self.ring.direct() else { return false };
        let mut sectors = 0;
        for segment in segments {
            let Some(segment) = Segment::new(segment.gref, segment.first_sect, segment.last_sect) else { return false };
            sectors += segment.sectors();
        }
        let index = self.free;
        if self.copies.take(sectors, segments.len()) {
            return self.take_copied(sectors);
        }
        let fits = self.room() >= segments.len() && self.has(sector, sectors) && !(write && self.disk.read_only);
        // The ring lets no more requests in than there are slots.
        let Some(slot) = self.slots.get_mut(usize::from(index)).filter(|_| fits) else { return false };
        self.free = slot.link;
        let operation = if write { Operation::Write } else { Operation::Read };
        let mut pages = List::EMPTY;
        for segment in segments {
            let part = (segment.first_sect, segment.last_sect);
            let _ = self.pages.add_here(&mut pages, segment.gref, part, access(operation));
        }
        let data = pages.first;
        *slot = Slot { id, operation, sector, sectors, pages, data, steps: step::WORK, ..Slot::FREE };
        self.counters.segments += segments.len() as u64;
        self.busy += 1;
        push(&mut self.slots, &mut self.taken, index);
        true
    }

    /// The same of a request that is copied, and has so many sectors.
    #[inline(never)]
    fn take_copied(&mut self, sectors: u64) -> bool {
        let Some(Direct { id, write, sector, segments }) = self.ring.direct() else { return false };
        let index = self.free;
        let fits = self.has(sector, sectors) && !(write && self.disk.read_only);
        let Some(slot) = self.slots.get_mut(usize::from(index)).filter(|_| fits) else { return false };
        self.free = slot.link;
        let operation = if write { Operation::Write } else { Operation::Read };
        let data = self.copies.add(segments, write);
        *slot = Slot { id, operation, sector, sectors, data, steps: step::WORK | step::COPIED, ..Slot::FREE };
        self.counters.segments += segments.len() as u64;
        self.busy += 1;
        push(&mut self.slots, &mut self.taken, index);
        true
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
        if let Err(status) = self.check(&request) {
            self.refuse(request.id, request.operation.wire(), status);
            return true;
        }
        let admitted = self.admit(&request);
        if !admitted {
            self.counters.waits += 1;
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
        let index = self.free;
        // The ring lets no more requests in than there are slots.
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        self.free = slot.link;
        *slot = Slot { id: request.id, operation: request.operation, sector: request.sector, ..Slot::FREE };
        // Reading the disk writes to the page.
        let access = access(request.operation);
        slot.steps = step::WORK;
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
                self.counters.segments += segments.as_slice().len() as u64;
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
        match slot.operation {
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
        self.busy += 1;
        push(&mut self.slots, &mut self.taken, index);
    }

    /// Maps or copies the pages of what was taken, and gives it to the store.
    fn begin(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let mut all = self.pages.map();
        if core::mem::take(&mut self.folded) {
            all &= self.unfold_all();
        }
        if self.copies.coming() {
            self.copies.fetch(&mut self.slots, self.taken.first);
        }
        let mut next = core::mem::replace(&mut self.taken, List::EMPTY).first;
        while let Some(slot) = self.slots.get_mut(usize::from(next)) {
            let index = next;
            next = slot.link;
            if !all && slot.status == Status::Okay && !self.pages.are_mapped(slot.pages.first) {
                self.counters.unmappable += 1;
                slot.status = Status::Error;
            }
            if slot.status == Status::Okay {
                self.run(index);
            } else {
                self.finish(index);
            }
        }
    }

    /// Maps the pages of the indirect requests that were taken; tells whether all could be.
    #[cold]
    fn unfold_all(&mut self) -> bool {
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

    /// Asks the store for what is to be done of a request.
    #[inline]
    fn run(&mut self, index: u16) {
        let Self { slots, pages, store, .. } = self;
        let slot = &mut slots[usize::from(index)];
        if slot.steps != step::WORK || !matches!(slot.operation, Operation::Read | Operation::Write) {
            return self.run_steps(index);
        }
        let (sector, parts) = (slot.sector, Parts::chain(pages, slot.data, slot.sectors as usize * SECTOR));
        let work = if slot.operation == Operation::Read {
            Work::Read { sector, parts }
        } else {
            Work::Write { sector, parts }
        };
        match store.start(Token(index), work) {
            Started::Pending => slot.started = true,
            Started::Done(Ok(())) => self.finish(index),
            Started::Done(result) => {
                self.step(index, result);
                self.finish(index);
            }
        }
    }

    /// The same of any request, until it has to be waited for.
    #[inline(never)]
    fn run_steps(&mut self, index: u16) {
        loop {
            let Self { slots, pages, copies, store, .. } = self;
            let slot = &mut slots[usize::from(index)];
            let chain: &dyn Chain = if slot.copied() { copies } else { pages };
            let parts = || Parts::chain(chain, slot.data, slot.sectors as usize * SECTOR);
            let (sector, sectors) = (slot.sector, slot.sectors);
            let work = match (slot.steps & slot.steps.wrapping_neg(), slot.operation) {
                (0 | step::COPIED, _) => return self.finish(index),
                (step::WORK, Operation::Read) => Work::Read { sector, parts: parts() },
                (step::WORK, Operation::Write | Operation::Barrier) => Work::Write { sector, parts: parts() },
                (step::WORK, Operation::Discard) => Work::Discard { sector, sectors, secure: false },
                (step::WORK, Operation::SecureDiscard) => {
                    let secure = self.disk.discard.is_some_and(|discard| discard.secure);
                    Work::Discard { sector, sectors, secure }
                }
                _ => Work::Flush,
            };
            match store.start(Token(index), work) {
                Started::Pending => {
                    slot.started = true;
                    return;
                }
                Started::Done(result) => {
                    if !self.step(index, result) {
                        return self.finish(index);
                    }
                }
            }
        }
    }

    /// Notes what became of a step; tells whether to go on with the next.
    fn step(&mut self, index: u16, result: Result<(), StoreFault>) -> bool {
        let slot = &mut self.slots[usize::from(index)];
        slot.started = false;
        slot.steps &= slot.steps.wrapping_sub(1);
        slot.status = match result {
            Ok(()) => return true,
            Err(StoreFault::Failed) => Status::Error,
            Err(StoreFault::NotSupported) => Status::NotSupported,
        };
        self.counters.store_faults += 1;
        false
    }

    /// Notes what the store has finished. A token that it made up is ignored.
    /// Takes what the store has finished; tells whether there was anything.
    fn collect(&mut self) -> bool {
        let mut any = false;
        while let Some((Token(index), result)) = self.store.completed() {
            any = true;
            if !self.slots.get(usize::from(index)).is_some_and(|slot| slot.started) {
                continue;
            }
            if self.step(index, result) {
                self.run_steps(index);
            } else {
                self.finish(index);
            }
        }
        any
    }

    fn finish(&mut self, index: u16) {
        self.busy -= 1;
        if self.slots[usize::from(index)].operation == Operation::Barrier {
            self.barrier = false;
        }
        push(&mut self.slots, &mut self.finished, index);
    }

    /// Copies or unmaps the pages of what is over, in one batch each, and answers it after that.
    fn settle(&mut self) {
        if self.finished.is_empty() {
            return self.pages.unmap();
        }
        if self.copies.any() {
            self.copies.answer(&mut self.slots, self.finished.first);
        }
        let mut next = self.finished.first;
        while let Some(slot) = self.slots.get(usize::from(next)) {
            next = slot.link;
            // A request has not gone well if one of its pages could not be mapped.
            self.pages.release(slot.pages, slot.status == Status::Okay, self.now_ns);
        }
        self.pages.unmap();
        let mut next = core::mem::replace(&mut self.finished, List::EMPTY).first;
        while let Some(slot) = self.slots.get_mut(usize::from(next)) {
            let index = core::mem::replace(&mut next, slot.link);
            let answer = Answer { id: slot.id, operation: slot.operation.wire(), status: slot.status };
            slot.link = self.free;
            self.free = index;
            self.ring.respond(&answer);
        }
    }
}

impl<D: Domain, S: Store> Drop for Queue<D, S> {
    fn drop(&mut self) {
        // The store was promised that what it works on stays mapped.
        if self.busy > 0 {
            self.pages.abandon();
            self.copies.abandon();
        }
    }
}

/// Returns what is done with the pages of an operation: reading the disk writes to them.
fn access(operation: Operation) -> Access {
    if operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly }
}
