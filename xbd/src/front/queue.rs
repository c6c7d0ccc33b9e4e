//! The fast path of the front end: what is known of I/Os and requests, and completions. [`submit`](super::submit) is its other half.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hypercall::event::Channel;
use hypercall::grant::{Access, LoanBook, SharedPages};
use hypercall::mem::{Buffer, PAGE_SIZE};
use hypercall::{DomId, GrantRef, Port};
use xen_sys::io::blkif::{BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_OKAY, BlkifOp};
use xenbus::Domain;
use xenbus::ring::{FrontRing, Notify, RingPages};

use super::bounce::{Bounce, Manner, NONE};
use super::numbers::Numbers;
use super::over::{Completion, Counters, IoError, Over, QueueError, Returned, Saved, SubmitError};
use super::slots::{Slot, Slots, State};
use super::{Config, FrontError};
use crate::features::{Abilities, Discard, Disk};
use crate::protocol::{Answer, Layout, Native, Operation, Segment, Status};
use crate::{MAX_SEGMENTS, SECTOR, SEGMENTS_PER_PAGE};

type RawRequest = <Native as Layout>::Request;
type RawResponse = <Native as Layout>::Response;
pub(super) type Ring<D> = FrontRing<RingPages<SharedPages<<D as Domain>::Grants>, RawRequest, RawResponse>>;

/// Own pages on which the segments of indirect requests stand, in groups of as many as the largest request takes.
pub(super) struct Tables<D: Domain> {
    pages: SharedPages<D::Grants>,
    free: Numbers,
    group: usize,
}

impl<D: Domain> Tables<D> {
    fn new(grants: &D::Grants, peer: DomId, count: u16, segments: usize, persistent: bool) -> Result<Self, FrontError> {
        let group = segments.div_ceil(SEGMENTS_PER_PAGE);
        // io/blkif.h, note 8: a back end that keeps pages mapped maps each of them for writing. What it writes there nobody reads.
        let access = if persistent { Access::ReadWrite } else { Access::ReadOnly };
        let pages = SharedPages::with_access(grants, peer, usize::from(count) * group, access)?;
        Ok(Self { pages, free: Numbers::new(count), group })
    }

    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.take()
    }

    /// Puts one back that was taken.
    #[inline]
    pub(super) fn put(&mut self, table: u16) {
        self.free.put(table);
    }

    /// Writes a segment of a request.
    #[inline]
    pub(super) fn write(&self, table: u16, index: usize, segment: Segment) {
        let at = usize::from(table) * self.group * PAGE_SIZE + index * Segment::BYTES;
        self.pages.shared().write_entry(at, segment.to_bytes());
    }

    /// Returns the grants of a request's pages.
    pub(super) fn grefs(&self, table: u16) -> &[GrantRef] {
        let first = usize::from(table) * self.group;
        self.pages.refs().get(first..first + self.group).unwrap_or_default()
    }
}

/// What the back end has said that it doesn't do after all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lacks {
    flush: bool,
    barrier: bool,
    discard: bool,
    secure: bool,
}

impl Lacks {
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            flush: self.flush | other.flush,
            barrier: self.barrier | other.barrier,
            discard: self.discard | other.discard,
            secure: self.secure | other.secure,
        }
    }

    const fn add(&mut self, operation: Operation) {
        match operation {
            Operation::Flush => self.flush = true,
            Operation::Barrier => self.barrier = true,
            Operation::Discard => self.discard = true,
            Operation::SecureDiscard => self.secure = true,
            Operation::Read | Operation::Write => {}
        }
    }

    /// Returns what is left of a disk.
    pub(super) fn apply(self, disk: Disk) -> Disk {
        let secure = |discard: Discard| Discard { secure: discard.secure && !self.secure, ..discard };
        Disk {
            flush: disk.flush && !self.flush,
            barrier: disk.barrier && !self.barrier,
            discard: disk.discard.filter(|_| !self.discard).map(secure),
            ..disk
        }
    }
}

/// How a queue moves data, which is known when the other end is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) abilities: Abilities,
    pub(super) trusted: bool,
}

/// What the I/O of a queue takes, reserved.
pub(super) struct Equipment<D: Domain, B: Buffer> {
    buffers: LoanBook<D::Grants, B>,
    tables: Option<Tables<D>>,
    bounce: Option<Bounce<D::Grants>>,
    per_request: usize,
}

