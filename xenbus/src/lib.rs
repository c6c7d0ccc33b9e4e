//! What the two ends of a Xen split device share: the xenstore client, the device state machine, the shared rings.
//!
//! | module | what |
//! |---|---|
//! | [`domain`] | the bundle of services that a driver is given |
//! | [`store`] | the store as drivers use it, and our client |
//! | [`device`] | the state machine of a split device, its two ends, hot plug |
//! | [`error`] | why the ends of a device don't come together |
//! | [`ring`] | message rings (front, back) and byte rings |
//! | [`Place`] | where the queue of a device stands |
//! | [`Rate`] | a bound on what a peer can make us say |
#![no_std]

extern crate alloc;

pub mod device;
pub mod domain;
pub mod error;
mod place;
mod rate;
pub mod ring;
pub mod store;

pub use domain::Domain;
pub use place::Place;
pub use rate::Rate;
