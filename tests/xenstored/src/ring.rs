//! The daemon's end of a domain's ring page.

use alloc::vec::Vec;
use core::fmt;

use hypercall::mem::Shared;
use xen_sys::io::xs_wire::XENSTORE_RING_SIZE;
use xenbus::ring::bytes::ByteRings;
use xenbus::ring::{Notify, RingError};

use crate::{BadFrame, ConnId, Daemon};

/// Why a domain is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The indices of its ring lie.
    Ring(RingError),
    /// It broke the framing.
    Frame(BadFrame),
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Frame(error) => error.fmt(f),
        }
    }
}

impl From<RingError> for Dropped {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl From<BadFrame> for Dropped {
    fn from(error: BadFrame) -> Self {
        Self::Frame(error)
    }
}

/// A client that speaks through a page.
#[derive(Debug)]
pub struct RingClient<'a> {
    client: ConnId,
    rings: ByteRings<'a>,
    /// Bytes from the ring that the daemon doesn't take yet, because the domain doesn't read its replies.
    held: Vec<u8>,
}

impl<'a> RingClient<'a> {
    /// Serves `client` through `page`.
    ///
    /// # Panics
    /// If `page` is smaller than the interface (io/xs_wire.h, struct xenstore_domain_interface), or not aligned to words.
    pub fn new(client: ConnId, page: Shared<'a>) -> Self {
        Self { client, rings: ByteRings::xenstore_back(page), held: Vec::new() }
    }

    /// Returns the client.
    pub fn client(&self) -> ConnId {
        self.client
    }

    /// Moves bytes between the ring and the daemon until neither way goes on. To be called on the domain's event, and when
    /// [`Daemon::pending`] says that there is something for it.
    ///
    /// # Errors
    /// [`Dropped`] if the domain breaks the protocol; from then on each time.
    pub fn serve(&mut self, daemon: &mut Daemon) -> Result<Notify, Dropped> {
        let mut notify = Notify::No;
        loop {
            let moved = self.send(daemon)? + self.receive(daemon)?;
            if moved == 0 {
                return Ok(notify);
            }
            notify = Notify::Yes;
        }
    }

    fn send(&mut self, daemon: &mut Daemon) -> Result<usize, Dropped> {
        let mut total = 0;
        loop {
            let count = self.rings.tx.write(daemon.output(self.client))?;
            if count == 0 {
                return Ok(total);
            }
            daemon.consume(self.client, count);
            total += count;
        }
    }

    fn receive(&mut self, daemon: &mut Daemon) -> Result<usize, Dropped> {
        let mut read = 0;
        if self.held.is_empty() {
            let mut buffer = [0; XENSTORE_RING_SIZE];
            read = self.rings.rx.read(&mut buffer)?;
            self.held.extend_from_slice(buffer.get(..read).unwrap_or_default());
        }
        let taken = daemon.input(self.client, &self.held)?;
        self.held.drain(..taken);
        Ok(read + taken)
    }
}