impl<D: Domain, B: Buffer> Equipment<D, B> {
    /// Reserves it for a queue of that depth, as the back end has told what it can do.
    pub(super) fn new(domain: &D, peer: DomId, depth: u32, config: &Config, way: Way) -> Result<Self, FrontError> {
        let grants = domain.grants();
        let depth = depth as u16;
        let per_request = config.segments(way.abilities.max_indirect_segments);
        let useful = usize::from(depth) * per_request;
        let stock = usize::from(config.max_grants).clamp(MAX_SEGMENTS, u16::MAX.into()).min(useful) as u16;
        let manner = Manner { persistent: config.persistent && way.abilities.persistent, clean: !way.trusted };
        let copied = manner.persistent || manner.clean;
        let bounce = copied.then(|| Bounce::new(grants, peer, stock, manner)).transpose()?;
        let buffers = LoanBook::new(grants, peer, depth, if copied { 0 } else { stock })?;
        // Each indirect request has more segments than a direct one could have: with fewer of these, fewer are in flight.
        let tables = depth.min(stock / (MAX_SEGMENTS as u16 + 1));
        let largest = per_request.min(stock.into());
        let indirect = per_request > MAX_SEGMENTS && tables > 0;
        let tables = indirect.then(|| Tables::new(grants, peer, tables, largest, manner.persistent)).transpose()?;
        Ok(Self { buffers, tables, bounce, per_request: if indirect { per_request } else { MAX_SEGMENTS } })
    }
}

/// A ring with its event channel, and the I/Os that are in flight.
pub struct Queue<D: Domain, B: Buffer> {
    pub(super) ring: Ring<D>,
    channel: Channel<D::Events>,
    /// Which operations may go the straight way now, as bits of [`straight`]; and the bounds of the disk, for these.
    pub(super) straight: u8,
    pub(super) capacity: u64,
    pub(super) unit_mask: u64,
    pub(super) buffers: LoanBook<D::Grants, B>,
    pub(super) slots: Slots,
    /// Where a request of several segments is put together. Of what an earlier one has left nothing gets into the ring.
    pub(super) draft: RawRequest,
    /// I/Os that were submitted and are not over.
    pub(super) ios: u32,
    /// Requests that are not answered, but for the first of each I/O.
    pub(super) parts: u32,
    pub(super) tables: Option<Tables<D>>,
    pub(super) bounce: Option<Bounce<D::Grants>>,
    /// Segments of the largest request.
    pub(super) per_request: usize,
    /// I/Os that were in flight when an earlier back end went, and for which there was no room yet.
    pub(super) backlog: VecDeque<Saved<B>>,
    /// I/Os that are answered, and whose pages the back end still maps.
    answered: u32,
    /// Takes I/Os.
    pub(super) open: bool,
    pub(super) disk: Option<Disk>,
    lacks: Lacks,
    broken: Option<QueueError>,
    pub(super) counters: Counters,
}

impl<D: Domain, B: Buffer> Queue<D, B> {
    /// Makes the ring.
    pub(super) fn new(domain: &D, peer: DomId, pages: u16) -> Result<Self, FrontError> {
        let grants = domain.grants();
        let ring: Ring<D> = FrontRing::new(RingPages::new(SharedPages::new(grants, peer, pages.into())?));
        let channel = Channel::offer(domain.events(), peer)?;
        // A ring of all pages has 512 slots.
        let depth = ring.size() as u16;
        Ok(Self {
            ring,
            channel,
            straight: 0,
            capacity: 0,
            unit_mask: 0,
            buffers: LoanBook::new(grants, peer, 0, 0)?,
            slots: Slots::new(depth),
            draft: RawRequest::default(),
            ios: 0,
            parts: 0,
            tables: None,
            bounce: None,
            per_request: MAX_SEGMENTS,
            backlog: VecDeque::new(),
            answered: 0,
            open: false,
            disk: None,
            lacks: Lacks::default(),
            broken: None,
            counters: Counters::default(),
        })
    }

    /// Takes what I/O takes. What it had in its place is left in there.
    pub(super) fn equip(&mut self, equipment: &mut Equipment<D, B>) {
        core::mem::swap(&mut self.buffers, &mut equipment.buffers);
        core::mem::swap(&mut self.tables, &mut equipment.tables);
        core::mem::swap(&mut self.bounce, &mut equipment.bounce);
        self.per_request = equipment.per_request;
        self.look_straight();
    }

