//! `io/console.h`: the page that a guest shares with the console daemon or back end.

use core::sync::atomic::{AtomicU8, AtomicU32};

use static_assertions::const_assert_eq;

/// `io/console.h`, `struct xencons_interface`. Two byte rings and their indices. Both sides write it in place.
///
/// In headers from Xen 4.21 on one byte more follows: see [`XENCONS_CONNECTION_OFFSET`].
#[repr(C)]
#[derive(Debug)]
pub struct XenconsInterface {
    /// Bytes to the guest.
    pub r#in: [AtomicU8; 1024],
    /// Bytes from the guest.
    pub out: [AtomicU8; 2048],
    /// Bytes of `in` taken by the guest; a wrapping count, as all indices here.
    pub in_cons: AtomicU32,
    /// Bytes of `in` published by the other side.
    pub in_prod: AtomicU32,
    /// Bytes of `out` taken by the other side.
    pub out_cons: AtomicU32,
    /// Bytes of `out` published by the guest.
    pub out_prod: AtomicU32,
}
const_assert_eq!(size_of::<XenconsInterface>(), 3088);

/// Byte of the page in which the other side tells whether it serves the ring: [`XENCONSOLE_CONNECTED`] or
/// [`XENCONSOLE_DISCONNECTED`]. A page of an older toolstack has 0 there.
///
/// No C counterpart: the field `connection` is newer than Xen 4.17.
pub const XENCONS_CONNECTION_OFFSET: usize = size_of::<XenconsInterface>();
/// The ring is served; the other side sets it when it comes.
///
/// No C counterpart: newer than Xen 4.17.
pub const XENCONSOLE_CONNECTED: u8 = 0;
/// Nobody serves the ring yet; the toolstack sets it.
///
/// No C counterpart: newer than Xen 4.17.
pub const XENCONSOLE_DISCONNECTED: u8 = 1;
