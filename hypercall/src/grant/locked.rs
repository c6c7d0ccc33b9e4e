//! A spin lock that an interrupt handler may want too.

use spin::Mutex;

use crate::platform::Platform;

/// A value behind a spin lock, which is only ever held [uninterrupted](Platform::uninterrupted). There is no other way in than
/// [`with`](Self::with), and no guard that could outlive it, so no place can forget.
pub(super) struct Locked<T>(Mutex<T>);

impl<T> Locked<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Lets `work` look at the value and change it. It makes no call that takes the lock again.
    pub(super) fn with<P: Platform, R>(&self, platform: &P, work: impl FnOnce(&mut T) -> R) -> R {
        platform.uninterrupted(|| work(&mut self.0.lock()))
    }

    /// Returns the value, which nobody else can reach.
    pub(super) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}
