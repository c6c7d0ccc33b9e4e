//! The two layouts of a slot: how a [`Request`] and its answer look in the ring of a 64-bit and of a 32-bit guest.

use xen_sys::io::blkif::{
    BLKIF_DISCARD_SECURE, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST, BlkifOp, BlkifRequestSegment, x86_32, x86_64,
};
use xen_sys::io::protocols::{XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64};
use xen_sys::{GrantRef, Wire, reinterpret};

use super::{Data, IndirectPages, Malformed, Operation, Request, Segment, Segments, Status, Why};
use crate::MAX_SEGMENTS;

/// What stands in a slot, whatever its layout.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    operation: BlkifOp,
    /// The byte after the operation: a count, a flag, or another operation.
    second: u8,
    id: u64,
    sector: u64,
}

/// What follows the head of an indirect request.
struct Indirect {
    segments: u16,
    grefs: [GrantRef; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST],
}

/// Access to the fields of one layout.
trait Fields: Wire {
    fn head(&self) -> Head;
    fn segments(&self) -> [BlkifRequestSegment; MAX_SEGMENTS];
    fn discarded(&self) -> u64;
    fn indirect(&self) -> Indirect;
    fn direct_of(head: Head, segments: [BlkifRequestSegment; MAX_SEGMENTS]) -> Self;
    fn discard_of(head: Head, sectors: u64) -> Self;
    fn indirect_of(head: Head, indirect: Indirect) -> Self;
}

/// One of the layouts, as the node `protocol` names it.
pub trait Layout {
    /// What stands in a slot before.
    type Request: Wire + Default;
    /// What stands in a slot after.
    type Response: Wire;
    /// Its name in xenstore (io/protocols.h, XEN_IO_PROTO_ABI_*).
    const NAME: &'static str;

    /// Checks a raw request, which must be a private copy.
    ///
    /// # Errors
    /// [`Malformed`] with the evidence.
    fn parse(raw: &Self::Request) -> Result<Request, Malformed>;

    /// Returns what a raw request is, which must be a private copy, if it is a read or a write with as many segments in it as there may
    /// be; nothing else of it is checked.
    fn direct(raw: &Self::Request) -> Option<Direct<'_>>;

    /// Writes a request as it goes over the wire. What it doesn't use is zero: nothing of the stack leaks.
    fn emit(request: &Request) -> Self::Request;

    /// The same of a read or write of a single segment, which is the commonest: its page, first and last sector, as
    /// [`Segment::new`] would take them.
    fn emit_one(id: u64, operation: Operation, sector: u64, segment: (GrantRef, u8, u8)) -> Self::Request;

    /// Writes a response as it goes over the wire.
    fn respond(answer: &Answer) -> Self::Response;

    /// Reads a response.
    fn answer(raw: &Self::Response) -> Answer;
}

/// A read or write, as the commonest requests are, with its segments as they came.
#[derive(Clone, Copy, Debug)]
pub struct Direct<'a> {
    /// The front end's own number.
    pub id: u64,
    /// Whether it is a write.
    pub write: bool,
    /// First sector on the disk, in units of 512 bytes.
    pub sector: u64,
    /// At least one. [`Segment::new`] is to be asked whether they are right.
    pub segments: &'a [BlkifRequestSegment],
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The front end's own number, of the request.
    pub id: u64,
    /// The operation that is answered, as it was claimed.
    pub operation: BlkifOp,
    /// How it ended.
    pub status: Status,
}

/// The layout of 64-bit guests.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

/// The layout of 32-bit guests.
#[derive(Clone, Copy, Debug)]
pub struct X86_32;

/// The layout of this build.
#[cfg(target_pointer_width = "64")]
pub type Native = X86_64;
/// The layout of this build.
#[cfg(target_pointer_width = "32")]
pub type Native = X86_32;

