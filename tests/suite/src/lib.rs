//! Scenarios, each written once and run on every bed: the mock (stepped by a seed, or threaded) and real Xen.
//!
//! A scenario is made of *programs*: plain `async` functions, one a domain, that attach a device, do I/O, and look at the result.
//! [`exec::run`] interleaves them, and a bed lends it the domains ([`node::Node`]). Nothing in here knows which bed it runs on.
//!
//! | module | what |
//! |---|---|
//! | [`node`] | a domain with its services, and the events that have reached it |
//! | [`exec`] | runs programs until all are done, or tells which one is stuck |
//! | `on_mock` | the bed of three domains on the mock hypervisor (not on the bare target) |
//! | `faults` | plans of faults, and the smallest one that makes a run fail (there, too) |
//! | `hostile` | ends of a disk that are connected like honest ones, and then do whatever a test wants (there, too) |
//! | [`toolstack`] | what `xl` does: makes and removes devices in xenstore |
//! | [`block`] | the disk: a server with a store in memory, a client that copies and verifies |
//! | [`conformance`] | scripts of calls and their errors, compared with what real Xen says |
//! | [`console`] | the console: an echo and who talks to it |
//! | [`net`] | the network: a reflector and who plays with it |
//! | [`scenarios`] | the scenarios by name |
#![no_std]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod block;
pub mod conformance;
pub mod console;
pub mod disk;
pub mod exec;
#[cfg(not(target_os = "none"))]
pub mod faults;
#[cfg(not(target_os = "none"))]
pub mod hostile;
pub mod net;
pub mod node;
#[cfg(not(target_os = "none"))]
pub mod on_mock;
pub mod scenarios;
pub mod toolstack;

use alloc::string::String;
use core::fmt;

/// Why a scenario failed: what was expected, what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl Failure {
    /// Makes one from a message.
    pub fn new(message: impl fmt::Display) -> Self {
        Self(alloc::format!("{message}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Failure {}

/// Turns the errors of the crates under test into failures, with what was being done.
pub trait Context<T> {
    /// Says what was being done.
    ///
    /// # Errors
    /// [`Failure`] if `self` is an error.
    fn context(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure(alloc::format!("{what}: {error}")))
    }
}

/// Fails the scenario unless a claim holds.
///
/// # Errors
/// [`Failure`] with the claim if it doesn't.
pub fn ensure(holds: bool, claim: impl fmt::Display) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::new(claim)) }
}

/// The examples of docs/testing.md are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/testing.md")]
mod testing {}
