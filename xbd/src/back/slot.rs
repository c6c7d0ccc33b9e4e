//! What a queue knows of a request that it has taken.

use super::pages::NONE;
use crate::protocol::{Operation, Status};

/// What the store is asked for, one bit each, the lowest first. A barrier may take all three.
pub(super) mod step {
    pub(crate) const FLUSH_BEFORE: u8 = 1;
    pub(crate) const WORK: u8 = 2;
    pub(crate) const FLUSH_AFTER: u8 = 4;
}

/// How a request goes its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As most do: it reads or writes, its pages are mapped, and there is one step.
    Mapped,
    /// The same, but the pages with its data are our own: Xen copies what is in them.
    Copied,
    /// Step by step.
    Other,
}

/// A request. Its place in the table is its token.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) id: u64,
    pub(super) operation: Operation,
    /// Where on the disk, and how much, in units of 512 bytes.
    pub(super) sector: u64,
    pub(super) sectors: u64,
    /// All its pages, and the first of those with data. Those before have its segments.
    pub(super) pages: u16,
    pub(super) data: u16,
    pub(super) kind: Kind,
    /// Segments that still stand on pages of their own.
    pub(super) indirect: u16,
    /// What the store has still to do, of [`step`].
    pub(super) steps: u8,
    /// The store works on it.
    pub(super) started: bool,
    /// How it ends, as far as is known.
    pub(super) status: Status,
    /// Next slot of those that are free, or whose data is to be copied.
    pub(super) link: u16,
}

impl Slot {
    pub(super) const FREE: Self = Self {
        id: 0,
        operation: Operation::Flush,
        sector: 0,
        sectors: 0,
        pages: NONE,
        data: NONE,
        kind: Kind::Other,
        indirect: 0,
        steps: 0,
        started: false,
        status: Status::Okay,
        link: NONE,
    };
}