macro_rules! layout {
    ($layout:ident, $module:ident, $name:ident) => {
        impl Fields for $module::BlkifRequest {
            #[inline]
            fn head(&self) -> Head {
                Head { operation: self.operation, second: self.nr_segments, id: self.id, sector: self.sector_number }
            }

            #[inline]
            fn segments(&self) -> [BlkifRequestSegment; MAX_SEGMENTS] {
                self.seg
            }

            fn discarded(&self) -> u64 {
                reinterpret::<_, $module::BlkifRequestDiscard>(self).nr_sectors
            }

            fn indirect(&self) -> Indirect {
                let raw: $module::BlkifRequestIndirect = reinterpret(self);
                Indirect { segments: raw.nr_segments, grefs: raw.indirect_grefs }
            }

            #[inline]
            fn direct_of(head: Head, seg: [BlkifRequestSegment; MAX_SEGMENTS]) -> Self {
                Self {
                    operation: head.operation,
                    nr_segments: head.second,
                    id: head.id,
                    sector_number: head.sector,
                    seg,
                    ..Self::default()
                }
            }

            fn discard_of(head: Head, nr_sectors: u64) -> Self {
                reinterpret(&$module::BlkifRequestDiscard {
                    operation: head.operation,
                    flag: head.second,
                    id: head.id,
                    sector_number: head.sector,
                    nr_sectors,
                    ..Default::default()
                })
            }

            fn indirect_of(head: Head, indirect: Indirect) -> Self {
                reinterpret(&$module::BlkifRequestIndirect {
                    operation: head.operation,
                    indirect_op: BlkifOp(head.second),
                    nr_segments: indirect.segments,
                    id: head.id,
                    sector_number: head.sector,
                    indirect_grefs: indirect.grefs,
                    ..Default::default()
                })
            }
        }

        impl Layout for $layout {
            type Request = $module::BlkifRequest;
            type Response = $module::BlkifResponse;
            const NAME: &'static str = $name;

            #[inline]
            fn parse(raw: &Self::Request) -> Result<Request, Malformed> {
                parse(raw)
            }

            #[inline]
            fn direct(raw: &Self::Request) -> Option<Direct<'_>> {
                let write = raw.operation == BlkifOp::WRITE;
                if !write && raw.operation != BlkifOp::READ {
                    return None;
                }
                let segments = raw.seg.get(..usize::from(raw.nr_segments)).filter(|segments| !segments.is_empty())?;
                Some(Direct { id: raw.id, write, sector: raw.sector_number, segments })
            }

            #[inline]
            fn emit(request: &Request) -> Self::Request {
                emit(request)
            }

            #[inline]
            fn emit_one(id: u64, operation: Operation, sector: u64, segment: (GrantRef, u8, u8)) -> Self::Request {
                let mut segments = [BlkifRequestSegment::default(); MAX_SEGMENTS];
                let (gref, first_sect, last_sect) = segment;
                segments[0] = BlkifRequestSegment { gref, first_sect, last_sect, _pad: 0 };
                Self::Request::direct_of(Head { operation: operation.wire(), second: 1, id, sector }, segments)
            }

            #[inline]
            fn respond(answer: &Answer) -> Self::Response {
                let Answer { id, operation, status } = *answer;
                Self::Response { id, operation, status: status.wire(), ..Self::Response::default() }
            }

            #[inline]
            fn answer(raw: &Self::Response) -> Answer {
                Answer { id: raw.id, operation: raw.operation, status: Status::from_wire(raw.status) }
            }
        }
    };
}

layout!(X86_64, x86_64, XEN_IO_PROTO_ABI_X86_64);
layout!(X86_32, x86_32, XEN_IO_PROTO_ABI_X86_32);

