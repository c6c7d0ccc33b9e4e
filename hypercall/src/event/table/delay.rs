//! Events that bring no work: a port that has nothing but those is dispatched again after a while only.
//!
//! ```text
//!   dispatch ──► handler finds nothing ──► put_off ── the first: unmask
//!                     ▲                       └────── 2nd, 3rd, …: stays masked for 1, 2, 4 … 1000 ms
//!                     └── dispatch_delayed ◄──────────────────────────────┘
//!                         looks once more, for what was asked for meanwhile; then the port is unmasked
//! ```
//!
//! The first is free, as that of whoever was polled between the other end's publishing and its event; and the two can't follow each other
//! without work in between.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use xen_sys::Port;

use super::{Event, EventChannels, Slot, WORD, bits, place};
use crate::platform::Platform;

/// How many events without work are followed by no delay.
const FREE: u32 = 1;

/// The longest delay.
const LONGEST_MS: u32 = 1000;

/// More of them make no difference: by then the delay is the longest.
const MOST: u32 = FREE + 11;

/// In [`Slot::workless`]: the delay is over, and the handler looks once more.
const LOOKED: u32 = 1 << 31;

const MS_NS: u64 = 1_000_000;

/// Returns how long the port of that many events without work, one behind the other, is left alone.
const fn delay_ms(workless: u32) -> u32 {
    if workless <= FREE {
        return 0;
    }
    let doubled = 1 << (workless - FREE - 1);
    if doubled < LONGEST_MS { doubled } else { LONGEST_MS }
}

impl Slot {
    /// Returns how long its delay still lasts; not more than 0 when it is over.
    fn left_ms(&self, now_ns: u64) -> i32 {
        // Modulo 2³²: seven weeks, of which a delay is never more than a second.
        self.due_ms.load(SeqCst).wrapping_sub((now_ns / MS_NS) as u32) as i32
    }
}

impl<P: Platform> EventChannels<P> {
    /// Takes the ports whose delay is over (see [`Events::put_off`](super::super::Events::put_off)), and calls `handle` for each as if an
    /// event had come: the port is masked until somebody calls [`unmask`](super::super::Events::unmask) or `put_off`. Returns how many
    /// there were.
    ///
    /// To be called when [`next_delayed_ns`](Self::next_delayed_ns) says, or now and then: no upcall tells.
    pub fn dispatch_delayed(&self, mut handle: impl FnMut(Event)) -> usize {
        if !self.any_delayed() {
            return 0;
        }
        let now = self.platform().now_ns();
        let mut served = 0;
        for port in self.delayed() {
            let (word, bit) = place(port);
            if let Some(slot) = self.slot(port).filter(|slot| slot.left_ms(now) <= 0)
                // Not if it was closed or found work meanwhile.
                && self.0.delayed[word].fetch_and(!bit, SeqCst) & bit != 0
            {
                slot.workless.fetch_or(LOOKED, SeqCst);
                served += 1;
                // Read after it was taken, for the reason that `dispatch` has.
                handle(Event { port, generation: slot.generation.load(SeqCst) });
            }
        }
        served
    }

    /// Returns when [`dispatch_delayed`](Self::dispatch_delayed) has something to do, as the platform's clock goes; `None` if no port is
    /// left alone.
    pub fn next_delayed_ns(&self) -> Option<u64> {
        if !self.any_delayed() {
            return None;
        }
        let now = self.platform().now_ns();
        let left = self.delayed().filter_map(|port| Some(self.slot(port)?.left_ms(now).max(0) as u64)).min()?;
        // The millisecond in which it is over.
        Some((now / MS_NS + left) * MS_NS)
    }

    fn any_delayed(&self) -> bool {
        self.0.delayed.iter().any(|word| word.load(SeqCst) != 0)
    }

    fn delayed(&self) -> impl Iterator<Item = Port> {
        (0..WORD)
            .flat_map(|word| bits(self.0.delayed[word as usize].load(SeqCst)).map(move |bit| Port(word * WORD + bit)))
    }

    /// See [`Events::put_off`](super::super::Events::put_off).
    pub(super) fn delay(&self, port: Port) {
        let Some(slot) = self.slot(port) else { return };
        let (word, bit) = place(port);
        // Whoever looks without having been sent for, finds nothing without having been misled.
        if !self.is_masked(port) || self.0.delayed[word].load(SeqCst) & bit != 0 {
            return;
        }
        let workless = slot.workless.load(SeqCst);
        if workless & LOOKED != 0 {
            slot.workless.store(workless & !LOOKED, SeqCst);
            return self.clear_mask(port);
        }
        let workless = MOST.min(workless + 1);
        slot.workless.store(workless, SeqCst);
        let delay = delay_ms(workless);
        if delay == 0 {
            return self.clear_mask(port);
        }
        let now = (self.platform().now_ns() / MS_NS) as u32;
        slot.due_ms.store(now.wrapping_add(delay), SeqCst);
        self.0.delayed[word].fetch_or(bit, SeqCst);
    }

    /// The port has found work, or is another's from now on.
    #[inline]
    pub(super) fn forget_workless(&self, port: Port, slot: &Slot) {
        // It is the handler's own word, but for a mark that no harm comes of.
        if slot.workless.load(Relaxed) != 0 {
            self.forget_delay(port, slot);
        }
    }

    #[cold]
    fn forget_delay(&self, port: Port, slot: &Slot) {
        let (word, bit) = place(port);
        self.0.delayed[word].fetch_and(!bit, SeqCst);
        slot.workless.store(0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_second() {
        let delays: alloc::vec::Vec<u32> = (1..=MOST).map(delay_ms).collect();
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]);
    }
}
