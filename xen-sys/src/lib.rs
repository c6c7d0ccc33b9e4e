//! The Xen public ABI as types and constants, one module per public header.
//!
//! A module stands for the header whose path its documentation begins with ([`io::blkif`] is `io/blkif.h`) and holds what a
//! paravirtual guest kernel, its drivers and a dom0 need of it. Nothing here has behaviour; safe use is the work of the crates
//! above. The same source serves 64-bit and 32-bit guests: C's `unsigned long` is `usize`, a guest handle is a pointer.
//!
//! # Names
//!
//! * A type is the C type in Rust's case: `struct blkif_request` is [`io::blkif::BlkifRequest`]. Its documentation begins with
//!   the header and the C name.
//! * A constant has its C name: [`grant_table::GNTST_okay`]. Where the values of one field are a set of their own, they are
//!   associated constants of a newtype, [`io::blkif::BlkifOp::READ`], whose documentation begins with the C name. A value from
//!   the other side may be any bit pattern, so no Rust `enum` stands for one.
//! * A field has its C name, `r#` in front where Rust reserves it. Padding that C leaves to the compiler begins with `_`.
//!
//! The package `abi` reads this source and compares every size, offset and constant with the C headers, by these rules.
//!
//! # Memory that others write
//!
//! Structures that live in memory shared with Xen or another domain, and are used in place, consist of atomics, padding too: a
//! shared reference to them stays sound whatever the other side does. Ring slots are copied in and out as a whole; they implement
//! [`Wire`] and have no implicit padding, so no byte of the stack leaks with them.
#![no_std]
#![allow(non_upper_case_globals, reason = "constants have their C names")]

pub mod arch_x86;
pub mod callback;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hvm;
pub mod io;
pub mod memory;
pub mod physdev;
pub mod sched;
pub mod vcpu;
pub mod version;
pub mod xen;

pub use xen::Nr;

/// `1 << XEN_PAGE_SHIFT`: size of a page in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// `XEN_PAGE_SHIFT`: binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: usize = 12;

/// `xen.h`, `domid_t`. Number of a domain; values from [`xen::DOMID_FIRST_RESERVED`] have special meanings.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

/// `event_channel.h`, `evtchn_port_t`. A domain's end of an event channel. Port 0 is never allocated.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// `grant_table.h`, `grant_ref_t`. Index of an entry in the granting domain's table. 0 is valid: it is the console's.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

/// `grant_table.h`, `grant_handle_t`. Xen's name for one mapping of a grant in the mapping domain.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantHandle(pub u32);

/// Machine frame number: a page of the host's memory.
///
/// No C counterpart: C's `xen_pfn_t` ([`XenPfn`]) doesn't tell the kinds of frame numbers apart.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mfn(pub u64);

/// Pseudo-physical frame number: a page of the domain's own contiguous numbering.
///
/// No C counterpart: C's `xen_pfn_t` ([`XenPfn`]) doesn't tell the kinds of frame numbers apart.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u64);

/// Guest frame number: what the guest names a frame by in hypercalls; the [`Mfn`] in a PV guest, the [`Pfn`] elsewhere.
///
/// No C counterpart: C's `xen_pfn_t` ([`XenPfn`]) doesn't tell the kinds of frame numbers apart.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

/// `xen.h`, `xen_pfn_t`. A frame number of whatever kind in a structure of the ABI, as wide as a register.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XenPfn(pub usize);

/// `xen.h`, `XEN_GUEST_HANDLE(void)`. Virtual address in the calling guest, through which Xen reads or writes.
#[repr(transparent)]
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct GuestHandle<T>(pub *mut T);

impl<T> Clone for GuestHandle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for GuestHandle<T> {}

impl<T> Default for GuestHandle<T> {
    /// Returns the null handle.
    fn default() -> Self {
        Self(core::ptr::null_mut())
    }
}

/// Plain old data that is copied to and from shared memory as a whole, word by word.
///
/// # Safety
///
/// Every bit pattern is a valid value, no byte is padding, the size and [`HEAD`](Self::HEAD) are multiples of 4, `HEAD` is not more
/// than the size, and the alignment is at most 8.
pub unsafe trait Wire: Copy + 'static {
    /// Bytes at the beginning that are always in use, and by which [`tail`](Self::tail) tells how many more are. All, unless said
    /// otherwise.
    ///
    /// No C counterpart: C copies structures as a whole.
    const HEAD: usize = size_of::<Self>();

    /// Returns how many units of eight bytes are in use behind [`HEAD`](Self::HEAD), at which it doesn't look.
    #[inline]
    fn tail(&self) -> usize {
        0
    }
}

/// Returns the bytes of `from` as another type: what stands in a slot that several structures share. Bytes that `from` lacks are
/// zero, those that `T` lacks are left out.
#[inline]
pub fn reinterpret<F: Wire, T: Wire>(from: &F) -> T {
    let mut to = core::mem::MaybeUninit::<T>::zeroed();
    let count = if size_of::<F>() < size_of::<T>() { size_of::<F>() } else { size_of::<T>() };
    // SAFETY: `count` bytes lie inside both, which are different objects; all bytes of `to` are initialised, and every pattern of
    // them is a `T`, as `Wire` says.
    unsafe {
        core::ptr::copy_nonoverlapping(core::ptr::from_ref(from).cast::<u8>(), to.as_mut_ptr().cast::<u8>(), count);
        to.assume_init()
    }
}
