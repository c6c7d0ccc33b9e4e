//! `io/blkif.h`: block devices.
//!
//! A 64-bit integer is aligned to 4 bytes in a 32-bit guest and to 8 in a 64-bit one, so the ring's structures exist twice,
//! [`x86_32`] and [`x86_64`]; the front end's xenstore node `protocol` tells which it uses. Those of this build's own layout are
//! exported here.

use static_assertions::const_assert_eq;

use crate::io::ring::ring_size;
use crate::{GrantRef, PAGE_SIZE, Wire};

#[cfg(target_pointer_width = "32")]
pub use x86_32::{BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifResponse};
#[cfg(target_pointer_width = "64")]
pub use x86_64::{BlkifRequest, BlkifRequestDiscard, BlkifRequestIndirect, BlkifResponse};

/// Operation of a request.
///
/// No C counterpart: C has a plain `uint8_t`. Its values are the constants here.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlkifOp(pub u8);

impl BlkifOp {
    /// `BLKIF_OP_READ`: reads sectors.
    pub const READ: Self = Self(0);
    /// `BLKIF_OP_WRITE`: writes sectors.
    pub const WRITE: Self = Self(1);
    /// `BLKIF_OP_WRITE_BARRIER`: writes sectors after all requests before, and before all after, on stable storage.
    pub const WRITE_BARRIER: Self = Self(2);
    /// `BLKIF_OP_FLUSH_DISKCACHE`: brings what was written onto stable storage.
    pub const FLUSH_DISKCACHE: Self = Self(3);
    /// `BLKIF_OP_RESERVED_1`: was once used for commands to the device.
    pub const RESERVED_1: Self = Self(4);
    /// `BLKIF_OP_DISCARD`: tells that sectors are no longer needed; [`BlkifRequestDiscard`].
    pub const DISCARD: Self = Self(5);
    /// `BLKIF_OP_INDIRECT`: the segments are on pages of their own; [`BlkifRequestIndirect`].
    pub const INDIRECT: Self = Self(6);
}

/// Segments of a request without indirect pages.
pub const BLKIF_MAX_SEGMENTS_PER_REQUEST: usize = 11;
/// Pages of segments of a request.
pub const BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: usize = 8;

/// `io/blkif.h`, `struct blkif_request_segment`. Part of a page, from sector to sector. In a request and on indirect pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkifRequestSegment {
    /// The page.
    pub gref: GrantRef,
    /// First sector in the page, in units of 512 bytes: 0 to 7.
    pub first_sect: u8,
    /// Last sector in the page, inclusive.
    pub last_sect: u8,
    /// Padding; 0.
    pub _pad: u16,
}
const_assert_eq!(size_of::<BlkifRequestSegment>(), 8);
// SAFETY: integers without padding between them; the size is asserted above.
unsafe impl Wire for BlkifRequestSegment {}

/// `__CONST_RING_SIZE(blkif, 4096)`: slots of a ring of one page, in either layout. Larger rings: [`ring_size`].
pub const BLKIF_RING_SIZE: usize = ring_size::<BlkifRequest>(PAGE_SIZE);
const_assert_eq!(ring_size::<x86_32::BlkifRequest>(PAGE_SIZE), BLKIF_RING_SIZE);
const_assert_eq!(ring_size::<x86_64::BlkifRequest>(PAGE_SIZE), BLKIF_RING_SIZE);

/// Flag of [`BlkifRequestDiscard`]: the data must not be readable any more.
pub const BLKIF_DISCARD_SECURE: u8 = 1 << 0;

/// Status: the back end doesn't know the operation.
pub const BLKIF_RSP_EOPNOTSUPP: i16 = -2;
/// Status: failed.
pub const BLKIF_RSP_ERROR: i16 = -1;
/// Status: done.
pub const BLKIF_RSP_OKAY: i16 = 0;

/// Bit of the xenstore node `info`: a CD-ROM.
pub const VDISK_CDROM: u32 = 0x1;
/// Bit of the xenstore node `info`: can be taken out.
pub const VDISK_REMOVABLE: u32 = 0x2;
/// Bit of the xenstore node `info`: can't be written.
pub const VDISK_READONLY: u32 = 0x4;

/// The structures as a 32-bit guest lays them out.
pub mod x86_32 {
    use core::mem::offset_of;

    use static_assertions::const_assert_eq;

