//! The other end of a guest's console: what a console daemon runs.

use hypercall::event::Channel;
use hypercall::{DomId, GrantRef, Port};
use xenbus::Domain;
use xenbus::ring::{Backing, MappedPages, OwnedByteRings, RingError};

use crate::ConsoleError;

/// The back end of one console.
pub struct Console<D: Domain, B: Backing = MappedPages<<D as Domain>::Platform>> {
    rings: OwnedByteRings<B>,
    channel: Channel<D::Events>,
}

impl<D: Domain> Console<D> {
    /// Attaches to the console that `guest` has granted. Both numbers stand in xenstore: for a guest's first console the toolstack
    /// writes them as `console/ring-ref` and `console/port`, for others the guest writes them into its device's directory.
    ///
    /// # Errors
    /// [`ConsoleError`] if the page can't be mapped or the port not be bound.
    pub fn attach(domain: &D, guest: DomId, gref: GrantRef, port: Port) -> Result<Self, ConsoleError> {
        let page = MappedPages::new(domain.platform(), guest, &[gref])?;
        Ok(Self::new(page, Channel::bind(domain.events(), guest, port)?))
    }
}

impl<D: Domain, B: Backing> Console<D, B> {
    /// Takes a console whose page is mapped already.
    ///
    /// # Panics
    /// If `page` is less than a page.
    pub fn new(page: B, channel: Channel<D::Events>) -> Self {
        Self { rings: OwnedByteRings::console_back(page), channel }
    }

    /// Returns the port whose event says that the guest has written, or has read.
    pub const fn port(&self) -> Port {
        self.channel.port()
    }

    /// Gives the guest what was typed, as much as there is room for, and returns how much that was.
    ///
    /// # Errors
    /// [`RingError`] if the guest lies; from then on each time.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let count = self.rings.write(bytes)?;
        self.tell(count);
        Ok(count)
    }

    /// Takes what the guest has written, and returns how much that was.
    ///
    /// # Errors
    /// [`RingError`] if the guest lies; from then on each time.
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, RingError> {
        let count = self.rings.read(to)?;
        self.tell(count);
        Ok(count)
    }

    /// Says that the event was handled: the next one is dispatched again.
    pub fn unmask(&self) {
        self.channel.unmask();
    }

    fn tell(&self, count: usize) {
        if count > 0 {
            self.channel.notify();
        }
    }
}
