//! The guest's end of a console.

mod hypervisor;
mod panic;

pub use hypervisor::HypervisorConsole;
pub use panic::panic_write;

use hypercall::Port;
use hypercall::event::{Channel, Events};
use xenbus::ring::{Backing, OwnedByteRings, RingError};

/// What a console has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes written.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
    /// Events sent to the other end.
    pub notifications: u64,
}

/// A console whose other end is a back end. The first one of a guest stands in the page and on the port that start_info names
/// (`console.domU.mfn`, `console.domU.evtchn`).
pub struct Console<E: Events, B: Backing> {
    rings: OwnedByteRings<B>,
    channel: Channel<E>,
    counters: Counters,
}

impl<E: Events, B: Backing> Console<E, B> {
    /// Takes a console. What a loader before us has left in its rings is read and written first.
    ///
    /// # Panics
    /// If `page` is less than a page.
    pub fn new(page: B, channel: Channel<E>) -> Self {
        Self { rings: OwnedByteRings::console_front(page), channel, counters: Counters::default() }
    }

    /// Returns the port whose event says that there is input, or room for output.
    pub const fn port(&self) -> Port {
        self.channel.port()
    }

    /// Returns what the console has done so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Writes what there is room for, and returns how much that was. The rest stays with the caller until the next event.
    ///
    /// # Errors
    /// [`RingError`] if the other end lies; from then on each time.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let count = self.rings.write(bytes)?;
        self.counters.written += count as u64;
        self.tell(count);
        Ok(count)
    }

    /// Reads what there is, and returns how much that was.
    ///
    /// # Errors
    /// [`RingError`] if the other end lies; from then on each time.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, RingError> {
        let count = self.rings.read(to)?;
        self.counters.read += count as u64;
        self.tell(count);
        Ok(count)
    }

    /// Returns how many bytes may be written now.
    ///
    /// # Errors
    /// [`RingError`] if the other end lies.
    pub fn room(&mut self) -> Result<usize, RingError> {
        self.rings.room()
    }

    /// Goes on where somebody else has written and read meanwhile: after [`panic_write`], if there is an after, as when a debugger is
    /// left.
    pub fn resync(&mut self) {
        self.rings.resync();
    }

    /// Begins anew in a domain that has come back from a suspend: by the channel that `start_info` names now, in the same page. What was
    /// read or written and not taken is still there, unless the page was wiped, as that of an auto-translated domain is. The new back end
    /// is told to look.
    pub fn resume(&mut self, channel: Channel<E>) {
        self.channel = channel;
        self.rings.resync();
        self.counters.notifications += 1;
        self.channel.notify();
    }

    /// Says that the event was handled: the next one is dispatched again.
    pub fn unmask(&self) {
        self.channel.unmask();
    }

    fn tell(&mut self, count: usize) {
        if count > 0 {
            self.counters.notifications += 1;
            self.channel.notify();
        }
    }
}
