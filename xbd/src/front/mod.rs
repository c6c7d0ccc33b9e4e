//! The front end: a disk that another domain serves, from its discovery in xenstore to its removal.
//!
//! ```text
//!    ours            theirs
//!    Initialising    InitWait       make the ring, tell where it is                        → Initialised
//!    Initialised     Connected      learn what the disk is: I/O may begin                  → Connected
//!    Connected       Closing        they want to go: the owner closes when it can spare us
//!    Closing         any            when nothing is in flight                              → Closed
//!    Closed          Closed         the ring is taken back
//!    any             Closed, gone   they are gone: what is in flight is lost               → Closed
//!    Connected …     Initialising,  they are gone, and back so fast that it was not seen:
//!                    InitWait       the same                                               → Closed
//! ```
//!
//! A device that is closed stays so. Its owner makes a new [`Front`] of the same directory to use the disk again, now or when the
//! back end comes back.

mod queue;

pub use queue::{Completion, Counters, IoError, Queue, QueueError, Returned, SubmitError};
pub use xenbus::error::FrontError;

use core::fmt;
use core::marker::PhantomData;

use hypercall::mem::Buffer;
use hypercall::{Level, Platform, Port};
use xenbus::device::{Device, State};
use xenbus::error::NegotiationError;
use xenbus::{Domain, Place, Rate};

use crate::features::{self, Disk};

/// What a [`step`](Front::step) of the life cycle brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the owner has to know.
    None,
    /// The disk is there: [`Front::queue`] takes requests.
    Connected(Disk),
    /// The disk has another size now.
    Resized(Disk),
    /// The back end wants to go: the owner stops using the disk and calls [`Front::close`].
    CloseWanted,
    /// The disk is gone, and nothing of it is held any more: the owner drops it.
    Closed,
}

/// A disk that another domain serves. `B` is what I/O is done from and to; it comes back with its completion.
///
/// This is the part that waits for xenstore. The queue, which interrupt handlers use, stands in a [`Place`] beside it: in here, unless
/// the owner brings one of its own, such as one behind a lock of its kernel.
///
/// To be dropped after [`Change::Closed`]. Before, the back end may still have requests that name our grants, and these would soon
/// stand for other pages that it may use. What is in flight then is dropped, or leaked if the back end has it mapped.
pub struct Front<D: Domain, B: Buffer, Q: Place<Queue<D, B>> = Option<Queue<D, B>>> {
    domain: D,
    device: Device<D::Store>,
    queue: Q,
    disk: Option<Disk>,
    reports: Rate,
    patience_ns: u64,
    /// When the other end has had its time to let go of what is lost.
    out_of_patience: Option<u64>,
    buffers: PhantomData<B>,
}

impl<D: Domain, B: Buffer> Front<D, B> {
    /// Takes the device whose directory is `path`, as in "device/vbd/51712". [`step`](Self::step) does the rest.
    ///
    /// # Errors
    /// [`FrontError`] if its nodes are not there or wrong.
    pub fn new(domain: &D, path: &str) -> Result<Self, FrontError> {
        Self::with_place(domain, path, None)
    }

