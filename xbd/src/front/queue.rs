//! The fast path of the front end: buffers in, completions out.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use hypercall::event::Channel;
use hypercall::grant::{Access, Grants, Held, LendError, Loan, SharedPages};
use hypercall::mem::Buffer;
use hypercall::{DomId, GrantRef, Port};
use xen_sys::io::blkif::BlkifOp;
use xenbus::Domain;
use xenbus::ring::{FrontRing, Notify, RingError, RingPages};

use super::FrontError;
use crate::features::Disk;
use crate::protocol::{Answer, Data, Layout, Native, Operation, Request, Segment, Segments, Status};
use crate::{MAX_SEGMENTS, SECTOR};

type RawRequest = <Native as Layout>::Request;
type RawResponse = <Native as Layout>::Response;

/// Why a request was not taken. Nothing has happened; the buffer comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The ring is full: try again after a completion.
    Full,
    /// The disk is not connected, or is closing.
    NotConnected,
    /// The disk can't be written.
    ReadOnly,
    /// The disk has fewer sectors.
    BeyondEnd {
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// How many.
        sectors: u64,
        /// Sectors that the disk has.
        capacity: u64,
    },
    /// The buffer has too many segments, none at all, or one that is not made of whole sectors.
    BadBuffer,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::NotConnected => f.write_str("the disk is not connected"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::BeyondEnd { sector, sectors, capacity } => {
                write!(f, "{sectors} sector(s) at {sector}, where the disk ends at {capacity}")
            }
            Self::BadBuffer => f.write_str("the buffer is not made of 1 to 11 runs of whole sectors"),
        }
    }
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The back end could not do it.
    Failed,
    /// The back end doesn't do this operation.
    NotSupported,
    /// The back end answered with a status that the protocol doesn't have.
    BadStatus(i16),
    /// The back end is gone; whether it was done is unknown.
    Lost,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("I/O error"),
            Self::NotSupported => f.write_str("operation not supported"),
            Self::BadStatus(status) => write!(f, "impossible status {status}"),
            Self::Lost => f.write_str("the back end is gone"),
        }
    }
}

/// Why the queue is out of use: mostly what the back end did to the ring that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The indices lie.
    Ring(RingError),
    /// The back end is gone, and the queue with it.
    Gone,
    /// A response to a request that is not in flight.
    UnknownId(u64),
    /// A response for another operation than was asked for.
    WrongOperation {
        /// Of which request.
        id: u64,
        /// The operation that it claims to answer.
        claimed: BlkifOp,
    },
}

impl From<RingError> for QueueError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Gone => f.write_str("the back end is gone"),
            Self::UnknownId(id) => write!(f, "a response to request {id}, which is not in flight"),
            Self::WrongOperation { id, claimed } => {
                write!(f, "the response to request {id} is for operation {}", claimed.0)
            }
        }
    }
}

/// A request that is over.
#[derive(Debug)]
#[must_use = "somebody waits for it"]
pub struct Completion<B: Buffer> {
    /// What was submitted.
    pub buffer: Returned<B>,
    /// How it ended.
    pub result: Result<(), IoError>,
}

/// The buffer of a request that is over.
#[derive(Debug)]
pub enum Returned<B: Buffer> {
    /// Ours again.
    Whole(B),
    /// The other end never gave a page of it back: it can only be looked at.
    Held(Held<B>),
}

impl<B: Buffer> Returned<B> {
    /// Returns the buffer to be looked at.
    pub fn get(&self) -> &B {
        match self {
            Self::Whole(buffer) => buffer,
            Self::Held(held) => held.buffer(),
        }
    }
}

/// What the queue has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests submitted.
    pub requests: u64,
    /// Data segments in them.
    pub segments: u64,
    /// Events sent to the back end.
    pub notifications: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Responses whose buffer the back end still had mapped; they complete when it lets go.
    pub still_mapped: u64,
}

/// The slot of one request: its number on the wire is the slot's index.
struct Slot<G: Grants, B: Buffer> {
    loan: Loan<G, B, MAX_SEGMENTS>,
    state: SlotState,
}

#[derive(Clone, Copy)]
enum SlotState {
    /// Next free slot, if there is one.
    Free(Option<u16>),
    InFlight(Operation),
    /// Answered, but the back end still maps a page of it.
    Answered(Result<(), IoError>),
}

/// A ring with its event channel, and the requests that are in flight.
pub struct Queue<D: Domain, B: Buffer> {
    peer: DomId,
    ring: FrontRing<RingPages<SharedPages<D::Grants>, RawRequest, RawResponse>>,
    channel: Channel<D::Events>,
    slots: Box<[Slot<D::Grants, B>]>,
    free: Option<u16>,
    in_flight: u32,
    answered: u32,
    disk: Option<Disk>,
    broken: Option<QueueError>,
    counters: Counters,
}

