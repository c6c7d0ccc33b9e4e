//! Block device (xbd): a disk that another domain serves.
//!
//! ```text
//!   buf ─► front::Queue::submit ─► ring ─► back::Queue::poll ─► protocol::Request ─► Store::start
//!                 ▲                                                                      │
//!   buf ◄─ front::Queue::poll   ◄─ ring ◄─ response  ◄───────────── complete ◄───────────┘
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`protocol`] | wire values → checked values, once, at the door |
//! | [`features`] | negotiation; the only file that names xenstore nodes |
//! | [`front`] | life cycle of a disk that we use, and its queues: from an I/O of any size to requests and back |
//! | [`back`] | life cycle of a disk that we serve, its queue, and [`back::Store`], behind which the real disk stands |
//!
//! Start reading at [`front::Front::step`] and [`back::Back::step`], the two life cycles.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod back;
pub mod features;
pub mod front;
pub mod protocol;

/// Bytes of a sector on the wire, whatever the sector size of the disk.
pub const SECTOR: usize = 512;

/// Segments of a direct request (io/blkif.h, BLKIF_MAX_SEGMENTS_PER_REQUEST).
pub const MAX_SEGMENTS: usize = xen_sys::io::blkif::BLKIF_MAX_SEGMENTS_PER_REQUEST;

/// Segments on one page of an indirect request (io/blkif.h, struct blkif_request_segment).
pub const SEGMENTS_PER_PAGE: usize = hypercall::mem::PAGE_SIZE / protocol::Segment::BYTES;

/// Segments of an indirect request (io/blkif.h, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST).
pub const MAX_INDIRECT_SEGMENTS: usize = xen_sys::io::blkif::BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_PAGE;

/// Pages of the largest ring that we offer or make.
pub const MAX_RING_PAGES: usize = 16;