    /// Returns the queue, from the moment that the ring exists.
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
        Ok(Self {
            domain: domain.clone(),
            device,
            queue,
            disk: None,
            reports: Rate::default(),
            patience_ns: 0,
            out_of_patience: None,
            buffers: PhantomData,
        })
    }

    /// Returns its place in xenstore.
    pub const fn device(&self) -> &Device<D::Store> {
        &self.device
    }

    /// Returns what the disk is, once it is connected.
    pub const fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Gives an other end that is gone so many nanoseconds to let go of the pages of requests that are lost. A back end that is torn down
    /// by force needs moments. What it holds after that is given to `lost` as [`Returned::Held`]. Without this, no time at all.
    pub const fn set_patience_ns(&mut self, patience_ns: u64) {
        self.patience_ns = patience_ns;
    }

    /// Tells whether the other end has to let go of pages before the life cycle goes on: [`step`](Self::step) is called again soon,
    /// though nothing tells of it.
    pub const fn is_waiting(&self) -> bool {
        self.out_of_patience.is_some()
    }

    /// Goes on with the life cycle. Called when [`Device::changed`] says that the other end has moved, and after
    /// [`close`](Self::close) whenever I/O has completed. `lost` gets what is in flight when the other end vanishes or has broken
    /// the protocol.
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
            platform.log(Level::Error, format_args!("xbd {}: {error}", self.device.path()));
        }
        // The store itself may be what is broken; there is nobody left to tell.
        let _ = self.close();
    }

    fn advance(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        let theirs = self.device.other_state()?;
        match (self.device.state(), theirs) {
            (State::Initialising, State::InitWait) if !self.has_queue() => self.connect(),
            (State::Initialised, State::Connected) => {
                let disk = features::find_disk(&self.device)?;
                self.device.switch(State::Connected)?;
                self.learn(disk);
                Ok(Change::Connected(disk))
            }
            (State::Connected, State::Connected) => self.look_again(),
            (State::Connected, State::Closing) => Ok(Change::CloseWanted),
            (State::Initialised | State::Connected | State::Closing, State::Closed | State::Unknown) => self.end(lost),
            (State::Closed, State::Closed | State::Unknown) if self.has_queue() => self.end(lost),
            // Before it was connected, that is what it says until it has seen us.
            (State::Connected | State::Closing | State::Closed, State::Initialising | State::InitWait)
                if self.disk.is_some() =>
            {
                self.end(lost)
            }
            // It was never connected. It has closed and is ready for the next, so fast that it was not seen, or has not seen us at all:
            // it has no ring of ours either way, or is about to let go of it.
            (State::Closed, State::Initialising | State::InitWait) if self.has_queue() => self.end(lost),
            (State::Initialising | State::Initialised, State::Closing) => {
                self.close()?;
                self.finish(lost)
            }
            (State::Closing, _) => self.finish(lost),
            _ => Ok(Change::None),
        }
    }

    /// Ends the device whatever the other end says: for an owner that can't wait any longer for one that neither answers nor goes. Called
    /// again until it returns [`Change::Closed`], as pages that the other end maps get their time here, too. `lost` gets what is in
    /// flight.
    pub fn abandon(&mut self, lost: impl FnMut(Completion<B>)) -> Change {
        // The store need not hear of it.
        let _ = self.close();
        self.end(lost).unwrap_or(Change::Closed)
    }

    /// Wants the device to end: no new requests. It ends in a [`step`](Self::step), when nothing is in flight.
    ///
    /// # Errors
    /// [`FrontError`] if the store refuses; there are no new requests nevertheless.
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
        features::offer_rings(&self.device, &features::Rings::single(queue.ring_ref(), queue.port()))?;
        self.queue.with(|place| *place = Some(queue));
        self.device.switch(State::Initialised)?;
        Ok(Change::None)
    }

    fn learn(&mut self, disk: Disk) {
        self.disk = Some(disk);
        self.queue.with(|queue| queue.as_mut().map(|queue| queue.start(disk)));
    }

    /// A back end that is connected already says "Connected" again to tell a new size.
    fn look_again(&mut self) -> Result<Change, FrontError> {
        let disk = features::find_disk(&self.device)?;
        match self.disk {
            Some(known) if known == disk => return Ok(Change::None),
            // What is queued above was counted in the old unit, and would go elsewhere.
            Some(known) if known.sector_size != disk.sector_size => {
                return Err(NegotiationError::bad("sector-size", disk.sector_size).into());
            }
            _ => {}
        }
        self.learn(disk);
        Ok(Change::Resized(disk))
    }

    /// Closing → Closed, when nothing is in flight.
    fn finish(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        // Nothing that a broken queue's other end says is believed any more, so there is nothing to wait for.
        let broken = self.queue.with(|queue| queue.as_ref().is_some_and(Queue::is_broken));
        let idle = if broken { self.let_go(lost) } else { self.queue.with(|queue| !is_busy(queue)) };
        if !idle {
            return Ok(Change::None);
        }
        self.device.leave(State::Closed)?;
        // The other end maps the ring until it is closed, too.
        Ok(if self.has_queue() { Change::None } else { Change::Closed })
    }

    /// Completes all that is in flight as lost. Returns `false` if the other end still maps pages of it, and has time to let go of them.
    fn let_go(&mut self, mut lost: impl FnMut(Completion<B>)) -> bool {
        let left = self.queue.with(|queue| queue.as_mut().map_or(0, |queue| queue.give_up(&mut lost)));
        if left > 0 {
            let now = self.domain.platform().now_ns();
            if now < *self.out_of_patience.get_or_insert(now.saturating_add(self.patience_ns)) {
                return false;
            }
            self.queue.with(|queue| queue.as_mut().map(|queue| queue.abandon(lost)));
        }
        self.out_of_patience = None;
        true
    }

    /// The other end uses nothing of ours any more.
    fn end(&mut self, lost: impl FnMut(Completion<B>)) -> Result<Change, FrontError> {
        if !self.let_go(lost) {
            return Ok(Change::None);
        }
        // Out of its place first: ending a port and freeing pages is slow, and nothing for under a lock.
        drop(self.queue.with(Option::take));
        self.disk = None;
        if self.device.state() != State::Closed {
            // The toolstack removes directories, and ours need not be ours to make again. Nothing depends on it any more.
            let _ = self.device.leave(State::Closed);
        }
        Ok(Change::Closed)
    }
}

/// Tells whether there are requests that the other end has not answered.
fn is_busy<D: Domain, B: Buffer>(queue: &Option<Queue<D, B>>) -> bool {
    queue.as_ref().is_some_and(|queue| queue.unanswered() > 0)
}
