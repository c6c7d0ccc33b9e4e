//! The bare-metal Xen PV guest and the programs that run in it. Empty on every target but the bare one.
//!
//! A domain with one virtual processor and nothing in it but this crate: Xen loads the ELF, jumps to `_start`, and
//! [`boot`] leads from there to the [`programs::Program`] that the command line names. Events stay masked for the whole
//! life of the domain; whoever waits, polls ([`Bare`]'s `wait`).
//!
//! | module | what |
//! |---|---|
//! | [`boot`] | ELF notes, first instructions, `start_info`, the order in which all the rest comes to life |
//! | [`bare`] | [`Bare`], the platform that the drivers stand on |
//! | [`memory`] | frame numbers, page tables, own pages and the heap, address space for foreign frames |
//! | [`shared`] | the page that Xen and the domain share: events and time |
//! | [`console`] | output, by hypercall or through the console ring |
//! | [`traps`] | faults: the registers are printed; reads that may fault |
//! | [`suspend`] | what the domain does to be saved and restored |
//! | [`exit`] | the end, good or bad, and how the outside learns of it; panics |
//! | [`domu`] | builds a second domain |
//! | [`local_store`] | a xenstored for a domain without one |
//! | [`programs`] | what can be run |
#![no_std]
#![cfg_attr(not(target_os = "none"), allow(rustdoc::broken_intra_doc_links, reason = "nothing is there to link to"))]
#![cfg(target_os = "none")]

extern crate alloc;

pub mod bare;
pub mod boot;
pub mod console;
pub mod domu;
pub mod exit;
pub mod local_store;
pub mod memory;
pub mod programs;
pub mod shared;
pub mod suspend;
pub mod traps;

pub use bare::Bare;
