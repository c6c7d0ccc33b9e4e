//! How an I/O begins and ends, as its owner sees it.

use core::fmt;
use core::iter::Sum;
use core::ops::AddAssign;

use hypercall::grant::Held;
use hypercall::mem::Buffer;
use xen_sys::io::blkif::BlkifOp;
use xenbus::ring::RingError;

use crate::protocol::Operation;

/// Why an I/O was not taken. Nothing has happened; the buffer comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The ring is full, or there are not enough grants free: try again after a completion.
    Full,
    /// The disk is not connected, or is closing.
    NotConnected,
    /// The disk can't be written.
    ReadOnly,
    /// The disk doesn't do this: a flush, barrier or discard that its back end doesn't offer, or has refused once.
    NotSupported(Operation),
    /// The disk has fewer sectors.
    BeyondEnd {
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// How many.
        sectors: u64,
        /// Sectors that the disk has.
        capacity: u64,
    },
    /// The buffer has segments where none are wanted, or none where some are; or one that is not made of whole sectors, or, if it
    /// takes several requests, of the disk's own sectors. Or a discard is not of whole ones.
    BadBuffer,
    /// It takes more than the queue ever has.
    TooLarge {
        /// Segments that it has: pages, where data is copied.
        segments: usize,
        /// The most that there may be.
        max: usize,
    },
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the queue is full"),
            Self::NotConnected => f.write_str("the disk is not connected"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::NotSupported(operation) => write!(f, "the disk does no {operation:?}"),
            Self::BeyondEnd { sector, sectors, capacity } => {
                write!(f, "{sectors} sector(s) at {sector}, where the disk ends at {capacity}")
            }
            Self::BadBuffer => f.write_str("the buffer is not made of runs of whole sectors"),
            Self::TooLarge { segments, max } => write!(f, "{segments} segment(s), where the queue takes {max}"),
        }
    }
}

/// How an I/O failed.
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
    /// The back end has gone, and the one that came doesn't take it. Whether the first has done it is unknown.
    Refused(SubmitError),
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("I/O error"),
            Self::NotSupported => f.write_str("operation not supported"),
            Self::BadStatus(status) => write!(f, "impossible status {status}"),
            Self::Lost => f.write_str("the back end is gone"),
            Self::Refused(error) => write!(f, "after the disk was connected anew: {error}"),
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

/// An I/O that is over.
#[derive(Debug)]
#[must_use = "somebody waits for it"]
pub struct Completion<B: Buffer> {
    /// What was submitted.
    pub buffer: Returned<B>,
    /// How it ended.
    pub result: Result<(), IoError>,
}

/// The buffer of an I/O that is over.
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

impl<B: Buffer> From<Result<B, Held<B>>> for Returned<B> {
    fn from(buffer: Result<B, Held<B>>) -> Self {
        match buffer {
            Ok(buffer) => Self::Whole(buffer),
            Err(held) => Self::Held(held),
        }
    }
}

/// An I/O that the back end has not done, and whose buffer is ours again: enough to submit it to another.
#[derive(Debug)]
pub(super) struct Saved<B: Buffer> {
    /// Its place in the order in which the queue took its I/Os.
    pub(super) sequence: u64,
    pub(super) operation: Operation,
    pub(super) sector: u64,
    /// How many, of a discard.
    pub(super) sectors: u64,
    pub(super) buffer: B,
}

impl<B: Buffer> Saved<B> {
    pub(super) fn fail(self, error: IoError) -> Completion<B> {
        Completion { buffer: Returned::Whole(self.buffer), result: Err(error) }
    }
}

/// What becomes of an I/O when the back end goes.
pub(super) enum Over<B: Buffer> {
    Done(Completion<B>),
    Saved(Saved<B>),
}

impl<B: Buffer> Over<B> {
    /// Returns it as it ends where nothing is sent again.
    pub(super) fn completion(self) -> Completion<B> {
        match self {
            Self::Done(completion) => completion,
            Self::Saved(saved) => saved.fail(IoError::Lost),
        }
    }
}

/// What a queue, or all of a disk, has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests written into the ring.
    pub requests: u64,
    /// Those of them that were indirect.
    pub indirect: u64,
    /// Data segments in them.
    pub segments: u64,
    /// Bytes that were copied on their way.
    pub bounced_bytes: u64,
    /// Flushes among the requests.
    pub flushes: u64,
    /// Barriers among the requests.
    pub barriers: u64,
    /// Discards among the requests.
    pub discards: u64,
    /// Events sent to the back end.
    pub notifications: u64,
    /// I/Os that failed.
    pub errors: u64,
    /// How often an answer came whose pages the back end still had mapped. An I/O whose own pages these are completes when it lets go.
    pub still_mapped: u64,
    /// How often an I/O was not taken because the queue was full.
    pub full: u64,
    /// How often another back end was connected to, behind the first. Of a disk; of one of its queues 0, for it has no more than one.
    pub reconnections: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.indirect += other.indirect;
        self.segments += other.segments;
        self.bounced_bytes += other.bounced_bytes;
        self.flushes += other.flushes;
        self.barriers += other.barriers;
        self.discards += other.discards;
        self.notifications += other.notifications;
        self.errors += other.errors;
        self.still_mapped += other.still_mapped;
        self.full += other.full;
        self.reconnections += other.reconnections;
    }
}

impl Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |mut sum, each| {
            sum += each;
            sum
        })
    }
}
