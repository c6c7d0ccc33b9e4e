//! A mock hypervisor: domains, grants, events and xenstore in one process.
//!
//! It stands *below* the typed calls: a [`Domain`] implements [`Hypervisor`](::hypercall::Hypervisor) and
//! [`Platform`](::hypercall::Platform), and its one hypercall entry decodes the same structures that Xen would. So the real
//! grant tables, event channels and store client run on it unchanged.
//!
//! ```text
//!   drivers ──► xenbus ──► hypercall ──► Domain::hypercall                      a domain's memory: pages of its own
//!                                            │ args, as registers               range, mapped to frames of the machine
//!                                        hypercall.rs: decode                   that are drawn by lot; a granted page
//!                                            │                                  is the same frame in another range
//!                events.rs   grants.rs   sched, memory …   ──► State
//!                    │                                           ▲
//!                shared_info ◄── step(): xenstored, timers ──────┘
//! ```
//!
//! Start at [`Machine`]. Rules and error numbers are those of Xen 4.17; a hypercall that the mock doesn't know is `-ENOSYS`.
//!
//! # What it doesn't have
//!
//! FIFO event channels, grant tables of version 2, transfer, page tables (so no `GNTMAP_contains_pte`), physical interrupts,
//! upcalls, registers and timers of vcpus but the first: a vcpu is a thread that dispatches its events. Of an auto-translated (PVH)
//! domain it has the frame numbers and what is done by them; that of a page is the domain's from the beginning, and one that no page has can't be mapped. `SCHEDOP_shutdown` returns, since the domain's threads have to end somewhere.
//! A pointer is refused only if no guest could have it: a wrong one is the test's own fault.
//!
//! # Where what is
//!
//! | what | where |
//! |---|---|
//! | domains, clock, steps, violations and leaks | [`Machine`] |
//! | what a driver sees | [`Domain`], [`Node`] |
//! | what it cost | [`Ledger`], [`alloc`] |
//! | what goes wrong on order | [`Fault`], [`Machine::kill`] |
//! | a domain that is saved and restored | [`suspend()`], [`Machine::restore_next`], [`Machine::cancel_next_suspend`] |
//! | what has happened, and a timeline of it | [`Machine::record`], [`Trace`] |
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", allow(rustdoc::broken_intra_doc_links, reason = "nothing is there to link to"))]
#![cfg(not(target_os = "none"))]
#![allow(non_upper_case_globals, reason = "constants of the ABI have their C names")]

pub mod alloc;
mod config;
mod domain;
mod events;
mod faults;
mod grants;
mod hypercall;
mod ledger;
mod life;
mod machine;
mod memory;
mod node;
mod pages;
mod physmap;
mod shared;
mod space;
mod state;
mod store;
mod suspend;
mod timeline;
mod trace;
mod usage;
mod words;

pub use config::{Config, DomainConfig, Mode};
pub use domain::Domain;
pub use faults::{Fault, Happened};
pub use ledger::{Kind, Ledger};
pub use life::Start;
pub use machine::{Console, Machine};
pub use memory::Backing;
pub use node::{Node, Suspended, suspend};
pub use state::Life;
pub use trace::{Arrival, Entry, Message, Trace, What};
pub use usage::{DomainUsage, Leak, Usage};
pub use xenstored::Refusal;
