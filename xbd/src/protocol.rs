//! Wire values → checked values, once, at the door: a raw request becomes a [`Request`] or [`Malformed`], and
//! `parse(&emit(&request)) == Ok(request)`.

use core::fmt;

use xen_sys::GrantRef;
use xen_sys::io::blkif::{
    BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp, BlkifRequest, BlkifRequestSegment, BlkifResponse,
};

use crate::MAX_SEGMENTS;

/// Sectors of 512 bytes in a page; a segment lies within one page.
const SECTORS_PER_PAGE: u8 = 8;

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read sectors into the segments.
    Read,
    /// Write the segments to sectors.
    Write,
    /// Make everything that was completed so far durable.
    Flush,
}

impl Operation {
    /// Returns its wire value (io/blkif.h, BLKIF_OP_*).
    pub const fn wire(self) -> BlkifOp {
        match self {
            Self::Read => BlkifOp::READ,
            Self::Write => BlkifOp::WRITE,
            Self::Flush => BlkifOp::FLUSH_DISKCACHE,
        }
    }

    /// Returns the operation that a wire value stands for, if it is one of ours.
    pub const fn from_wire(op: BlkifOp) -> Option<Self> {
        match op {
            BlkifOp::READ => Some(Self::Read),
            BlkifOp::WRITE => Some(Self::Write),
            BlkifOp::FLUSH_DISKCACHE => Some(Self::Flush),
            _ => None,
        }
    }

    /// Tells whether it changes the disk.
    pub const fn mutates(self) -> bool {
        matches!(self, Self::Write)
    }
}

/// A run of sectors within one granted page. `first` ≤ `last` ≤ 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    gref: GrantRef,
    first: u8,
    last: u8,
}

impl Segment {
    /// Makes a segment of the sectors `first` to `last`, both included, of a page; `None` if they don't lie in it.
    pub const fn new(gref: GrantRef, first: u8, last: u8) -> Option<Self> {
        if first <= last && last < SECTORS_PER_PAGE { Some(Self { gref, first, last }) } else { None }
    }

    /// Returns the grant of its page.
    pub const fn gref(self) -> GrantRef {
        self.gref
    }

    /// Returns its first byte within the page.
    pub const fn offset(self) -> usize {
        self.first as usize * crate::SECTOR
    }

    /// Returns its length in bytes.
    pub const fn len(self) -> usize {
        self.sectors() as usize * crate::SECTOR
    }

    /// Tells whether it is empty, which it never is.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Returns its length in sectors of 512 bytes.
    pub const fn sectors(self) -> u64 {
        (self.last - self.first) as u64 + 1
    }
}

/// Up to [`MAX_SEGMENTS`] segments.
#[derive(Clone, Copy)]
pub struct Segments {
    list: [Segment; MAX_SEGMENTS],
    count: u8,
}

impl Segments {
    /// No segments.
    pub const EMPTY: Self = Self { list: [Segment { gref: GrantRef(0), first: 0, last: 0 }; MAX_SEGMENTS], count: 0 };

    /// Appends a segment; returns whether there was room for it.
    #[must_use = "without room nothing was appended"]
    pub fn push(&mut self, segment: Segment) -> bool {
        let Some(place) = self.list.get_mut(usize::from(self.count)) else { return false };
        *place = segment;
        self.count += 1;
        true
    }

    /// Returns the segments.
    pub fn as_slice(&self) -> &[Segment] {
        &self.list[..usize::from(self.count)]
    }

    /// Returns their length together, in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.as_slice().iter().map(|segment| segment.sectors()).sum()
    }
}

impl PartialEq for Segments {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Segments {}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

/// A request whose form is right. Whether the disk has those sectors, and may be written, is its [back end](crate::back)'s
/// to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The front end's own number, which goes back with the response.
    pub id: u64,
    /// What to do.
    pub operation: Operation,
    /// First sector on the disk, in units of 512 bytes; 0 for a flush.
    pub sector: u64,
    /// Where the data is; empty for a flush, and for nothing else.
    pub segments: Segments,
}

