//! `io/ring.h`: the message ring that two domains share.
//!
//! A ring page begins with [`SringHeader`]; then follow slots, each of which is a request or, once that is done, a response.

use core::sync::atomic::{AtomicU8, AtomicU32};

use static_assertions::const_assert_eq;

/// `io/blkif.h`, `struct blkif_sring` up to `ring`. The part of a ring page before the slots; every ring's is the same. Both
/// sides write it in place.
#[repr(C)]
#[derive(Debug)]
pub struct SringHeader {
    /// Requests published by the front end; a wrapping count, as all indices here.
    pub req_prod: AtomicU32,
    /// The front end notifies when `req_prod` passes this.
    pub req_event: AtomicU32,
    /// Responses published by the back end.
    pub rsp_prod: AtomicU32,
    /// The back end notifies when `rsp_prod` passes this.
    pub rsp_event: AtomicU32,
    /// Private flags of some drivers; 0.
    pub pvt: [AtomicU8; 4],
    /// Unused; 0.
    pub __pad: [AtomicU8; 44],
}
const_assert_eq!(size_of::<SringHeader>(), RING_HEADER_SIZE);

/// `offsetof(struct blkif_sring, ring)`: bytes before the first slot.
pub const RING_HEADER_SIZE: usize = 64;

/// Returns how many slots of type `T` a ring of so many bytes has: those that fit, rounded down to a power of two. 0 if none.
///
/// C's `__RING_SIZE`, where `T` is the larger of request and response.
pub const fn ring_size<T>(bytes: usize) -> usize {
    let fit = bytes.saturating_sub(RING_HEADER_SIZE) / size_of::<T>();
    if fit == 0 { 0 } else { 1 << fit.ilog2() }
}
