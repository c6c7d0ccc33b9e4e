//! The back end: an interface that we serve, from its directory in xenstore to its removal.
//!
//! ```text
//!    ours                 theirs
//!    Initialising         any                     tell what we take                                 → InitWait
//!    InitWait             Initialised, Connected  when the interface is up: map the rings, bind     → Connected
//!    InitWait, Connected  Closing                 go on serving                                     → Closing
//!    any                  Closed, gone            let go of the rings                               → Closed
//!    Connected, Closing   Initialising            they have begun anew, or never began: the same    → Closed
//!    Closed               Initialising            they are back, and the toolstack keeps us         → InitWait
//! ```
//!
//! The toolstack may want the device to go at any time ([`Wish`]): then it goes to Closing, as if the front end had asked; once it is
//! Closed, and not kept for the front end to come back, its directory is removed. A toolstack that has lost its patience removes the
//! directory itself: everything is let go of, and nothing written any more.

mod copier;
pub mod interface;
mod queue;
mod rx;
mod tx;

pub use interface::Interface;
pub use queue::Counters;
pub use rx::SendError;
pub use xenbus::error::BackError;

use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State, Wish};
use xenbus::ring::RingError;
use xenbus::{Domain, Rate};

use crate::features::{self, Mac};
use queue::Queue;

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

/// An interface that we serve to one other domain. `I` is the OS's side of it.
pub struct Back<D: Domain, I: Interface> {
    domain: D,
    device: Device<D::Store>,
    interface: I,
    queue: Option<Queue<D, I>>,
    reports: Rate,
}

impl<D: Domain, I: Interface> Back<D, I> {
    /// Takes the device whose directory is `path`, as in "backend/vif/1/0", and connects it to `interface`.
    /// [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`BackError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str, interface: I) -> Result<Self, BackError> {
        let device = Device::back(domain.store(), path)?;
        Ok(Self { domain: domain.clone(), device, interface, queue: None, reports: Rate::default() })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns the OS's side.
    pub const fn interface(&self) -> &I {
        &self.interface
    }

    /// Returns the OS's side.
    pub const fn interface_mut(&mut self) -> &mut I {
        &mut self.interface
    }

    /// Gives the OS's side back. The other end's memory is let go of.
    pub fn into_interface(mut self) -> I {
        self.stop();
        self.interface
    }

    /// Returns the address of the front end's interface, if the toolstack has given one.
    ///
    /// # Errors
    /// [`BackError`] if the store refuses, or it is no address.
    pub fn mac(&self) -> Result<Option<Mac>, BackError> {
        Ok(features::mac(&self.device)?)
    }

    /// Returns the port whose events [`poll`](Self::poll) answers, while the other end is connected.
    pub fn port(&self) -> Option<Port> {
        self.queue.as_ref().map(Queue::port)
    }

    /// Returns what the queue has done so far, while the other end is connected.
    pub fn counters(&self) -> Option<&Counters> {
        self.queue.as_ref().map(Queue::counters)
    }

    /// Takes the packets that the other end has sent, and sends what waits for its pages. Called on the event of
    /// [`port`](Self::port). Returns `true` if there is more to do at once: one call takes no more than a ring's worth of slots.
    ///
    /// # Errors
    /// [`BackError::Ring`] if the other end breaks the protocol: the device is being closed.
    pub fn poll(&mut self) -> Result<bool, BackError> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let polled = queue.poll(&mut self.interface);
        self.judge(polled)
    }

    /// Puts a packet into the queue to the other end, which gets it by [`push`](Self::push) or [`poll`](Self::poll). It comes back
    /// by [`Interface::release`].
    ///
    /// # Errors
    /// [`SendError`] and the packet.
    pub fn send(&mut self, packet: I::Packet) -> Result<(), (SendError, I::Packet)> {
        match &mut self.queue {
            Some(queue) => queue.send(packet),
            None => Err((SendError::NotConnected, packet)),
        }
    }

    /// Sends what waits in the queue, as far as the other end has posted pages for it, and notifies it if it wants that.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn push(&mut self) -> Result<(), BackError> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let pushed = queue.push(&mut self.interface);
        self.judge(pushed)
    }

    /// Closes the device if the other end has broken a ring.
    fn judge<T>(&mut self, done: Result<T, RingError>) -> Result<T, BackError> {
        let done = done.map_err(BackError::from);
        if let Err(error) = &done {
            self.stop();
            self.fail(error);
        }
        done
    }

    /// Reports an error, and begins to close the device.
    fn fail(&mut self, error: &BackError) {
        let platform = self.domain.platform();
        if self.reports.allows(platform.now_ns()) {
            self.device.fault(format_args!("{error}"));
            platform.log(Level::Error, format_args!("xennetback {}: {error}", self.device.path()));
        }
        // Once only: we are told of our own writes, too. If the store fails, there is nobody left to tell.
        if !self.device.is_closing() {
            let _ = self.device.switch(State::Closing);
        }
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that something has moved, and when the interface is
    /// [up](Interface::is_up).
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

    fn advance(&mut self) -> Result<Change, BackError> {
        let wish = self.device.wish()?;
        if wish == Wish::Gone {
            self.let_go();
            return Ok(Change::Removed);
        }
        if wish != Wish::Stay && !self.device.is_closing() {
            self.device.switch(State::Closing)?;
        }
        match (self.device.state(), self.device.other_state()?) {
            (State::Unknown | State::Initialising, _) => self.offer(),
            (State::Closed, _) if wish == Wish::Leave => self.remove(),
            (State::Closed, State::Initialising) => self.offer(),
            (State::Closed, _) => Ok(Change::None),
            (State::InitWait, State::Initialised | State::Connected) if self.interface.is_up() => self.connect(),
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

    fn offer(&mut self) -> Result<Change, BackError> {
        features::offer(&self.device)?;
        self.device.switch(State::InitWait)?;
        Ok(Change::None)
    }

    fn connect(&mut self) -> Result<Change, BackError> {
        let peer = features::find_peer(&self.device)?;
        let queue = Queue::new(&self.domain, self.device.other_id(), peer)?;
        self.device.switch(State::Connected)?;
        self.queue = Some(queue);
        Ok(Change::Connected)
    }

    fn stop(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.stop(&mut self.interface);
        }
    }

    /// Lets go of the other end's memory; tells whether there was any.
    fn let_go(&mut self) -> bool {
        self.stop();
        self.queue.take().is_some()
    }

    fn disconnect(&mut self, wish: Wish) -> Result<Change, BackError> {
        let connected = self.let_go();
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
