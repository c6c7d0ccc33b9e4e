//! Asking the hypervisor: hypercalls, event channels, grant tables, and the two traits by which the code that runs in a
//! domain (a kernel, the bare guest, a mock domain) lends the drivers what they need.
//!
//! Start at [`Platform`]: everything else stands on it.
//!
//! | module | what |
//! |---|---|
//! | [`platform`] | the seam: [`Hypervisor`] and [`Platform`] |
//! | [`stub`] | the machine instructions that enter Xen |
//! | [`call`] | one typed function a hypercall operation |
//! | [`error`] | Xen's error numbers as a type |
//! | [`mem`] | pages, and views of memory that a peer may change at any time |
//! | [`grant`] | grant references: sharing own pages, mapping and copying foreign ones |
//! | [`event`] | event channels: ports, masks, the two-level scan |
#![no_std]

extern crate alloc;

pub mod call;
pub mod error;
pub mod event;
pub mod grant;
pub mod mem;
pub mod platform;
pub mod stub;

pub use error::XenError;
pub use platform::{Hypervisor, Level, Platform, Region};
pub use xen_sys::{DomId, Gfn, GrantRef, Mfn, Nr, Pfn, Port};
