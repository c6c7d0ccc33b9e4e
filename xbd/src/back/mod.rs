//! The back end: a disk that we serve, from its directory in xenstore to its removal.
//!
//! ```text
//!    ours          theirs
//!    Initialising  any                    tell what the disk is                              → InitWait
//!    InitWait      Initialised, Connected map the ring, bind the event channel               → Connected
//!    any           Closing                no new requests; when the store is idle            → Closing
//!    any           Closed, gone           when the store is idle, let go of the ring         → Closed
//!    Closing       …                      the toolstack wants it to go: it wrote our state
//!    Closed        Initialising           they are back, and the toolstack keeps us          → InitWait
//! ```

mod queue;
pub mod store;

pub use queue::{Counters, Queue};
pub use store::{Started, Store, StoreFault, Token, Work};

use core::fmt;

use hypercall::event::EventError;
use hypercall::mem::OutOfMemory;
use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State};
use xenbus::ring::{MapPagesError, RingError};
use xenbus::store::StoreError;
use xenbus::Domain;

use crate::features::{self, Disk, NegotiationError};

/// What a [`step`](Back::step) of the life cycle brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the owner has to know.
    None,
    /// The other end is there.
    Connected,
    /// The other end is gone, and nothing of it is held any more. It may come back.
    Disconnected,
    /// The device is over: its directory is removed, the owner drops it.
    Removed,
}

/// Why a disk can't be served, or is not served any longer. It concerns this device alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackError {
    /// The store refused, or a node is missing or wrong.
    Negotiation(NegotiationError),
    /// The ring can't be mapped.
    Map(MapPagesError),
    /// No address space or memory for the queue.
    OutOfMemory(OutOfMemory),
    /// The event channel can't be bound.
    Event(EventError),
    /// The other end broke the ring.
    Ring(RingError),
}

impl From<StoreError> for BackError {
    fn from(error: StoreError) -> Self {
        Self::Negotiation(error.into())
    }
}

impl From<NegotiationError> for BackError {
    fn from(error: NegotiationError) -> Self {
        Self::Negotiation(error)
    }
}

impl From<MapPagesError> for BackError {
    fn from(error: MapPagesError) -> Self {
        Self::Map(error)
    }
}

impl From<OutOfMemory> for BackError {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(error)
    }
}

impl From<EventError> for BackError {
    fn from(error: EventError) -> Self {
        Self::Event(error)
    }
}

impl From<RingError> for BackError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for BackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negotiation(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::OutOfMemory(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
            Self::Ring(error) => error.fmt(f),
        }
    }
}

/// A disk that we serve to one other domain. `S` is the real disk.
pub struct Back<D: Domain, S: Store> {
    domain: D,
    device: Device<D::Store>,
    store: S,
    queue: Option<Queue<D>>,
}

