//! `xenlab`: the demo on the mock hypervisor, and real Xen under QEMU. Built for the bare target, the same package is
//! the guest that `xenlab` boots.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use guest as _;

#[cfg(not(target_os = "none"))]
fn main() {}
