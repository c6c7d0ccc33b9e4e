//! What the message rings cost, and the two ends of a disk.
//!
//! [`work`] is the workload, on our rings; `c/ring.c` is the same on Xen's C macros, and `virtio` the like of it on the crates that
//! a Rust program would use otherwise. Instructions are counted by callgrind (`count`), which repeats to the last few; time is told
//! only as a ratio of what ran in turns (`time`).
//!
//! [`bed`] is both ends of a disk, on a hypervisor that is no more than tables (`tables`); their instructions are counted in the same way
//! (`block`). [`fleet`] is many of them (`growth`).
//!
//! Built for the bare target as a static library, this package is our half of the comparison under the flags of a kernel, which
//! has no vector registers.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod bed;
pub mod fleet;
pub mod work;

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
pub mod baseline;
#[cfg(not(target_os = "none"))]
pub mod block;
#[cfg(not(target_os = "none"))]
pub mod count;
#[cfg(not(target_os = "none"))]
pub mod growth;
#[cfg(not(target_os = "none"))]
pub mod rivals;
#[cfg(not(target_os = "none"))]
mod tables;
#[cfg(not(target_os = "none"))]
pub mod time;
#[cfg(not(target_os = "none"))]
mod virtio;
