//! `io/console.h`: the page that a guest shares with the console daemon or back end.

use core::sync::atomic::{AtomicU8, AtomicU32};

use static_assertions::const_assert_eq;

/// `io/console.h`, `struct xencons_interface`. Two byte rings and their indices. Both sides write it in place.
///
/// The page is larger; from Xen 4.19 on a `connection` word follows at byte 3088, which the front end sets and the back end
/// clears.
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
