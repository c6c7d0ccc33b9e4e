//! What an owner wants of a disk.

use crate::MAX_INDIRECT_SEGMENTS;

/// What a [`Front`](super::Front) is to make of what its back end offers.
///
/// The default is what suits a disk that is one among many: a ring of 32 requests, with data that is neither copied nor left mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// For how many queues [`Front::new`](super::Front::new) makes places; at least one is made. Default 1: a second one is of use to
    /// an owner that lets another CPU have it.
    pub max_queues: u16,
    /// Pages of the largest ring: 32 requests each, 512 in 16 pages. Default 1: with indirect requests that is enough for megabytes in
    /// flight. More is for many small requests at once.
    pub max_ring_pages: u16,
    /// Segments of the largest request; one above 11 is indirect, where the back end takes such. An I/O may have more: it becomes
    /// several requests. Default 256, a megabyte, and what Linux's back end takes.
    pub max_indirect_segments: u16,
    /// Data goes by way of own pages that stay granted, if the back end keeps them mapped. It costs a copy, and saves both domains
    /// and the hypervisor the mapping: worth while where the back end is Linux with many disks. The back end sees what earlier
    /// requests have left in such a page. Default `false`. With a back end that doesn't keep them, a copy would buy nothing: data
    /// goes the straight way then.
    pub persistent: bool,
    /// The back end may see what else is in a page in which data stands. Default `true`. If this or the toolstack says no, data goes
    /// by way of own pages, in which nothing else is.
    pub trusted: bool,
    /// Pages of data in flight at once, in each queue: so many grants are reserved, or pages, where data is copied; never more than
    /// could be in use, and never fewer than a request of 11 needs. Default 1024, that is 4 MiB.
    pub max_grants: u16,
    /// A back end that goes is waited for until it comes back, or another in its place, and what was in flight is sent to it again;
    /// see [`Change::Reconnecting`](super::Change::Reconnecting). One that says that it goes, and whose device the toolstack doesn't keep
    /// (`online` isn't 1), wants us to [close](super::Change::CloseWanted) nevertheless, and so does one that has gone 16 times in a row
    /// before it was connected. Default `false`.
    pub reconnect: bool,
}

impl Config {
    /// The default, which can be a constant's.
    pub const DEFAULT: Self = Self {
        max_queues: 1,
        max_ring_pages: 1,
        max_indirect_segments: 256,
        persistent: false,
        trusted: true,
        max_grants: 1024,
        reconnect: false,
    };

    /// Returns how many segments a request may have that a back end takes so many of.
    pub(super) fn segments(&self, offered: u16) -> usize {
        let indirect = usize::from(self.max_indirect_segments.min(offered)).min(MAX_INDIRECT_SEGMENTS);
        indirect.max(crate::MAX_SEGMENTS)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}
