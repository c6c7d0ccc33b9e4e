//! Console (xencons): two byte rings in one page, and an event channel.
//!
//! ```text
//!   tty ─► front::Console::write ─► out[2048] ─► back::Console::read  ─► terminal
//!   tty ◄─ front::Console::read  ◄─ in[1024]  ◄─ back::Console::write ◄─ keyboard
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`front`] | the first console of a guest, its panic-safe output, and the hypervisor's own console |
//! | [`back`] | the other end, which a console daemon runs |
//!
//! Each write tells how much went in: what doesn't fit stays with its owner until an event says that there is room. So a terminal that
//! nobody reads costs its guest nothing but the output.
#![no_std]
#![forbid(unsafe_code)]

pub mod back;
pub mod front;

use core::fmt;

use hypercall::event::EventError;
use xenbus::ring::MapPagesError;

/// Why a console can't be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleError {
    /// Its page can't be mapped.
    Map(MapPagesError),
    /// Its event channel can't be bound.
    Event(EventError),
}

impl From<MapPagesError> for ConsoleError {
    fn from(error: MapPagesError) -> Self {
        Self::Map(error)
    }
}

impl From<EventError> for ConsoleError {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

impl fmt::Display for ConsoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
        }
    }
}
