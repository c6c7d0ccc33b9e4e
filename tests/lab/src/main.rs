//! `xenlab`: the demo on the mock hypervisor, and real Xen under QEMU. Built for the bare target, the same package is
//! the guest that `xenlab` boots.
//!
//! ```text
//! xenlab [demo]                 copies a disk image between two domains of the mock
//! xenlab bench                  the next two, one after the other
//! xenlab bench ring             what a request through the message ring costs, beside C's and virtio's
//! xenlab bench block            what a request through the two ends of a disk costs
//! xenlab bench xen              what a request costs on real Xen, beside Linux's front end
//! xenlab xen setup              everything that real Xen needs, once, in the user's cache folder
//! xenlab xen fast [SCENARIO]    the guest as dom0: both ends of each device in one domain
//! xenlab xen linux --disk IMAGE the guest as domU of a Linux dom0
//! xenlab xen linux --suite block
//!                               the guest as driver domain, which serves disks to Linux domUs
//! xenlab xen linux --suite save the guest as domU, which Linux saves and restores while it is at work
//! xenlab xen conformance [SCRIPT] [--record]
//!                               what real Xen answers, compared with what the mock is held to
//! ```
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use guest as _;

#[cfg(not(target_os = "none"))]
mod host;

/// Counts allocations, so that the demo can say how many there are on the data path.
#[cfg(not(target_os = "none"))]
#[global_allocator]
static ALLOCATOR: mock::alloc::Counting = mock::alloc::Counting;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    host::main()
}
