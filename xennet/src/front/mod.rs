//! The front end: an interface that another domain connects to its network, from its discovery in xenstore to its removal.
//!
//! ```text
//!    ours            theirs
//!    Initialising    InitWait       make the rings, post pages, tell where they are        → Initialised
//!    Initialised     Connected      learn what the interface is: packets may flow          → Connected
//!    Connected       Closing        they want to go: the owner closes when it can spare us
//!    Closing         any            nothing is waited for: a network may lose packets      → Closed
//!    Closed          Closed         the rings are taken back, what is in flight is lost
//!    any             Closed, gone   they are gone: the same                                → Closed
//!    Connected …     Initialising,  they are gone, and back so fast that it was not seen:
//!                    InitWait       the same                                               → Closed
//! ```
//!
//! A device that is closed stays so. Its owner makes a new [`Front`] of the same directory to use the interface again, now or when
//! the back end comes back.

mod queue;
mod rx;
mod tx;

pub use queue::{Counters, Queue, QueueError};
pub use rx::Received;
pub use tx::{Completion, Returned, SendError, SubmitError};
pub use xenbus::error::FrontError;

use core::fmt;
use core::marker::PhantomData;

use hypercall::mem::Buffer;
use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State};
use xenbus::{Domain, Place, Rate};

use crate::features::{self, Link};

/// What a [`step`](Front::step) of the life cycle brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the owner has to know.
    None,
    /// The interface is there: [`Front::queue`] takes packets.
    Connected(Link),
    /// The back end wants to go: the owner stops using the interface and calls [`Front::close`].
    CloseWanted,
    /// The interface is gone, and nothing of it is held any more: the owner drops it.
    Closed,
}

/// An interface that another domain connects to its network. `B` is what packets are sent from; it comes back with its
/// completion.
///
/// This is the part that waits for xenstore. The queue, which interrupt handlers use, stands in a [`Place`] beside it: in here, unless
/// the owner brings one of its own, such as one behind a lock of its kernel.
///
/// To be dropped after [`Change::Closed`]. Before, the back end may still have slots that name our grants, and these would soon
/// stand for other pages that it may use. What is in flight then is dropped, or leaked if the back end has it mapped.
pub struct Front<D: Domain, B: Buffer, Q: Place<Queue<D, B>> = Option<Queue<D, B>>> {
    domain: D,
    device: Device<D::Store>,
    queue: Q,
    link: Option<Link>,
    reports: Rate,
    buffers: PhantomData<B>,
}

impl<D: Domain, B: Buffer> Front<D, B> {
    /// Takes the device whose directory is `path`, as in "device/vif/0". [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`FrontError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str) -> Result<Self, FrontError> {
        Self::with_place(domain, path, None)
    }

    /// Returns the queue, from the moment that the rings exist.
    pub const fn queue(&mut self) -> Option<&mut Queue<D, B>> {
        self.queue.as_mut()
    }

    /// Returns the port whose events [`Queue::poll`] answers.
    pub fn port(&self) -> Option<Port> {
        self.queue.as_ref().map(Queue::port)
    }
}