impl<D: Domain, B: Buffer> Queue<D, B> {
    pub(super) fn new(domain: &D, peer: DomId) -> Result<Self, FrontError> {
        let grants = domain.grants();
        let ring = FrontRing::new(RingPages::new(SharedPages::new(grants, peer, 1)?));
        let channel = Channel::offer(domain.events(), peer)?;
        let mut slots = Vec::with_capacity(ring.size() as usize);
        for index in 1..=ring.size() {
            let next = (index < ring.size()).then_some(index as u16);
            match Loan::new(grants) {
                Ok(loan) => slots.push(Slot { loan, state: SlotState::Free(next) }),
                Err(error) => {
                    dissolve(slots, |_| {});
                    return Err(error.into());
                }
            }
        }
        Ok(Self {
            peer,
            ring,
            channel,
            slots: slots.into(),
            free: Some(0),
            in_flight: 0,
            answered: 0,
            disk: None,
            broken: None,
            counters: Counters::default(),
        })
    }

    /// Returns the grant of the ring's page.
    pub(super) fn ring_ref(&self) -> GrantRef {
        self.ring.memory().backing().refs()[0]
    }

    /// Returns the port whose events [`poll`](Self::poll) answers.
    pub fn port(&self) -> Port {
        self.channel.port()
    }

    pub(super) fn start(&mut self, disk: Disk) {
        self.disk = Some(disk);
    }

    pub(super) fn stop(&mut self) {
        self.disk = None;
    }

    /// Returns what the disk is, as long as the queue takes requests: from its connection until it closes.
    pub const fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Returns how many requests were submitted and are not completed.
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Returns how many requests were answered whose pages the back end has not let go of: [`poll`](Self::poll) tries them again, and is
    /// to be called soon, though no event tells of it.
    pub const fn held(&self) -> u32 {
        self.answered
    }

    /// Returns how many requests the back end has not answered.
    pub(super) const fn unanswered(&self) -> u32 {
        self.in_flight - self.answered
    }

    /// Tells whether the back end has broken the protocol, or is gone.
    pub(super) const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Returns how many requests may be in flight at once.
    pub const fn depth(&self) -> u32 {
        self.ring.size()
    }

    /// Returns what the queue has done so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes a request into the ring; the back end sees it after [`push`](Self::push). `sector` counts 512 bytes; it means nothing
    /// for a flush, whose buffer has no segments.
    ///
    /// # Errors
    /// [`SubmitError`] and the buffer.
    pub fn submit(&mut self, operation: Operation, sector: u64, buffer: B) -> Result<(), (SubmitError, B)> {
        let sector = if operation == Operation::Flush { 0 } else { sector };
        if let Err(error) = self.check(operation, sector, &buffer) {
            return Err((error, buffer));
        }
        let Some(index) = self.free else { return Err((SubmitError::Full, buffer)) };
        let slot = &mut self.slots[usize::from(index)];
        let access = if operation == Operation::Read { Access::ReadWrite } else { Access::ReadOnly };
        let refs = match slot.loan.lend(self.peer, access, buffer) {
            Ok(refs) => refs,
            Err((LendError::Busy | LendError::TooManySegments { .. }, buffer)) => {
                return Err((SubmitError::BadBuffer, buffer));
            }
        };
        // The references are copied out, so that the loan's buffer can be asked for its segments beside them.
        let mut grefs = [GrantRef(0); MAX_SEGMENTS];
        grefs[..refs.len()].copy_from_slice(refs);
        let mut segments = Segments::EMPTY;
        for (gref, part) in grefs.iter().zip(slot.loan.buffer().into_iter().flat_map(Buffer::segments)) {
            if let Some(segment) = wire_segment(*gref, &part) {
                // There is room: a loan has as many references as a request has segments.
                let _ = segments.push(segment);
            }
        }
        self.counters.segments += segments.as_slice().len() as u64;
        let data = if operation == Operation::Flush { Data::None } else { Data::Direct(segments) };
        let request = Request { id: index.into(), operation, sector, data };
        // There is room: a ring has as many slots as there are requests, and this one was free.
        let _ = self.ring.push(&Native::emit(&request));
        if let SlotState::Free(next) = slot.state {
            self.free = next;
        }
        slot.state = SlotState::InFlight(operation);
        self.in_flight += 1;
        self.counters.requests += 1;
        Ok(())
    }

    fn check(&self, operation: Operation, sector: u64, buffer: &B) -> Result<(), SubmitError> {
        let Some(disk) = self.disk.filter(|_| self.broken.is_none()) else { return Err(SubmitError::NotConnected) };
        if operation.mutates() && disk.read_only {
            return Err(SubmitError::ReadOnly);
        }
        let (mut count, mut sectors) = (0, 0);
        for part in buffer.segments() {
            sectors += wire_segment(GrantRef(0), &part).ok_or(SubmitError::BadBuffer)?.sectors();
            count += 1;
        }
        if count > MAX_SEGMENTS || (operation == Operation::Flush) != (count == 0) {
            return Err(SubmitError::BadBuffer);
        }
        let unit = u64::from(disk.sector_size) / SECTOR as u64;
        if !sector.is_multiple_of(unit) || !sectors.is_multiple_of(unit) {
            return Err(SubmitError::BadBuffer);
        }
        match sector.checked_add(sectors) {
            Some(end) if end <= disk.sectors => Ok(()),
            _ => Err(SubmitError::BeyondEnd { sector, sectors, capacity: disk.sectors }),
        }
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
        let polled = self.take_all(&mut done).inspect_err(|error| self.broken = Some(*error));
        // A port whose other end has broken the protocol stays masked: it could go on signalling.
        if polled.is_ok() {
            self.channel.unmask();
        }
        polled
    }

