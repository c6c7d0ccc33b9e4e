//! What an owner can choose, and what a queue counts.

use core::ops::AddAssign;

use xen_sys::io::blkif::BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST;

use crate::features::{Abilities, Offer};
use crate::protocol::Operation;
use crate::{MAX_INDIRECT_SEGMENTS, MAX_RING_PAGES, MAX_SEGMENTS, SEGMENTS_PER_PAGE};

/// What a back end offers, and what it lets one front end use of this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most queues; at least 1. Also bounded by the places that there are for them.
    pub max_queues: u16,
    /// Pages of the largest ring, from 1 to [`MAX_RING_PAGES`]; rounded down to a power of two.
    pub max_ring_pages: u16,
    /// Segments of the largest indirect request, up to [`MAX_INDIRECT_SEGMENTS`]; 0 if there are to be none.
    pub max_indirect_segments: u16,
    /// Grants may be kept mapped, if the front end wants it too.
    pub persistent: bool,
    /// Grants that a queue keeps mapped at most. The one that was not used for longest makes room for a new one.
    pub max_persistent: u16,
    /// A grant that nobody used for so many nanoseconds is kept mapped no longer.
    pub idle_ns: u64,
    /// A front end that says it is closed is served until nothing has come from it for so many nanoseconds. A directory that is to go
    /// stays as long in the state Closed.
    pub rest_ns: u64,
    /// Pages that a queue has mapped at most beside those that it keeps mapped. Requests wait when there is no room for theirs. At least
    /// what the largest request needs, whatever is said here.
    pub pages: u16,
    /// Bytes of the largest request whose pages are not mapped: Xen copies its data, from or to pages of this domain. 0 for none. Indirect
    /// requests are always mapped, and all of a front end whose grants are kept mapped.
    pub copy_limit: u32,
    /// Pages that a queue has for what is copied, one a segment. A request for which there are not enough is mapped. No more than its ring
    /// can need.
    pub copy_pages: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_queues: 4,
            max_ring_pages: 16,
            max_indirect_segments: 256,
            persistent: true,
            max_persistent: 1056,
            idle_ns: 60_000_000_000,
            rest_ns: 100_000_000,
            pages: 1024,
            copy_limit: 4096,
            copy_pages: 64,
        }
    }
}

impl Config {
    /// Returns what a front end may choose, if there are so many places for queues.
    pub(super) fn offer(&self, places: usize) -> Offer {
        let max_queues = usize::from(self.max_queues.max(1)).min(places) as u16;
        let pages = usize::from(self.max_ring_pages).clamp(1, MAX_RING_PAGES);
        Offer { max_queues, max_ring_pages: 1 << pages.ilog2() }
    }

    /// Returns what we can do.
    pub(super) fn abilities(&self) -> Abilities {
        Abilities {
            persistent: self.persistent && self.max_persistent > 0,
            max_indirect_segments: self.max_indirect_segments.min(MAX_INDIRECT_SEGMENTS as u16),
        }
    }

    /// Returns how many pages a queue of so many slots has mapped at most, beside those that it keeps mapped.
    pub(super) fn working_pages(&self, slots: u32) -> usize {
        let segments = usize::from(self.abilities().max_indirect_segments);
        let largest = MAX_SEGMENTS.max(segments + segments.div_ceil(SEGMENTS_PER_PAGE));
        usize::from(self.pages).min(slots as usize * largest).max(largest).min(MAX_PAGES)
    }
}

/// Most pages beside those that are kept mapped. Together they have numbers of 16 bits, of which one is kept free.
const MAX_PAGES: usize = 1 << 15;
const _: () = assert!(MAX_INDIRECT_SEGMENTS + BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST < MAX_PAGES);
/// Most pages that are kept mapped.
pub(super) const MAX_KEPT: usize = MAX_PAGES - 1;

/// What a queue has done so far, or all of a device's together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests taken.
    pub requests: u64,
    /// Segments of requests that were given to the store.
    pub segments: u64,
    /// Sectors of 512 bytes that were to be read.
    pub read_sectors: u64,
    /// Sectors of 512 bytes that were to be written, by barriers too.
    pub written_sectors: u64,
    /// Requests whose segments stand on pages of their own.
    pub indirect: u64,
    /// Flushes that were asked for.
    pub flushes: u64,
    /// Barriers that were asked for.
    pub barriers: u64,
    /// Discards that were asked for.
    pub discards: u64,
    /// Events sent to the front end.
    pub notifications: u64,
    /// Requests that were refused at the door: malformed, not offered, beyond the end, writing to a read-only disk.
    pub refused: u64,
    /// Requests whose pages could not be mapped.
    pub unmappable: u64,
    /// Requests that the store failed.
    pub store_faults: u64,
    /// Times that a request had to wait for what was before it: for its pages, or because it is a barrier.
    pub waits: u64,
    /// Pages of requests that Xen has copied.
    pub copied: u64,
    /// Requests whose data could not be copied.
    pub copy_failed: u64,
    /// Grants mapped.
    pub mapped: u64,
    /// Grants that are kept mapped now.
    pub persistent: u64,
    /// Times that a grant was mapped already when it was needed.
    pub reused: u64,
    /// Grants that were kept mapped, and made room for others.
    pub evicted: u64,
    /// Grants that were kept mapped, and were not used for too long.
    pub expired: u64,
    /// Pages of the window that can't be used any more, because they can't be unmapped.
    pub lost: u64,
}

impl Counters {
    /// Counts the sectors of a request.
    #[inline(always)]
    pub(super) const fn add_sectors(&mut self, operation: Operation, sectors: u64) {
        match operation {
            Operation::Read => self.read_sectors += sectors,
            Operation::Write | Operation::Barrier => self.written_sectors += sectors,
            Operation::Flush | Operation::Discard | Operation::SecureDiscard => {}
        }
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.segments += other.segments;
        self.read_sectors += other.read_sectors;
        self.written_sectors += other.written_sectors;
        self.indirect += other.indirect;
        self.flushes += other.flushes;
        self.barriers += other.barriers;
        self.discards += other.discards;
        self.notifications += other.notifications;
        self.refused += other.refused;
        self.unmappable += other.unmappable;
        self.store_faults += other.store_faults;
        self.waits += other.waits;
        self.copied += other.copied;
        self.copy_failed += other.copy_failed;
        self.mapped += other.mapped;
        self.persistent += other.persistent;
        self.reused += other.reused;
        self.evicted += other.evicted;
        self.expired += other.expired;
        self.lost += other.lost;
    }
}
