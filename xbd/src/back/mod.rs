//! The back end: a disk that we serve, from its directory in xenstore to its removal.
//!
//! ```text
//!    ours                 theirs
//!    Initialising         any                     tell what the disk is                             → InitWait
//!    InitWait             Initialised, Connected  map the ring, bind the event channel              → Connected
//!    InitWait, Connected  Closing                 go on serving: they wait for what is in flight    → Closing
//!    any                  Closed, gone            when the store is idle, let go of the ring        → Closed
//!    Connected, Closing   Initialising            they have begun anew, or never began: the same    → Closed
//!    Closed               Initialising            they are back, and the toolstack keeps us         → InitWait
//! ```
//!
//! The toolstack may want the device to go at any time ([`Wish`]): then it goes to Closing, as if the front end had asked; once it is
//! Closed, and not kept for the front end to come back, its directory is removed. A toolstack that has lost its patience removes the
//! directory itself: everything is let go of, and nothing written any more.

mod queue;
pub mod store;

pub use queue::{Counters, Queue};
pub use store::{Parts, Started, Store, StoreFault, Token, Work};
pub use xenbus::error::BackError;

use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State, Wish};
use xenbus::error::NegotiationError;
use xenbus::{Domain, Rate};

use crate::features::{self, Abi, Abilities, Disk, Offer};

/// What a [`step`](Back::step) of the life cycle brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the owner has to know.
    None,
    /// The other end is there. The owner calls [`Back::poll`] once: the first event may have come before it knew the port.
    Connected,
    /// The other end is gone, and nothing of it is held any more. It may come back.
    Disconnected,
    /// The device is over: its directory is removed, nothing of the other end is held any more, the owner drops it.
    Removed,
}

/// A disk that we serve to one other domain. `S` is the real disk.
///
/// To be dropped, or taken apart by [`into_store`](Self::into_store), when the store is idle. While the store works on something, the
/// other end's memory that it works on stays mapped, for ever.
pub struct Back<D: Domain, S: Store> {
    domain: D,
    device: Device<D::Store>,
    store: S,
    queue: Option<Queue<D>>,
    /// The other end is gone, but the store still works for it.
    waiting: bool,
    reports: Rate,
}

impl<D: Domain, S: Store> Back<D, S> {
    /// Takes the device whose directory is `path`, as in "backend/vbd/1/51712", and serves `store` there.
    /// [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`BackError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str, store: S) -> Result<Self, BackError> {
        let device = Device::back(domain.store(), path)?;
        Ok(Self { domain: domain.clone(), device, store, queue: None, waiting: false, reports: Rate::default() })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns the disk.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// Gives the disk back.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Tells whether the store works on something, so that [`poll`](Self::poll) may have something to complete.
    pub fn store_busy(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.busy() > 0)
    }

    /// Tells whether the other end is gone and only the store kept [`step`](Self::step) from letting go of it, which is idle now: to be
    /// called once more, although nobody else has moved.
    pub fn closing(&self) -> bool {
        self.waiting && !self.store_busy()
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
            queue.stop();
            self.fail(error);
        }
        polled
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that something has moved, and when
    /// [`closing`](Self::closing) says so after [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`BackError`]; it was reported in the store, and the device is being closed.
    pub fn step(&mut self) -> Result<Change, BackError> {
        let done = self.advance();
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    /// Reports an error, and begins to close the device.
    fn fail(&mut self, error: &BackError) {
        let platform = self.domain.platform();
        if self.reports.allows(platform.now_ns()) {
            self.device.fault(format_args!("{error}"));
            platform.log(Level::Error, format_args!("xbdback {}: {error}", self.device.path()));
        }
        // Once only: we are told of our own writes, too. If the store fails, there is nobody left to tell.
        if !self.device.is_closing() {
            let _ = self.device.switch(State::Closing);
        }
    }

    fn advance(&mut self) -> Result<Change, BackError> {
        let wish = self.device.wish()?;
        if wish == Wish::Gone {
            return Ok(if self.let_go() { Change::Removed } else { Change::None });
        }
        if wish != Wish::Stay && !self.device.is_closing() {
            self.device.switch(State::Closing)?;
        }
        if self.waiting {
            // Its ring is out of use, whatever it says now.
            return self.disconnect(wish);
        }
        match (self.device.state(), self.device.other_state()?) {
            (State::Unknown | State::Initialising, _) => self.offer(),
            (State::Closed, _) if wish == Wish::Leave => self.remove(),
            (State::Closed, State::Initialising) => self.offer(),
            (State::Closed, _) => Ok(Change::None),
            (State::InitWait, State::Initialised | State::Connected) => self.connect(),
            (State::InitWait | State::Connected, State::Closing) => {
                self.device.switch(State::Closing)?;
                Ok(Change::None)
            }
            (_, State::Closed | State::Unknown) | (State::Connected | State::Closing, State::Initialising) => {
                self.disconnect(wish)
            }
            _ => Ok(Change::None),
        }
    }

    /// Tells the other end that the store has another size.
    ///
    /// # Errors
    /// [`BackError`] if xenstore refuses.
    pub fn resized(&mut self) -> Result<(), BackError> {
        let disk = self.describe()?;
        features::offer_disk(&self.device, &disk, Abilities::default())?;
        if let Some(queue) = &mut self.queue {
            queue.learn(disk);
        }
        if self.device.state() == State::Connected {
            // Said again on purpose: that is how the other end learns to look.
            self.device.switch(State::Connected)?;
        }
        Ok(())
    }

    fn describe(&self) -> Result<Disk, BackError> {
        let read_only = self.store.read_only() || !features::find_wishes(&self.device)?.write;
        let sector_size = self.store.sector_size();
        Ok(Disk {
            sectors: self.store.sectors(),
            sector_size,
            physical_sector_size: sector_size,
            read_only,
            cdrom: false,
            removable: false,
            flush: true,
            barrier: false,
            discard: None,
        })
    }

    fn offer(&mut self) -> Result<Change, BackError> {
        features::offer_disk(&self.device, &self.describe()?, Abilities::default())?;
        self.device.switch(State::InitWait)?;
        Ok(Change::None)
    }

    fn connect(&mut self) -> Result<Change, BackError> {
        let rings = features::find_rings(&self.device, Offer::default())?;
        if rings.abi != Abi::NATIVE {
            return Err(NegotiationError::bad("protocol", rings.abi).into());
        }
        let Some(ring) = rings.queues.first() else { return Ok(Change::None) };
        let disk = self.describe()?;
        let queue = Queue::new(&self.domain, self.device.other_id(), ring, disk)?;
        self.device.switch(State::Connected)?;
        self.queue = Some(queue);
        Ok(Change::Connected)
    }

    /// Lets go of the other end's memory; `false` as long as the store works on some of it.
    fn let_go(&mut self) -> bool {
        if let Some(queue) = &mut self.queue {
            queue.stop();
            queue.complete(&mut self.store);
            self.waiting = queue.busy() > 0;
            if self.waiting {
                return false;
            }
        }
        self.queue = None;
        true
    }

    fn disconnect(&mut self, wish: Wish) -> Result<Change, BackError> {
        let connected = self.queue.is_some();
        if !self.let_go() {
            return Ok(Change::None);
        }
        self.device.switch(State::Closed)?;
        match wish {
            Wish::Leave => self.remove(),
            _ if connected => Ok(Change::Disconnected),
            _ => Ok(Change::None),
        }
    }

    fn remove(&self) -> Result<Change, BackError> {
        self.device.remove()?;
        Ok(Change::Removed)
    }
}
