//! Wire values → checked values, once, at the door: a raw request becomes a [`Request`] or [`Malformed`], and
//! `parse(&emit(&request)) == Ok(request)`, in either [`Layout`].

mod layout;

pub use layout::{Answer, Direct, Layout, Native, X86_32, X86_64};

use core::fmt;

use xen_sys::GrantRef;
use xen_sys::io::blkif::{
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifOp,
    BlkifRequestSegment,
};

use crate::{MAX_INDIRECT_SEGMENTS, MAX_SEGMENTS, SEGMENTS_PER_PAGE};

/// Sectors of 512 bytes in a page; a segment lies within one page.
const SECTORS_PER_PAGE: u8 = 8;

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read sectors into the segments.
    Read,
    /// Write the segments to sectors.
    Write,
    /// Write the segments to sectors, after all that came before and before all that comes after, and make it durable. It may have
    /// no data.
    Barrier,
    /// Make everything that was completed so far durable.
    Flush,
    /// Forget what is in sectors: nobody needs it any more.
    Discard,
    /// The same, and nobody is able to read it any more.
    SecureDiscard,
}

impl Operation {
    /// Returns its wire value (io/blkif.h, BLKIF_OP_*).
    pub const fn wire(self) -> BlkifOp {
        match self {
            Self::Read => BlkifOp::READ,
            Self::Write => BlkifOp::WRITE,
            Self::Barrier => BlkifOp::WRITE_BARRIER,
            Self::Flush => BlkifOp::FLUSH_DISKCACHE,
            Self::Discard | Self::SecureDiscard => BlkifOp::DISCARD,
        }
    }

    /// Tells whether it changes the disk.
    pub const fn mutates(self) -> bool {
        match self {
            Self::Read | Self::Flush => false,
            Self::Write | Self::Barrier | Self::Discard | Self::SecureDiscard => true,
        }
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
    /// Bytes of a segment on an indirect page (io/blkif.h, struct blkif_request_segment).
    pub const BYTES: usize = size_of::<BlkifRequestSegment>();

    /// Makes a segment of the sectors `first` to `last`, both included, of a page; `None` if they don't lie in it.
    pub const fn new(gref: GrantRef, first: u8, last: u8) -> Option<Self> {
        if first <= last && last < SECTORS_PER_PAGE { Some(Self { gref, first, last }) } else { None }
    }

    /// Reads a segment as it stands on an indirect page. The bytes are a private copy; `index` is what an error calls it.
    ///
    /// # Errors
    /// [`Why::SegmentSectors`].
    pub const fn from_bytes(bytes: [u8; Self::BYTES], index: u16) -> Result<Self, Why> {
        let [a, b, c, d, first, last, _, _] = bytes;
        match Self::new(GrantRef(u32::from_ne_bytes([a, b, c, d])), first, last) {
            Some(segment) => Ok(segment),
            None => Err(Why::SegmentSectors { index, first, last }),
        }
    }

    /// Writes a segment as it stands on an indirect page.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.gref.0.to_ne_bytes();
        [a, b, c, d, self.first, self.last, 0, 0]
    }

    /// Writes a segment as it stands in a request.
    const fn wire(self) -> BlkifRequestSegment {
        BlkifRequestSegment { gref: self.gref, first_sect: self.first, last_sect: self.last, _pad: 0 }
    }

    /// Returns the grant of its page.
    pub const fn gref(self) -> GrantRef {
        self.gref
    }

    /// Returns its first and last sector within the page.
    pub const fn part(self) -> (u8, u8) {
        (self.first, self.last)
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

/// Pages on which the segments of an indirect request stand, [`SEGMENTS_PER_PAGE`] on each.
#[derive(Clone, Copy)]
pub struct IndirectPages {
    grefs: [GrantRef; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST],
    segments: u16,
}

impl IndirectPages {
    /// Names the pages of so many segments, of which there are 1 to [`MAX_INDIRECT_SEGMENTS`]. `None` if there are others, or fewer
    /// pages than it takes; pages beyond are left out.
    pub fn new(segments: u16, grefs: &[GrantRef]) -> Option<Self> {
        let pages = usize::from(segments).div_ceil(SEGMENTS_PER_PAGE);
        if !(1..=MAX_INDIRECT_SEGMENTS).contains(&usize::from(segments)) {
            return None;
        }
        let mut own = [GrantRef(0); BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST];
        own[..pages].copy_from_slice(grefs.get(..pages)?);
        Some(Self { grefs: own, segments })
    }

    /// Returns the grants of the pages.
    pub fn grefs(&self) -> &[GrantRef] {
        &self.grefs[..usize::from(self.segments).div_ceil(SEGMENTS_PER_PAGE)]
    }

    /// Returns how many segments stand on them.
    pub const fn segments(&self) -> u16 {
        self.segments
    }
}

impl PartialEq for IndirectPages {
    fn eq(&self, other: &Self) -> bool {
        (self.segments, self.grefs()) == (other.segments, other.grefs())
    }
}

impl Eq for IndirectPages {}

impl fmt::Debug for IndirectPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} segment(s) on {:?}", self.segments, self.grefs())
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: a flush.
    None,
    /// These segments, of a read, a write or a barrier. Only a barrier may have none.
    Direct(Segments),
    /// Segments of a read or a write that stand on pages of their own, and are still to be checked.
    Indirect(IndirectPages),
    /// So many sectors of 512 bytes, at least one, of a discard.
    Sectors(u64),
}

/// A request whose form is right. Whether the disk has those sectors, and may be written, is its [back end](crate::back)'s
/// to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The front end's own number, which goes back with the response.
    pub id: u64,
    /// What to do.
    pub operation: Operation,
    /// First sector on the disk, in units of 512 bytes; 0 for a flush, and for a barrier without data.
    pub sector: u64,
    /// What it is about.
    pub data: Data,
}

/// A request whose form is wrong. It gets an error for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The front end's own number.
    pub id: u64,
    /// The operation as it was claimed, and as the answer names it: of an indirect request that is the inner one.
    pub operation: BlkifOp,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No operation that we know.
    UnknownOperation,
    /// An indirect request may be a read or a write, and claims to be this.
    InnerOperation(BlkifOp),
    /// Fewer or more segments than the operation takes.
    SegmentCount(u16),
    /// A segment's sectors don't lie in a page.
    SegmentSectors {
        /// Which segment.
        index: u16,
        /// Its first sector.
        first: u8,
        /// Its last sector.
        last: u8,
    },
    /// A discard of nothing.
    NoSectors,
}

impl Malformed {
    /// Returns the status that answers it.
    pub const fn status(&self) -> Status {
        match self.why {
            Why::UnknownOperation => Status::NotSupported,
            _ => Status::Error,
        }
    }
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
    #[inline]
    pub const fn wire(self) -> i16 {
        if matches!(self, Self::Okay) { BLKIF_RSP_OKAY } else { self.other() }
    }

    #[cold]
    const fn other(self) -> i16 {
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
