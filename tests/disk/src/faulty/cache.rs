//! What a disk may have of each sector when its power fails.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::Rng;
use rand::rngs::SmallRng;

/// A write or a discard: its number, and its sectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    number: u64,
    first: u64,
    end: u64,
}

/// What a sector may hold.
struct Version {
    write: u64,
    /// When it was completed in the eyes of its owner.
    told: Option<u64>,
    bytes: Vec<u8>,
}

/// What a sector held at the last flush, and what it was given since.
struct History {
    durable: Vec<u8>,
    since: Vec<Version>,
}

/// The sectors that were written and are not durable yet, by number, in units of the disk's sector size.
#[derive(Default)]
pub(super) struct Cache {
    sectors: BTreeMap<u64, History>,
    /// Counts what was told.
    now: u64,
    writes: u64,
}

impl Cache {
    /// Returns the sectors of a range of which it isn't known what is durable.
    pub(super) fn unknown(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        range.filter(|sector| !self.sectors.contains_key(sector))
    }

    /// Learns what is durable of one.
    pub(super) fn learn(&mut self, sector: u64, durable: Vec<u8>) {
        self.sectors.entry(sector).or_insert(History { durable, since: Vec::new() });
    }

    /// Notes a write that begins. All its sectors are known.
    pub(super) fn begin(&mut self, first: u64, contents: &[u8], sector_size: usize) -> Stamp {
        let number = self.writes;
        self.writes += 1;
        let mut end = first;
        for bytes in contents.chunks(sector_size) {
            if let Some(history) = self.sectors.get_mut(&end) {
                history.since.push(Version { write: number, told: None, bytes: bytes.to_vec() });
            }
            end += 1;
        }
        Stamp { number, first, end }
    }

    /// Notes that the owner of a write was told that it is completed.
    pub(super) fn told(&mut self, write: Stamp) {
        self.now += 1;
        let now = self.now;
        let all = self.sectors.range_mut(write.first..write.end).flat_map(|(_, history)| &mut history.since);
        all.filter(|version| version.write == write.number).for_each(|version| version.told = Some(now));
    }

    /// Returns the time, for a flush that begins.
    pub(super) const fn now(&self) -> u64 {
        self.now
    }

    /// Notes that a flush that had begun then has made its promise.
    pub(super) fn flushed(&mut self, began: u64) {
        self.sectors.retain(|_, history| {
            let covered = |version: &Version| version.told.is_some_and(|told| told <= began);
            if let Some(last) = history.since.iter().rposition(covered)
                && let Some(version) = history.since.drain(..=last).next_back()
            {
                history.durable = version.bytes;
            }
            !history.since.is_empty()
        });
    }

    /// Ends it all: draws for each sector what is left of it. Returns how many sectors have lost something, too.
    pub(super) fn fail(&mut self, lots: &mut SmallRng) -> (Vec<(u64, Vec<u8>)>, u64) {
        let mut lost = 0;
        let sectors = std::mem::take(&mut self.sectors);
        let left = sectors.into_iter().map(|(sector, mut history)| {
            let chosen = lots.random_range(0..=history.since.len());
            lost += u64::from(chosen < history.since.len());
            let bytes = if chosen == 0 { history.durable } else { history.since.swap_remove(chosen - 1).bytes };
            (sector, bytes)
        });
        (left.collect(), lost)
    }
}