/// A request whose form is wrong. It gets an error for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The front end's own number.
    pub id: u64,
    /// The operation as it was claimed.
    pub operation: BlkifOp,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No operation that we know, or none that we offered.
    UnknownOperation,
    /// Fewer or more segments than the operation takes.
    SegmentCount(u8),
    /// A segment's sectors don't lie in a page.
    SegmentSectors {
        /// Which segment.
        index: u8,
        /// Its first sector.
        first: u8,
        /// Its last sector.
        last: u8,
    },
}

impl Malformed {
    /// Returns the status that answers it.
    pub const fn status(&self) -> Status {
        match self.why {
            Why::UnknownOperation => Status::NotSupported,
            Why::SegmentCount(_) | Why::SegmentSectors { .. } => Status::Error,
        }
    }
}

/// Checks a raw request, which must be a private copy.
///
/// # Errors
/// [`Malformed`] with the evidence.
pub fn parse(raw: &BlkifRequest) -> Result<Request, Malformed> {
    let malformed = |why| Malformed { id: raw.id, operation: raw.operation, why };
    let operation = Operation::from_wire(raw.operation).ok_or(malformed(Why::UnknownOperation))?;
    let count = raw.nr_segments;
    let data = operation != Operation::Flush;
    // A flush may carry no data; nobody sends one that does, and what should become of it would be a guess.
    if data != (count > 0) || usize::from(count) > MAX_SEGMENTS {
        return Err(malformed(Why::SegmentCount(count)));
    }
    let mut segments = Segments::EMPTY;
    for (index, raw) in (0..count).zip(&raw.seg) {
        let (first, last) = (raw.first_sect, raw.last_sect);
        let segment =
            Segment::new(raw.gref, first, last).ok_or(malformed(Why::SegmentSectors { index, first, last }))?;
        // There is room: the count was checked.
        let _ = segments.push(segment);
    }
    Ok(Request { id: raw.id, operation, sector: if data { raw.sector_number } else { 0 }, segments })
}

/// Writes a request as it goes over the wire. Unused segments are zero: nothing of the stack leaks.
pub fn emit(request: &Request) -> BlkifRequest {
    let mut raw = BlkifRequest {
        operation: request.operation.wire(),
        nr_segments: request.segments.count,
        id: request.id,
        sector_number: request.sector,
        ..BlkifRequest::default()
    };
    for (raw, segment) in raw.seg.iter_mut().zip(request.segments.as_slice()) {
        *raw = BlkifRequestSegment {
            gref: segment.gref,
            first_sect: segment.first,
            last_sect: segment.last,
            ..BlkifRequestSegment::default()
        };
    }
    raw
}

/// How a request ended, as the wire says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Okay,
    /// Failed.
    Error,
    /// The back end doesn't do this; the request may be made in another way.
    NotSupported,
    /// A value that the protocol doesn't have; it counts as failed.
    Unknown(i16),
}

impl Status {
    /// Returns its wire value (io/blkif.h, BLKIF_RSP_*).
    pub const fn wire(self) -> i16 {
        match self {
            Self::Okay => BLKIF_RSP_OKAY,
            Self::Error => BLKIF_RSP_ERROR,
            Self::NotSupported => BLKIF_RSP_EOPNOTSUPP,
            Self::Unknown(status) => status,
        }
    }

    /// Returns what a wire value says.
    pub const fn from_wire(status: i16) -> Self {
        match status {
            BLKIF_RSP_OKAY => Self::Okay,
            BLKIF_RSP_ERROR => Self::Error,
            BLKIF_RSP_EOPNOTSUPP => Self::NotSupported,
            _ => Self::Unknown(status),
        }
    }
}

/// Writes a response as it goes over the wire.
pub fn respond(id: u64, operation: BlkifOp, status: Status) -> BlkifResponse {
    BlkifResponse { id, operation, status: status.wire(), ..BlkifResponse::default() }
}
