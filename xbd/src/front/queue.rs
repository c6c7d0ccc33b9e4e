//! The fast path of the front end: what is known of I/Os and requests, and completions. [`submit`](super::submit) is its other half.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::event::Channel;
use hypercall::grant::{Access, LoanBook, SharedPages};
use hypercall::mem::{Buffer, PAGE_SIZE};
use hypercall::{DomId, GrantRef, Port};
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;
use xenbus::ring::{FrontRing, Notify, RingPages};

use super::bounce::{Bounce, Manner, NONE};
use super::numbers::Numbers;
use super::over::{Completion, Counters, IoError, Over, QueueError, Returned, Saved, SubmitError};
use super::{Config, FrontError};
use crate::features::{Abilities, Discard, Disk};
use crate::protocol::{Answer, Layout, Native, Operation, Segment, Status};
use crate::{MAX_SEGMENTS, SEGMENTS_PER_PAGE};

pub(super) type RawRequest = <Native as Layout>::Request;
type RawResponse = <Native as Layout>::Response;
pub(super) type Ring<D> = FrontRing<RingPages<SharedPages<<D as Domain>::Grants>, RawRequest, RawResponse>>;

/// What was submitted and is not over. Its buffer stands in the book of loans, under the same number.
#[derive(Clone, Copy)]
pub(super) struct Io {
    pub(super) operation: Operation,
    pub(super) state: IoState,
    /// Requests that are not answered.
    pub(super) parts: u16,
    /// The first error, or none so far.
    pub(super) result: Result<(), IoError>,
    /// First of the own pages that its data goes by.
    pub(super) pages: u16,
    pub(super) sequence: u64,
    pub(super) sector: u64,
    /// How many, of a discard.
    pub(super) sectors: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IoState {
    Free,
    InFlight,
    /// All is answered, but the back end still maps a page of it.
    Answered,
}

const NO_IO: Io = Io {
    operation: Operation::Flush,
    state: IoState::Free,
    parts: 0,
    result: Ok(()),
    pages: NONE,
    sequence: 0,
    sector: 0,
    sectors: 0,
};

/// A request in the ring, or none. Its number on the wire is its index.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// Of which I/O; [`NONE`] if it is not in flight.
    pub(super) io: u16,
    /// What is to be answered.
    pub(super) operation: BlkifOp,
    /// The group of pages that its segments stand on, if it is an indirect one.
    pub(super) table: u16,
}

