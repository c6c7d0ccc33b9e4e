//! Shared rings: how requests and responses travel between the two ends of a device.
//!
//! ```text
//!      front end                    the shared page                       back end
//!                        ┌─────────────────────────────────┐
//!   push, publish  ────► │ req_prod   ► slots ►            │ ────►  pop
//!   (notify?)            │ req_event  ◄ "tell me at"       │ ◄────  arm
//!   pop            ◄──── │            ◄ slots ◄  rsp_prod  │ ◄────  respond, publish
//!   arm            ────► │ "tell me at" ►       rsp_event  │        (notify?)
//!                        └─────────────────────────────────┘
//! ```
//!
//! [`FrontRing`] and [`BackRing`] are message rings (io/ring.h), [`bytes`] are byte rings (xenstore, console).
//!
//! # What holds whatever the peer does
//! - Our private indices are the truth. What we have published is never read back.
//! - The peer's index is read when the last reading is used up, or when a batch begins, and then bounded: a ring that claims more than it
//!   can hold is [broken](RingError), once and for all.
//! - A slot is copied out once, word by word, and never looked at again. How many words there are is told by those that were copied
//!   ([`Wire::tail`](xen_sys::Wire::tail)).
//!
//! # Batches
//! [`FrontRing::responses`] and [`BackRing::requests`] take what is there by indices of their own, which the compiler can keep in registers,
//! and write them back when they are dropped, wherever that is. One by one ([`FrontRing::pop`], [`BackRing::pop_into`]) is for a loop that
//! needs all of its driver in between.
//!
//! # Why no event is lost
//! Each side publishes its index and *then* looks whether the other wants to be told; each side says that it wants to be
//! told and *then* looks at the index once more ([`FrontRing::arm`], [`BackRing::arm`]). Between the two steps stands a full
//! barrier on both sides, so at least one of them sees the other's store.
//!
//! The barriers are most of what a request costs that travels alone. So the store is itself the barrier (an exchange,
//! [`RingMemory::announce`]); a front end with nothing under way has its barrier in the next publish; and a back end that has answered all that it took gets both by one ([`BackRing::publish_and_arm`]).

mod back;
pub mod bytes;
mod front;
mod memory;
mod owned;

pub use back::{BackRing, Requests};
pub use front::{FrontRing, Responses};
pub use memory::{Backing, Field, Index, MapPagesError, MappedPages, RingMemory, RingPages};
pub use owned::OwnedByteRings;

use core::fmt;

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::Ordering;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::Ordering;

/// Whether the other end wants to be told of what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the peer may sleep until it is notified"]
pub enum Notify {
    /// It will look by itself.
    No,
    /// Send an event.
    Yes,
}

/// What the peer did to the ring that it may not do, with the evidence. The ring is out of use from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// Its producer index claims more entries than there can be.
    PeerOverflow {
        /// Entries that the index claims, wrapping.
        claimed: u32,
        /// The most that it could claim.
        size: u32,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerOverflow { claimed, size } => {
                write!(f, "corrupt ring: the other end claims {claimed} entries where at most {size} can be")
            }
        }
    }
}

/// Tells whether a move of an index from `old` to `new` passes `event`, all of them wrapping.
#[inline]
fn passes<I: Index>(old: I, new: I, event: I) -> bool {
    new.minus(event) < new.minus(old)
}