    use super::{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST, BLKIF_MAX_SEGMENTS_PER_REQUEST, BlkifOp, BlkifRequestSegment};
    use crate::{GrantRef, Wire};

    /// `io/blkif.h`, `struct blkif_request`. Reads, writes or flushes.
    #[repr(C, packed(4))]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifRequest {
        /// What to do.
        pub operation: BlkifOp,
        /// Segments in use.
        pub nr_segments: u8,
        /// Virtual device, as in the xenstore path.
        pub handle: u16,
        /// The front end's own number, repeated in the response.
        pub id: u64,
        /// First sector, in units of 512 bytes.
        pub sector_number: u64,
        /// Where the data is.
        pub seg: [BlkifRequestSegment; BLKIF_MAX_SEGMENTS_PER_REQUEST],
    }
    const_assert_eq!(size_of::<BlkifRequest>(), 108);

    impl BlkifRequest {
        /// As [`Wire::tail`], of a request without segments of its own.
        #[cold]
        const fn other_tail(&self) -> usize {
            match self.operation {
                BlkifOp::DISCARD => (size_of::<BlkifRequestDiscard>() - offset_of!(Self, seg)).div_ceil(8),
                BlkifOp::INDIRECT => (size_of::<BlkifRequestIndirect>() - offset_of!(Self, seg)).div_ceil(8),
                _ => 0,
            }
        }
    }

    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifRequest {
        const HEAD: usize = offset_of!(Self, seg);

        #[inline]
        fn tail(&self) -> usize {
            if self.operation.0 <= BlkifOp::FLUSH_DISKCACHE.0 {
                // A segment is one unit.
                match self.nr_segments {
                    1 => return 1,
                    more if usize::from(more) <= BLKIF_MAX_SEGMENTS_PER_REQUEST => return usize::from(more),
                    _ => {}
                }
            }
            self.other_tail()
        }
    }

    /// `io/blkif.h`, `struct blkif_request_discard`. Tells that sectors are no longer needed.
    #[repr(C, packed(4))]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifRequestDiscard {
        /// [`BlkifOp::DISCARD`].
        pub operation: BlkifOp,
        /// [`BLKIF_DISCARD_SECURE`](super::BLKIF_DISCARD_SECURE) or 0.
        pub flag: u8,
        /// Virtual device, as in the xenstore path.
        pub handle: u16,
        /// The front end's own number, repeated in the response.
        pub id: u64,
        /// First sector, in units of 512 bytes.
        pub sector_number: u64,
        /// How many, in units of 512 bytes.
        pub nr_sectors: u64,
    }
    const_assert_eq!(size_of::<BlkifRequestDiscard>(), 28);
    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifRequestDiscard {}

    /// `io/blkif.h`, `struct blkif_request_indirect`. Reads or writes with the segments on pages of their own.
    #[repr(C, packed(4))]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifRequestIndirect {
        /// [`BlkifOp::INDIRECT`].
        pub operation: BlkifOp,
        /// What to do: read or write.
        pub indirect_op: BlkifOp,
        /// Segments on the pages.
        pub nr_segments: u16,
        /// The front end's own number, repeated in the response.
        pub id: u64,
        /// First sector, in units of 512 bytes.
        pub sector_number: u64,
        /// Virtual device, as in the xenstore path.
        pub handle: u16,
        /// Padding; 0.
        pub _pad1: u16,
        /// Pages of [`BlkifRequestSegment`], 512 each.
        pub indirect_grefs: [GrantRef; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST],
        /// Makes the size that of the 64-bit layout.
        pub pad: u64,
    }
    const_assert_eq!(size_of::<BlkifRequestIndirect>(), 64);
    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifRequestIndirect {}

    /// `io/blkif.h`, `struct blkif_response`. Outcome of a request.
    #[repr(C, packed(4))]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifResponse {
        /// That of the request.
        pub id: u64,
        /// That of the request.
        pub operation: BlkifOp,
        /// Padding; 0.
        pub _pad0: u8,
        /// One of the `BLKIF_RSP_` constants.
        pub status: i16,
    }
    const_assert_eq!(size_of::<BlkifResponse>(), 12);
    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifResponse {}
}

/// The structures as a 64-bit guest lays them out.
pub mod x86_64 {
    use core::mem::offset_of;

    use static_assertions::const_assert_eq;