const NO_SLOT: Slot = Slot { io: NONE, operation: BlkifOp::READ, table: NONE };

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

    /// Writes a segment of a request.
    pub(super) fn write(&self, table: u16, index: usize, segment: Segment) {
        let at = usize::from(table) * self.group * PAGE_SIZE + index * Segment::BYTES;
        self.pages.shared().write(at, &segment.to_bytes());
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
    pub(super) buffers: LoanBook<D::Grants, B>,
    pub(super) ios: Box<[Io]>,
    pub(super) free_ios: Numbers,
    pub(super) slots: Box<[Slot]>,
    pub(super) free_slots: Numbers,
    pub(super) tables: Option<Tables<D>>,
    pub(super) bounce: Option<Bounce<D::Grants>>,
    /// Segments of the largest request.
    pub(super) per_request: usize,
    /// I/Os that were in flight when an earlier back end went, and for which there was no room yet.
    pub(super) backlog: VecDeque<Saved<B>>,
    pub(super) sequence: u64,
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
            buffers: LoanBook::new(grants, peer, depth, 0)?,
            ios: vec![NO_IO; depth.into()].into(),
            free_ios: Numbers::new(depth),
            slots: vec![NO_SLOT; depth.into()].into(),
            free_slots: Numbers::new(depth),
            tables: None,
            bounce: None,
            per_request: MAX_SEGMENTS,
            backlog: VecDeque::new(),
            sequence: 0,
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
        (self.free_ios.count() - self.free_ios.free() + self.backlog.len()) as u32
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
            Ok(()) => {
                if !self.backlog.is_empty() {
                    self.refill(&mut done);
                }
                self.channel.unmask();
            }
            Err(error) => {
                self.broken = Some(error);
                self.open = false;
            }
        }
        polled
    }

    fn take_all(&mut self, done: &mut impl FnMut(Completion<B>)) -> Result<(), QueueError> {
        if self.held() > 0 {
            self.retry(done);
        }
        // Bounded: each response takes a request out of flight, and none is submitted in here.
        loop {
            while let Some(response) = self.ring.pop()? {
                self.take(Native::answer(&response), done)?;
            }
            if !self.ring.arm()? {
                return Ok(());
            }
        }
    }

    #[inline]
    fn take(&mut self, response: Answer, done: &mut impl FnMut(Completion<B>)) -> Result<(), QueueError> {
        let unknown = QueueError::UnknownId(response.id);
        let index = u16::try_from(response.id).map_err(|_| unknown)?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(unknown)?;
        let number = slot.io;
        // No I/O has the number of none.
        let io = self.ios.get_mut(usize::from(number)).ok_or(unknown)?;
        if response.operation != slot.operation {
            return Err(QueueError::WrongOperation { id: response.id, claimed: response.operation });
        }
        slot.io = NONE;
        if slot.table != NONE
            && let Some(tables) = &mut self.tables
        {
            tables.free.put(core::mem::replace(&mut slot.table, NONE));
        }
        self.free_slots.put(index);
        io.parts -= 1;
        if response.status != Status::Okay {
            io.result = io.result.and(Err(error_of(response.status)));
        }
        if io.parts == 0 {
            self.answer(number, done);
        }
        Ok(())
    }

    /// All requests of an I/O are answered.
    #[inline(always)]
    fn answer(&mut self, number: u16, done: &mut impl FnMut(Completion<B>)) {
        let io = &self.ios[usize::from(number)];
        if io.result == Err(IoError::NotSupported) {
            let operation = io.operation;
            self.learn_lack(operation);
        }
        if self.bounce.is_some() {
            self.bring_back(number);
        }
        if !self.finish(number, done) {
            self.ios[usize::from(number)].state = IoState::Answered;
            self.answered += 1;
            self.counters.still_mapped += 1;
        }
    }

    #[cold]
    fn learn_lack(&mut self, operation: Operation) {
        self.lacks.add(operation);
        self.disk = self.disk.map(|disk| self.lacks.apply(disk));
    }

    /// Takes the data of an I/O out of the own pages, and these back.
    #[inline(never)]
    fn bring_back(&mut self, number: u16) {
        let (Some(bounce), io) = (&mut self.bounce, &mut self.ios[usize::from(number)]) else { return };
        let first = core::mem::replace(&mut io.pages, NONE);
        if io.operation == Operation::Read
            && io.result.is_ok()
            && let Some(buffer) = self.buffers.buffer(number)
        {
            self.counters.bounced_bytes += bounce.read(first, buffer);
        }
        self.counters.still_mapped += bounce.end(first);
    }

    /// Completes an I/O whose requests are all answered, unless the back end still maps a page of it.
    #[inline(always)]
    fn finish(&mut self, number: u16, done: &mut impl FnMut(Completion<B>)) -> bool {
        let Ok(buffer) = self.buffers.recall(number) else { return false };
        let io = &mut self.ios[usize::from(number)];
        io.state = IoState::Free;
        let result = io.result;
        self.free_ios.put(number);
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
    fn retry(&mut self, done: &mut impl FnMut(Completion<B>)) {
        if let Some(bounce) = &mut self.bounce {
            bounce.retry();
        }
        for number in 0..self.ios.len() as u16 {
            let answered = self.ios[usize::from(number)].state == IoState::Answered;
            if answered && self.finish(number, done) {
                self.answered -= 1;
            }
        }
    }

    /// Sends of what an earlier back end has not done as much as there is room for.
    #[cold]
    fn refill(&mut self, done: &mut impl FnMut(Completion<B>)) {
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
        self.push();
    }

    /// The back end is gone: `over` gets what is in flight. Returns how many I/Os are left because the back end still maps a page of
    /// them; they are tried again by another call.
    pub(super) fn give_up(&mut self, mut over: impl FnMut(Over<B>)) -> u32 {
        self.stop();
        if self.broken.is_none() {
            // Its last answers. Should they break the protocol, then there is nobody left to blame.
            let _ = self.take_all(&mut |completion| over(Over::Done(completion)));
        }
        self.broken = Some(QueueError::Gone);
        self.retry(&mut |completion| over(Over::Done(completion)));
        for number in 0..self.ios.len() as u16 {
            if self.ios[usize::from(number)].state != IoState::InFlight {
                continue;
            }
            if let Ok(Some(buffer)) = self.buffers.recall(number) {
                let io = core::mem::replace(&mut self.ios[usize::from(number)], NO_IO);
                self.free_ios.put(number);
                let Io { operation, sequence, sector, sectors, .. } = io;
                over(Over::Saved(Saved { sequence, operation, sector, sectors, buffer }));
            }
        }
        // What has not been sent to this one stays after what has.
        while let Some(saved) = self.backlog.pop_front() {
            self.sequence += 1;
            over(Over::Saved(Saved { sequence: self.sequence, ..saved }));
        }
        self.in_flight()
    }

    /// Waits no longer for what the back end still maps: completes it with a buffer that can only be looked at.
    pub(super) fn abandon(&mut self, mut done: impl FnMut(Completion<B>)) {
        let Self { buffers, ios, free_ios, counters, .. } = self;
        buffers.end_all(|number, buffer| {
            let io = core::mem::replace(&mut ios[usize::from(number)], NO_IO);
            let result = if io.state == IoState::Answered { io.result } else { Err(IoError::Lost) };
            free_ios.put(number);
            counters.errors += u64::from(result.is_err());
            done(Completion { buffer: buffer.into(), result });
        });
        self.answered = 0;
    }
}

#[cold]
const fn error_of(status: Status) -> IoError {
    match status {
        Status::NotSupported => IoError::NotSupported,
        Status::Unknown(status) => IoError::BadStatus(status),
        Status::Okay | Status::Error => IoError::Failed,
    }
}
