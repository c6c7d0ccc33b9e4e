//! The grant table by the names that NetBSD's own drivers know.
#![cfg(not(target_os = "none"))]

use std::ffi::{c_int, c_ulong};

use hypercall::{GrantRef, Platform};
use netbsd::Kernel;
use netbsd::memory::Wired;
use xenbus::ring::{Backing, MappedPages};
use xenpv::grants::{GrantCounters, xenpv_grant_counters};

unsafe extern "C" {
    fn xengnt_grant_access(domain: u16, address: c_ulong, read_only: c_int, entry: *mut u32) -> c_int;
    fn xengnt_revoke_access(entry: u32);
    fn xengnt_status(entry: u32) -> c_int;
}

/// Tells whether a page is mapped.
fn status(entry: u32) -> c_int {
    // SAFETY: only looks.
    unsafe { xengnt_status(entry) }
}

fn revoke(entry: u32) {
    // SAFETY: a reference in use.
    unsafe { xengnt_revoke_access(entry) };
}

/// Grants a page, for writing, and returns the reference.
fn grant(kernel: &Kernel, to: u16, wired: &Wired) -> u32 {
    let frame = kernel.machine().domain(kernel.id()).gfn_of(std::ptr::NonNull::new(wired.at(0).cast()).unwrap());
    let mut entry = 0;
    // SAFETY: the page stays until its grant is revoked.
    assert_eq!(unsafe { xengnt_grant_access(to, frame.0 << 12, 0, &mut entry) }, 0);
    entry
}

fn quarantined() -> u32 {
    let mut counters = GrantCounters::default();
    // SAFETY: counters to be written.
    unsafe { xenpv_grant_counters(&mut counters) };
    counters.quarantined
}

#[test]
fn a_page_is_granted_mapped_and_revoked() {
    let kernel = Kernel::with_disks();
    let peer = kernel.machine().boot();
    let wired = Wired::new(1);
    wired.fill(0, b"granted");
    let entry = grant(&kernel, peer.id.0, &wired);
    assert_eq!(status(entry), 0);
    let mapped = MappedPages::new(&peer.platform, kernel.id(), &[GrantRef(entry)]).unwrap();
    let mut text = [0; 7];
    mapped.view().read(0, &mut text);
    assert_eq!(&text, b"granted");
    assert_eq!(status(entry), 1);
    drop(mapped);
    assert_eq!(status(entry), 0);
    revoke(entry);
    assert_eq!(kernel.log(), "");
    assert!(MappedPages::new(&peer.platform, kernel.id(), &[GrantRef(entry)]).is_err());
    drop(wired);
    kernel.machine().kill(peer.id);
    kernel.give_back();
}

#[test]
fn a_page_that_is_mapped_still_is_told_of_and_its_reference_comes_back() {
    let kernel = Kernel::with_disks();
    let peer = kernel.machine().boot();
    let wired = Wired::new(1);
    let entry = grant(&kernel, peer.id.0, &wired);
    let mapped = MappedPages::new(&peer.platform, kernel.id(), &[GrantRef(entry)]).unwrap();
    revoke(entry);
    assert!(kernel.log().contains(&format!("xengnt: grant {entry}: still mapped")), "{}", kernel.log());
    assert_eq!(quarantined(), 1);
    drop(mapped);
    // What is not mapped any more is free when the next references are wanted.
    let other = grant(&kernel, peer.id.0, &wired);
    assert_eq!(quarantined(), 0);
    revoke(other);
    drop(wired);
    kernel.machine().kill(peer.id);
    kernel.give_back();
}