fn parse<F: Fields>(raw: &F) -> Result<Request, Malformed> {
    let Head { operation, second, id, sector } = raw.head();
    let request = |operation, sector, data| Request { id, operation, sector, data };
    let parsed = match operation {
        BlkifOp::READ => segments(raw, second, 1).map(|data| request(Operation::Read, sector, data)),
        BlkifOp::WRITE => segments(raw, second, 1).map(|data| request(Operation::Write, sector, data)),
        BlkifOp::WRITE_BARRIER => segments(raw, second, 0).map(|data| {
            // Without data there is no place where it goes, only the order that it makes.
            request(Operation::Barrier, if second == 0 { 0 } else { sector }, data)
        }),
        // A flush may carry no data; nobody sends one that does, and what should become of it would be a guess.
        BlkifOp::FLUSH_DISKCACHE if second > 0 => Err(Why::SegmentCount(second.into())),
        BlkifOp::FLUSH_DISKCACHE => Ok(request(Operation::Flush, 0, Data::None)),
        BlkifOp::DISCARD => match raw.discarded() {
            0 => Err(Why::NoSectors),
            sectors => {
                let secure = second & BLKIF_DISCARD_SECURE != 0;
                let operation = if secure { Operation::SecureDiscard } else { Operation::Discard };
                Ok(request(operation, sector, Data::Sectors(sectors)))
            }
        },
        BlkifOp::INDIRECT => indirect(raw, BlkifOp(second)).map(|(operation, data)| request(operation, sector, data)),
        _ => Err(Why::UnknownOperation),
    };
    parsed.map_err(|why| {
        let operation = if operation == BlkifOp::INDIRECT { BlkifOp(second) } else { operation };
        Malformed { id, operation, why }
    })
}

/// Reads the segments of a direct request, of which there must be so many at least.
#[inline]
fn segments<F: Fields>(raw: &F, count: u8, least: u8) -> Result<Data, Why> {
    if count < least || usize::from(count) > MAX_SEGMENTS {
        return Err(Why::SegmentCount(count.into()));
    }
    let mut list = Segments::EMPTY;
    for (index, raw) in (0..u16::from(count)).zip(&raw.segments()) {
        let (first, last) = (raw.first_sect, raw.last_sect);
        let segment = Segment::new(raw.gref, first, last).ok_or(Why::SegmentSectors { index, first, last })?;
        // There is room: the count was checked.
        let _ = list.push(segment);
    }
    Ok(Data::Direct(list))
}

fn indirect<F: Fields>(raw: &F, inner: BlkifOp) -> Result<(Operation, Data), Why> {
    let operation = match inner {
        BlkifOp::READ => Operation::Read,
        BlkifOp::WRITE => Operation::Write,
        _ => return Err(Why::InnerOperation(inner)),
    };
    let Indirect { segments, grefs } = raw.indirect();
    match IndirectPages::new(segments, &grefs) {
        Some(pages) => Ok((operation, Data::Indirect(pages))),
        None => Err(Why::SegmentCount(segments)),
    }
}

#[inline]
fn emit<F: Fields>(request: &Request) -> F {
    let Request { id, operation, sector, data } = request;
    let (id, sector, operation) = (*id, *sector, operation.wire());
    match data {
        Data::None => F::direct_of(Head { operation, second: 0, id, sector }, Default::default()),
        Data::Direct(list) => {
            let mut raw = [BlkifRequestSegment::default(); MAX_SEGMENTS];
            for (raw, segment) in raw.iter_mut().zip(list.as_slice()) {
                *raw = segment.wire();
            }
            F::direct_of(Head { operation, second: list.as_slice().len() as u8, id, sector }, raw)
        }
        Data::Sectors(sectors) => {
            let secure = request.operation == Operation::SecureDiscard;
            let second = if secure { BLKIF_DISCARD_SECURE } else { 0 };
            F::discard_of(Head { operation, second, id, sector }, *sectors)
        }
        Data::Indirect(pages) => {
            let mut grefs = [GrantRef(0); BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST];
            grefs[..pages.grefs().len()].copy_from_slice(pages.grefs());
            let head = Head { operation: BlkifOp::INDIRECT, second: operation.0, id, sector };
            F::indirect_of(head, Indirect { segments: pages.segments(), grefs })
        }
    }
}
