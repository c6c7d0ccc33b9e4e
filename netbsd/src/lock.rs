//! A value behind a mutex of the kernel.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::upcalls::{xenpv_mutex_enter, xenpv_mutex_exit};

/// A value that only the holder of a `kmutex_t` of the glue looks at.
pub(crate) struct Locked<T> {
    mutex: *mut c_void,
    /// Somebody is inside: what whoever runs after a panic, and can't wait, has to know.
    held: AtomicBool,
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
        Self { mutex, held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Enters the mutex.
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        // SAFETY: as `new` demands.
        unsafe { xenpv_mutex_enter(self.mutex) };
        self.held.store(true, Relaxed);
        Guard(self)
    }

    /// Returns the value without entering the mutex, unless somebody is inside.
    ///
    /// # Safety
    /// The kernel has panicked: no other CPU runs, and no interrupt comes.
    #[allow(clippy::mut_from_ref, reason = "what makes it exclusive is that nothing else runs")]
    pub(crate) unsafe fn alone(&self) -> Option<&mut T> {
        if self.held.load(Relaxed) {
            return None;
        }
        // SAFETY: nobody is inside, and nobody else runs.
        Some(unsafe { &mut *self.value.get() })
    }
}

/// Whoever is inside.
pub(crate) struct Guard<'a, T>(&'a Locked<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mutex is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the mutex is held.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.held.store(false, Relaxed);
        // SAFETY: entered by `lock`.
        unsafe { xenpv_mutex_exit(self.0.mutex) };
    }
}
