//! The trait behind which the real disk stands.

use core::fmt;

use hypercall::mem::Shared;

/// Names a request between the back end's queue and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u16);

/// What the store is asked to do.
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// Read from `sector` on into the parts, one after another.
    Read {
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// Where to; the length is theirs.
        parts: &'a [Shared<'a>],
    },
    /// Write the parts, one after another, to `sector` and on.
    Write {
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// Where from; the other end may go on changing the bytes.
        parts: &'a [Shared<'a>],
    },
    /// Make all that was completed so far durable.
    Flush,
}

/// The store could not do it. What exactly went wrong is the store's to log: the other end learns that it failed, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreFault;

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store failed")
    }
}

/// Whether the work is over already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It is, with this result; the token is not used any more.
    Done(Result<(), StoreFault>),
    /// [`Store::completed`] will tell.
    Pending,
}

/// A disk, as its back end sees it: a file, a partition, a piece of memory. Requests were checked before they come here: they lie
/// within the disk, and don't write to one that is read-only.
pub trait Store {
    /// Returns the size in sectors of 512 bytes. It may change; [`Back::resized`](super::Back::resized) tells the other end.
    fn sectors(&self) -> u64;

    /// Returns the smallest unit of I/O in bytes: a power of two from 512 to 4096.
    fn sector_size(&self) -> u32 {
        512
    }

    /// Tells whether it can't be written.
    fn read_only(&self) -> bool {
        false
    }

    /// Begins some work. The memory of the parts stays mapped until the work is over, however long it takes, so a store that
    /// returns [`Started::Pending`] may go on using [`Shared::as_ptr`] until it names the token in
    /// [`completed`](Self::completed).
    fn start(&mut self, token: Token, work: Work<'_>) -> Started;

    /// Returns the next token whose work is over, in any order.
    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        None
    }
}
