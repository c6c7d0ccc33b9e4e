//! Network device (xennet): an interface that another domain connects to its network.
//!
//! ```text
//!   packet ─► front::Queue::submit ─► tx ring ─► back::Back::poll ─► protocol::Packet ─► copy ─► Interface::deliver
//!   packet ◄─ completion           ◄─ tx ring ◄─ response         ◄──────────────────────┘
//!
//!   view   ◄─ front::Queue::poll   ◄─ rx ring ◄─ copy ◄───────────── back::Back::send ◄──────────────────── packet
//!     └─────► own page again       ─► rx ring ─► posted buffer
//! ```
//!
//! Both rings are named from the front end's view: on the tx ring it sends, on the rx ring it posts pages to receive into.
//!
//! | file | what |
//! |---|---|
//! | [`protocol`] | wire values → checked values, once, at the door |
//! | [`features`] | negotiation; the only file that names xenstore nodes |
//! | [`front`] | life cycle of an interface that we use, and its queue |
//! | [`back`] | life cycle of an interface that we serve, and [`back::Interface`], behind which the OS's interface stands |
//!
//! Start reading at [`front::Front::step`] and [`back::Back::step`], the two life cycles.
//!
//! # What is there
//! One queue with a ring page each way and one event channel for both; packets of up to 18 slots in both directions. No
//! checksums or segmentation are left to the other end, and none are taken over from it.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod back;
pub mod features;
pub mod front;
pub mod protocol;

/// Slots of the longest packet (io/netif.h, XEN_NETIF_NR_SLOTS_MIN).
pub const MAX_SLOTS: usize = xen_sys::io::netif::XEN_NETIF_NR_SLOTS_MIN;

/// Bytes of the shortest packet: an Ethernet header. It lies in the packet's first slot.
pub const MIN_PACKET: usize = 14;

/// Bytes of the longest packet (io/netif.h, XEN_NETIF_MAX_TX_SIZE).
pub const MAX_PACKET: usize = xen_sys::io::netif::XEN_NETIF_MAX_TX_SIZE as usize;