    use super::{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST, BLKIF_MAX_SEGMENTS_PER_REQUEST, BlkifOp, BlkifRequestSegment};
    use crate::{GrantRef, Wire};

    /// `io/blkif.h`, `struct blkif_request`. Reads, writes or flushes.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifRequest {
        /// What to do.
        pub operation: BlkifOp,
        /// Segments in use.
        pub nr_segments: u8,
        /// Virtual device, as in the xenstore path.
        pub handle: u16,
        /// Padding; 0.
        pub _pad0: u32,
        /// The front end's own number, repeated in the response.
        pub id: u64,
        /// First sector, in units of 512 bytes.
        pub sector_number: u64,
        /// Where the data is.
        pub seg: [BlkifRequestSegment; BLKIF_MAX_SEGMENTS_PER_REQUEST],
    }
    const_assert_eq!(size_of::<BlkifRequest>(), 112);

    impl BlkifRequest {
        /// As [`Wire::tail`], of a request without segments of its own.
        #[cold]
        const fn other_tail(&self) -> usize {
            match self.operation {
                BlkifOp::DISCARD => (size_of::<BlkifRequestDiscard>() - offset_of!(Self, seg)).div_ceil(8),
                BlkifOp::INDIRECT => (size_of::<BlkifRequestIndirect>() - offset_of!(Self, seg)).div_ceil(8),
                _ => 0,
            }
        }
    }

    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifRequest {
        const HEAD: usize = offset_of!(Self, seg);

        #[inline]
        fn tail(&self) -> usize {
            if self.operation.0 <= BlkifOp::FLUSH_DISKCACHE.0 {
                // A segment is one unit.
                match self.nr_segments {
                    1 => return 1,
                    more if usize::from(more) <= BLKIF_MAX_SEGMENTS_PER_REQUEST => return usize::from(more),
                    _ => {}
                }
            }
            self.other_tail()
        }
    }

    /// `io/blkif.h`, `struct blkif_request_discard`. Tells that sectors are no longer needed.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifRequestDiscard {
        /// [`BlkifOp::DISCARD`].
        pub operation: BlkifOp,
        /// [`BLKIF_DISCARD_SECURE`](super::BLKIF_DISCARD_SECURE) or 0.
        pub flag: u8,
        /// Virtual device, as in the xenstore path.
        pub handle: u16,
        /// Padding; 0.
        pub _pad0: u32,
        /// The front end's own number, repeated in the response.
        pub id: u64,
        /// First sector, in units of 512 bytes.
        pub sector_number: u64,
        /// How many, in units of 512 bytes.
        pub nr_sectors: u64,
    }
    const_assert_eq!(size_of::<BlkifRequestDiscard>(), 32);
    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifRequestDiscard {}

    /// `io/blkif.h`, `struct blkif_request_indirect`. Reads or writes with the segments on pages of their own.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifRequestIndirect {
        /// [`BlkifOp::INDIRECT`].
        pub operation: BlkifOp,
        /// What to do: read or write.
        pub indirect_op: BlkifOp,
        /// Segments on the pages.
        pub nr_segments: u16,
        /// Padding; 0.
        pub _pad0: u32,
        /// The front end's own number, repeated in the response.
        pub id: u64,
        /// First sector, in units of 512 bytes.
        pub sector_number: u64,
        /// Virtual device, as in the xenstore path.
        pub handle: u16,
        /// Padding; 0.
        pub _pad1: u16,
        /// Pages of [`BlkifRequestSegment`], 512 each.
        pub indirect_grefs: [GrantRef; BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST],
        /// Padding; 0.
        pub _pad2: u32,
    }
    const_assert_eq!(size_of::<BlkifRequestIndirect>(), 64);
    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifRequestIndirect {}

    /// `io/blkif.h`, `struct blkif_response`. Outcome of a request.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BlkifResponse {
        /// That of the request.
        pub id: u64,
        /// That of the request.
        pub operation: BlkifOp,
        /// Padding; 0.
        pub _pad0: u8,
        /// One of the `BLKIF_RSP_` constants.
        pub status: i16,
        /// Padding; 0.
        pub _pad1: u32,
    }
    const_assert_eq!(size_of::<BlkifResponse>(), 16);
    // SAFETY: integers without padding between them; the size is asserted above.
    unsafe impl Wire for BlkifResponse {}
}