impl<D: Domain, S: Store> Back<D, S> {
    /// Takes the device whose directory is `path`, as in "backend/vbd/1/51712", and serves `store` there.
    /// [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`BackError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str, store: S) -> Result<Self, BackError> {
        let device = Device::back(domain.store(), path)?;
        Ok(Self { domain: domain.clone(), device, store, queue: None })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns the disk.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// Gives the disk back. The other end's memory is let go of.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Tells whether the store works on something, so that [`poll`](Self::poll) may have something to complete.
    pub fn store_busy(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.busy() > 0)
    }

    /// Tells whether [`step`](Self::step) has to go on although nobody else has moved.
    pub fn closing(&self) -> bool {
        self.device.state() == State::Closing && !self.store_busy()
    }

    /// Returns the port whose events [`poll`](Self::poll) answers, while the other end is connected.
    pub fn port(&self) -> Option<Port> {
        self.queue.as_ref().map(Queue::port)
    }

    /// Returns what the queue has done so far, while the other end is connected.
    pub fn counters(&self) -> Option<&Counters> {
        self.queue.as_ref().map(Queue::counters)
    }

    /// Serves the requests that are there, and completes what the store has finished. Called on the event of
    /// [`port`](Self::port), and when the store has completed something. Returns `true` if there is more to do at once: one call takes no
    /// more than a ring's worth of requests.
    ///
    /// # Errors
    /// [`BackError::Ring`] if the other end breaks the protocol: the device is being closed.
    pub fn poll(&mut self) -> Result<bool, BackError> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let polled = queue.poll(&mut self.store).map_err(BackError::from);
        if let Err(error) = &polled {
            report(&self.domain, &self.device, error);
            queue.stop();
            // The other end's own fault; if the store fails, too, there is nobody left to tell.
            let _ = self.device.switch(State::Closing);
        }
        polled
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that something has moved, and after
    /// [`poll`](Self::poll) while the device is closing.
    ///
    /// # Errors
    /// [`BackError`]; it was reported in the store, and the device is being closed.
    pub fn step(&mut self) -> Result<Change, BackError> {
        let done = self.advance();
        if let Err(error) = &done {
            report(&self.domain, &self.device, error);
            let _ = self.device.switch(State::Closing);
        }
        done
    }

    fn advance(&mut self) -> Result<Change, BackError> {
        // The toolstack asks for the end by writing our own state.
        if self.device.close_requested()? && !matches!(self.device.state(), State::Closing | State::Closed) {
            self.stop();
            self.device.switch(State::Closing)?;
        }
        match (self.device.state(), self.device.other_state()?) {
            (State::Unknown | State::Initialising, _) => self.offer(),
            (State::InitWait, State::Initialised | State::Connected) => self.connect(),
            (State::Closed, State::Initialising) if self.device.online()? => self.offer(),
            (State::Connected | State::InitWait, State::Closing) => {
                self.stop();
                self.device.switch(State::Closing)?;
                Ok(Change::None)
            }
            (_, State::Closed | State::Unknown) => self.disconnect(),
            _ => Ok(Change::None),
        }
    }

    /// Tells the other end that the store has another size.
    ///
    /// # Errors
    /// [`BackError`] if xenstore refuses.
    pub fn resized(&mut self) -> Result<(), BackError> {
        let disk = self.describe()?;
        features::offer_disk(&self.device, &disk)?;
        if let Some(queue) = &mut self.queue {
            queue.learn(disk);
            // Said again on purpose: that is how the other end learns to look.
            self.device.switch(State::Connected)?;
        }
        Ok(())
    }

    fn describe(&self) -> Result<Disk, BackError> {
        let read_only = self.store.read_only() || !features::may_write(&self.device)?;
        let sector_size = self.store.sector_size();
        Ok(Disk {
            sectors: self.store.sectors(),
            sector_size,
            physical_sector_size: sector_size,
            read_only,
            cdrom: false,
            removable: false,
            flush: true,
        })
    }

    fn offer(&mut self) -> Result<Change, BackError> {
        features::offer_disk(&self.device, &self.describe()?)?;
        self.device.switch(State::InitWait)?;
        Ok(Change::None)
    }

    fn connect(&mut self) -> Result<Change, BackError> {
        let ring = features::find_ring(&self.device)?;
        let disk = self.describe()?;
        self.queue = Some(Queue::new(&self.domain, self.device.other_id(), ring, disk)?);
        self.device.switch(State::Connected)?;
        Ok(Change::Connected)
    }

    fn stop(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.stop();
        }
    }

    /// Lets go of the other end's memory, as soon as the store is done with it.
    fn disconnect(&mut self) -> Result<Change, BackError> {
        if let Some(queue) = &mut self.queue {
            queue.stop();
            queue.complete(&mut self.store);
            if queue.busy() > 0 {
                return Ok(Change::None);
            }
        }
        let connected = self.queue.take().is_some();
        if self.device.state() != State::Closed {
            self.device.switch(State::Closed)?;
        } else if !connected && self.device.online()? {
            return Ok(Change::None);
        }
        if !self.device.online()? {
            self.device.remove()?;
            return Ok(Change::Removed);
        }
        Ok(if connected { Change::Disconnected } else { Change::None })
    }
}

fn report<D: Domain>(domain: &D, device: &Device<D::Store>, error: &BackError) {
    device.fault(format_args!("{error}"));
    domain.platform().log(Level::Error, format_args!("xbdback {}: {error}", device.path()));
}