    fn take_all(&mut self, done: &mut impl FnMut(Completion<B>)) -> Result<(), QueueError> {
        if self.answered > 0 {
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

    fn take(&mut self, response: Answer, done: &mut impl FnMut(Completion<B>)) -> Result<(), QueueError> {
        let id = response.id;
        let index = u16::try_from(id).map_err(|_| QueueError::UnknownId(id))?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(QueueError::UnknownId(id))?;
        let SlotState::InFlight(operation) = slot.state else { return Err(QueueError::UnknownId(id)) };
        if response.operation != operation.wire() {
            return Err(QueueError::WrongOperation { id, claimed: response.operation });
        }
        let result = match response.status {
            Status::Okay => Ok(()),
            Status::Error => Err(IoError::Failed),
            Status::NotSupported => Err(IoError::NotSupported),
            Status::Unknown(status) => Err(IoError::BadStatus(status)),
        };
        slot.state = SlotState::Answered(result);
        self.answered += 1;
        if !self.finish(index, done) {
            self.counters.still_mapped += 1;
        }
        Ok(())
    }

    /// Completes an answered request, unless the back end still maps a page of it.
    fn finish(&mut self, index: u16, done: &mut impl FnMut(Completion<B>)) -> bool {
        let slot = &mut self.slots[usize::from(index)];
        let SlotState::Answered(result) = slot.state else { return true };
        let Ok(buffer) = slot.loan.recall() else { return false };
        slot.state = SlotState::Free(self.free);
        self.free = Some(index);
        self.answered -= 1;
        self.in_flight -= 1;
        self.counters.errors += u64::from(result.is_err());
        if let Some(buffer) = buffer {
            done(Completion { buffer: Returned::Whole(buffer), result });
        }
        true
    }

    /// Tries once more to complete what the back end had still mapped.
    fn retry(&mut self, done: &mut impl FnMut(Completion<B>)) {
        for index in 0..self.slots.len() {
            let _ = self.finish(index as u16, done);
        }
    }

    /// The back end is gone: completes what is in flight, with [`IoError::Lost`] unless it was answered. Returns how many requests are
    /// left because the back end still maps a page of them; they are tried again by another call.
    pub(super) fn give_up(&mut self, mut done: impl FnMut(Completion<B>)) -> u32 {
        self.stop();
        if self.broken.is_none() {
            // Its last answers. Should they break the protocol, then there is nobody left to blame.
            let _ = self.take_all(&mut done);
        }
        self.broken = Some(QueueError::Gone);
        for slot in &mut self.slots {
            if let SlotState::InFlight(_) = slot.state {
                slot.state = SlotState::Answered(Err(IoError::Lost));
                self.answered += 1;
            }
        }
        self.retry(&mut done);
        self.in_flight
    }

    /// Waits no longer for what the back end still maps: completes it with a buffer that can only be looked at.
    pub(super) fn abandon(&mut self, mut done: impl FnMut(Completion<B>)) {
        let slots = core::mem::take(&mut self.slots);
        self.free = None;
        (self.in_flight, self.answered) = (0, 0);
        let errors = &mut self.counters.errors;
        dissolve(slots.into(), |completion| {
            *errors += u64::from(completion.result.is_err());
            done(completion);
        });
    }
}

impl<D: Domain, B: Buffer> Drop for Queue<D, B> {
    fn drop(&mut self) {
        dissolve(core::mem::take(&mut self.slots).into(), |_| {});
    }
}

/// Gives the grant references of slots back, and what was in flight in them to `done`.
fn dissolve<G: Grants, B: Buffer>(slots: Vec<Slot<G, B>>, mut done: impl FnMut(Completion<B>)) {
    for slot in slots {
        let result = match slot.state {
            SlotState::Answered(result) => result,
            SlotState::Free(_) | SlotState::InFlight(_) => Err(IoError::Lost),
        };
        let buffer = match slot.loan.dissolve() {
            Ok(None) => continue,
            Ok(Some(buffer)) => Returned::Whole(buffer),
            Err(held) => Returned::Held(held),
        };
        done(Completion { buffer, result });
    }
}

/// Returns a part of a buffer as the wire has it; `None` if it is not made of whole sectors.
fn wire_segment(gref: GrantRef, part: &hypercall::mem::Segment) -> Option<Segment> {
    let (offset, len) = (usize::from(part.offset), usize::from(part.len));
    if len == 0 || !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
        return None;
    }
    Segment::new(gref, (offset / SECTOR) as u8, ((offset + len) / SECTOR - 1) as u8)
}
