//! The trait behind which the real disk stands.

use core::fmt;

use hypercall::mem::Shared;

use crate::features::Discard;
use crate::protocol::Status;

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
        /// Where to; the lengths are theirs.
        parts: Parts<'a>,
    },
    /// Write the parts, one after another, to `sector` and on.
    Write {
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// Where from; the other end may go on changing the bytes.
        parts: Parts<'a>,
    },
    /// Make all that was completed so far durable, by whatever handle of the disk.
    Flush,
    /// Forget what is there.
    Discard {
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// How many; at least 1.
        sectors: u64,
        /// Nobody may be able to read it any more.
        secure: bool,
    },
}

/// The memory of a request, in parts of a page or less.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    list: List<'a>,
    len: usize,
}

#[derive(Clone, Copy)]
enum List<'a> {
    Slice(&'a [Shared<'a>]),
    Chain { pages: &'a dyn Chain, next: u16 },
}

/// Pages of which each knows the next of its request. It stands between a [`Store`] and the window that the pages are mapped in, so that
/// a store depends on no platform, and no list of them is made.
pub(super) trait Chain {
    /// Returns the part of a page that belongs to the request, and the number of the next page; `None` at the end.
    fn part(&self, page: u16) -> Option<(Shared<'_>, u16)>;
}

impl<'a> Parts<'a> {
    /// Makes them of a list.
    pub const fn new(list: &'a [Shared<'a>]) -> Self {
        let (mut len, mut index) = (0, 0);
        while index < list.len() {
            len += list[index].len();
            index += 1;
        }
        Self { list: List::Slice(list), len }
    }

    /// Makes them of the pages from `first` on, of which `len` bytes belong to the request.
    pub(super) const fn chain(pages: &'a dyn Chain, first: u16, len: usize) -> Self {
        Self { list: List::Chain { pages, next: first }, len }
    }

    /// Returns them in order. Each is made of whole sectors of 512 bytes, and need not be aligned to more.
    pub fn iter(self) -> impl Iterator<Item = Shared<'a>> {
        let mut list = self.list;
        core::iter::from_fn(move || match &mut list {
            List::Slice(left) => left.split_off_first().copied(),
            List::Chain { pages, next } => {
                let (part, after) = pages.part(*next)?;
                *next = after;
                Some(part)
            }
        })
    }

    /// Returns their length together, in bytes: a multiple of the disk's sector size.
    pub const fn len(self) -> usize {
        self.len
    }

    /// Tells whether there are none.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The store could not do it. What exactly went wrong is the store's to log: the other end learns no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// It failed.
    Failed,
    /// It can't do this at all, as it turns out.
    NotSupported,
}

impl From<StoreFault> for Status {
    fn from(fault: StoreFault) -> Self {
        match fault {
            StoreFault::Failed => Self::Error,
            StoreFault::NotSupported => Self::NotSupported,
        }
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "the store failed",
            Self::NotSupported => "the store can't do this",
        })
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

/// A handle of a disk, as its back end sees it: a file, a partition, a piece of memory. Requests were checked before they come here:
/// they lie within the disk, as last told of by [`Back::resized`](super::Back::resized), and don't change one that is read-only. If the
/// disk has become smaller since, the store fails what lies beyond its end.
///
/// Each queue has a handle of its own, and its own tokens, which are smaller than its ring has slots; what it starts is completed by the
/// same handle.
pub trait Store {
    /// Returns another handle of the same disk, on which nothing was started.
    #[must_use]
    fn handle(&self) -> Self
    where
        Self: Sized;

    /// Returns the size in sectors of 512 bytes; 0 for an empty drive. It may change; [`Back::resized`](super::Back::resized) tells the
    /// other end.
    fn sectors(&self) -> u64;

    /// Returns the smallest unit of I/O in bytes: a power of two from 512 to 4096.
    fn sector_size(&self) -> u32 {
        512
    }

    /// Returns the best unit of I/O in bytes: a power of two, not less than the smallest.
    fn physical_sector_size(&self) -> u32 {
        self.sector_size()
    }

    /// Tells whether it can't be written.
    fn read_only(&self) -> bool {
        false
    }

    /// Tells whether it has a cache that a flush makes durable. If not, no flush is offered, and one that comes nevertheless is answered
    /// without asking.
    fn has_cache(&self) -> bool {
        true
    }

    /// Returns how it forgets, if it can.
    fn discard(&self) -> Option<Discard> {
        None
    }

    /// Begins some work. The memory of the parts stays mapped until the work is over, however long it takes, so a store that
    /// returns [`Started::Pending`] may go on using [`Shared::as_ptr`] until it names the token in
    /// [`completed`](Self::completed).
    ///
    /// Work may be done in any order, and is not reordered with a flush only insofar as a flush covers what was completed before it.
    fn start(&mut self, token: Token, work: Work<'_>) -> Started;

    /// Returns the next token whose work is over, in any order.
    fn completed(&mut self) -> Option<(Token, Result<(), StoreFault>)> {
        None
    }
}
