//! What a queue knows of a request that it has taken.

use super::pages::{List, NONE};
use crate::protocol::{Operation, Status};

/// What the store is asked for, one bit each, the lowest first. A barrier may take all three.
pub(super) mod step {
    pub(crate) const FLUSH_BEFORE: u8 = 1;
    pub(crate) const WORK: u8 = 2;
    pub(crate) const FLUSH_AFTER: u8 = 4;
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
    pub(super) pages: List,
    pub(super) data: u16,
    /// Those with data are our own, and Xen copies what is in them.
    pub(super) copied: bool,
    /// Segments that still stand on pages of their own.
    pub(super) indirect: u16,
    /// What the store has still to do, of [`step`].
    pub(super) steps: u8,
    /// The store works on it.
    pub(super) started: bool,
    /// How it ends, as far as is known.
    pub(super) status: Status,
    /// Next slot of the list that it is on: free, taken, or finished.
    pub(super) link: u16,
}

impl Slot {
    pub(super) const FREE: Self = Self {
        id: 0,
        operation: Operation::Flush,
        sector: 0,
        sectors: 0,
        pages: List::EMPTY,
        data: NONE,
        copied: false,
        indirect: 0,
        steps: 0,
        started: false,
        status: Status::Okay,
        link: NONE,
    };
}

/// Appends a slot to a list.
pub(super) fn push(slots: &mut [Slot], list: &mut List, index: u16) {
    slots[usize::from(index)].link = NONE;
    list.append(List::of(index), |before| Some(&mut slots.get_mut(before)?.link));
}
