//! Why the ends of a device don't come together: the same for every driver.

use alloc::string::String;
use core::fmt;

use hypercall::event::EventError;
use hypercall::grant::GrantError;
use hypercall::mem::OutOfMemory;

use crate::ring::{MapPagesError, RingError};
use crate::store::{Cause, StoreError};

/// Why two ends don't agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NegotiationError {
    /// The store refused, or a node is not there or not of its form.
    Store(StoreError),
    /// A node has a value that can't be.
    BadNode {
        /// The node's name.
        node: &'static str,
        /// Its value.
        value: String,
    },
}

impl NegotiationError {
    /// Makes the error of a node whose value can't be.
    pub fn bad(node: &'static str, value: impl fmt::Display) -> Self {
        Self::BadNode { node, value: alloc::format!("{value}") }
    }
}

impl From<StoreError> for NegotiationError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl fmt::Display for NegotiationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            // Not by `Debug`, which brings tables of Unicode into a kernel.
            Self::BadNode { node, value } => {
                write!(f, "node {node} has the impossible value \"{}\"", value.escape_default())
            }
        }
    }
}

/// Why a front end can't be attached, or is out of use. It concerns this device alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontError {
    /// The store refused, or a node is missing or wrong.
    Negotiation(NegotiationError),
    /// No grant reference, or no memory for the rings.
    Grant(GrantError),
    /// No event channel.
    Event(EventError),
}

impl From<StoreError> for FrontError {
    fn from(error: StoreError) -> Self {
        Self::Negotiation(error.into())
    }
}

impl From<NegotiationError> for FrontError {
    fn from(error: NegotiationError) -> Self {
        Self::Negotiation(error)
    }
}

impl From<GrantError> for FrontError {
    fn from(error: GrantError) -> Self {
        Self::Grant(error)
    }
}

impl From<OutOfMemory> for FrontError {
    fn from(error: OutOfMemory) -> Self {
        Self::Grant(error.into())
    }
}

impl From<EventError> for FrontError {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

impl fmt::Display for FrontError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negotiation(error) => error.fmt(f),
            Self::Grant(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
        }
    }
}

/// Why a device can't be served, or is not served any longer. It concerns this device alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackError {
    /// The store refused, or a node is missing or wrong.
    Negotiation(NegotiationError),
    /// A ring can't be mapped.
    Map(MapPagesError),
    /// No address space or memory for the queue.
    OutOfMemory(OutOfMemory),
    /// The event channel can't be bound.
    Event(EventError),
    /// The other end broke a ring.
    Ring(RingError),
}

impl BackError {
    /// Tells whether it may go well another time, though nobody changes anything: the store has refused, or not answered.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Negotiation(NegotiationError::Store(StoreError { cause, .. })) => {
                !matches!(cause, Cause::BadValue(_) | Cause::Broken)
            }
            _ => false,
        }
    }
}

impl From<StoreError> for BackError {
    fn from(error: StoreError) -> Self {
        Self::Negotiation(error.into())
    }
}

impl From<NegotiationError> for BackError {
    fn from(error: NegotiationError) -> Self {
        Self::Negotiation(error)
    }
}

impl From<MapPagesError> for BackError {
    fn from(error: MapPagesError) -> Self {
        Self::Map(error)
    }
}

impl From<OutOfMemory> for BackError {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(error)
    }
}

impl From<EventError> for BackError {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

impl From<RingError> for BackError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for BackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negotiation(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::OutOfMemory(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
        }
    }
}