    /// Finds out anew which operations go the straight way, when something has changed that they depend on.
    pub(super) fn look_straight(&mut self) {
        let disk = self.disk.as_ref().filter(|_| self.open && self.backlog.is_empty());
        self.straight = disk.map_or(0, |disk| {
            let write = if disk.read_only { 0 } else { straight(Operation::Write) };
            straight(Operation::Read) | write
        });
        if let Some(disk) = disk {
            // The unit is a power of two.
            (self.capacity, self.unit_mask) = (disk.sectors, u64::from(disk.sector_size) / SECTOR as u64 - 1);
        }
    }

    /// Returns the grants of the ring's pages.
    pub(super) fn ring_refs(&self) -> &[GrantRef] {
        self.ring.memory().backing().refs()
    }

    /// Returns the port whose events [`poll`](Self::poll) answers.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    /// The disk is there, or has changed.
    pub(super) fn start(&mut self, disk: Disk, lacks: Lacks) {
        self.lacks = self.lacks.and(lacks);
        self.disk = Some(self.lacks.apply(disk));
        self.open = self.broken.is_none();
        self.look_straight();
    }

    /// Sends I/Os that an earlier back end has not done, in their order, before all others.
    pub(super) fn send_again(&mut self, saved: Vec<Saved<B>>, mut done: impl FnMut(Completion<B>)) {
        if !saved.is_empty() {
            self.backlog = saved.into();
            self.refill(&mut done);
        }
    }

    pub(super) fn stop(&mut self) {
        self.open = false;
        self.look_straight();
    }

    pub(super) const fn lacks(&self) -> Lacks {
        self.lacks
    }

    /// Returns what the disk is, as long as the queue takes I/Os: from its connection until it closes. A flush, barrier or discard that
    /// the back end has refused as such is not there any more.
    pub const fn disk(&self) -> Option<&Disk> {
        if self.open { self.disk.as_ref() } else { None }
    }

    /// Returns how many I/Os were submitted and are not completed.
    pub fn in_flight(&self) -> u32 {
        self.ios + self.backlog.len() as u32
    }

    /// Returns how many I/Os were answered whose pages the back end has not let go of; where data is copied, 1 if there are such
    /// pages. [`poll`](Self::poll) tries them again, and is to be called soon, though no event tells of it.
    pub fn held(&self) -> u32 {
        self.answered + u32::from(self.bounce.as_ref().is_some_and(Bounce::is_stuck))
    }

    /// Returns how many I/Os the back end has not answered.
    pub(super) fn unanswered(&self) -> u32 {
        self.in_flight() - self.answered
    }

    /// Tells whether the back end has broken the protocol, or is gone.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Returns how many I/Os may be in flight at once, if one request is enough for each.
    pub const fn depth(&self) -> u32 {
        self.ring.size()
    }

    /// Returns how many segments an I/O may have, if nothing else is in flight. Where data is copied, a segment is a page of it.
    pub fn max_segments(&self) -> usize {
        self.max_of(Operation::Write)
    }

    /// Returns how many segments a request may have. An I/O with more becomes several.
    pub const fn max_request_segments(&self) -> usize {
        self.per_request
    }

    /// Returns what the queue has done so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Shows the back end all that was submitted, and notifies it if it wants that.
    pub fn push(&mut self) {
        if self.ring.publish() == Notify::Yes {
            self.counters.notifications += 1;
            self.channel.notify();
        }
    }

