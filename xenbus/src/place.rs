//! Where the queue of a device stands.

/// A place for a queue, which comes and goes with its device.
///
/// The life cycle of a device waits for xenstore, and its queue is used by interrupt handlers meanwhile. A kernel keeps the queue
/// behind a lock that handlers may take, and the life cycle takes it for moments only, through this. Where nobody interrupts, an
/// [`Option`] is all that it needs.
pub trait Place<T> {
    /// Runs `work` on what stands here, while nobody else does. `work` waits for nothing.
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<T>) -> R) -> R;
}

impl<T> Place<T> for Option<T> {
    fn with<R>(&mut self, work: impl FnOnce(&mut Option<T>) -> R) -> R {
        work(self)
    }
}
