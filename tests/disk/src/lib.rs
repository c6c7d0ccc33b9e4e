//! Disks of a host, for the back end of [`xbd`]: what stands behind its trait [`Store`](xbd::back::Store).
//!
//! | what | where |
//! |---|---|
//! | image files and block devices, with or without threads | [`FileStore`] |
//! | any of them, failing, late, cut and losing power on order | [`Faulty`] |
//! | a disk in memory, for beds without a host | `suite::block::Memory` |
//!
//! ```no_run
//! # #[cfg(target_os = "linux")] fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use disk::{FileStore, Options, Workers};
//!
//! let disk = FileStore::open("/dev/vg0/guest", &Options { direct: true, ..Options::default() })?;
//! // SAFETY: only a back end gets it.
//! let disk = unsafe { disk.with_workers(&Workers::default()) }?;
//! # let _ = disk; Ok(()) }
//! # #[cfg(not(target_os = "linux"))] fn main() {}
//! ```
//!
//! # With or without threads
//!
//! A [`FileStore`] does all work in [`start`](xbd::back::Store::start), unless it was given [`Workers`]. Without, what happens is decided by
//! its caller alone, which a deterministic run wants, and a slow disk holds its caller up. With them, work is done by a few threads
//! and ends in any order. An owner that waits is woken by a [`Waker`](std::task::Waker): a future's own, or one made of whatever the owner
//! waits for, such as an `eventfd`.
//!
//! ```
//! # #[cfg(target_os = "linux")] {
//! use std::sync::Arc;
//! use std::task::Wake;
//!
//! /// Wakes a thread that has parked.
//! struct Unpark(std::thread::Thread);
//!
//! impl Wake for Unpark {
//!     fn wake(self: Arc<Self>) {
//!         self.0.unpark();
//!     }
//! }
//!
//! let waker = Arc::new(Unpark(std::thread::current())).into();
//! let workers = disk::Workers { waker: Some(waker), ..disk::Workers::default() };
//! # let _ = workers; }
//! ```
//!
//! # The memory of a request
//!
//! It is the other end's, which may change it at any time. So it is never seen as a slice: its address goes to the kernel, or it is copied by
//! atomic accesses, where direct access wants other alignment than it has. Threads go on with it after `start` has returned; therefore
//! [`FileStore::with_workers`] is `unsafe`, and a handle that is dropped waits for its own work.
//!
//! # `unsafe`
//!
//! Three places: the system calls that are given addresses (`file/transfer.rs`), the views that threads keep (`file/crew.rs`), the memory
//! that [`Faulty`] writes from. `file/block.rs` names the types of three `ioctl`s.
#![cfg_attr(not(target_os = "linux"), no_std)]
#![cfg_attr(not(target_os = "linux"), allow(rustdoc::broken_intra_doc_links, reason = "nothing is there to link to"))]
#![cfg(target_os = "linux")]

mod faulty;
mod file;

pub use faulty::{Counters, Faulty, Kind, Plan, Rule};
pub use file::{FileStore, Log, OpenError, Options, Refusal, Workers};