impl<D: Domain, B: Buffer, Q: Place<Queue<D, B>>> Front<D, B, Q> {
    /// Takes the device whose directory is `path`; its queue will stand in `queue`, which is empty. [`step`](Self::step) does the
    /// rest.
    ///
    /// # Errors
    /// [`FrontError`] if its nodes are not there or wrong.
    pub fn with_place(domain: &D, path: &str, queue: Q) -> Result<Self, FrontError> {
        let mut device = Device::front(domain.store(), path)?;
        device.switch(State::Initialising)?;
        let domain = domain.clone();
        Ok(Self { domain, device, queue, link: None, reports: Rate::default(), buffers: PhantomData })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns what the interface is, once it is connected.
    pub const fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that the other end has moved, and after
    /// [`close`](Self::close). `lost` gets what was in flight when the other end vanished.
    ///
    /// # Errors
    /// [`FrontError`]; it was reported in the store, and the device is being closed.
    pub fn step(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let done = self.advance(lost);
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    /// Reports what the device has died of in the log and in the store, and closes it: an error of [`step`](Self::step), or one that
    /// the owner got from [`Queue::poll`].
    pub fn fail(&mut self, error: &impl fmt::Display) {
        let platform = self.domain.platform();
        if self.reports.allows(platform.now_ns()) {
            self.device.fault(format_args!("{error}"));
            platform.log(Level::Error, format_args!("xennet {}: {error}", self.device.path()));
        }
        // The store itself may be what is broken; there is nobody left to tell.
        let _ = self.close();
    }

    fn advance(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let theirs = self.device.other_state()?;
        match (self.device.state(), theirs) {
            (State::Initialising, State::InitWait) if !self.has_queue() => self.connect(),
            (State::Initialised, State::Connected) => self.start(),
            (State::Connected, State::Closing) => Ok(Change::CloseWanted),
            (State::Initialised | State::Connected | State::Closing, State::Closed | State::Unknown) => self.end(lost),
            (State::Closed, State::Closed | State::Unknown) if self.has_queue() => self.end(lost),
            // Before it was connected, that is what it says until it has seen us.
            (State::Connected | State::Closing | State::Closed, State::Initialising | State::InitWait)
                if self.link.is_some() =>
            {
                self.end(lost)
            }
            // It was never connected. It has closed and is ready for the next, so fast that it was not seen, or has not seen us at all:
            // it has no ring of ours either way, or is about to let go of it.
            (State::Closed, State::Initialising | State::InitWait) if self.has_queue() => self.end(lost),
            (State::Initialising | State::Initialised, State::Closing) => {
                self.close()?;
                self.finish()
            }
            (State::Closing, _) => self.finish(),
            _ => Ok(Change::None),
        }
    }

    /// Begins anew in a domain that has come back from a suspend: with the back end that the toolstack has made there, which is another.
    /// The owner has no queue until the interface is [`Connected`](Change::Connected) again. `lost` gets what was in flight: a network
    /// may lose packets. What has been received and not polled is lost, too. A device that is being closed is closed now.
    ///
    /// Called after event channels, grants and store were resumed. Not for a suspend that was cancelled: nothing has changed there.
    ///
    /// # Errors
    /// [`FrontError`] if the device isn't there any more; it was reported in the store, and the device is being closed.
    pub fn resume(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let done = self.come_back(lost);
        if let Err(error) = &done {
            self.fail(error);
        }
        done
    }

    fn come_back(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        if self.device.is_closing() {
            return self.end(lost);
        }
        self.device.resume()?;
        self.drop_queue(lost);
        self.device.switch(State::Initialising)?;
        Ok(Change::None)
    }

    /// Wants the device to end: no new packets. It ends in [`step`](Self::step), which doesn't wait for what is in flight; the owner
    /// may do so before.
    ///
    /// # Errors
    /// [`FrontError`] if the store refuses; there are no new packets nevertheless.
    pub fn close(&mut self) -> Result<(), FrontError> {
        self.queue.with(|queue| queue.as_mut().map(Queue::stop));
        if !self.device.is_closing() {
            self.device.leave(State::Closing)?;
        }
        Ok(())
    }

    fn has_queue(&mut self) -> bool {
        self.queue.with(|queue| queue.is_some())
    }

    fn connect(&mut self) -> Result<Change, FrontError> {
        let queue = Queue::new(&self.domain, self.device.other_id())?;
        features::offer_rings(&self.device, queue.rings())?;
        self.queue.with(|place| *place = Some(queue));
        self.device.switch(State::Initialised)?;
        Ok(Change::None)
    }

    fn start(&mut self) -> Result<Change, FrontError> {
        let link = features::find_link(&self.device)?;
        self.device.switch(State::Connected)?;
        self.link = Some(link);
        self.queue.with(|queue| queue.as_mut().map(|queue| queue.start(link)));
        Ok(Change::Connected(link))
    }

    /// Closing → Closed.
    fn finish(&mut self) -> Result<Change, FrontError> {
        self.device.leave(State::Closed)?;
        // The other end maps the rings until it is closed, too.
        Ok(if self.has_queue() { Change::None } else { Change::Closed })
    }

    /// Takes the rings back.
    fn drop_queue(&mut self, lost: impl FnMut(Completion<B>)) {
        // Out of its place first: ending a port and freeing pages is slow, and nothing for under a lock.
        if let Some(mut queue) = self.queue.with(Option::take) {
            queue.give_up(lost);
        }
        self.link = None;
    }

    /// The other end uses nothing of ours any more.
    fn end(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        self.drop_queue(lost);
        if self.device.state() != State::Closed {
            // The toolstack removes directories, and ours need not be ours to make again. Nothing depends on it any more.
            let _ = self.device.leave(State::Closed);
        }
        Ok(Change::Closed)
    }
}
