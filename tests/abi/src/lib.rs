//! Checks every type and constant of xen-sys against the C headers of Xen.
//!
//! [`listing`] reads the source of xen-sys and finds for each public type and constant the C counterpart that its documentation
//! names. [`generate`] makes two programs of the list: one in Rust and one in C, each of which tells every size, offset and value.
//! [`compare`] compares what they tell. The build script runs the first two on xen-sys; the test `tests/abi.rs` compiles, runs
//! and compares.
//!
//! Nothing is listed by hand. An item whose counterpart can't be found is a [problem](listing::Listing::problems) and fails the
//! test, unless its documentation holds the words of [`listing::EXEMPT`] and a reason.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", allow(rustdoc::broken_intra_doc_links, reason = "nothing is there to link to"))]
#![cfg(not(target_os = "none"))]

pub mod compare;
pub mod generate;
pub mod listing;
