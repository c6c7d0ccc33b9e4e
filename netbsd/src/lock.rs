//! A value behind a mutex of the kernel.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::SeqCst;

use crate::upcalls::{xenpv_delay_us, xenpv_mutex_enter, xenpv_mutex_exit};

/// A value that only the holder of a `kmutex_t` of the glue looks at; and, once the kernel dumps, whoever dumps.
pub(crate) struct Locked<T> {
    mutex: *mut c_void,
    /// Somebody is inside.
    held: AtomicBool,
    /// The value belongs to a dump, for ever.
    seized: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the mutex lets one in at a time.
unsafe impl<T: Send> Sync for Locked<T> {}
// SAFETY: the mutex is the kernel's, and may be entered by any thread.
unsafe impl<T: Send> Send for Locked<T> {}

impl<T> Locked<T> {
    /// Makes one.
    ///
    /// # Safety
    /// `mutex` is an initialised `kmutex_t` that lives longer than this.
    pub(crate) unsafe fn new(mutex: *mut c_void, value: T) -> Self {
        Self { mutex, held: AtomicBool::new(false), seized: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Enters the mutex; `None` once the kernel dumps.
    pub(crate) fn lock(&self) -> Option<Guard<'_, T>> {
        // SAFETY: as `new` demands.
        unsafe { xenpv_mutex_enter(self.mutex) };
        // First this, then the look, against `keep_out` and `seize`, which do the same the other way round: one of the two sees the other.
        self.held.store(true, SeqCst);
        let guard = Guard(self);
        if self.seized.load(SeqCst) { None } else { Some(guard) }
    }

    /// Enters the mutex, and does not come back once the kernel dumps.
    pub(crate) fn lock_or_stop(&self) -> Guard<'_, T> {
        loop {
            if let Some(guard) = self.lock() {
                return guard;
            }
            // SAFETY: needs nothing.
            unsafe { xenpv_delay_us(1000) };
        }
    }

    /// Keeps everybody out from now on who is not inside: other processors may still run.
    pub(crate) fn keep_out(&self) {
        self.seized.store(true, SeqCst);
    }

    /// Takes the value for a dump, without the mutex, after [`keep_out`](Self::keep_out). `None` if somebody is inside.
    ///
    /// # Safety
    /// One caller only, which is not inside, and has no other reference from here.
    #[allow(clippy::mut_from_ref, reason = "what makes it exclusive is that nobody else is let in")]
    pub(crate) unsafe fn seize(&self) -> Option<&mut T> {
        if !self.seized.load(SeqCst) || self.held.load(SeqCst) {
            return None;
        }
        // SAFETY: nobody is inside, and nobody comes in.
        Some(unsafe { &mut *self.value.get() })
    }
}

/// Whoever is inside.
pub(crate) struct Guard<'a, T>(&'a Locked<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mutex is held, and nobody dumps.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the mutex is held, and nobody dumps.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.held.store(false, SeqCst);
        // SAFETY: entered by `lock`.
        unsafe { xenpv_mutex_exit(self.0.mutex) };
    }
}
