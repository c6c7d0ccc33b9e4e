//! Numbers that are in use or not: those of I/Os, requests and pages.

use alloc::boxed::Box;

/// The numbers below some count that are not in use. The last one that was put back is taken first.
#[derive(Debug)]
pub(super) struct Numbers {
    stack: Box<[u16]>,
    free: usize,
}

impl Numbers {
    /// All numbers below `count` are free; the lowest is taken first.
    pub(super) fn new(count: u16) -> Self {
        Self { stack: (0..count).rev().collect(), free: usize::from(count) }
    }

    /// Takes a free one.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        let top = self.free.checked_sub(1)?;
        let number = *self.stack.get(top)?;
        self.free = top;
        Some(number)
    }

    /// Puts one back that was taken.
    #[inline]
    pub(super) fn put(&mut self, number: u16) {
        // There is room: there are no more than were taken.
        if let Some(place) = self.stack.get_mut(self.free) {
            *place = number;
            self.free += 1;
        }
    }
}
