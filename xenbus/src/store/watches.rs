//! The watches of a client: a fixed table with one flag each, so that a flood of events costs nothing but their reading.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::WatchId;

/// Watches that a client can have at once.
pub const WATCHES: usize = 128;

/// A number in [`Watch::id`] for nobody's.
const FREE: u32 = 0;

#[derive(Debug)]
struct Watch {
    /// The watch that has this place, or [`FREE`]. Each user of a place has a number of its own, so that a late event of the
    /// last one is nobody's.
    id: AtomicU32,
    fired: AtomicBool,
}

/// All of them. Needs no lock: an event is taken note of in an interrupt handler, too.
#[derive(Debug)]
pub(super) struct Watches {
    table: [Watch; WATCHES],
    /// How often places have been taken.
    taken: AtomicU32,
}

impl Watches {
    pub(super) const fn new() -> Self {
        let table = [const { Watch { id: AtomicU32::new(FREE), fired: AtomicBool::new(false) } }; WATCHES];
        Self { table, taken: AtomicU32::new(0) }
    }

    /// Takes a place; `None` if there is none left.
    pub(super) fn add(&self) -> Option<WatchId> {
        let round = self.taken.fetch_add(1, Relaxed) % (u32::MAX / WATCHES as u32 - 1) + 1;
        for (place, watch) in self.table.iter().enumerate() {
            let id = round * WATCHES as u32 + place as u32;
            // Acquire: what the last user did to the flag is over.
            if watch.id.compare_exchange(FREE, id, Acquire, Relaxed).is_ok() {
                watch.fired.store(false, Relaxed);
                return Some(WatchId(id));
            }
        }
        None
    }

    pub(super) fn remove(&self, id: WatchId) {
        if let Some(watch) = self.get(id) {
            // Release: as in `add`.
            watch.id.store(FREE, Release);
        }
    }

    /// Takes note of an event; `false` if it is for none of ours.
    pub(super) fn fire(&self, token: &[u8]) -> bool {
        let id = core::str::from_utf8(token).ok().and_then(|token| token.parse().ok());
        let Some(watch) = id.and_then(|id| self.get(WatchId(id))) else { return false };
        // Release: whoever sees the flag sees that the ring was read.
        watch.fired.store(true, Release);
        true
    }

    /// Tells whether a watch has fired since this was last asked.
    pub(super) fn take(&self, id: WatchId) -> bool {
        // The plain look first: it is asked in a loop, and mostly in vain.
        self.get(id).is_some_and(|watch| watch.fired.load(Relaxed) && watch.fired.swap(false, AcqRel))
    }

    fn get(&self, id: WatchId) -> Option<&Watch> {
        let watch = self.table.get(id.0 as usize % WATCHES)?;
        (id.0 != FREE && watch.id.load(Acquire) == id.0).then_some(watch)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn event_of_the_last_user_of_a_place_is_nobodys() {
        let watches = Watches::new();
        let old = watches.add().unwrap();
        assert!(watches.fire(old.0.to_string().as_bytes()));
        watches.remove(old);
        let new = watches.add().unwrap();
        assert_eq!(new.0 as usize % WATCHES, old.0 as usize % WATCHES);
        assert!(!watches.fire(old.0.to_string().as_bytes()));
        assert!(!watches.take(new));
        assert!(watches.fire(new.0.to_string().as_bytes()));
        assert!(watches.take(new));
        assert!(!watches.take(new));
    }

    #[test]
    fn table_is_bounded_and_odd_tokens_are_nobodys() {
        let watches = Watches::new();
        let all: Vec<_> = (0..WATCHES).map(|_| watches.add().unwrap()).collect();
        assert_eq!(watches.add(), None);
        watches.remove(all[5]);
        assert_eq!(watches.add().map(|id| id.0 as usize % WATCHES), Some(5));
        for token in [&b""[..], b"0", b"5", b"-1", b"x", b"99999999999999999999", b"\xff"] {
            assert!(!watches.fire(token));
        }
    }
}