    /// Gives all completions to `done`, in the order in which they came. Called on the event of [`port`](Self::port); the next
    /// event comes with the next completion.
    ///
    /// # Errors
    /// [`QueueError`] if the back end breaks the protocol; from then on each time, and no event tells more. The owner
    /// [closes](super::Front::close) the device, and what is in flight is given to the next [`step`](super::Front::step)'s `lost`.
    pub fn poll(&mut self, mut done: impl FnMut(Completion<B>)) -> Result<(), QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let polled = self.take_all(&mut done);
        match polled {
            // A port whose other end has broken the protocol stays masked: it could go on signalling.
            Ok(any) => {
                if !self.backlog.is_empty() {
                    self.refill(&mut done);
                }
                self.channel.handled(any);
            }
            Err(error) => {
                self.broken = Some(error);
                self.stop();
            }
        }
        polled.map(drop)
    }

    /// Takes the responses; tells whether there were any.
    #[inline]
    fn take_all(&mut self, done: &mut impl FnMut(Completion<B>)) -> Result<bool, QueueError> {
        if self.held() > 0 {
            self.retry(done);
        }
        let mut any = false;
        // Bounded: each response takes a request out of flight, and none is submitted in here.
        loop {
            match self.take_common(&mut any, done)? {
                Some((index, status)) => self.take_other(index, status, done),
                None if self.ring.arm()? => {}
                None => return Ok(any),
            }
        }
    }

    /// Takes responses that each end an I/O in the way that most do, up to the first of another kind, which it returns.
    #[inline(always)]
    fn take_common(
        &mut self,
        any: &mut bool,
        done: &mut impl FnMut(Completion<B>),
    ) -> Result<Option<(u16, Status)>, QueueError> {
        let Self { ring, slots, buffers, bounce, counters, ios, .. } = self;
        let (slots, vacant) = slots.split();
        let mut kept = bounce.as_mut().filter(|bounce| bounce.is_persistent());
        for response in ring.responses()? {
            *any = true;
            let Answer { id, operation, status } = Native::answer(&response);
            let slot = usize::try_from(id).ok().and_then(|index| slots.get_mut(index));
            let Some(slot) = slot.and_then(|slot| slot.is_answered_by(operation).then_some(slot)) else {
                return Err(wrong(slots, id, operation));
            };
            // A slot's number.
            let index = id as u16;
            let common = match (slot.state, &mut kept) {
                (State::Straight, _) => status == Status::Okay,
                (State::Page, Some(bounce)) if status == Status::Okay => {
                    let page = core::mem::replace(&mut slot.pages, NONE);
                    let read = buffers.buffer(index).filter(|_| slot.operation == Operation::Read);
                    counters.bounced_bytes += bounce.give_back(page, read);
                    true
                }
                _ => false,
            };
            if common && let Ok(buffer) = buffers.recall(index) {
                vacant.put(index, slot);
                *ios -= 1;
                if let Some(buffer) = buffer {
                    done(Completion { buffer: Returned::Whole(buffer), result: Ok(()) });
                }
                continue;
            }
            return Ok(Some((index, status)));
        }
        Ok(None)
    }

    /// Takes an answer that doesn't end its I/O, or ends it in another way than most.
    #[inline(never)]
    fn take_other(&mut self, index: u16, status: Status, done: &mut dyn FnMut(Completion<B>)) {
        let slot = &mut self.slots[index];
        let number = if matches!(slot.state, State::Straight | State::Page) { index } else { slot.io };
        if slot.table != NONE
            && let Some(tables) = &mut self.tables
        {
            tables.put(core::mem::replace(&mut slot.table, NONE));
        }
        // The first one stays as long as the I/O.
        if number != index {
            self.slots.put(index);
            self.parts -= 1;
        }
        let io = &mut self.slots[number];
        io.parts -= 1;
        if io.status == BLKIF_RSP_OKAY {
            io.status = status.wire();
        }
        if io.parts == 0 {
            self.answer(number, done);
        }
    }

    /// All requests of an I/O are answered.
    fn answer(&mut self, number: u16, done: &mut dyn FnMut(Completion<B>)) {
        let io = &self.slots[number];
        if io.status == BLKIF_RSP_EOPNOTSUPP {
            let operation = io.operation;
            self.learn_lack(operation);
        }
        if self.bounce.is_some() {
            self.bring_back(number);
        }
        if !self.finish(number, done) {
            self.slots[number].state = State::Answered;
            self.answered += 1;
            self.counters.still_mapped += 1;
        }
    }

    #[cold]
    fn learn_lack(&mut self, operation: Operation) {
        self.lacks.add(operation);
        self.disk = self.disk.map(|disk| self.lacks.apply(disk));
        self.look_straight();
    }

    /// Takes the data of an I/O out of the own pages, and these back.
    fn bring_back(&mut self, number: u16) {
        let (Some(bounce), io) = (&mut self.bounce, &mut self.slots[number]) else { return };
        let first = core::mem::replace(&mut io.pages, NONE);
        if io.operation == Operation::Read
            && io.status == BLKIF_RSP_OKAY
            && let Some(buffer) = self.buffers.buffer(number)
        {
            self.counters.bounced_bytes += bounce.read(first, buffer);
        }
        self.counters.still_mapped += bounce.end(first);
    }

    /// Completes an I/O whose requests are all answered, unless the back end still maps a page of it.
    fn finish(&mut self, number: u16, done: &mut dyn FnMut(Completion<B>)) -> bool {
        let Ok(buffer) = self.buffers.recall(number) else { return false };
        let result = result_of(self.slots[number].status);
        self.slots.put(number);
        self.ios -= 1;
        if result.is_err() {
            self.counters.errors += 1;
        }
        if let Some(buffer) = buffer {
            done(Completion { buffer: Returned::Whole(buffer), result });
        }
        true
    }

    /// Tries once more to complete what the back end had still mapped.
    #[cold]
    fn retry(&mut self, done: &mut dyn FnMut(Completion<B>)) {
        if let Some(bounce) = &mut self.bounce {
            bounce.retry();
        }
        for number in 0..self.slots.count() as u16 {
            let answered = self.slots[number].state == State::Answered;
            if answered && self.finish(number, done) {
                self.answered -= 1;
            }
        }
    }

    /// Sends of what an earlier back end has not done as much as there is room for.
    #[cold]
    fn refill(&mut self, done: &mut dyn FnMut(Completion<B>)) {
        while let Some(Saved { operation, sector, sectors, buffer, .. }) = self.backlog.pop_front() {
            match self.begin(operation, sector, sectors, buffer) {
                Ok(()) => {}
                Err((SubmitError::Full, buffer)) => {
                    self.backlog.push_front(Saved { sequence: 0, operation, sector, sectors, buffer });
                    break;
                }
                Err((error, buffer)) => {
                    self.counters.errors += 1;
                    done(Completion { buffer: Returned::Whole(buffer), result: Err(IoError::Refused(error)) });
                }
            }
        }
        self.look_straight();
        self.push();
    }

    /// The back end is gone: `over` gets what is in flight. Returns how many I/Os are left because the back end still maps a page of
    /// them; they are tried again by another call.
    pub(super) fn give_up(&mut self, mut over: impl FnMut(Over<B>)) -> u32 {
        self.stop();
        if self.broken.is_none() {
            // Its last answers. Should they break the protocol, then there is nobody left to blame.
            let done: &mut dyn FnMut(Completion<B>) = &mut |completion| over(Over::Done(completion));
            let _ = self.take_all(&mut { done });
        }
        self.broken = Some(QueueError::Gone);
        self.retry(&mut |completion| over(Over::Done(completion)));
        for number in 0..self.slots.count() as u16 {
            if !self.slots[number].is_in_flight() {
                continue;
            }
            if let Ok(Some(buffer)) = self.buffers.recall(number) {
                let Slot { operation, sequence, sector, sectors, .. } = self.slots[number];
                self.slots.put(number);
                self.ios -= 1;
                over(Over::Saved(Saved { sequence, operation, sector, sectors, buffer }));
            }
        }
        // What has not been sent to this one stays after what has.
        let after = self.counters.requests;
        for (sequence, saved) in (after..).zip(core::mem::take(&mut self.backlog)) {
            over(Over::Saved(Saved { sequence, ..saved }));
        }
        self.in_flight()
    }

    /// Waits no longer for what the back end still maps: completes it with a buffer that can only be looked at.
    pub(super) fn abandon(&mut self, mut done: impl FnMut(Completion<B>)) {
        let Self { buffers, ios, slots, counters, .. } = self;
        buffers.end_all(|number, buffer| {
            let io = &slots[number];
            let result = if io.state == State::Answered { result_of(io.status) } else { Err(IoError::Lost) };
            slots.put(number);
            *ios -= 1;
            counters.errors += u64::from(result.is_err());
            done(Completion { buffer: buffer.into(), result });
        });
        self.answered = 0;
    }
}

/// Tells what is wrong with a response.
#[cold]
fn wrong(slots: &[Slot], id: u64, claimed: BlkifOp) -> QueueError {
    let slot = usize::try_from(id).ok().and_then(|index| slots.get(index));
    match slot.is_some_and(Slot::is_asked) {
        true => QueueError::WrongOperation { id, claimed },
        false => QueueError::UnknownId(id),
    }
}

/// Returns the bit of an operation in [`Queue::straight`].
#[inline]
pub(super) const fn straight(operation: Operation) -> u8 {
    1 << operation as u8
}

const fn result_of(status: i16) -> Result<(), IoError> {
    match Status::from_wire(status) {
        Status::Okay => Ok(()),
        Status::Error => Err(IoError::Failed),
        Status::NotSupported => Err(IoError::NotSupported),
        Status::Unknown(status) => Err(IoError::BadStatus(status)),
    }
}
